//! Attention over a packed micro-batch, forward and backward, in tokens/s of one block.
//!
//! Not here: the projections and the rotation around it (`block.rs`).

use crate::fixtures::{KINDS, PAIRS, Pairs, architecture, random};
use criterion::{Criterion, Throughput};
use haf_dist::data::batch::Packing;
use haf_dist::ops;
use haf_dist::packing::AttentionRules;
use tch::Device;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    let batch = Pairs::new(PAIRS).pack(Packing::Shared);
    let (tokens, shape) = (batch.token_count(), architecture(1));
    let heads = shape.blocks[0].heads;
    let size = |count: usize| [tokens as i64, count as i64, heads.width as i64];
    group.throughput(Throughput::Elements(tokens as u64));
    for (kind, name) in KINDS {
        let ops = ops::of(Device::Cpu);
        let plan = ops.plan_attention(&batch.groups, heads, AttentionRules::plain(heads.width), (kind, Device::Cpu));
        let rows = random(&size(heads.query + 2 * heads.key), kind);
        let gradient = random(&size(heads.query), kind);
        let (output, rows_gradient) = (gradient.empty_like(), rows.empty_like());
        let forward = || ops.attention(&plan, &rows, &output).expect("buffers of this crate");
        let log_sums = forward();
        group.bench_function(format!("forward/{name}"), |bencher| bencher.iter(forward));
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| ops.attention_backward(&plan, &gradient, &rows, &output, &log_sums, &rows_gradient));
        });
    }
    group.finish();
}
