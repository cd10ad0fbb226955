//! Both heads with their losses and gradients over the whole vocabulary: `Heads::forward_backward`, in pairs/s.

use crate::fixtures::{KINDS, PAIRS, Pairs, architecture, random, segment};
use criterion::{Criterion, Throughput};
use haf_dist::config::LossConfig;
use haf_dist::data::batch::Packing;
use haf_dist::engine::head::{HeadBuckets, Heads, Objective};
use haf_dist::model::decoder::Part;
use haf_dist::ops::Scratch;
use tch::Kind;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head");
    let (batch, shape) = (Pairs::new(PAIRS).pack(Packing::Shared), architecture(1));
    let config = LossConfig::default();
    group.throughput(Throughput::Elements(PAIRS as u64));
    for (kind, name) in KINDS {
        let reward = segment(Part::RewardHead, &shape, Kind::Float);
        let vocabulary = segment(Part::Embedding, &shape, kind);
        let mut buckets = HeadBuckets { reward: reward.bucket(), vocabulary: vocabulary.bucket() };
        let [mut logits, mut scratch] = [(); 2].map(|()| Scratch::default());
        let (vocabulary, soft_cap) = (Some(&vocabulary.weights), None);
        let (reward, logits, scratch) = (&reward.weights, &mut logits, &mut scratch);
        let mut heads = Heads { reward, vocabulary, logit_scale: None, soft_cap, most_rows: 0, logits, scratch };
        let hidden = random(&[batch.token_count() as i64, shape.width as i64], kind);
        for (log_probs, objective) in [(true, "hybrid"), (false, "reward")] {
            let objective_of_step = Objective { config: &config, reward_weight: 1.0, alpha: config.alpha, log_probs };
            group.bench_function(format!("{objective}/{name}"), |bencher| {
                bencher.iter(|| {
                    heads
                        .forward_backward(&hidden, &batch.pairs, &objective_of_step, &mut buckets)
                        .expect("a model with heads")
                });
            });
        }
    }
    group.finish();
}
