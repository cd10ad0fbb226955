//! Runs a model in segments forward and backward; owns the backward pass.
//!
//! Forward: embedding, blocks, final norm, each leaving what its backward needs. Backward: the heads, then the segments
//! from the last to the first; each adds its parameter gradients to its bucket. On a step's last micro-batch a finished
//! bucket is handed to a [`GradientSink`] at once, while the earlier segments still compute.
//!
//! Legend: T tokens, D width.

use crate::data::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::head::{Heads, Losses, Objective, PairScores, ROWS_AT_ONCE};
use crate::model::decoder::{self, Block, Context, Part};
use crate::model::norm::{Norm, Statistics};
use crate::model::rope;
use crate::model::segment::Segment;
use crate::model::weights::Model;
use crate::model::workspace::{Keep, Views, Workspace};
use std::cell::{Cell, RefCell};
use tch::Tensor;
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
    frequencies: Vec<f32>,
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
        let frequencies = rope::frequencies(&model.architecture.rope, model.architecture.rotated_width);
        Self { model, activation_checkpointing, frequencies, workspace: RefCell::default(), adapters: Cell::new(true) }
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
        let hidden = self.hidden(batch)?;
        self.heads(&self.workspace.borrow())?.scores(&hidden, batch, log_probs)
    }

    /// Final hidden states [T, D] of every token of a batch, after the final norm, without gradients.
    ///
    /// # Errors
    /// None with a model as this crate loads it.
    pub fn hidden(&self, batch: &PackedBatch) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let _span = trace_span!("score", pairs = batch.pairs.len(), tokens = batch.token_count()).entered();
        let mut views = self.views(batch, Keep::Nothing);
        self.forward(batch, &mut views, &self.context(batch))?;
        let (normed, _) = self.final_norm(&views.output)?;
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
            return Ok(Losses::Known(Vec::new()));
        }
        let _span = trace_span!("micro-batch", pairs = batch.pairs.len(), tokens = batch.token_count()).entered();
        let keep = if self.activation_checkpointing { Keep::Inputs } else { Keep::Everything };
        let mut views = self.views(batch, keep);
        let context = trace_span!("plan").in_scope(|| self.context(batch));
        self.forward(batch, &mut views, &context)?;
        let Views { mut states, output, shared } = views;
        let (normed, statistics) = self.final_norm(&output)?;

        let workspace = self.workspace.borrow();
        let (losses, gradient) =
            trace_span!("heads").in_scope(|| self.heads(&workspace)?.forward_backward(&normed, batch, objective))?;
        finished.heads()?;
        let (norm_index, norm) = self.norm()?;
        trace_span!("backward", segment = norm_index)
            .in_scope(|| norm.backward((&gradient, None), &output, &statistics, &shared.gradient))?;
        drop((gradient, normed));
        finished.segment(norm_index)?;
        for (index, segment) in self.blocks().enumerate().collect::<Vec<_>>().into_iter().rev() {
            let _span = trace_span!("backward", segment = index + 1).entered();
            let block = self.block(index, segment);
            let state = &mut states[index];
            if self.activation_checkpointing {
                // Its output is known already: it goes where nothing stands yet.
                block.forward(state, &shared.middle_gradient, &shared, &context)?;
            }
            block.backward(state, &shared, &workspace.scratch, &context)?;
            finished.block(index)?;
        }
        let embedding = self.embedding()?;
        let architecture = &self.model.architecture;
        trace_span!("backward", segment = 0)
            .in_scope(|| decoder::embed_backward(architecture, embedding, &batch.tokens, &shared.gradient));
        finished.segment(0)?;
        Ok(losses)
    }

    /// Embedding and blocks; the states of `views` are filled as they are kept.
    fn forward(&self, batch: &PackedBatch, views: &mut Views, context: &Context) -> Result<()> {
        let Views { states, output, shared } = views;
        let inputs: Vec<Tensor> = states.iter().map(|state| state.input.shallow_clone()).collect();
        let (embedding, first) = (self.embedding()?, inputs.first().unwrap_or(output));
        let architecture = &self.model.architecture;
        trace_span!("forward", segment = 0).in_scope(|| decoder::embed(architecture, embedding, &batch.tokens, first));
        for (index, (segment, state)) in self.blocks().zip(states).enumerate() {
            let _span = trace_span!("forward", segment = index + 1).entered();
            let output = inputs.get(index + 1).unwrap_or(output);
            self.block(index, segment).forward(state, output, shared, context)?;
        }
        Ok(())
    }

    /// The final norm's output [T, D] and its statistics.
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

    fn context(&self, batch: &PackedBatch) -> Context {
        let Model { architecture, kind, device, .. } = &self.model;
        Context::new(architecture, (&batch.groups, &batch.positions), &self.frequencies, (*kind, *device))
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
        self.model.segments.iter().skip(1).take(self.model.architecture.layers)
    }

    fn block<'a>(&'a self, index: usize, segment: &'a Segment) -> Block<'a> {
        let adapter = if self.adapters.get() { self.model.adapter(index) } else { None };
        Block::new(&self.model.architecture, index, segment).with_adapter(adapter)
    }

    fn heads<'a>(&'a self, workspace: &'a Workspace) -> Result<Heads<'a>> {
        let vocabulary = self.model.vocabulary().map(|(_, segment)| segment);
        let Workspace { logits, scratch, .. } = workspace;
        let most_rows = workspace.reserved().min(ROWS_AT_ONCE);
        let soft_cap = self.model.architecture.logit_cap;
        Ok(Heads { reward: self.part(Part::RewardHead)?.1, vocabulary, soft_cap, most_rows, logits, scratch })
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
        (0..self.engine.model.architecture.layers).rev().try_for_each(|block| self.block(block))?;
        self.segment(0)
    }
}
