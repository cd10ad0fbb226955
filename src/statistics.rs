//! Confidence intervals of a mean: a bootstrap over clusters, and Wilson's interval where it has no width.
//!
//! Pure functions: the same numbers give the same interval on every machine, in any order and for any number of ranks.
//! Not here: what the values mean.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// The normal distribution's 97.5% quantile: 95% lie between minus and plus this many standard deviations.
const Z_95: f64 = 1.959_963_984_540_054;

/// A 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Sum and number of the values of one cluster.
#[derive(Default, Clone, Copy)]
struct Cluster {
    sum: f64,
    count: f64,
}

/// 95% percentile interval of the mean of `values`, from a bootstrap that draws whole clusters with replacement.
///
/// `clusters[i]` names the cluster of `values[i]`. Pairs of one prompt are not independent, so the prompt is what is
/// drawn: with a cluster a value this is the ordinary bootstrap, with identical copies in a cluster the copies add no
/// certainty (Cameron, Gelbach & Miller 2008, "Bootstrap-based improvements for inference with clustered errors").
///
/// Where the bootstrap has no width (every value the same: it has never seen another outcome) and the values lie in
/// 0..=1, the answer is [`wilson`] with the number of clusters as n, so that 20 right answers out of 20 do not claim
/// certainty. `None` for fewer than two clusters, for no resamples, or for a value that is not finite.
///
/// # Panics
/// Where `values` and `clusters` differ in length.
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
    let no_width = interval.high - interval.low <= 1e-12 * mean.abs();
    let proportions = values.iter().all(|value| (0.0..=1.0).contains(value));
    Some(if no_width && proportions { wilson(mean, clusters.len()) } else { interval })
}

/// Mean over as many clusters as there are, each drawn with replacement.
fn resampled_mean(clusters: &[Cluster], random: &mut ChaCha8Rng) -> f64 {
    let mut total = Cluster::default();
    for _ in 0..clusters.len() {
        // The upper half of a product maps 32 random bits to an index; its bias is below count / 2^32.
        let index = (u64::from(random.next_u32()) * clusters.len() as u64) >> 32;
        let drawn = clusters[index as usize];
        total.sum += drawn.sum;
        total.count += drawn.count;
    }
    total.sum / total.count
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
    let centre = (proportion + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (proportion * (1.0 - proportion) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}
