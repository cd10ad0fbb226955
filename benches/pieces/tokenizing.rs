//! SocialIQA pairs to tokens with SmolLM2's tokenizer and chat template, on one thread, in pairs/s.
//!
//! Skipped, and said so, where launch/setup.sh has not laid out model and data.

use criterion::{Criterion, Throughput};
use haf_dist::config::{Source, TemplateKind, Truncation};
use haf_dist::data::Pair;
use haf_dist::data::formats;
use haf_dist::data::tokenize::{Encoder, Rules};
use haf_dist::error::Result;
use std::hint::black_box;
use std::path::Path;

/// Pairs a measurement.
const PAIRS: usize = 256;

fn open() -> Result<(Encoder, Vec<Pair>)> {
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps");
    let model = deps.join("SmolLM2-135M-Instruct");
    let encoder = Encoder::open(&model, Rules::new(TemplateKind::Chat, 512, 128, Truncation::Cut), 49_152)?;
    let mut pairs = formats::read_for_scoring(&Source::new(deps.join("socialiqa/test.jsonl")))?.pairs;
    pairs.truncate(PAIRS);
    Ok((encoder, pairs))
}

pub fn bench(criterion: &mut Criterion) {
    let (encoder, pairs) = match open() {
        Ok(opened) => opened,
        Err(error) => return println!("tokenizing: skipped, run launch/setup.sh to have it: {error}"),
    };
    let mut group = criterion.benchmark_group("tokenizing");
    group.throughput(Throughput::Elements(pairs.len() as u64));
    group.bench_function("pairs", |bencher| {
        bencher.iter(|| {
            for pair in &pairs {
                black_box(encoder.encode(pair).expect("a pair that the template takes"));
            }
        });
    });
    group.finish();
}
