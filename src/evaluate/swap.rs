//! The swap check: with the sides of every pair exchanged, a reward model's accuracy must be 1 - accuracy. What differs is
//! rounding, which is so measured; pairs whose margin is not above it are decided by nothing else.
//!
//! Pure functions. Not here: computing rewards a second time.

use super::heads::Head;
use crate::loss::hit;
use crate::metrics::{number, table};

use serde::Serialize;

/// Pairs that are named at most.
const NAMED: usize = 20;

/// One head's rewards in both orders, as it is printed as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Swap {
    /// Name of the split, as with the metrics.
    pub swap: String,
    /// Which head.
    pub scored_by: &'static str,
    /// Number of pairs.
    pub pairs: usize,
    /// Share ranked rightly; a tie counts as one half.
    pub accuracy: f64,
    /// The same with sides exchanged.
    pub exchanged: f64,
    /// Largest |margin + margin with sides exchanged|, which would be 0 without rounding.
    pub rounding: f64,
    /// Pairs whose |margin| is not above that, by their number from 1: their side is rounding's. At most 20 are named.
    pub under: Vec<usize>,
    /// How many those are.
    pub under_rounding: usize,
    /// Accuracy without them.
    pub accuracy_above: Option<f64>,
    /// Pairs whose answers have exactly one reward.
    pub ties: usize,
    /// Whether the rounding is within what the precision explains.
    pub passed: bool,
}

impl Swap {
    /// Of the rewards of both orders: `exchanged` has the pairs' rejected answers first. `bound`: the largest rounding that the
    /// precision explains, of the largest reward (or of 1).
    pub fn of(split: &str, head: &Head, exchanged: &Head, bound: f64) -> Self {
        let (margins, turned) = (head.margins(), exchanged.margins());
        let mean = |margins: &mut dyn Iterator<Item = f64>| {
            let hits: Vec<f64> = margins.map(hit).collect();
            (!hits.is_empty()).then(|| hits.iter().sum::<f64>() / hits.len() as f64)
        };
        let rounding = margins.iter().zip(&turned).fold(0.0f64, |most, (one, other)| most.max((one + other).abs()));
        let largest = head.rewards.iter().flatten().fold(1.0f64, |most, reward| most.max(reward.abs()));
        let under: Vec<usize> = (0..margins.len()).filter(|&pair| margins[pair].abs() <= rounding).collect();
        Self {
            swap: split.to_owned(),
            scored_by: head.name,
            pairs: margins.len(),
            accuracy: mean(&mut margins.iter().copied()).unwrap_or(f64::NAN),
            exchanged: mean(&mut turned.iter().copied()).unwrap_or(f64::NAN),
            rounding,
            accuracy_above: mean(&mut margins.iter().copied().filter(|margin| margin.abs() > rounding)),
            ties: margins.iter().filter(|margin| **margin == 0.0).count(),
            under_rounding: under.len(),
            under: under.iter().take(NAMED).map(|pair| pair + 1).collect(),
            passed: rounding <= bound * largest,
        }
    }
}

/// A plain table, and which pairs rounding decides.
pub fn text(swaps: &[Swap]) -> String {
    let row = |swap: &Swap| {
        vec![
            swap.scored_by.to_owned(),
            number(Some(swap.accuracy)),
            number(Some(swap.exchanged)),
            number(Some(1.0 - swap.accuracy)),
            format!("{:.1e}", swap.rounding),
            format!("{} of {}", swap.under_rounding, swap.pairs),
            swap.ties.to_string(),
            number(swap.accuracy_above),
            if swap.passed { "PASS" } else { "FAIL" }.to_owned(),
        ]
    };
    let header = [
        "by",
        "accuracy",
        "exchanged",
        "expected",
        "rounding",
        "margins under it",
        "ties",
        "accuracy without them",
        "",
    ];
    let mut text = format!("sides exchanged\n{}", table(&header, 1, swaps.iter().map(row)));
    for swap in swaps.iter().filter(|swap| !swap.under.is_empty()) {
        let more = if swap.under_rounding > swap.under.len() { ", ..." } else { "" };
        let named: Vec<String> = swap.under.iter().map(usize::to_string).collect();
        text += &format!("\npairs that rounding decides, by {}: {}{more}", swap.scored_by, named.join(", "));
    }
    text
}
