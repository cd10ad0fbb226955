//! Confidence intervals of a mean (a bootstrap over clusters, Wilson's interval where it has no width), an exact test of
//! paired differences, and Holm's adjustment for several tests.
//!
//! Pure functions: the same numbers give the same interval on every machine, in any order and for any number of ranks.
//! Not here: what the values mean.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// The normal distribution's 97.5% quantile: 95% lie between minus and plus this many standard deviations.
const Z_95: f64 = 1.959_963_984_540_054;

/// The normal distribution's 80% quantile.
const Z_80: f64 = 0.841_621_233_572_914_4;

/// Clusters that must differ, on average, so that six or more do in four of five draws (Poisson's distribution): if fewer than six
/// differ, [`sign_flip`] has no p < 0.05, since 2 / 2^5 = 0.0625.
const FEWEST: f64 = 7.906;

/// Bootstrap resamples behind every interval that is reported.
pub(crate) const RESAMPLES: usize = 2000;

/// Seed of those resamples.
pub(crate) const SEED: u64 = 0;

/// A 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// From its ends, if there are both.
    pub(crate) fn between(low: Option<f64>, high: Option<f64>) -> Option<Self> {
        low.zip(high).map(|(low, high)| Self { low, high })
    }

    /// This interval for a proportion, joined with [`wilson`]'s for `n` trials if it is no wider than `smooth`: a bootstrap over
    /// equal outcomes cannot tell how rare another one is. `smooth` is how far the figure varies for other reasons than its
    /// outcomes; a proportion outside 0..=1 counts as the nearer end.
    pub(crate) fn or_wilson(self, proportion: f64, n: usize, smooth: f64) -> Self {
        if self.high - self.low > smooth + 1e-12 * proportion.abs() {
            return self;
        }
        let Self { low, high } = wilson(proportion.clamp(0.0, 1.0), n);
        Self { low: low.min(self.low), high: high.max(self.high) }
    }
}

/// Mean and standard deviation of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Spread {
    /// Their mean.
    pub(crate) mean: f32,
    /// Their sample standard deviation, at least 1e-8: programs divide by it.
    pub(crate) std: f32,
}

impl Spread {
    /// `None` for fewer than two numbers, or one that is not finite.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = (squares / (count - 1.0)).sqrt().max(1e-8);
        let finite = values.len() > 1 && mean.is_finite() && squares.is_finite();
        finite.then_some(Self { mean: mean as f32, std: std as f32 })
    }
}

/// Sum and number of the values of one cluster.
#[derive(Default, Clone, Copy)]
struct Cluster {
    sum: f64,
    count: f64,
}

/// 95% percentile interval of the mean of `values`, from a bootstrap that draws whole clusters with replacement.
///
/// `clusters[i]` names the cluster of `values[i]`. Pairs with the same prompt are not independent, so prompts are drawn. With one
/// value per cluster this is the ordinary bootstrap; identical copies in a cluster add no certainty (Cameron, Gelbach & Miller
/// 2008, "Bootstrap-based improvements for inference with clustered errors").
///
/// If the bootstrap has no width (all values are equal) and the values lie in 0..=1, the result is [`wilson`] with the number of
/// clusters as n, so that 20 right answers out of 20 do not claim certainty. `None` for fewer than two clusters, for no
/// resamples, or for a value that is not finite.
///
/// # Panics
/// If `values` and `clusters` differ in length.
pub fn clustered_bootstrap(values: &[f64], clusters: &[u64], resamples: usize, seed: u64) -> Option<Interval> {
    assert_eq!(values.len(), clusters.len(), "one cluster a value");
    // Sorted by name, so that the order in which ranks deliver the values does not matter.
    let mut by_name: BTreeMap<u64, Cluster> = BTreeMap::new();
    for (&value, &name) in values.iter().zip(clusters) {
        let cluster = by_name.entry(name).or_default();
        cluster.sum += value;
        cluster.count += 1.0;
    }
    let clusters: Vec<Cluster> = by_name.into_values().collect();
    if clusters.len() < 2 || resamples == 0 || values.iter().any(|value| !value.is_finite()) {
        return None;
    }

    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..resamples).map(|_| resampled_mean(&clusters, &mut random)).collect();
    means.sort_by(f64::total_cmp);
    let interval = Interval { low: quantile(&means, 0.025), high: quantile(&means, 0.975) };

    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let proportions = values.iter().all(|value| (0.0..=1.0).contains(value));
    Some(if proportions { interval.or_wilson(mean, clusters.len(), 0.0) } else { interval })
}

