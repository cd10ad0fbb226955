//! The sampler's promises: exact counts, one order for any number of ranks, balanced ranks, whole micro-batches.

use crate::property;
use haf_dist::data::sampler::{Sampler, deal, micro_batches, share_out};
use haf_dist::error::Kind;
use property::cases;
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
    #![proptest_config(cases(256))]

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
    fn micro_batches_hold_every_pair_once_within_the_budget(
        tokens in prop::collection::vec(1usize..100, 0..40), budget in 0usize..200,
    ) {
        let bins = micro_batches(&tokens, budget);
        let mut all = bins.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
        for bin in &bins {
            prop_assert!(!bin.is_empty() && bin.is_sorted());
            let sum = load(&tokens, bin);
            prop_assert!(sum <= budget || bin.len() == 1, "{sum} tokens in {bin:?}");
        }
    }

    #[test]
    fn micro_batches_are_near_equal_and_few(
        tokens in prop::collection::vec(1usize..100, 1..40), budget in 100usize..400,
    ) {
        let bins = micro_batches(&tokens, budget);
        let loads: Vec<usize> = bins.iter().map(|bin| load(&tokens, bin)).collect();
        let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
        prop_assert!(most - least <= *tokens.iter().max().unwrap(), "{loads:?}");
        let fewest = tokens.iter().sum::<usize>().div_ceil(budget);
        // Bins that do not fit are more than half full: no pair is longer than half of what they would need.
        prop_assert!(bins.len() <= 2 * fewest, "{} for at least {fewest}", bins.len());
    }

    #[test]
    fn ranks_with_pairs_enough_share_out_equally_many_micro_batches(
        tokens in prop::collection::vec(1usize..300, 0..60), world_size in 1usize..9, budget in 1usize..500,
    ) {
        let shares = share_out(&tokens, world_size, budget);
        prop_assert_eq!(shares.len(), world_size);
        let hands = deal(&tokens, world_size);
        let most = shares.iter().map(Vec::len).max().unwrap();
        for (share, hand) in shares.iter().zip(&hands) {
            let mut all = share.concat();
            all.sort_unstable();
            prop_assert_eq!(&all, hand);
            prop_assert!(share.iter().all(|bin| bin.len() == 1 || load(&tokens, bin) <= budget));
            prop_assert!(share.len() >= most.min(hand.len()).saturating_sub(1), "{} of {most}", share.len());
        }
        prop_assert_eq!(shares, share_out(&tokens, world_size, budget));
    }
}

fn load(tokens: &[usize], bin: &[usize]) -> usize {
    bin.iter().map(|&position| tokens[position]).sum()
}

/// Log-normal lengths with the median and the 99th percentile of HH's harmless pairs (205 and 947 tokens).
fn lengths_like_hh(count: usize, seed: u64) -> Vec<usize> {
    use rand::{RngExt, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let sigma = (947f64 / 205.0).ln() / 2.326;
    let mut normal = || {
        let (radius, angle) = (random.random::<f64>(), random.random::<f64>());
        (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    };
    (0..count).map(|_| (205.0 * (sigma * normal()).exp()).round().clamp(8.0, 2023.0) as usize).collect()
}

/// What was done before: the longest pair first to the emptiest rank, then cuts in order.
fn dealt_and_cut_in_order(tokens: &[usize], world_size: usize, budget: usize) -> Vec<Vec<Vec<usize>>> {
    let mut longest_first: Vec<usize> = (0..tokens.len()).collect();
    longest_first.sort_by_key(|&position| std::cmp::Reverse(tokens[position]));
    let mut hands: Vec<Vec<usize>> = vec![Vec::new(); world_size];
    for position in longest_first {
        let emptiest = hands.iter_mut().min_by_key(|hand| load(tokens, hand)).unwrap();
        emptiest.push(position);
    }
    let cut = |mut hand: Vec<usize>| {
        hand.sort_unstable();
        let mut bins: Vec<Vec<usize>> = Vec::new();
        for position in hand {
            match bins.last_mut() {
                Some(bin) if load(tokens, bin) + tokens[position] <= budget => bin.push(position),
                _ => bins.push(vec![position]),
            }
        }
        bins
    };
    hands.into_iter().map(cut).collect()
}

/// Means over batches: fullest rank over mean rank, fullest micro-batch over emptiest of a rank, and the most
/// micro-batches of a rank.
fn spread(share: impl Fn(&[usize], usize, usize) -> Vec<Vec<Vec<usize>>>, case: (usize, usize, usize)) -> [f64; 3] {
    const BATCHES: u64 = 100;
    let (pairs, world_size, budget) = case;
    let mut means = [0.0; 3];
    for seed in 0..BATCHES {
        let tokens = lengths_like_hh(pairs, seed);
        let shares = share(&tokens, world_size, budget);
        let ranks: Vec<usize> = shares.iter().map(|bins| bins.iter().map(|bin| load(&tokens, bin)).sum()).collect();
        let fullest = *ranks.iter().max().unwrap() as f64;
        let uneven = shares.iter().map(|bins| {
            let small = bins.iter().map(|bin| load(&tokens, bin)).filter(|&sum| sum <= budget);
            small.clone().max().unwrap_or(1) as f64 / small.min().unwrap_or(1) as f64
        });
        let seen = [
            fullest * world_size as f64 / ranks.iter().sum::<usize>() as f64,
            uneven.sum::<f64>() / world_size as f64,
            shares.iter().map(Vec::len).max().unwrap() as f64,
        ];
        means.iter_mut().zip(seen).for_each(|(mean, seen)| *mean += seen / BATCHES as f64);
    }
    means
}

#[test]
fn on_lengths_like_hh_ranks_and_micro_batches_are_evener_than_greedy_ones_and_no_more() {
    // Pairs a step, ranks, tokens a micro-batch.
    for case in [(16, 1, 4096), (16, 2, 1024), (64, 4, 2048), (64, 8, 1024), (512, 64, 2048)] {
        let (before, now) = (spread(dealt_and_cut_in_order, case), spread(share_out, case));
        println!("{case:?}: {before:.3?} before, {now:.3?} now");
        assert!(now[0] <= before[0] + 1e-12 && now[0] < 1.1, "ranks of {case:?}: {now:?}, before {before:?}");
        assert!(now[1] < before[1], "micro-batches of {case:?}: {now:?}, before {before:?}");
        assert!(now[2] <= before[2], "count of {case:?}: {now:?}, before {before:?}");
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
