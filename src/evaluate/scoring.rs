//! Scores pairs of a data set on all ranks: deal, pack, run forward, gather.
//!
//! Not here: the use of the scores (`reference.rs`, `mod.rs`).

use super::parts;
use crate::comm::CommThread;
use crate::data::batch::{PackedBatch, Packing, PairToPack};
use crate::data::prepared::PreparedData;
use crate::engine::Engine;
use crate::engine::head::PairScores;
use crate::error::{Error, Result};
use crate::logging::{self, Unit};

/// Numbers that are gathered for one pair: two rewards, two log-probs, two token counts.
const NUMBERS: usize = 6;

/// Fewest micro-batches of each rank between two meetings: with one alone, a rank would often wait for another one's last pair.
pub(super) const FEWEST: usize = 4;

/// Pairs to score, and how.
#[derive(Clone, Copy)]
pub struct ToScore<'d> {
    /// The data set.
    pub data: &'d PreparedData,
    /// Indices of the pairs in `data`.
    pub pairs: &'d [usize],
    /// Tokens of a micro-batch at most.
    pub tokens_per_micro_batch: usize,
    /// Whether to compute log-probs too.
    pub log_probs: bool,
}

/// Progress of scoring, over all ranks.
pub(crate) struct Progress<'a> {
    title: &'a str,
    shown: logging::Progress,
    done: usize,
    pairs: usize,
}

impl<'a> Progress<'a> {
    /// For `pairs` pairs over all ranks, titled `title`.
    pub(crate) fn new(title: &'a str, pairs: usize) -> Self {
        Self { title, shown: logging::Progress::new(title, Unit::Pairs, 0, pairs as u64), done: 0, pairs }
    }

    /// Counts `own` pairs done by this rank, and about as many by each other of `ranks`.
    pub(super) fn add(&mut self, own: usize, ranks: usize) {
        self.done = (self.done + own * ranks).min(self.pairs);
        self.shown.at(self.done as u64);
    }
}

/// Scores of the given pairs, in their order, on every rank. All ranks must call it with the same arguments.
///
/// Each pair is scored by one rank and the others add zeros, so the number of ranks changes the scores only through packing, by
/// rounding.
///
/// # Errors
/// A lost rank, scores that are not finite, or log-probs of a model without a language-model head.
pub fn score_pairs(engine: &mut Engine, to_score: ToScore, comm: &CommThread, title: &str) -> Result<Vec<PairScores>> {
    score_part(engine, to_score, comm, &mut Progress::new(title, to_score.pairs.len()))
}

/// [`score_pairs`] for some of the pairs that `progress` counts.
///
/// # Errors
/// As [`score_pairs`].
pub(crate) fn score_part(
    engine: &mut Engine,
    to_score: ToScore,
    comm: &CommThread,
    progress: &mut Progress,
) -> Result<Vec<PairScores>> {
    let title = progress.title;
    finite(any_scores(engine, to_score, comm, progress)?, title)
}

/// [`score_pairs`] with two whole sequences per pair, in other batches: the same numbers except for rounding.
///
/// # Errors
/// As [`score_pairs`].
pub(crate) fn score_apart(
    engine: &mut Engine,
    to_score: ToScore,
    comm: &CommThread,
    title: &str,
) -> Result<Vec<PairScores>> {
    let mut progress = Progress::new(title, to_score.pairs.len());
    finite(packed_scores(engine, to_score, Packing::Separate, comm, &mut progress)?, title)
}

fn finite(scores: Vec<PairScores>, title: &str) -> Result<Vec<PairScores>> {
    match scores.iter().find(|scores| !is_finite(scores)) {
        Some(scores) => Err(not_finite(scores.index, title)),
        None => Ok(scores),
    }
}

/// Whether the rewards and the log-probs of a pair are finite numbers.
pub(crate) fn is_finite(scores: &PairScores) -> bool {
    scores.rewards.iter().chain(&scores.log_probs).all(|number| number.is_finite())
}

/// [`score_part`] that also returns scores that are not finite; every rank gets the same ones.
///
/// # Errors
/// A lost rank, or log-probs of a model without a language-model head.
pub(crate) fn any_scores(
    engine: &mut Engine,
    to_score: ToScore,
    comm: &CommThread,
    progress: &mut Progress,
) -> Result<Vec<PairScores>> {
    let packing = Packing::shared(engine.model.architecture.alike());
    packed_scores(engine, to_score, packing, comm, progress)
}

fn packed_scores(
    engine: &mut Engine,
    ToScore { data, pairs, tokens_per_micro_batch, log_probs }: ToScore,
    packing: Packing,
    comm: &CommThread,
    progress: &mut Progress,
) -> Result<Vec<PairScores>> {
    let rows: Vec<usize> = pairs.iter().map(|&pair| packing.rows(&data.pair(pair))).collect();
    engine.reserve(parts::most_rows(&rows, comm, tokens_per_micro_batch));
    let parts = parts::parts(&rows, engine, comm, tokens_per_micro_batch, FEWEST);
    let mut numbers = vec![0f64; NUMBERS * pairs.len()];
    let mut score = |members: &Vec<usize>| -> Result<()> {
        let items = members.iter().map(|&place| PairToPack {
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
    };
    for part in parts {
        comm.agree(parts::share(&rows, part, comm, tokens_per_micro_batch).iter().try_for_each(&mut score))?;
    }
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
        .hint("are the weight files damaged, or has training diverged? try model.dtype = \"f32\"")
}
