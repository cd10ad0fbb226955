//! The heads' results for a micro-batch, which stay on its device until they are read.
//!
//! Not here: the formulas of the losses, which are computed from the scores (`mod.rs`, `loss/`).

use super::{Objective, PairLosses, PairScores};
use crate::data::batch::PackedPair;
use crate::error::Result;
use crate::model::balance::Routing;
use crate::tensor::queue_to_host;
use tch::{Device, Kind, Tensor};

/// The losses of a micro-batch, which a GPU may still be computing.
pub struct Losses<'o> {
    pub(super) scores: Scores,
    pub(super) pairs: Vec<PackedPair>,
    pub(super) objective: Objective<'o>,
    /// The routing in each block that has experts.
    pub routing: Vec<Routing>,
}

impl<'o> Losses<'o> {
    /// The losses of no pairs.
    pub(crate) fn none(objective: Objective<'o>) -> Self {
        Self { scores: Scores::default(), pairs: Vec::new(), objective, routing: Vec::new() }
    }

    /// Queues copies to the host: read them once all work queued so far is done.
    ///
    /// # Errors
    /// The device has failed.
    pub(crate) fn on_host(mut self) -> Result<Self> {
        if self.pairs.is_empty() {
            return Ok(self);
        }
        let Scores { rewards, second_rewards, log_probs } = &mut self.scores;
        for values in std::iter::once(rewards).chain(second_rewards).chain(log_probs) {
            *values = queue_to_host(values)?;
        }
        for Routing { load, balance, gap } in &mut self.routing {
            for values in [load, gap].into_iter().chain(balance) {
                *values = queue_to_host(values)?;
            }
        }
        Ok(self)
    }

    /// The losses of every pair; waits for the device if they are not on the host.
    ///
    /// # Errors
    /// The device has failed.
    pub fn read(self) -> Result<Vec<PairLosses>> {
        let scores = self.scores.read(&self.pairs)?.into_iter().zip(&self.pairs);
        Ok(scores.map(|(scores, pair)| self.objective.losses(scores, pair.margin, pair.reference, pair.tied)).collect())
    }
}

/// Scores of some pairs' answers, in the order of the pairs; a GPU may still be computing them.
#[derive(Default)]
pub(super) struct Scores {
    /// Rewards `[A]` f64; a tensor without elements if there are no pairs.
    pub(crate) rewards: Tensor,
    /// Rewards at the answers' second positions `[A]` f64, if they are trained there too.
    pub(crate) second_rewards: Option<Tensor>,
    /// Summed log-probs f64, if requested: a tensor for each chunk of pairs, together `[A]`.
    pub(crate) log_probs: Vec<Tensor>,
}

impl Scores {
    /// The scores of each pair; waits for the device.
    pub(crate) fn read(&self, pairs: &[PackedPair]) -> Result<Vec<PairScores>> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let mut rewards = on_host(&self.rewards)?.into_iter();
        let mut second = self.second_rewards.as_ref().map(on_host).transpose()?.map(Vec::into_iter);
        let mut log_probs = match self.log_probs.is_empty() {
            true => Vec::new(),
            false => on_host(&Tensor::f_cat(&self.log_probs, 0)?)?,
        }
        .into_iter();
        let with_log_probs = !self.log_probs.is_empty();
        let score = |pair: &PackedPair| {
            let mut scores = PairScores { index: pair.index, ..PairScores::default() };
            scores.second_rewards = second.as_mut().map(|second| [0, 1].map(|_| second.next().unwrap_or(f64::NAN)));
            for (place, answer) in pair.answers.iter().enumerate() {
                scores.rewards[place] = rewards.next().unwrap_or(f64::NAN);
                if with_log_probs {
                    scores.log_probs[place] = log_probs.next().unwrap_or(f64::NAN);
                    scores.tokens[place] = answer.targets.len();
                }
            }
            scores
        };
        Ok(pairs.iter().map(score).collect())
    }
}

/// The values of a tensor, as f64; waits for the device.
pub(super) fn on_host(scores: &Tensor) -> Result<Vec<f64>> {
    let scores = scores.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_contiguous()?;
    Ok(crate::tensor::slice::<f64>(&scores)?.to_vec())
}
