//! Runs a model in segments forward and backward; owns the backward pass.
//!
//! Forward: embedding, blocks, final norm, each leaving what its backward needs. Backward: the heads, then the segments
//! from the last to the first; each adds its parameter gradients to a bucket that a [`GradientSink`] lends, and that goes
//! back as soon as it is complete, while the earlier segments still compute. Weights are lent by a [`WeightSource`].
//!
//! The heads read only some rows ([`PackedBatch::read_rows`]), and a row depends on others only through attention: after
//! the last block's attention, only the rows that are read are computed.
//!
//! Legend: T tokens, N rows that the heads read, D width.

pub mod head;
mod lending;
mod pass;

pub(crate) use lending::Whole;
pub use lending::{Buckets, GradientSink, WeightSource};

use crate::data::batch::PackedBatch;
use crate::engine::head::{Losses, Objective, PairScores};
use crate::error::{Result, libtorch};
use crate::model::order::Order;
use crate::model::segment::Segment;
use crate::model::weights::Model;
use crate::model::workspace::{Keep, Workspace};
use pass::Pass;
use tch::{Kind, Tensor};

/// A model that runs.
pub struct Engine {
    /// The model.
    pub model: Model,
    /// The order of its segments.
    pub order: Order,
    activation_checkpointing: bool,
    workspace: Workspace,
    /// Whether adapters take part, if the model has them.
    adapters: bool,
}

impl Engine {
    /// An engine over `model`. With activation checkpointing a block keeps only its input and is recomputed in the
    /// backward pass.
    ///
    /// # Errors
    /// A model without a part that every model has.
    pub fn new(model: Model, activation_checkpointing: bool) -> Result<Self> {
        let trained =
            |number: usize| model.segments.get(number).filter(|segment| segment.trains()).map(Segment::length);
        let order = Order::of(&model.parts, model.architecture.tied, trained)?;
        let (workspace, adapters) = (Workspace::default(), true);
        Ok(Self { model, order, activation_checkpointing, workspace, adapters })
    }

    /// Runs `work` with the base alone, without the model's adapters, if it has any: the base is the policy loss's
    /// reference.
    pub fn without_adapters<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.adapters, false);
        let done = work(self);
        self.adapters = before;
        done
    }

    /// Makes room for micro-batches of this many tokens; a longer one makes more.
    pub(crate) fn reserve(&mut self, tokens: usize) {
        self.workspace.reserve(tokens);
    }

    /// Scores of every pair of a batch, without gradients.
    ///
    /// # Errors
    /// Log-probs requested from a model without a language-model head, or a device out of memory.
    pub fn score(&mut self, batch: &PackedBatch, log_probs: bool) -> Result<Vec<PairScores>> {
        self.run(|pass| pass.score(batch, log_probs), None)
    }

    /// For every pair of a batch and each of its answers, the log-probs of the answer's tokens.
    ///
    /// # Errors
    /// As [`Engine::score`].
    pub(crate) fn token_log_probs(&mut self, batch: &PackedBatch) -> Result<Vec<Vec<Vec<f64>>>> {
        self.run(|pass| pass.token_log_probs(batch), None)
    }

    /// As [`Engine::score`], with the weights that `source` lends.
    ///
    /// # Errors
    /// As [`Engine::score`], or from the source.
    pub fn score_with(
        &mut self,
        source: &mut dyn WeightSource,
        batch: &PackedBatch,
        log_probs: bool,
    ) -> Result<Vec<PairScores>> {
        self.run(|pass| pass.score(batch, log_probs), Some(source))
    }

    /// Final hidden states [T, D] of every token of a batch, after the final norm, without gradients.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn hidden(&mut self, batch: &PackedBatch) -> Result<Tensor> {
        let rows = Tensor::arange(batch.token_count() as i64, (Kind::Int64, self.model.device));
        self.run(|pass| pass.hidden(batch, &rows), None)
    }

    /// The experts of each token of a batch, without gradients: [T, K] i64 for each block with experts, the expert with the
    /// largest share first.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn experts(&mut self, batch: &PackedBatch) -> Result<Vec<Tensor>> {
        let rows = Tensor::arange(batch.token_count() as i64, (Kind::Int64, self.model.device));
        self.run(|pass| pass.experts(batch, &rows), None)
    }

    /// Losses of every pair of a micro-batch; gradients of their weighted sum are added to the buckets that `sink` lends.
    ///
    /// # Errors
    /// As [`Engine::score`], or from the sink.
    pub fn forward_backward<'o>(
        &mut self,
        batch: &PackedBatch,
        objective: &Objective<'o>,
        sink: &mut dyn GradientSink,
    ) -> Result<Losses<'o>> {
        self.run(|pass| pass.forward_backward(batch, objective, sink), None)
    }

    /// As [`Engine::forward_backward`], with the weights that `source` lends.
    ///
    /// # Errors
    /// As [`Engine::forward_backward`], or from the source.
    pub fn forward_backward_with<'o>(
        &mut self,
        source: &mut dyn WeightSource,
        batch: &PackedBatch,
        objective: &Objective<'o>,
        sink: &mut dyn GradientSink,
    ) -> Result<Losses<'o>> {
        self.run(|pass| pass.forward_backward(batch, objective, sink), Some(source))
    }

    /// Runs one pass without automatic differentiation; a failure of libtorch is an error. Without a `source` the weights are
    /// the model's own.
    fn run<T>(&mut self, work: impl FnOnce(Pass) -> Result<T>, source: Option<&mut dyn WeightSource>) -> Result<T> {
        let _guard = tch::no_grad_guard();
        let mut own = Whole(&self.model.segments);
        let pass = Pass {
            model: &self.model,
            order: &self.order,
            keep: if self.activation_checkpointing { Keep::Inputs } else { Keep::Everything },
            adapters: self.adapters,
            workspace: &mut self.workspace,
            source: match source {
                Some(source) => source,
                None => &mut own,
            },
        };
        libtorch(|| work(pass))
    }
}
