//! Compares two checkpoints on the same items of a suite: the difference of their outcomes, with an exact paired test by prompt.
//!
//! An item's outcome is its contribution to its subset's plain mean: right or wrong; in RewardBench 2 the share of a point; in
//! RM-Bench the share of the nine comparisons; in Ties whether every right answer beats every wrong one. All items have the same
//! weight here: this is a difference of plain means, not of the suite's total.

use super::report::prompt_of;
use super::{Item, Suite};
use crate::metrics::table;
use crate::statistics::{holm, interval_of_differences, sign_flip};
use serde::Serialize;
use std::collections::BTreeMap;

/// A difference, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Paired {
    /// The suite.
    pub(crate) paired: Suite,
    /// The head, the same for both.
    pub(crate) scored_by: &'static str,
    /// Number of items.
    pub(crate) items: usize,
    /// Number of prompts.
    pub prompts: usize,
    /// Mean outcome of the first checkpoint.
    pub(crate) ours: f64,
    /// Mean outcome of the second checkpoint.
    pub(crate) theirs: f64,
    /// The first minus the second.
    pub difference: f64,
    /// Lower end of its 95% interval, which draws prompts.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Two-sided p-value of an exact test that flips the sign of each prompt's difference ([`sign_flip`]).
    pub p: f64,
    /// The same, adjusted for the number of rows ([`holm`]).
    pub p_holm: f64,
}

/// One row; `ours` and `theirs` have one list of scores per item.
pub fn paired(suite: Suite, scored_by: &'static str, items: &[Item], [ours, theirs]: [&[Vec<f64>]; 2]) -> Paired {
    let (ours, theirs) = (suite.outcomes(items, ours), suite.outcomes(items, theirs));
    let mut prompts = BTreeMap::new();
    let mut clusters = Vec::with_capacity(items.len());
    for item in items {
        let next = prompts.len() as u64;
        clusters.push(*prompts.entry(prompt_of(item)).or_insert(next));
    }
    // In units that make outcomes whole numbers, so that the test is exact.
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
pub(crate) fn paired_table(rows: &[Paired]) -> String {
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
