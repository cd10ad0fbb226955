//! Attention over a packed micro-batch, forward and backward, in tokens/s of one block.
//!
//! Not here: the projections and the rotation around it (`block.rs`).

use crate::fixtures::{KINDS, PAIRS, Pairs, architecture, random};
use criterion::{Criterion, Throughput};
use haf_dist::data::batch::Packing;
use haf_dist::model::attention::AttentionPlan;
use tch::Device;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    let batch = Pairs::new(PAIRS).pack(Packing::Shared);
    let (tokens, shape) = (batch.token_count(), architecture(1));
    let rows = |heads: usize| [tokens as i64, heads as i64, shape.head_width as i64];
    group.throughput(Throughput::Elements(tokens as u64));
    for (kind, name) in KINDS {
        let plan = AttentionPlan::new(&batch.groups, kind, Device::Cpu);
        let query = random(&rows(shape.heads), kind);
        let [key, value] = [(); 2].map(|()| random(&rows(shape.kv_heads), kind));
        let gradient = random(&rows(shape.heads), kind);
        let (output, log_sums) = plan.forward(&query, &key, &value);
        group.bench_function(format!("forward/{name}"), |bencher| bencher.iter(|| plan.forward(&query, &key, &value)));
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| plan.backward(&gradient, &query, &key, &value, &output, &log_sums));
        });
    }
    group.finish();
}
