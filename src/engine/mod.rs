//! Runs a model in segments forward and backward; owns the backward pass.
//!
//! Forward: embedding, blocks, final norm, each leaving what its backward needs. Backward: the heads, then the segments
//! from the last to the first; each adds its parameter gradients to its bucket. On a step's last micro-batch a finished
//! bucket is handed to a [`GradientSink`] at once, while the earlier segments still compute.
//!
//! The heads read some rows only ([`PackedBatch::read_rows`]), and a row needs others in attention only: after that of
//! the last block just the rows that are read go on.
//!
//! Legend: T tokens, N rows that the heads read, D width.

pub mod head;

use crate::data::batch::PackedBatch;
use crate::engine::head::{Heads, Losses, Objective, PairScores, ROWS_AT_ONCE};
use crate::error::{Error, Result};
use crate::model::architecture::Architecture;
use crate::model::decoder::{self, Block, Context, Part};
use crate::model::embedding;
use crate::model::norm::{Norm, Statistics};
use crate::model::segment::Segment;
use crate::model::weights::Model;
use crate::model::workspace::{Keep, Slot, Views, Workspace};
use crate::ops::NormGradients;
use std::cell::{Cell, RefCell};
use tch::{Kind, Tensor};
use tracing::trace_span;

/// Takes gradient buckets in the order in which they become complete; the same order on every rank.
pub trait GradientSink {
    /// The bucket of `segment` (its number in the model) holds this rank's sum for the step. `gradient` shares the
    /// bucket's memory.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it.
    fn complete(&mut self, segment: usize, gradient: Tensor) -> Result<()>;
}

/// A model that runs.
pub struct Engine {
    /// The model.
    pub model: Model,
    activation_checkpointing: bool,
    workspace: RefCell<Workspace>,
    /// Whether adapters take part, where the model has them.
    adapters: Cell<bool>,
}

/// While it lives an engine computes with the base alone.
pub struct AdaptersOff<'a> {
    engine: &'a Engine,
    before: bool,
}

impl Drop for AdaptersOff<'_> {
    fn drop(&mut self) {
        self.engine.adapters.set(self.before);
    }
}

impl Engine {
    /// An engine over `model`. With activation checkpointing a block keeps only its input and is recomputed in the
    /// backward pass.
    pub fn new(model: Model, activation_checkpointing: bool) -> Self {
        Self { model, activation_checkpointing, workspace: RefCell::default(), adapters: Cell::new(true) }
    }

