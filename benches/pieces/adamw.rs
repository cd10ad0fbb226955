//! The update of 10.6 million parameters and the norm of their gradients, in parameters/s.

use crate::fixtures::{KINDS, architecture, segment};
use criterion::{Criterion, Throughput};
use haf_dist::config::TrainConfig;
use haf_dist::engine::Buckets;
use haf_dist::model::decoder::Part;
use haf_dist::model::weights::Model;
use haf_dist::ops::Verdict;
use haf_dist::update::optim::{AdamW, Update, gradient_squares};
use tch::{Device, Kind, Tensor};

fn model(kind: Kind) -> Model {
    let architecture = architecture(3);
    let parts: Vec<Part> = (0..architecture.blocks.len()).map(Part::Block).collect();
    let segments: Vec<_> = parts.iter().map(|&part| segment(part, &architecture, kind)).collect();
    Model {
        architecture,
        parts,
        segments,
        kind,
        device: Device::Cpu,
        had_reward_head: false,
        reward_bias: 0.0,
        lora: None,
        shares_read: None,
    }
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("adamw");
    let verdict = Verdict { scales: Tensor::from_slice(&[0.06f32, 3.7, 18.3]), made: Tensor::from_slice(&[true]) };
    let update = Update { learning_rate: 1e-5, head_learning_rate: 1e-5, verdict };
    for (kind, name) in KINDS {
        let mut model = model(kind);
        let optimizer = AdamW::new(&TrainConfig::default(), &mut model).unwrap();
        let gradients = Buckets::of(&model).unwrap();
        for (segment, bucket) in gradients.iter() {
            bucket.flat().shallow_clone().copy_(&model.segments[segment].weights.flat);
        }
        group.throughput(Throughput::Elements(model.parameter_count() as u64));
        group.bench_function(format!("step/{name}"), |bencher| {
            bencher.iter(|| optimizer.step(&mut model, &gradients, &update, |_, _| ()).expect("buffers of this crate"));
        });
        // Gradient sums are f32 in both kinds.
        if kind == Kind::Float {
            group.bench_function("norm", |bencher| {
                bencher.iter(|| gradient_squares(&model, &gradients).expect("buffers of this crate"));
            });
        }
    }
    group.finish();
}