/// [`clustered_bootstrap`] for differences of two shares, from -1 to 1. If all values are equal, it is [`wilson`]'s interval for
/// the mean, computed on 0..=1 and scaled back.
///
/// # Panics
/// If `values` and `clusters` differ in length.
pub(crate) fn interval_of_differences(values: &[f64], clusters: &[u64]) -> Option<Interval> {
    let shares: Vec<f64> = values.iter().map(|value| (value + 1.0) / 2.0).collect();
    let interval = clustered_bootstrap(&shares, clusters, RESAMPLES, SEED)?;
    Some(Interval { low: 2.0 * interval.low - 1.0, high: 2.0 * interval.high - 1.0 })
}

/// Mean over as many clusters as there are, each drawn with replacement.
fn resampled_mean(clusters: &[Cluster], random: &mut ChaCha8Rng) -> f64 {
    let mut total = Cluster::default();
    for _ in 0..clusters.len() {
        let drawn = clusters[below(clusters.len(), random)];
        total.sum += drawn.sum;
        total.count += drawn.count;
    }
    total.sum / total.count
}

/// 95% percentile intervals of several statistics, from a bootstrap that draws clusters with replacement within strata.
///
/// Clusters are numbered from 0, stratum by stratum; `strata` has the strata's sizes, which a resample keeps. `statistics` gets
/// the clusters drawn and returns the same number of statistics each time. `None` for a statistic that is not finite in some
/// resample; an empty list for no resamples.
pub(crate) fn stratified_bootstrap(
    strata: &[usize],
    resamples: usize,
    seed: u64,
    statistics: impl Fn(&[usize]) -> Vec<f64>,
) -> Vec<Option<Interval>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut seen: Vec<Vec<f64>> = Vec::new();
    for _ in 0..resamples {
        let mut drawn = Vec::with_capacity(strata.iter().sum());
        let mut first = 0;
        for &size in strata {
            drawn.extend((0..size).map(|_| first + below(size, &mut random)));
            first += size;
        }
        let values = statistics(&drawn);
        seen.resize(values.len(), Vec::new());
        seen.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
    }
    let interval = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let finite = values.iter().all(|value| value.is_finite());
        finite.then(|| Interval { low: quantile(&values, 0.025), high: quantile(&values, 0.975) })
    };
    seen.into_iter().map(interval).collect()
}

/// A random number from 0 to below `count`: the upper half of a product maps 32 random bits; its bias is below count / 2^32.
fn below(count: usize, random: &mut ChaCha8Rng) -> usize {
    ((u64::from(random.next_u32()) * count as u64) >> 32) as usize
}

/// Linear interpolation between the two nearest of the sorted values (Hyndman & Fan's type 7).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// Wilson's 95% score interval of a proportion seen in `n` independent trials, without continuity correction
/// (Wilson 1927, "Probable inference, the law of succession, and statistical inference"). All of 0..=1 for no trial.
pub fn wilson(proportion: f64, n: usize) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let n = n as f64;
    let z2 = Z_95 * Z_95;
    let center = (proportion + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (proportion * (1.0 - proportion) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (center - half).max(0.0), high: (center + half).min(1.0) }
}

/// Two-sided p-value of the paired differences `sums`, one number a cluster: how often a sum at least as far from zero
/// comes out when every cluster's sign is decided by a fair coin.
///
/// This is the randomization test of Fisher (1935) and Pitman (1937), over all 2^n signs at once: the distribution of the
/// sum is computed by convolution, without random numbers. If every difference is -1, 0 or 1 and a cluster is one pair, it
/// is McNemar's exact test. Clusters with sum 0 do not matter; if there are no others, the result is 1. Time grows with the
/// number of clusters times the sum of their absolute values.
pub(crate) fn sign_flip(sums: &[i64]) -> f64 {
    let sizes: Vec<usize> = sums.iter().map(|sum| sum.unsigned_abs() as usize).filter(|&size| size > 0).collect();
    let total: usize = sizes.iter().sum();
    let seen = sums.iter().sum::<i64>().unsigned_abs() as usize;
    // Probability that the clusters so far whose coin shows plus add up to the index; the signed sum is 2 * index - total.
    let mut plus = vec![0.0; total + 1];
    plus[0] = 1.0;
    let mut reached = 0;
    for size in sizes {
        reached += size;
        for index in (0..=reached).rev() {
            let shifted = if index >= size { plus[index - size] } else { 0.0 };
            plus[index] = 0.5 * (plus[index] + shifted);
        }
    }
    let as_far = |index: usize| (2 * index).abs_diff(total) >= seen;
    let p: f64 = plus.iter().enumerate().filter(|(index, _)| as_far(*index)).map(|(_, share)| share).sum();
    p.min(1.0)
}

