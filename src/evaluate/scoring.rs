//! Scores pairs of a data set with every rank's help: deal, pack, run forward, gather.
//!
//! Not here: what the scores are good for (`reference.rs`, `mod.rs`).

use crate::comm::CommThread;
use crate::data::batch::{PackedBatch, Packing, PairToPack};
use crate::data::prepared::PreparedData;
use crate::data::sampler;
use crate::engine::Engine;
use crate::engine::head::PairScores;
use crate::error::{Error, Result};
use crate::logging::{self, Unit};

/// Numbers that travel for one pair: two rewards, two log-probs, two token counts.
const NUMBERS: usize = 6;

/// How far scoring is, over all ranks.
pub struct Progress<'a> {
    title: &'a str,
    shown: logging::Progress,
    done: usize,
    pairs: usize,
}

impl<'a> Progress<'a> {
    /// For `pairs` pairs over all ranks, titled `title`.
    pub fn new(title: &'a str, pairs: usize) -> Self {
        Self { title, shown: logging::Progress::new(title, Unit::Pairs, 0, pairs as u64), done: 0, pairs }
    }

    /// This rank has done `own` pairs, and the others of `ranks` about as many.
    pub(super) fn add(&mut self, own: usize, ranks: usize) {
        self.done = (self.done + own * ranks).min(self.pairs);
        self.shown.at(self.done as u64);
    }
}

/// Scores of the given pairs of `data`, in that order, on every rank. All ranks must call it with the same arguments.
///
/// Each pair is scored by one rank and the others add zeros, so the numbers do not depend on the number of ranks beyond
/// what packing does to rounding.
///
/// # Errors
/// A lost rank, scores that are not finite, or log-probs asked of a model without a language-model head.
pub fn score_pairs(
    engine: &mut Engine,
    (data, pairs): (&PreparedData, &[usize]),
    comm: &CommThread,
    tokens_per_micro_batch: usize,
    log_probs: bool,
    title: &str,
) -> Result<Vec<PairScores>> {
    let mut progress = Progress::new(title, pairs.len());
    score_part(engine, (data, pairs), comm, tokens_per_micro_batch, log_probs, &mut progress)
}

/// [`score_pairs`] for a part of the pairs that `progress` counts.
///
/// # Errors
/// As [`score_pairs`].
pub fn score_part(
    engine: &mut Engine,
    (data, pairs): (&PreparedData, &[usize]),
    comm: &CommThread,
    tokens_per_micro_batch: usize,
    log_probs: bool,
    progress: &mut Progress,
) -> Result<Vec<PairScores>> {
    let title = progress.title;
    finite(any_scores(engine, (data, pairs), comm, tokens_per_micro_batch, log_probs, progress)?, title)
}

/// [`score_pairs`] with both sequences of every pair whole: the same numbers but for rounding, in other batches.
///
/// # Errors
/// As [`score_pairs`].
pub fn score_apart(
    engine: &mut Engine,
    (data, pairs): (&PreparedData, &[usize]),
    comm: &CommThread,
    tokens_per_micro_batch: usize,
    log_probs: bool,
    title: &str,
) -> Result<Vec<PairScores>> {
    let mut progress = Progress::new(title, pairs.len());
    let budget = tokens_per_micro_batch;
    finite(packed_scores(engine, (data, pairs), comm, Packing::Separate, budget, log_probs, &mut progress)?, title)
}

fn finite(scores: Vec<PairScores>, title: &str) -> Result<Vec<PairScores>> {
    match scores.iter().find(|scores| !is_finite(scores)) {
        Some(scores) => Err(not_finite(scores.index, title)),
        None => Ok(scores),
    }
}

/// Whether the rewards and the log-probs of a pair are finite numbers.
pub fn is_finite(scores: &PairScores) -> bool {
    scores.rewards.iter().chain(&scores.log_probs).all(|number| number.is_finite())
}

/// [`score_part`] that leaves it to the caller what to do about scores that are not finite; every rank gets the same ones.
///
/// # Errors
/// A lost rank, or log-probs asked of a model without a language-model head.
pub fn any_scores(
    engine: &mut Engine,
    (data, pairs): (&PreparedData, &[usize]),
    comm: &CommThread,
    tokens_per_micro_batch: usize,
    log_probs: bool,
    progress: &mut Progress,
) -> Result<Vec<PairScores>> {
    let packing = Packing::shared(engine.model.architecture.alike());
    packed_scores(engine, (data, pairs), comm, packing, tokens_per_micro_batch, log_probs, progress)
}

fn packed_scores(
    engine: &mut Engine,
    (data, pairs): (&PreparedData, &[usize]),
    comm: &CommThread,
    packing: Packing,
    tokens_per_micro_batch: usize,
    log_probs: bool,
    progress: &mut Progress,
) -> Result<Vec<PairScores>> {
    let tokens: Vec<usize> = pairs.iter().map(|&pair| packing.rows(&data.pair(pair))).collect();
    let mine = sampler::deal(&tokens, comm.world_size()).swap_remove(comm.rank());
    let my_tokens: Vec<usize> = mine.iter().map(|&index| tokens[index]).collect();
    engine.reserve(tokens_per_micro_batch.min(mine.iter().map(|&place| tokens[place]).sum()));
    let mut numbers = vec![0f64; NUMBERS * pairs.len()];
    let scored = sampler::micro_batches(&my_tokens, tokens_per_micro_batch).into_iter().try_for_each(|members| {
        let items = members.iter().map(|&member| mine[member]).map(|place| PairToPack {
            index: place,
            pair: data.pair(pairs[place]),
            reference: [0.0; 2],
        });
        let batch = PackedBatch::new(items, packing, engine.model.device);
        for scores in engine.score(&batch, log_probs)? {
            let PairScores { index: place, rewards, log_probs, tokens, .. } = scores;
            let tokens = tokens.map(|count| count as f64);
            let row = [rewards[0], rewards[1], log_probs[0], log_probs[1], tokens[0], tokens[1]];
            numbers[NUMBERS * place..NUMBERS * (place + 1)].copy_from_slice(&row);
        }
        progress.add(members.len(), comm.world_size());
        Ok(())
    });
    comm.agree(scored)?;
    comm.sum_f64(&mut numbers)?;
    let bias = engine.model.reward_bias;
    let read = |(&index, row): (&usize, &[f64])| PairScores {
        index,
        rewards: [row[0] + bias, row[1] + bias],
        second_rewards: None,
        log_probs: [row[2], row[3]],
        tokens: [row[4] as usize, row[5] as usize],
    };
    Ok(pairs.iter().zip(numbers.chunks_exact(NUMBERS)).map(read).collect())
}

fn not_finite(pair: usize, title: &str) -> Error {
    Error::runtime(format!("{title}: the model gives pair {} a score that is not a finite number", pair + 1))
        .hint("are the model's weights whole, or has training diverged? try model.dtype = \"f32\"")
}
