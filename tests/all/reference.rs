//! Promise: reference log-probs belong to the pairs they are kept for, whatever part of the data a run sees.
//!
//! Subsets, several ranks, the partial cache, and step 1 of a run shorter than an epoch.

#[allow(dead_code)]
use crate::steps;
use haf_dist::comm::{CommThread, solo::Solo, threads};
use haf_dist::data::reference_cache::ReferenceCache;
use haf_dist::data::sampler::Sampler;
use haf_dist::evaluate::reference;
use haf_dist::evaluate::scoring::{ToScore, score_pairs};
use haf_dist::train::{Split, Trainer};
use steps::{PAIRS, config, engine, pairs};

fn solo() -> CommThread {
    CommThread::start(|| Ok(Box::new(Solo))).unwrap()
}

#[test]
fn scores_of_some_pairs_are_those_pairs_scores() {
    let (mut engine, data, comm) = (engine(&config("llama-tied", &[])), pairs(97), solo());
    let all: Vec<usize> = (0..PAIRS).collect();
    let whole = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: 100, log_probs: true };
    let every = score_pairs(&mut engine, whole, &comm, "test").unwrap();
    let some = [7, 2, 11, 22];
    let part = ToScore { data: &data, pairs: &some, tokens_per_micro_batch: 60, log_probs: true };
    for scores in score_pairs(&mut engine, part, &comm, "test").unwrap() {
        let expected = every[scores.index];
        assert_eq!(scores.tokens, expected.tokens);
        assert!((scores.log_probs[0] - expected.log_probs[0]).abs() < 1e-4, "pair {}", scores.index);
    }
    // Control: the pairs do differ.
    assert!((every[7].log_probs[0] - every[0].log_probs[0]).abs() > 1e-2);
}

#[test]
fn three_ranks_give_every_pair_its_own_reference() {
    let expected = {
        let all: Vec<usize> = (0..PAIRS).collect();
        reference::log_probs(&mut engine(&config("llama-tied", &[])), (&pairs(97), &all), &solo(), None, 50, "test")
            .unwrap()
    };
    let needed = [3, 20, 1, 9];
    std::thread::scope(|scope| {
        for seat in threads::world(3) {
            let expected = &expected;
            scope.spawn(move || {
                let comm = CommThread::start(move || Ok(seat.communicator())).unwrap();
                let mut engine = engine(&config("llama-tied", &[]));
                let found = reference::log_probs(&mut engine, (&pairs(97), &needed), &comm, None, 50, "test").unwrap();
                for (pair, (found, expected)) in found.iter().zip(expected).enumerate() {
                    if needed.contains(&pair) {
                        assert!((found[0] - expected[0]).abs() < 1e-4 && (found[1] - expected[1]).abs() < 1e-4);
                    } else {
                        assert!(found[0].is_nan() && found[1].is_nan(), "pair {pair} was not asked for");
                    }
                }
            });
        }
    });
}

#[test]
fn a_partial_cache_is_completed_by_the_run_that_needs_more() {
    let folder = tempfile::tempdir().unwrap();
    let cache = ReferenceCache::new(folder.path(), 1, 2, "f32");
    let (mut engine, data, comm) = (engine(&config("llama-tied", &[])), pairs(97), solo());
    let mut run =
        |needed: &[usize]| reference::log_probs(&mut engine, (&data, needed), &comm, Some(&cache), 50, "test").unwrap();
    let first = run(&[4, 5]);
    assert!(first[6][0].is_nan());
    let second = run(&[5, 6]);
    assert_eq!(second[4], first[4], "kept from the first run");
    assert!(second[6][0].is_finite() && second[7][0].is_nan());
    let kept = cache.load(PAIRS).unwrap();
    assert_eq!([kept[4], kept[6]], [second[4], second[6]]);
}

#[test]
fn a_stopped_pass_resumes_to_the_same_bits() {
    // So small that the pass has several parts.
    const BUDGET: usize = 5;
    let (mut engine, data, comm) = (engine(&config("llama-tied", &[])), pairs(97), solo());
    let all: Vec<usize> = (0..PAIRS).collect();
    let mut pass = |cache: Option<&ReferenceCache>| {
        let values = reference::log_probs(&mut engine, (&data, &all), &comm, cache, BUDGET, "test").unwrap();
        values.into_iter().map(|sums| sums.map(f32::to_bits)).collect::<Vec<_>>()
    };
    let whole = pass(None);
    // What a pass that was stopped after its first part has stored: 16 micro-batches' tokens.
    let sums = all.iter().scan(0, |sum, &pair| Some(std::mem::replace(sum, *sum + data.tokens(pair))));
    let first = sums.take_while(|&before| before < 16 * BUDGET).count();
    assert!(first > 1 && first < PAIRS / 2, "the first part has {first} of {PAIRS} pairs");
    let folder = tempfile::tempdir().unwrap();
    let cache = ReferenceCache::new(folder.path(), 1, 2, "f32");
    let stored = |pair: usize| if pair < first { whole[pair].map(f32::from_bits) } else { [f32::NAN; 2] };
    cache.store(&all.iter().map(|&pair| stored(pair)).collect::<Vec<_>>()).unwrap();
    assert!(pass(Some(&cache)) == whole, "the rest was packed otherwise");
    let kept = cache.load(PAIRS).unwrap().into_iter().map(|sums| sums.map(f32::to_bits));
    assert!(kept.eq(whole.iter().copied()), "all of it is stored");
}

#[test]
fn the_policy_loss_of_step_1_is_ln_2_in_a_run_shorter_than_an_epoch() {
    let config = config("llama-tied", &["train.steps=1"]);
    let (mut engine, data, comm) = (engine(&config), pairs(97), solo());
    let mut sampler = Sampler::new(data.source_ranges(), &[1.0], config.train.pairs_per_step, true, 3).unwrap();
    let needed = sampler.pairs_of_run(1);
    assert!(needed.len() < PAIRS);
    let references = reference::log_probs(&mut engine, (&data, &needed), &comm, None, 50, "train").unwrap();
    let split = Split { name: "train", data, references };
    let buckets = haf_dist::engine::Buckets::of(&engine.model).unwrap();
    let mut trainer = Trainer::new(&config, &comm, (engine, buckets), sampler, split, None, 1).unwrap();
    let loss = trainer.step(1).unwrap().0.policy_loss.unwrap();
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{loss}");
}