/// The smallest mean that a sample like `values` would tell from 0 with p < 0.05, two-sided, in four of five draws of its
/// clusters: 2.8 standard errors of the mean (the normal distribution's 97.5% and 80% quantiles added), robust to clusters. It is
/// at least the mean of a sample in which `FEWEST` clusters differ from 0, by as much as those that do here: otherwise a sample
/// in which hardly any cluster differs would seem to detect the smallest difference. `None` for fewer than two clusters, or if no
/// cluster differs from 0.
///
/// # Panics
/// If `values` and `clusters` differ in length.
pub(crate) fn detectable(values: &[f64], clusters: &[u64]) -> Option<f64> {
    assert_eq!(values.len(), clusters.len(), "a cluster a value");
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let mut by_name: BTreeMap<u64, Cluster> = BTreeMap::new();
    for (value, name) in values.iter().zip(clusters) {
        let cluster = by_name.entry(*name).or_default();
        cluster.sum += value;
        cluster.count += 1.0;
    }
    let (count, total) = (by_name.len() as f64, values.len() as f64);
    let squares: f64 = by_name.values().map(|cluster| (cluster.sum - mean * cluster.count).powi(2)).sum();
    let error = (squares * count / (count - 1.0)).sqrt() / total;
    let differing: Vec<f64> = by_name.values().map(|cluster| cluster.sum.abs()).filter(|sum| *sum > 1e-9).collect();
    let typical = differing.iter().sum::<f64>() / differing.len() as f64;
    let least = ((Z_95 + Z_80) * error).max(FEWEST * typical / total);
    (count > 1.0 && !differing.is_empty() && least.is_finite()).then_some(least)
}

