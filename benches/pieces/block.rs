//! One decoder block (norms, rotation, attention, SwiGLU and their products), forward and backward, in tokens/s.

use crate::fixtures::{KINDS, PAIRS, Pairs, architecture, random, segment};
use criterion::{BatchSize, Criterion, Throughput};
use haf_dist::data::batch::Packing;
use haf_dist::model::attention::AttentionPlan;
use haf_dist::model::decoder::{Block, Context, Part};
use haf_dist::model::rope::{Rotation, frequencies};
use tch::Device;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block");
    let batch = Pairs::new(PAIRS).pack(Packing::Shared);
    let (tokens, shape) = (batch.token_count(), architecture(1));
    let frequencies = frequencies(&shape.rope, shape.head_width);
    group.throughput(Throughput::Elements(tokens as u64));
    for (kind, name) in KINDS {
        let segment = segment(Part::Block(0), &shape, kind);
        let block = Block::new(&shape, &segment);
        let context = Context {
            attention: AttentionPlan::new(&batch.groups, kind, Device::Cpu),
            rotation: Rotation::new(&batch.positions, &frequencies, kind, Device::Cpu),
        };
        let input = random(&[tokens as i64, shape.width as i64], kind);
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| block.forward(input.shallow_clone(), &context));
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter_batched(
                || block.forward(input.shallow_clone(), &context),
                |(output, state)| block.backward(&output, state, &context),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}
