//! Calibration of sigmoid(margin) as the probability that the chosen answer is the better one.
//!
//! Pure functions of margins, chosen minus rejected. Not here: computing margins.

use crate::loss::hit;
use serde::Serialize;

/// Most bins in the reliability table; all have equally many pairs.
const BINS: usize = 10;

/// Fewest pairs in a bin.
const LEAST: usize = 10;

/// The log loss of a coin.
pub(crate) const CHANCE: f64 = std::f64::consts::LN_2;

/// Pairs of similar confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Number of pairs.
    pub pairs: usize,
    /// Mean of sigmoid(|margin|): the probability that the model gives to its choice.
    pub confidence: f64,
    /// Share of them that it ranks correctly; a tie counts as one half.
    pub(crate) accuracy: f64,
}

/// The calibration of some margins.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// Expected calibration error: mean over pairs of |confidence - accuracy| of their bin, in bins of equal mass (Naeini et
    /// al. 2015; equal mass as in Nguyen & O'Connor 2015).
    pub ece: f64,
    /// Mean of (1 - sigmoid(margin))^2; 1/4 for a coin.
    pub brier: f64,
    /// Mean of -log sigmoid(margin); [`CHANCE`] for a coin.
    pub log_loss: f64,
    /// The T that minimizes the mean of -log sigmoid(margin / T) on these same pairs; above 1 if the model is overconfident (Guo
    /// et al. 2017). `None` if no T does: no margin is below 0, or their mean is not above 0.
    pub temperature: Option<f64>,
    /// The reliability table, least confident first.
    pub bins: Vec<Bin>,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// -log sigmoid(x), exact for large |x|.
pub(super) fn log_loss(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

impl Calibration {
    /// `None` without margins, or with one that is not finite.
    pub fn of(margins: &[f64]) -> Option<Self> {
        if margins.is_empty() || margins.iter().any(|margin| !margin.is_finite()) {
            return None;
        }
        let mut sorted = margins.to_vec();
        // By confidence, then by sign, so that the order of equally confident pairs does not matter.
        sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()).then(a.total_cmp(b)));
        let bins = bins(&sorted);
        let off = |bin: &Bin| bin.pairs as f64 * (bin.confidence - bin.accuracy).abs();
        Some(Self {
            ece: bins.iter().map(off).sum::<f64>() / margins.len() as f64,
            brier: mean(margins.iter().map(|&margin| sigmoid(-margin).powi(2))),
            log_loss: mean(margins.iter().map(|&margin| log_loss(margin))),
            temperature: temperature(margins),
            bins,
        })
    }
}

/// Bins of pairs sorted by confidence. Pairs of equal confidence share a bin, since their order is arbitrary.
fn bins(sorted: &[f64]) -> Vec<Bin> {
    let count = (sorted.len() / LEAST).clamp(1, BINS);
    let mut bins = Vec::new();
    let mut start = 0;
    for number in 1..=count {
        let mut end = (sorted.len() * number / count).max(start);
        while end > start && end < sorted.len() && sorted[end].abs() == sorted[end - 1].abs() {
            end += 1;
        }
        let part = &sorted[start..end];
        if !part.is_empty() {
            bins.push(Bin {
                pairs: part.len(),
                confidence: mean(part.iter().map(|margin| sigmoid(margin.abs()))),
                accuracy: mean(part.iter().map(|&margin| hit(margin))),
            });
        }
        start = end;
    }
    bins
}

/// The T that minimizes the mean of -log sigmoid(margin / T), by bisection: the loss is convex in 1 / T. `None` as in
/// [`Calibration::temperature`].
pub fn temperature(margins: &[f64]) -> Option<f64> {
    let largest = margins.iter().fold(0.0, |largest: f64, margin| largest.max(margin.abs()));
    // Minus the loss's derivative with respect to 1 / T, up to a factor; it decreases, and is largest at 1 / T = 0.
    let pull = |inverse: f64| margins.iter().map(|margin| margin * sigmoid(-inverse * margin)).sum::<f64>();
    if pull(0.0) <= 0.0 || margins.iter().all(|&margin| margin >= 0.0) {
        return None;
    }
    let (mut low, mut high) = (0.0, 1.0 / largest);
    while pull(high) > 0.0 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if pull(middle) > 0.0 { low = middle } else { high = middle }
    }
    Some(2.0 / (low + high))
}