    /// Computes without the model's adapters, if it has any, for as long as the value lives: the policy loss takes the
    /// base as its reference.
    pub fn without_adapters(&self) -> AdaptersOff<'_> {
        AdaptersOff { engine: self, before: self.adapters.replace(false) }
    }

    /// Makes room for micro-batches of so many tokens; longer ones make more.
    pub fn reserve(&self, tokens: usize) {
        self.workspace.borrow_mut().reserve(tokens);
    }

    /// Scores of every pair of a batch, without gradients.
    ///
    /// # Errors
    /// Log-probs asked of a model without a language-model head.
    pub fn score(&self, batch: &PackedBatch, log_probs: bool) -> Result<Vec<PairScores>> {
        if batch.pairs.is_empty() {
            return Ok(Vec::new());
        }
        let read = batch.read_rows(log_probs);
        let hidden = self.hidden_at(batch, &read.rows)?;
        self.heads(&self.workspace.borrow())?.scores(&hidden, &read.pairs, log_probs)
    }

    /// Final hidden states [T, D] of every token of a batch, after the final norm, without gradients.
    ///
    /// # Errors
    /// None with a model as this crate loads it.
    pub fn hidden(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.hidden_at(batch, &Tensor::arange(batch.token_count() as i64, (Kind::Int64, self.model.device)))
    }

    /// [`Engine::hidden`] at some rows `[N]`, [N, D].
    fn hidden_at(&self, batch: &PackedBatch, rows: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let _span = trace_span!("score", pairs = batch.pairs.len(), tokens = batch.token_count()).entered();
        let mut views = self.views(batch, Keep::Nothing);
        let output = self.forward(batch, rows, &mut views, &self.context(batch)?)?;
        let (normed, _) = self.final_norm(&output)?;
        Ok(normed)
    }

    /// Losses of every pair of a micro-batch; gradients of their weighted sum are added to the buckets. With a sink
    /// (the step's last micro-batch) every bucket is handed over as soon as it is complete.
    ///
    /// # Errors
    /// As [`Engine::score`], or from the sink.
    pub fn forward_backward<'o>(
        &self,
        batch: &PackedBatch,
        objective: &Objective<'o>,
        sink: Option<&mut dyn GradientSink>,
    ) -> Result<Losses<'o>> {
        let _guard = tch::no_grad_guard();
        let mut finished = Finished { engine: self, sink };
        if batch.pairs.is_empty() {
            // A rank without pairs still takes part in every reduction, in the same order.
            finished.all()?;
            return Ok(Losses::none(*objective));
        }
        let _span = trace_span!("micro-batch", pairs = batch.pairs.len(), tokens = batch.token_count()).entered();
        let keep = if self.activation_checkpointing { Keep::Inputs } else { Keep::Everything };
        let mut views = self.views(batch, keep);
        let (context, read) =
            trace_span!("plan").in_scope(|| (self.context(batch), batch.read_rows(objective.log_probs)));
        let context = context?;
        let output = self.forward(batch, &read.rows, &mut views, &context)?;
        let Views { mut states, shared, .. } = views;
        let (normed, statistics) = self.final_norm(&output)?;

        let workspace = self.workspace.borrow();
        let (losses, gradient) = trace_span!("heads")
            .in_scope(|| self.heads(&workspace)?.forward_backward(&normed, &read.pairs, objective))?;
        finished.heads()?;
        let (norm_index, norm) = self.norm()?;
        let output_gradient = shared[Slot::Gradient].narrow(0, 0, output.size()[0]);
        let gradients = NormGradients { output: &gradient, residual: None, input: &output_gradient };
        trace_span!("backward", segment = norm_index).in_scope(|| norm.backward(gradients, &output, &statistics))?;
        drop((gradient, normed));
        finished.segment(norm_index)?;
        for (index, segment) in self.blocks().enumerate().collect::<Vec<_>>().into_iter().rev() {
            let _span = trace_span!("backward", segment = index + 1).entered();
            let block = self.block(index, segment, &read.rows);
            let state = &mut states[index];
            if self.activation_checkpointing {
                // Its output is known already: it goes where nothing stands yet.
                block.forward(state, &shared[Slot::MiddleGradient], &context)?;
            }
            block.backward(state, &workspace.scratch, &context)?;
            finished.block(index)?;
        }
        let embedding = self.embedding()?;
        let architecture = &self.model.architecture;
        trace_span!("backward", segment = 0)
            .in_scope(|| embedding::embed_backward(architecture, embedding, &batch.tokens, &shared[Slot::Gradient]));
        finished.segment(0)?;
        Ok(losses)
    }

    /// Embedding and blocks; the states of `views` are filled as they are kept. Returns the last block's output at the
    /// rows `[N]`, [N, D].
    fn forward(&self, batch: &PackedBatch, rows: &Tensor, views: &mut Views, context: &Context) -> Result<Tensor> {
        let Views { states, output, .. } = views;
        let inputs: Vec<Tensor> = states.iter().map(|state| state.buffers[Slot::Input].shallow_clone()).collect();
        let (embedding, first) = (self.embedding()?, inputs.first().unwrap_or(output));
        let architecture = &self.model.architecture;
        trace_span!("forward", segment = 0)
            .in_scope(|| embedding::embed(architecture, embedding, &batch.tokens, first));
        for (index, (segment, state)) in self.blocks().zip(states).enumerate() {
            let _span = trace_span!("forward", segment = index + 1).entered();
            let output = inputs.get(index + 1).unwrap_or(output);
            self.block(index, segment, rows).forward(state, output, context)?;
        }
        Ok(output.narrow(0, 0, rows.size()[0]))
    }

    /// The final norm's output [N, D] and its statistics.
    fn final_norm(&self, hidden: &Tensor) -> Result<(Tensor, Statistics)> {
        let (index, norm) = self.norm()?;
        let _span = trace_span!("forward", segment = index).entered();
        let statistics = Statistics::new(norm.kind, hidden.size()[0], self.model.device);
        let normed = hidden.empty_like();
        norm.forward(hidden, &normed, &statistics)?;
        Ok((normed, statistics))
    }

    fn views(&self, batch: &PackedBatch, keep: Keep) -> Views {
        let Model { architecture, kind, device, .. } = &self.model;
        self.workspace.borrow_mut().views(architecture, batch.token_count() as i64, keep, (*kind, *device))
    }

    fn context(&self, batch: &PackedBatch) -> Result<Context> {
        let Model { architecture, kind, device, .. } = &self.model;
        Context::new(self.model.ops(), architecture, (&batch.groups, &batch.positions), (*kind, *device))
    }

    fn embedding(&self) -> Result<&Segment> {
        Ok(self.part(Part::Embedding)?.1)
    }

    /// The final norm, and the number of its segment.
    fn norm(&self) -> Result<(usize, Norm<'_>)> {
        let (index, segment) = self.part(Part::Norm)?;
        Ok((index, decoder::norm_of(&self.model.architecture, segment, 0)))
    }

    fn blocks(&self) -> impl Iterator<Item = &Segment> {
        self.model.segments.iter().skip(1).take(self.model.architecture.blocks.len())
    }

    /// A block; after attention the last one goes on with these rows `[N]` alone.
    fn block<'a>(&'a self, index: usize, segment: &'a Segment, rows: &'a Tensor) -> Block<'a> {
        let adapter = if self.adapters.get() { self.model.adapter(index) } else { None };
        let last = index + 1 == self.model.architecture.blocks.len();
        Block::new(&self.model.architecture, index, segment).with_adapter(adapter).with_rows(last.then_some(rows))
    }

    fn heads<'a>(&'a self, workspace: &'a Workspace) -> Result<Heads<'a>> {
        let vocabulary = self.model.vocabulary().map(|(_, segment)| segment);
        let Workspace { logits, scratch, .. } = workspace;
        let most_rows = workspace.reserved().min(ROWS_AT_ONCE);
        let Architecture { logit_scale, logit_cap: soft_cap, .. } = self.model.architecture;
        let reward = self.part(Part::RewardHead)?.1;
        Ok(Heads { reward, vocabulary, logit_scale, soft_cap, most_rows, logits, scratch })
    }

    fn part(&self, part: Part) -> Result<(usize, &Segment)> {
        self.model.segment(part).ok_or_else(|| Error::runtime(format!("the model has no {part:?}")))
    }
}

