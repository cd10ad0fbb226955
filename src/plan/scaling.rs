//! Predicts a job on more and more ranks: with the same pairs per rank (weak scaling) or the same global batch (strong scaling).

use super::Job;
use super::hardware::Hardware;
use super::time::{Counted, StepTime};
use super::workload::{PairTokens, batches, shares};
use serde::Serialize;
use std::collections::HashSet;

/// The largest number of ranks in a plan's tables and advice.
pub(crate) const MOST_SHOWN: usize = 1024;

/// Most global batches that a row averages: as many as have [`PAIRS`] together, and at least one.
const BATCHES: usize = 16;

/// Pairs that a row looks at. Of weak scaling, rows with larger global batches are left out.
const PAIRS: usize = 1 << 14;

/// One number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// Ranks.
    pub ranks: usize,
    /// Pairs of a global batch.
    pub pairs_per_step: usize,
    /// Seconds of a step.
    pub(crate) seconds: f64,
    /// The parts of those seconds; means over a few global batches.
    pub(crate) time: StepTime,
    /// Pairs a second, all ranks together.
    pub(crate) pairs_per_s: f64,
    /// Pairs per second and rank, as a share of those with one rank alone.
    pub efficiency: f64,
}

/// Inputs of a prediction.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What is trained.
    pub job: &'a Job,
    /// On what.
    pub hardware: &'a Hardware,
    /// Pairs in training order, repeated as often as needed.
    pub order: &'a [PairTokens],
}

impl Inputs<'_> {
    /// Means over a few global batches, for the rank that finishes last. Efficiency is left at 1.
    pub(crate) fn step(&self, ranks: usize, pairs_per_step: usize) -> Row {
        let counted = Counted::new(self.job);
        let mut mean = StepTime::default();
        let mut seconds = 0.0;
        let count = (PAIRS / pairs_per_step).clamp(1, BATCHES);
        for batch in batches(self.order, pairs_per_step, count) {
            // Many ranks of assumed data have equal shares.
            let shares: HashSet<_> = shares(&batch, ranks, self.job.tokens_per_micro_batch).into_iter().collect();
            let times = shares.iter().map(|share| StepTime::of(&counted, self.hardware, ranks, share));
            let Some(slowest) = times.max_by(|left, right| left.seconds().total_cmp(&right.seconds())) else {
                continue;
            };
            let part = |total: &mut f64, value: f64| *total += value / count as f64;
            part(&mut seconds, slowest.seconds());
            part(&mut mean.compute, slowest.compute);
            part(&mut mean.communication, slowest.communication);
            part(&mut mean.hidden, slowest.hidden);
            part(&mut mean.exposed, slowest.exposed);
            part(&mut mean.update, slowest.update);
            part(&mut mean.control, slowest.control);
            part(&mut mean.useful_flops, slowest.useful_flops);
        }
        let pairs_per_s = pairs_per_step as f64 / seconds;
        Row { ranks, pairs_per_step, seconds, time: mean, pairs_per_s, efficiency: 1.0 }
    }

    /// `pairs_per_rank` pairs for each of 1, 2, 4 ... ranks.
    pub fn weak(&self, pairs_per_rank: usize) -> Vec<Row> {
        self.rows(MOST_SHOWN.min(PAIRS / pairs_per_rank).max(1), |ranks| ranks * pairs_per_rank)
    }

    /// The same global batch for 1, 2, 4 ... ranks, as long as each has a pair.
    pub fn strong(&self, pairs_per_step: usize) -> Vec<Row> {
        self.rows(MOST_SHOWN.min(pairs_per_step), |_| pairs_per_step)
    }

    fn rows(&self, most_ranks: usize, pairs_per_step: impl Fn(usize) -> usize) -> Vec<Row> {
        let mut rows: Vec<Row> =
            powers_of_two(most_ranks).map(|ranks| self.step(ranks, pairs_per_step(ranks))).collect();
        if let Some(alone) = rows.first().map(|row| row.pairs_per_s) {
            rows.iter_mut().for_each(|row| row.efficiency = row.pairs_per_s / row.ranks as f64 / alone);
        }
        rows
    }
}

fn powers_of_two(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |ranks| Some(2 * ranks)).take_while(move |ranks| *ranks <= most)
}
