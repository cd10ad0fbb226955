//! One decoder block (norms, rotation, attention, SwiGLU and their products), forward and backward, in tokens/s.

use crate::fixtures::{KINDS, PAIRS, Pairs, architecture, random, segment};
use criterion::{Criterion, Throughput};
use haf_dist::data::batch::Packing;
use haf_dist::model::decoder::{Block, BlockSums, Context, Part};
use haf_dist::model::workspace::{Keep, Slot, Views, Workspace};
use tch::Device;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block");
    let batch = Pairs::new(PAIRS).pack(Packing::Shared);
    let (tokens, shape) = (batch.token_count(), architecture(1));
    group.throughput(Throughput::Elements(tokens as u64));
    for (kind, name) in KINDS {
        let segment = segment(Part::Block(0), &shape, kind);
        let mut bucket = segment.bucket();
        let block = Block::new(&shape, 0, &segment.weights);
        let context = Context::new(
            haf_dist::ops::of(Device::Cpu),
            &shape,
            (&batch.groups, &batch.positions),
            (kind, Device::Cpu),
        )
        .unwrap();
        let mut workspace = Workspace::default();
        let Views { mut states, output, shared } =
            workspace.views(&shape, tokens as i64, Keep::Everything, (kind, Device::Cpu));
        let state = &mut states[0];
        for buffer in [&state.buffers[Slot::Input], &shared[Slot::Gradient]] {
            buffer.shallow_clone().copy_(&random(&[tokens as i64, shape.width as i64], kind));
        }
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| block.forward(state, &output, &context));
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| {
                let sums = BlockSums { base: bucket.as_mut(), adapter: None };
                block.backward(state, sums, &mut workspace.scratch, &context)
            });
        });
    }
    group.finish();
}