/// Hands complete buckets to the sink, if there is one.
struct Finished<'a, 'b> {
    engine: &'a Engine,
    sink: Option<&'b mut dyn GradientSink>,
}

impl Finished<'_, '_> {
    fn segment(&mut self, index: usize) -> Result<()> {
        let gradient = &self.engine.model.segments[index].gradient;
        match (&mut self.sink, gradient) {
            (Some(sink), Some(gradient)) => sink.complete(index, gradient.shallow_clone()),
            _ => Ok(()),
        }
    }

    /// A block and its adapters.
    fn block(&mut self, block: usize) -> Result<()> {
        self.segment(block + 1)?;
        self.engine.model.segment(Part::Adapter(block)).map_or(Ok(()), |(index, _)| self.segment(index))
    }

    /// The segments after the norm: the heads that have a bucket of their own, the last first.
    fn heads(&mut self) -> Result<()> {
        let (norm, _) = self.engine.norm()?;
        let parts = &self.engine.model.parts;
        let end = parts.iter().position(|part| matches!(part, Part::Adapter(_))).unwrap_or(parts.len());
        (norm + 1..end).rev().try_for_each(|index| self.segment(index))
    }

    fn all(&mut self) -> Result<()> {
        self.heads()?;
        self.segment(self.engine.norm()?.0)?;
        (0..self.engine.model.architecture.blocks.len()).rev().try_for_each(|block| self.block(block))?;
        self.segment(0)
    }
}
