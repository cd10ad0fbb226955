//! Two checkpoints on the same items of a suite: the difference of their outcomes, with an exact paired test by prompt.
//!
//! An item's outcome is what it contributes to its subset's plain mean: right or wrong; of RewardBench 2 the share of a point; of
//! RM-Bench the share of the nine comparisons; of the Ties whether every right answer beats every wrong one. Items count alike
//! here, without a suite's weights: a difference of plain means, not of the suite's number.

use super::report::prompt_of;
use super::{Item, Suite};
use crate::metrics::table;
use crate::statistics::{holm, interval_of_differences, sign_flip};
use serde::Serialize;
use std::collections::BTreeMap;

/// A difference, as it is printed as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Paired {
    /// The suite.
    pub paired: Suite,
    /// Which head of both.
    pub scored_by: &'static str,
    /// Number of items.
    pub items: usize,
    /// Number of prompts.
    pub prompts: usize,
    /// Mean outcome of the first checkpoint.
    pub ours: f64,
    /// Mean outcome of the one that it is held against.
    pub theirs: f64,
    /// The first less the second.
    pub difference: f64,
    /// Lower end of its 95% interval, which draws prompts.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// How often a sum over prompts as far from zero comes out when every prompt's sign is decided by a fair coin: exact, two-sided
    /// ([`sign_flip`]).
    pub p: f64,
    /// The same, adjusted for the number of rows ([`holm`]).
    pub p_holm: f64,
}

/// One row; `ours` and `theirs` have one list of scores an item.
pub fn paired(suite: Suite, scored_by: &'static str, items: &[Item], [ours, theirs]: [&[Vec<f64>]; 2]) -> Paired {
    let (ours, theirs) = (suite.outcomes(items, ours), suite.outcomes(items, theirs));
    let mut prompts = BTreeMap::new();
    let mut clusters = Vec::with_capacity(items.len());
    for item in items {
        let next = prompts.len() as u64;
        clusters.push(*prompts.entry(prompt_of(item)).or_insert(next));
    }
    // Whole numbers, so that the test is exact: outcomes are such parts of a point.
    let parts = suite.parts();
    let mut sums = vec![0i64; prompts.len()];
    for (cluster, (ours, theirs)) in clusters.iter().zip(ours.iter().zip(&theirs)) {
        sums[*cluster as usize] += (parts * ours).round() as i64 - (parts * theirs).round() as i64;
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let differences: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
    let interval = interval_of_differences(&differences, &clusters);
    let p = sign_flip(&sums);
    Paired {
        paired: suite,
        scored_by,
        items: items.len(),
        prompts: prompts.len(),
        ours: mean(&ours),
        theirs: mean(&theirs),
        difference: mean(&ours) - mean(&theirs),
        low: interval.map(|interval| interval.low),
        high: interval.map(|interval| interval.high),
        p,
        p_holm: p,
    }
}

/// Fills in [`Paired::p_holm`] of rows that are read together.
pub fn adjust(rows: &mut [Paired]) {
    let adjusted = holm(&rows.iter().map(|row| row.p).collect::<Vec<_>>());
    rows.iter_mut().zip(adjusted).for_each(|(row, p)| row.p_holm = p);
}

/// A plain table.
pub fn paired_table(rows: &[Paired]) -> String {
    let row = |row: &Paired| {
        let interval = row.low.zip(row.high).map(|(low, high)| format!(" ({low:+.3} to {high:+.3})"));
        vec![
            row.paired.name().to_owned(),
            row.scored_by.to_owned(),
            row.items.to_string(),
            format!("{:.4}", row.ours),
            format!("{:.4}", row.theirs),
            format!("{:+.4}{}", row.difference, interval.unwrap_or_default()),
            format!("{:.3}", row.p),
            format!("{:.3}", row.p_holm),
        ]
    };
    let header = ["suite", "by", "items", "--checkpoint", "--against", "difference (95%)", "p", "Holm's p"];
    table(&header, 2, rows.iter().map(row))
}
