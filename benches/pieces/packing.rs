//! Pairs to one row of tokens: `PackedBatch::new`, in pairs/s.

use crate::fixtures::Pairs;
use criterion::{Criterion, Throughput};
use haf_dist::data::batch::Packing;

/// Pairs of a global batch.
const PAIRS: usize = 16;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packing");
    group.throughput(Throughput::Elements(PAIRS as u64));
    let pairs = Pairs::new(PAIRS);
    for (packing, name) in [(Packing::Shared, "shared"), (Packing::Separate, "separate")] {
        group.bench_function(name, |bencher| bencher.iter(|| pairs.pack(packing)));
    }
    group.finish();
}
