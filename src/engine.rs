//! Runs a model in segments forward and backward; owns the backward pass.
//!
//! Forward: embedding, blocks, final norm, each leaving what its backward needs. Backward: the heads, then the segments
//! from the last to the first; each adds its parameter gradients to its bucket. On a step's last micro-batch a finished
//! bucket is handed to a [`GradientSink`] at once, while the earlier segments still compute.
//!
//! Legend: T tokens, D width.

use crate::data::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::head::{Heads, Objective, PairLosses, PairScores};
use crate::model::attention::AttentionPlan;
use crate::model::decoder::{self, Block, BlockState, Context, Part};
use crate::model::rope::{self, Rotation};
use crate::model::segment::Segment;
use crate::model::weights::Model;
use tch::Tensor;

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
}

/// What a block keeps between forward and backward.
enum Kept {
    /// Everything.
    State(Box<BlockState>),
    /// Its input [T, D]; the rest is recomputed (activation checkpointing).
    Input(Tensor),
}

impl Engine {
    /// An engine over `model`. With activation checkpointing a block keeps only its input and is recomputed in the
    /// backward pass.
    pub fn new(model: Model, activation_checkpointing: bool) -> Self {
        let frequencies = rope::frequencies(&model.architecture.rope, model.architecture.head_width);
        Self { model, activation_checkpointing, frequencies }
    }

    /// Scores of every pair of a batch, without gradients.
    ///
    /// # Errors
    /// Log-probs asked of a model without a language-model head.
    pub fn score(&self, batch: &PackedBatch, log_probs: bool) -> Result<Vec<PairScores>> {
        if batch.pairs.is_empty() {
            return Ok(Vec::new());
        }
        let _guard = tch::no_grad_guard();
        self.heads()?.scores(&self.hidden(batch)?, batch, log_probs)
    }

    /// Final hidden states [T, D] of every token of a batch, after the final norm, without gradients.
    ///
    /// # Errors
    /// None with a model as this crate loads it.
    pub fn hidden(&self, batch: &PackedBatch) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let context = self.context(batch);
        let mut hidden = decoder::embed(self.embedding()?, &batch.tokens);
        for segment in self.blocks() {
            hidden = Block::new(&self.model.architecture, segment).forward(hidden, &context).0;
        }
        Ok(decoder::final_norm(&self.model.architecture, self.norm()?.1, &hidden).0)
    }

    /// Losses of every pair of a micro-batch; gradients of their weighted sum are added to the buckets. With a sink
    /// (the step's last micro-batch) every bucket is handed over as soon as it is complete.
    ///
    /// # Errors
    /// As [`Engine::score`], or from the sink.
    pub fn forward_backward(
        &self,
        batch: &PackedBatch,
        objective: &Objective,
        sink: Option<&mut dyn GradientSink>,
    ) -> Result<Vec<PairLosses>> {
        let _guard = tch::no_grad_guard();
        let mut finished = Finished { engine: self, sink };
        if batch.pairs.is_empty() {
            // A rank without pairs still takes part in every reduction, in the same order.
            finished.all()?;
            return Ok(Vec::new());
        }
        let architecture = &self.model.architecture;
        let context = self.context(batch);
        let mut hidden = decoder::embed(self.embedding()?, &batch.tokens);
        let mut kept = Vec::with_capacity(architecture.layers);
        for segment in self.blocks() {
            let input = self.activation_checkpointing.then(|| hidden.shallow_clone());
            let (output, state) = Block::new(architecture, segment).forward(hidden, &context);
            kept.push(match input {
                Some(input) => Kept::Input(input),
                None => Kept::State(Box::new(state)),
            });
            hidden = output;
        }
        let (norm_index, norm) = self.norm()?;
        let (normed, scale) = decoder::final_norm(architecture, norm, &hidden);

        let (losses, gradient) = self.heads()?.forward_backward(&normed, batch, objective)?;
        finished.heads()?;
        let mut gradient = decoder::final_norm_backward(norm, &gradient, &hidden, &scale);
        drop((hidden, normed));
        finished.segment(norm_index)?;
        for (index, segment) in self.blocks().enumerate().collect::<Vec<_>>().into_iter().rev() {
            let block = Block::new(architecture, segment);
            let state = match kept.pop() {
                Some(Kept::State(state)) => *state,
                Some(Kept::Input(input)) => block.forward(input, &context).1,
                None => return Err(Error::runtime("a block lost its activations")),
            };
            gradient = block.backward(&gradient, state, &context);
            finished.segment(index + 1)?;
        }
        decoder::embed_backward(self.embedding()?, &batch.tokens, &gradient);
        finished.segment(0)?;
        Ok(losses)
    }

    fn context(&self, batch: &PackedBatch) -> Context {
        let Model { kind, device, .. } = self.model;
        Context {
            attention: AttentionPlan::new(&batch.groups, kind, device),
            rotation: Rotation::new(&batch.positions, &self.frequencies, kind, device),
        }
    }

    fn embedding(&self) -> Result<&Segment> {
        Ok(self.part(Part::Embedding)?.1)
    }

    fn norm(&self) -> Result<(usize, &Segment)> {
        self.part(Part::Norm)
    }

    fn blocks(&self) -> impl Iterator<Item = &Segment> {
        self.model.segments.iter().skip(1).take(self.model.architecture.layers)
    }

    fn heads(&self) -> Result<Heads<'_>> {
        let vocabulary = self.model.vocabulary().map(|(_, segment)| segment);
        Ok(Heads { reward: self.part(Part::RewardHead)?.1, vocabulary })
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

    /// The segments after the norm: the heads that have a bucket of their own, the last first.
    fn heads(&mut self) -> Result<()> {
        let (norm, _) = self.engine.norm()?;
        (norm + 1..self.engine.model.segments.len()).rev().try_for_each(|index| self.segment(index))
    }

    fn all(&mut self) -> Result<()> {
        (0..self.engine.model.segments.len()).rev().try_for_each(|index| self.segment(index))
    }
}