/// p-values adjusted for multiple tests, in the same order: the probability of rejecting any true null hypothesis at a level
/// stays below that level (Holm 1979, "A simple sequentially rejective multiple test procedure").
pub(crate) fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&one, &other| p_values[one].total_cmp(&p_values[other]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

/// Standard deviation of a sample (n - 1 in the denominator); `None` for fewer than two values.
pub(crate) fn standard_deviation(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() >= 2).then(|| (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// McNemar's exact two-sided p: twice the binomial tail of the rarer kind of disagreement.
    fn mcnemar(better: u64, worse: u64) -> f64 {
        let n = better + worse;
        let choose = |k: u64| (0..k).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64);
        let tail: f64 = (0..=better.min(worse)).map(choose).sum();
        (2.0 * tail / 2f64.powi(n as i32)).min(1.0)
    }

    #[test]
    fn with_one_pair_a_cluster_the_sign_flip_test_is_mcnemars_exact_one() {
        for (better, worse) in [(0, 0), (1, 0), (5, 5), (9, 2), (40, 22), (0, 12)] {
            let mut sums = vec![0; 30];
            sums.extend(vec![1; better]);
            sums.extend(vec![-1; worse]);
            let expected = mcnemar(better as u64, worse as u64);
            assert!((sign_flip(&sums) - expected).abs() < 1e-12, "{better} {worse}: {} {expected}", sign_flip(&sums));
            // The unit does not matter, nor does who is compared with whom.
            let others: Vec<i64> = sums.iter().map(|sum| -6 * sum).collect();
            assert!((sign_flip(&others) - expected).abs() < 1e-12);
        }
        assert_eq!(sign_flip(&[]), 1.0);
    }

    #[test]
    fn the_convolution_counts_what_trying_every_sign_counts() {
        let sums = [3, -1, 4, 1, -5, 2, 6, 0, 5];
        let seen = sums.iter().sum::<i64>().abs();
        let as_far = |signs: u32| {
            let flipped = |(index, sum): (usize, &i64)| if signs >> index & 1 == 1 { -sum } else { *sum };
            sums.iter().enumerate().map(flipped).sum::<i64>().abs() >= seen
        };
        let count = (0..1u32 << sums.len()).filter(|&signs| as_far(signs)).count();
        assert!((sign_flip(&sums) - count as f64 / f64::from(1u32 << sums.len())).abs() < 1e-12);
        // The control: pairs that go together are one piece of evidence, not four.
        assert!(sign_flip(&[4, 4, 4, -4]) > sign_flip(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1]));
    }

    #[test]
    fn a_stratified_bootstrap_draws_within_strata_alone_and_keeps_their_sizes() {
        let strata = [3, 1, 4];
        let seen = std::cell::RefCell::new(Vec::new());
        let intervals = stratified_bootstrap(&strata, 200, SEED, |drawn| {
            seen.borrow_mut().push(drawn.to_vec());
            vec![1.0, f64::NAN]
        });
        assert_eq!(intervals, [Some(Interval { low: 1.0, high: 1.0 }), None], "a figure that is no number has none");
        for drawn in seen.borrow().iter() {
            let within = |range: std::ops::Range<usize>| drawn[range.clone()].iter().all(|place| range.contains(place));
            assert!(drawn.len() == 8 && within(0..3) && within(3..4) && within(4..8), "{drawn:?}");
        }
        let distinct: std::collections::BTreeSet<_> = seen.borrow().iter().cloned().collect();
        assert!(distinct.len() > 100, "the control: it does draw");
        assert!(stratified_bootstrap(&strata, 0, SEED, |_| vec![1.0]).is_empty());
    }

    #[test]
    fn one_stratum_is_the_clustered_bootstrap_and_what_parts_strata_has_no_width() {
        let values = [0.3, 0.9, 0.1, 0.4, 0.7, 0.2];
        let mean = |drawn: &[usize]| vec![drawn.iter().map(|&place| values[place]).sum::<f64>() / drawn.len() as f64];
        let found = stratified_bootstrap(&[values.len()], RESAMPLES, SEED, mean)[0].unwrap();
        let expected = clustered_bootstrap(&values, &[0, 1, 2, 3, 4, 5], RESAMPLES, SEED).unwrap();
        assert!((found.low - expected.low).abs() < 1e-12 && (found.high - expected.high).abs() < 1e-12);
        // Two strata, each of one value: the mean is known. The control: as one stratum it is not.
        let halves = |drawn: &[usize]| vec![drawn.iter().filter(|&&place| place < 3).count() as f64 / 6.0];
        let [parted, whole] =
            [&[3, 3][..], &[6]].map(|strata| stratified_bootstrap(strata, RESAMPLES, SEED, halves)[0]);
        assert_eq!(parted, Some(Interval { low: 0.5, high: 0.5 }));
        assert!(whole.unwrap().low < 0.5 && whole.unwrap().high > 0.5);
    }

    #[test]
    fn holm_multiplies_the_smallest_most_and_keeps_the_order() {
        assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
        assert_eq!(holm(&[0.5, 0.9]), [1.0, 1.0]);
        assert_eq!(holm(&[]), Vec::<f64>::new());
    }

    /// Promise: what could be found is 2.8 standard errors where many clusters differ, and never less than the exact test can find.
    #[test]
    fn no_difference_is_said_to_be_detectable_that_the_exact_test_cannot_detect() {
        let of = |values: &[f64]| detectable(values, &(0..values.len() as u64).collect::<Vec<_>>());
        let sample =
            |better: usize, worse: usize, same: usize| [vec![1.0; better], vec![-1.0; worse], vec![0.0; same]].concat();
        let many = of(&sample(20, 20, 60)).unwrap();
        assert!((many - 2.801_585 * (40.0 / 99.0f64).sqrt() / 10.0).abs() < 1e-6, "{many}");
        // One prompt of 24 differs: 2.8 standard errors are 0.117, but not even three prompts can be told from chance.
        let few = of(&sample(1, 0, 23)).unwrap();
        assert!(few > 0.117 && (few - 7.906 / 24.0).abs() < 1e-6, "{few}");
        assert!(sign_flip(&[1; 5]) > 0.05 && sign_flip(&[1; 6]) < 0.05, "why it is six");
        assert_eq!((of(&sample(0, 0, 9)), of(&[1.0])), (None, None));
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(standard_deviation(&[0.5]), None);
        assert!((standard_deviation(&[1.0, 3.0]).unwrap() - 2f64.sqrt()).abs() < 1e-12);
    }
}
