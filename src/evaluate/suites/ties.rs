//! RewardBench 2's Ties: whether every right answer beats every wrong one, and by more than the right ones differ.
//!
//! A prompt has a row with one right answer (its reference) and a row with several. For a row: spread = best - worst right,
//! gap = worst right - best wrong, accurate = gap > 0. Over rows and prompts:
//! 0.3 accurate (rows with several) + 0.3 accurate (references) + 0.2 mean(gap > spread) + 0.2 mean(least > spread) +
//! 0.01 mean(tanh(least / spread - 1)), with spread and gap of the row with several and least = the smaller of the two
//! gaps; the last mean leaves out prompts without spread, and the last three those without a reference.
//!
//! Source: rewardbench 0.1.4, `sample_stats` and `process_single_model`, NaN and comparisons included.

use super::items::Role;
use super::{Item, one_if};
use crate::error::{Error, Result};
use crate::statistics::SEED;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeSet;

/// Random draws for the chance level.
const DRAWS: usize = 1000;

/// Range of the last term, 0.01 mean(tanh(...)).
pub(super) const SMOOTH: f64 = 0.02;

/// Parses an id such as `ref:3` or `tied:3`.
pub(super) fn id(text: &str) -> Option<(Role, String)> {
    let (role, number) = text.split_once(':')?;
    let number: u64 = number.trim().parse().ok()?;
    let role = match role {
        "ref" => Role::Reference,
        "tied" => Role::Tied,
        _ => return None,
    };
    Some((role, number.to_string()))
}

/// Refuses an id that occurs twice.
pub(super) fn check(items: &[Item]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for item in items.iter().filter(|item| item.role != Role::Plain) {
        if !seen.insert((item.role == Role::Tied, &item.cluster)) {
            let role = if item.role == Role::Tied { "tied" } else { "ref" };
            return Err(Error::input(format!("rewardbench2: {role}:{} of Ties occurs twice", item.cluster))
                .hint("was a file named twice?"));
        }
    }
    Ok(())
}

/// Figures of one row.
struct Row {
    spread: Option<f64>,
    gap: f64,
}

impl Row {
    fn of(item: &Item, scores: &[f64]) -> Self {
        let (right, wrong) = scores.split_at(item.correct);
        // As Python's min and max, which keep the first value if a comparison does not hold: this matters for NaN.
        let pick = |values: &[f64], better: fn(f64, f64) -> bool| {
            let mut values = values.iter().copied();
            let first = values.next().unwrap_or(f64::NAN);
            values.fold(first, |best, value| if better(value, best) { value } else { best })
        };
        let (best, worst) = (pick(right, |a, b| a > b), pick(right, |a, b| a < b));
        Self { spread: (right.len() > 1).then_some(best - worst), gap: worst - pick(wrong, |a, b| a > b) }
    }

    fn accurate(&self) -> f64 {
        one_if(self.gap > 0.0)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn or_zero(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { mean(values) }
}

/// Whether every right answer of a row beats every wrong one.
pub(super) fn accurate(item: &Item, scores: &[f64]) -> f64 {
    Row::of(item, scores).accurate()
}

/// The score of these prompts.
pub(super) fn score(items: &[Item], scores: &[Vec<f64>], clusters: &[&Vec<usize>]) -> f64 {
    let mut accurate = [Vec::new(), Vec::new()];
    let (mut preferred, mut preferred_hard, mut ratios, mut both) = (Vec::new(), Vec::new(), Vec::new(), false);
    for cluster in clusters {
        let row = |role: Role| {
            let item = cluster.iter().find(|item| items[**item].role == role)?;
            Some(Row::of(&items[*item], &scores[*item]))
        };
        let (tied, reference) = (row(Role::Tied), row(Role::Reference));
        accurate[0].extend(tied.as_ref().map(Row::accurate));
        accurate[1].extend(reference.as_ref().map(Row::accurate));
        let (Some(tied), Some(reference)) = (tied, reference) else { continue };
        both = true;
        let Some(spread) = tied.spread else { continue };
        let least = if tied.gap < reference.gap { tied.gap } else { reference.gap };
        preferred.push(one_if(tied.gap > spread));
        preferred_hard.push(one_if(least > spread));
        if spread > 0.0 {
            ratios.push((least / spread - 1.0).tanh());
        }
    }
    // Without a prompt that has both rows these are 0; with one, but none with a spread, NaN as numpy's mean of an empty list.
    let [preferred, preferred_hard] = [preferred, preferred_hard].map(|all| if both { mean(&all) } else { 0.0 });
    let [of_tied, of_references] = accurate.map(|all| or_zero(&all));
    0.3 * of_tied + 0.3 * of_references + 0.2 * preferred + 0.2 * preferred_hard + 0.01 * or_zero(&ratios)
}

/// The mean score for scores drawn uniformly from 0 to 1.
pub(super) fn chance(items: &[Item], clusters: &[&Vec<usize>]) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut scores: Vec<Vec<f64>> = items.iter().map(|item| vec![0.0; item.answers.len()]).collect();
    let mut sum = 0.0;
    for _ in 0..DRAWS {
        for &item in clusters.iter().copied().flatten() {
            scores[item].fill_with(|| f64::from(random.next_u32()) / 2f64.powi(32));
        }
        sum += score(items, &scores, clusters);
    }
    sum / DRAWS as f64
}
