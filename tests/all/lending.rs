//! Promise: a pass touches weights and buckets only while they are lent, gives back all that it borrows, and needs few of
//! them at a time. Tested with a source and a sink that count, delay, and fill everything that is not lent with NaN.

use crate::steps;
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::engine::head::Objective;
use haf_dist::engine::{Buckets, Engine, GradientSink, WeightSource};
use haf_dist::error::{Error, Result};
use haf_dist::model::segment::{Bucket, Segment, Weights};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// How late what is lent arrives.
const DELAY: Duration = Duration::from_millis(1);

/// How often each segment was lent, which are out, and how many were at most.
#[derive(Default)]
struct Counts {
    lent: BTreeMap<usize, usize>,
    out: BTreeSet<usize>,
    most: usize,
}

impl Counts {
    fn lend(&mut self, segment: usize) -> Result<()> {
        if !self.out.insert(segment) {
            return Err(Error::runtime(format!("segment {segment} is lent already")));
        }
        *self.lent.entry(segment).or_default() += 1;
        self.most = self.most.max(self.out.len());
        std::thread::sleep(DELAY);
        Ok(())
    }

    fn give_back(&mut self, segment: usize) -> Result<()> {
        match self.out.remove(&segment) {
            true => Ok(()),
            false => Err(Error::runtime(format!("segment {segment} was not lent"))),
        }
    }
}

/// Copies of weights for as long as they are lent.
struct Late<'a> {
    segments: &'a [Segment],
    counts: Counts,
    /// Whether what comes back is poisoned: false in the control.
    poisons: bool,
}

impl WeightSource for Late<'_> {
    fn lend(&mut self, segment: usize) -> Result<Weights> {
        self.counts.lend(segment)?;
        let Weights { parameters, flat, .. } = &self.segments[segment].weights;
        Ok(Weights::over(parameters.clone(), flat.copy()))
    }

    fn give_back(&mut self, segment: usize, weights: Weights) -> Result<()> {
        self.counts.give_back(segment)?;
        if self.poisons {
            let _ = weights.flat.shallow_clone().fill_(f64::NAN);
        }
        Ok(())
    }
}

/// Real sums that are kept apart, and come into the bucket for as long as it is lent.
struct Pooled {
    sums: BTreeMap<usize, Tensor>,
    buckets: Buckets,
    counts: Counts,
    /// Segments in the order in which they were complete.
    completed: Vec<usize>,
}

impl Pooled {
    fn of(engine: &Engine) -> Self {
        let buckets = Buckets::of(&engine.model).unwrap();
        let sums = buckets.iter().map(|(segment, bucket)| (segment, bucket.flat().copy())).collect();
        buckets.iter().for_each(|(_, bucket)| drop(bucket.flat().shallow_clone().fill_(f64::NAN)));
        Self { sums, buckets, counts: Counts::default(), completed: Vec::new() }
    }
}

impl GradientSink for Pooled {
    fn lend(&mut self, segment: usize) -> Result<Option<Bucket>> {
        let Some(bucket) = self.buckets.lend(segment)? else { return Ok(None) };
        self.counts.lend(segment)?;
        bucket.flat().shallow_clone().copy_(&self.sums[&segment]);
        Ok(Some(bucket))
    }

    fn complete(&mut self, segment: usize, bucket: Bucket) -> Result<()> {
        self.counts.give_back(segment)?;
        self.completed.push(segment);
        self.sums.insert(segment, bucket.flat().copy());
        let _ = bucket.flat().shallow_clone().fill_(f64::NAN);
        self.buckets.complete(segment, bucket)
    }
}

fn batch(engine: &Engine) -> PackedBatch {
    let data = steps::pairs(engine.model.architecture.vocabulary as u32);
    let pair = |index: usize| PairToPack { index, pair: data.pair(index), reference: [-20.0, -25.0] };
    PackedBatch::new((0..7).map(pair), Packing::Shared, Device::Cpu)
}

fn lines(case: &str) -> Vec<&'static str> {
    match case {
        "phi3" => vec!["lora.rank=3", "lora.alpha=6.0", "lora.targets=['o_proj', 'down_proj']"],
        "gemma2" => vec!["train.activation_checkpointing=true"],
        _ => Vec::new(),
    }
}

