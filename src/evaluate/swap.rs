//! The swap check: with the sides of every pair exchanged, a reward model's accuracy must be 1 - accuracy. Each sequence is
//! also computed whole, in other batches, so that what differs is the rounding of the precision; pairs whose margin is not above
//! it are decided by nothing else.
//!
//! Pure functions. Not here: computing rewards a second time.

use super::heads::Head;
use crate::checkpoint::Weights;
use crate::error::{Error, Result};
use crate::loss::hit;
use crate::metrics::{number, table};

use serde::Serialize;
use tch::Kind;

/// Pairs that the table names at most.
const NAMED: usize = 20;

/// Standard deviations of a fair coin beyond which pairs that do not turn with their sides follow the order.
const DEVIATIONS: f64 = 4.0;

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
    /// The largest that the precision explains, of an answer's reward or a margin.
    pub bound: f64,
    /// Pairs whose first answer has the higher reward in both orders. Rounding leaves about as many on either side.
    pub always_first: usize,
    /// Pairs whose second answer has.
    pub always_second: usize,
    /// Pairs whose |margin| is not above the rounding, by their number from 1: their side is rounding's.
    pub under: Vec<usize>,
    /// How many those are.
    pub under_rounding: usize,
    /// Accuracy without them.
    pub accuracy_above: Option<f64>,
    /// Pairs whose answers have exactly one reward.
    pub ties: usize,
    /// Whether no reward differs by more than the bound, and pairs that do not turn with their sides stand on either side.
    pub passed: bool,
}

impl Swap {
    /// Of the rewards of both orders: `exchanged` has the pairs' rejected answers first. `bound`: see [`bounds`].
    pub fn of(split: &str, head: &Head, exchanged: &Head, bound: f64) -> Self {
        let (margins, turned) = (head.margins(), exchanged.margins());
        let mean = |margins: &mut dyn Iterator<Item = f64>| {
            let hits: Vec<f64> = margins.map(hit).collect();
            (!hits.is_empty()).then(|| hits.iter().sum::<f64>() / hits.len() as f64)
        };
        let both = || margins.iter().zip(&turned);
        let rounding = both().fold(0.0f64, |most, (one, other)| most.max((one + other).abs()));
        let answers = head.rewards.iter().zip(&exchanged.rewards);
        let differences = answers.flat_map(|(one, other)| [one[0] - other[1], one[1] - other[0]]);
        let largest = differences.fold(rounding, |most, difference| most.max(difference.abs()));
        let always_first = both().filter(|(one, other)| **one > 0.0 && **other > 0.0).count();
        let always_second = both().filter(|(one, other)| **one < 0.0 && **other < 0.0).count();
        let stay = (always_first + always_second) as f64;
        let follow_the_order = always_first.abs_diff(always_second) as f64 > DEVIATIONS * stay.sqrt();
        let under: Vec<usize> = (0..margins.len()).filter(|&pair| margins[pair].abs() <= rounding).collect();
        Self {
            swap: split.to_owned(),
            scored_by: head.name,
            pairs: margins.len(),
            accuracy: mean(&mut margins.iter().copied()).unwrap_or(f64::NAN),
            exchanged: mean(&mut turned.iter().copied()).unwrap_or(f64::NAN),
            rounding,
            bound,
            always_first,
            always_second,
            accuracy_above: mean(&mut margins.iter().copied().filter(|margin| margin.abs() > rounding)),
            ties: margins.iter().filter(|margin| **margin == 0.0).count(),
            under_rounding: under.len(),
            under: under.iter().map(|pair| pair + 1).collect(),
            passed: largest <= bound && !follow_the_order,
        }
    }
}

/// The largest differences that rounding explains, of each head in order: a share of the largest reward, or of the policy's part of
/// the largest implicit reward, since the difference to the reference may be far smaller than what was rounded. `heads` are
/// without references. In bf16 a model of 135 M parameters had 4% and 0.2%; sums over tokens average their errors out.
pub fn bounds(kind: Kind, heads: &[Head], weights: Option<Weights>) -> Vec<f64> {
    let [of_rewards, of_policy] = if kind == Kind::Float { [1e-4, 1e-5] } else { [0.15, 0.01] };
    let largest = |name: &str| {
        let rewards = heads.iter().filter(|head| head.name == name).flat_map(|head| head.rewards.as_flattened());
        rewards.fold(0.0f64, |most, reward| most.max(reward.abs()))
    };
    let (reward, implicit) = (of_rewards * largest("reward"), of_policy * largest("implicit"));
    let bound = |head: &Head| match (head.name, weights) {
        ("reward", _) => reward,
        ("implicit", _) | (_, None) => implicit,
        (_, Some(Weights { reward: a, implicit: b })) => a.abs() * reward + b.abs() * implicit,
    };
    heads.iter().map(bound).collect()
}

/// Whether all have passed.
///
/// # Errors
/// One that has not.
pub fn judge(swaps: &[Swap]) -> Result<()> {
    match swaps.iter().find(|swap| !swap.passed) {
        Some(swap) => Err(Error::runtime(format!(
            "the swap check failed: by {}, rewards depend on which answer stands first, or on the batch, by more than rounding \
             explains",
            swap.scored_by
        ))
        .hint("try --dtype f32; if it fails there too, please report it with the model's config.json")),
        None => Ok(()),
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
            format!("{:.1e}", swap.bound),
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
        "bound",
        "margins under it",
        "ties",
        "accuracy without them",
        "",
    ];
    let mut text = format!("sides exchanged\n{}", table(&header, 1, swaps.iter().map(row)));
    for swap in swaps.iter().filter(|swap| !swap.under.is_empty()) {
        let more = if swap.under.len() > NAMED { ", ..." } else { "" };
        let named: Vec<String> = swap.under.iter().take(NAMED).map(usize::to_string).collect();
        text += &format!("\npairs that rounding decides, by {}: {}{more}", swap.scored_by, named.join(", "));
    }
    text
}
