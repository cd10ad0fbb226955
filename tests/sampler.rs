//! The sampler's promises: exact counts, one order for any number of ranks, balanced ranks, whole micro-batches.

use haf_dist::data::sampler::{Sampler, deal, micro_batches};
use haf_dist::error::Kind;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Consecutive ranges of these lengths.
fn ranges(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |&length: &usize| {
        end += length;
        end - length..end
    };
    lengths.iter().map(next).collect()
}

/// All pairs of an epoch, in the order of its steps.
fn epoch(sampler: &mut Sampler, epoch: usize) -> Vec<usize> {
    let steps = sampler.steps_per_epoch();
    (epoch * steps..(epoch + 1) * steps).flat_map(|step| sampler.global_batch(step)).collect()
}

/// How often each pair occurs.
fn counts(pairs: &[usize]) -> BTreeMap<usize, usize> {
    pairs.iter().fold(BTreeMap::new(), |mut counts, &pair| {
        *counts.entry(pair).or_default() += 1;
        counts
    })
}

proptest! {
    #[test]
    fn with_weight_one_every_pair_is_drawn_exactly_once_an_epoch(
        lengths in prop::collection::vec(1usize..40, 1..4),
        pairs_per_step in 1usize..20, shuffle: bool, seed: u64, which in 0usize..3,
    ) {
        let total: usize = lengths.iter().sum();
        let weights = vec![1.0; lengths.len()];
        let mut sampler = Sampler::new(&ranges(&lengths), &weights, pairs_per_step, shuffle, seed).unwrap();
        let mut drawn = epoch(&mut sampler, which);
        if !shuffle {
            prop_assert!(drawn.is_sorted(), "without shuffling the sources come in their order");
        }
        drawn.sort_unstable();
        prop_assert_eq!(drawn, (0..total).collect::<Vec<_>>());
    }

    #[test]
    fn a_weight_takes_whole_passes_and_then_a_part_of_a_pass(
        sources in prop::collection::vec((1usize..40, 0.5f64..3.5), 1..4), shuffle: bool, seed: u64,
    ) {
        let (lengths, weights): (Vec<_>, Vec<_>) = sources.iter().copied().unzip();
        let ranges = ranges(&lengths);
        let mut sampler = Sampler::new(&ranges, &weights, 7, shuffle, seed).unwrap();
        let drawn = epoch(&mut sampler, 0);
        prop_assert_eq!(drawn.len(), sampler.pairs_per_epoch());
        let counts = counts(&drawn);
        for (range, weight) in ranges.iter().zip(&weights) {
            let of_source: Vec<usize> = range.clone().map(|pair| counts.get(&pair).copied().unwrap_or(0)).collect();
            let taken = (weight * range.len() as f64).round() as usize;
            prop_assert_eq!(of_source.iter().sum::<usize>(), taken);
            let passes = taken / range.len();
            prop_assert!(of_source.iter().all(|&count| count == passes || count == passes + 1));
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone(
        length in 1usize..60, pairs_per_step in 1usize..9, seed: u64, steps in prop::collection::vec(0usize..40, 1..20),
    ) {
        let new = || Sampler::new(&ranges(&[length]), &[1.5], pairs_per_step, true, seed).unwrap();
        let mut asked_in_any_order = new();
        for step in steps {
            prop_assert_eq!(asked_in_any_order.global_batch(step), new().global_batch(step));
        }
    }

    #[test]
    fn any_number_of_ranks_shares_out_the_same_global_batch(
        tokens in prop::collection::vec(2usize..500, 0..40), world_size in 1usize..9,
    ) {
        let hands = deal(&tokens, world_size);
        prop_assert_eq!(hands.len(), world_size);
        prop_assert!(hands.iter().all(|hand| hand.is_sorted()), "a rank's pairs keep the batch's order");
        let mut all: Vec<usize> = hands.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_ranks_token_counts_differ_by_at_most_the_longest_pair(
        tokens in prop::collection::vec(2usize..500, 1..40), world_size in 1usize..9,
    ) {
        let loads: Vec<usize> =
            deal(&tokens, world_size).iter().map(|hand| hand.iter().map(|&pair| tokens[pair]).sum()).collect();
        let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
        prop_assert!(most - least <= *tokens.iter().max().unwrap(), "{loads:?}");
    }

    #[test]
    fn micro_batches_keep_order_and_budget_and_are_never_empty(
        tokens in prop::collection::vec(1usize..100, 0..40), budget in 0usize..200,
    ) {
        let cuts = micro_batches(&tokens, budget);
        prop_assert_eq!(cuts.iter().cloned().flatten().collect::<Vec<_>>(), (0..tokens.len()).collect::<Vec<_>>());
        for cut in &cuts {
            prop_assert!(!cut.is_empty());
            let sum: usize = tokens[cut.clone()].iter().sum();
            prop_assert!(sum <= budget || cut.len() == 1, "{sum} tokens in {cut:?}");
        }
        for neighbours in cuts.windows(2) {
            let both: usize = tokens[neighbours[0].start..=neighbours[1].start].iter().sum();
            prop_assert!(both > budget, "a cut that was not needed, at {}", neighbours[1].start);
        }
    }
}

#[test]
fn epochs_and_seeds_differ_in_order_and_subset() {
    let new = |seed| Sampler::new(&ranges(&[100]), &[0.5], 8, true, seed).unwrap();
    let (first, second) = (epoch(&mut new(1), 0), epoch(&mut new(1), 1));
    assert_ne!(counts(&first), counts(&second), "the same half in both epochs");
    assert_ne!(first, epoch(&mut new(2), 0));

    let whole = |number| epoch(&mut Sampler::new(&ranges(&[100]), &[1.0], 8, true, 1).unwrap(), number);
    assert_ne!(whole(0), whole(1), "the same order in both epochs");
}

/// A new version of `rand` that shuffles otherwise would break resumed runs: it shall not go unnoticed.
#[test]
fn the_order_is_the_one_of_earlier_versions() {
    let mut sampler = Sampler::new(&[0..6, 6..10], &[1.0, 1.5], 16, true, 7).unwrap();
    assert_eq!(sampler.global_batch(0), [7, 2, 9, 0, 6, 1, 5, 3, 9, 7, 4, 8]);
}

#[test]
fn the_short_last_batch_is_a_step_and_the_next_epoch_starts_after_it() {
    let mut sampler = Sampler::new(&ranges(&[10]), &[1.0], 4, false, 0).unwrap();
    assert_eq!((sampler.pairs_per_epoch(), sampler.steps_per_epoch()), (10, 3));
    assert_eq!(sampler.global_batch(2), [8, 9]);
    assert_eq!(sampler.global_batch(3), [0, 1, 2, 3]);
    assert_eq!([0, 2, 3, 6].map(|step| sampler.epoch_of(step)), [0, 0, 1, 2]);
}

#[test]
fn a_short_batch_may_leave_ranks_without_pairs() {
    assert_eq!(deal(&[5, 9], 4), [vec![1], vec![0], vec![], vec![]]);
}

#[test]
fn weights_that_make_no_sense_are_input_errors() {
    for weight in [-1.0, f64::NAN, f64::INFINITY, 0.0, 0.04, 1e300] {
        let error = Sampler::new(&[0..5, 5..15], &[1.0, weight], 4, true, 0).unwrap_err();
        assert_eq!(error.kind, Kind::Input);
        assert!(error.message.contains("data.train[1].weight"), "{error}");
    }
    assert!(Sampler::new(&[0..5, 5..15], &[1.0, 0.06], 4, true, 0).is_ok());
    assert_eq!(Sampler::new(&ranges(&[5]), &[1.0], 0, true, 0).unwrap_err().kind, Kind::Input);
    assert_eq!(Sampler::new(&[], &[], 4, true, 0).unwrap_err().kind, Kind::Input);
}