#[test]
fn a_pass_computes_the_same_with_weights_and_buckets_that_are_there_only_while_lent() {
    for case in ["llama-tied", "llama-untied", "phi", "gemma2", "phi3", "qwen3"] {
        let config = steps::config(case, &lines(case));
        let mut engine = steps::engine(&config);
        let batch = batch(&engine);
        let objective = Objective { config: &config.loss, reward_weight: 1.0, alpha: 0.2, log_probs: true };
        let mut expected = Buckets::of(&engine.model).unwrap();
        let losses = engine.forward_backward(&batch, &objective, &mut expected).unwrap().read().unwrap();
        let scores = engine.score(&batch, true).unwrap();

        let held = steps::engine(&config);
        let mut source = Late { segments: &held.model.segments, counts: Counts::default(), poisons: true };
        // The engine's own weights are no help to it.
        for segment in &engine.model.segments {
            let _ = segment.weights.flat.shallow_clone().fill_(f64::NAN);
        }
        let mut sink = Pooled::of(&engine);
        // Twice, as the micro-batches of one step: the sums go on.
        for _ in 0..2 {
            let found = engine.forward_backward_with(&mut source, &batch, &objective, &mut sink).unwrap();
            assert_eq!(found.read().unwrap(), losses, "{case}");
        }
        for (segment, bucket) in expected.iter() {
            let double = bucket.flat() * 2.0;
            let distance = (&sink.sums[&segment] - &double).norm().double_value(&[]);
            let size = double.norm().double_value(&[]);
            assert!(distance <= 1e-5 * size, "{case}, bucket {segment}: {distance:.1e} of {size:.1e}");
        }
        assert_eq!(engine.score_with(&mut source, &batch, true).unwrap(), scores, "{case}");

        assert!(source.counts.out.is_empty() && sink.counts.out.is_empty(), "{case}: something was not given back");
        // A block with its adapters, or both heads; of buckets also the tied embedding's, from the heads on.
        assert_eq!(source.counts.most, 2, "{case}");
        assert!(sink.counts.most <= 3, "{case}: {} buckets at a time", sink.counts.most);
        let trained: Vec<usize> = sink.sums.keys().copied().collect();
        assert!(sink.counts.lent.iter().all(|(_, times)| *times == 2), "{case}: {:?}", sink.counts.lent);
        assert_eq!(sink.counts.lent.keys().copied().collect::<Vec<_>>(), trained, "{case}");
        let order = engine.order.completions.iter().copied().filter(|segment| trained.contains(segment));
        assert_eq!(sink.completed[..trained.len()], order.collect::<Vec<_>>(), "{case}");
    }
}

#[test]
fn a_bucket_that_is_out_is_lent_to_nobody_else() {
    let config = steps::config("llama-tied", &[]);
    let mut engine = steps::engine(&config);
    let mut buckets = Buckets::of(&engine.model).unwrap();
    let taken = buckets.lend(1).unwrap();
    let objective = Objective { config: &config.loss, reward_weight: 1.0, alpha: 0.2, log_probs: true };
    let (batch, error) = (batch(&engine), "bucket 1 is lent");
    let refused = engine.forward_backward(&batch, &objective, &mut buckets).err().unwrap();
    assert!(refused.to_string().contains(error), "{refused}");
    drop(taken);
}

#[test]
fn a_bucket_that_was_not_lent_is_not_taken_back() {
    let config = steps::config("phi3", &lines("phi3"));
    let engine = steps::engine(&config);
    let mut buckets = Buckets::of(&engine.model).unwrap();
    let adapter = engine.order.blocks[0].adapter.unwrap();
    let bucket = buckets.lend(adapter).unwrap().unwrap();
    // The base is frozen.
    assert!(buckets.lend(1).unwrap().is_none());
    let other = engine.model.segments[adapter].bucket().unwrap();
    assert!(buckets.complete(1, other).is_err());
    buckets.complete(adapter, bucket).unwrap();
    let twice = engine.model.segments[adapter].bucket().unwrap();
    assert!(buckets.complete(adapter, twice).is_err());
}

#[test]
fn control_weights_that_are_read_after_they_were_given_back_are_noticed() {
    let config = steps::config("llama-tied", &[]);
    let engine = steps::engine(&config);
    let segments = &engine.model.segments;
    for poisons in [false, true] {
        let mut source = Late { segments, counts: Counts::default(), poisons };
        let weights = source.lend(1).unwrap();
        let kept = weights.view(0).shallow_clone();
        assert!(source.lend(1).is_err(), "lent twice");
        source.give_back(1, weights).unwrap();
        assert!(source.give_back(1, segments[1].weights.share()).is_err(), "given back twice");
        assert_eq!(kept.sum(Kind::Double).double_value(&[]).is_nan(), poisons);
    }
}
