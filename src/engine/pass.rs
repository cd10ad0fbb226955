//! One pass over a micro-batch: which segment runs when, with weights and buckets that are lent for as long as it runs.
//!
//! Not here: what a segment computes (`model/`), and the heads (`head/`).
//!
//! Legend: T tokens, N rows that the heads read, D width.

use super::head::{HeadBuckets, Heads, Losses, Objective, PairScores, ROWS_AT_ONCE};
use super::lending::{GradientSink, WeightSource};
use crate::data::batch::PackedBatch;
use crate::error::Result;
use crate::model::architecture::Architecture;
use crate::model::balance::Routing;
use crate::model::decoder::{Block, BlockSums, Context};
use crate::model::embedding;
use crate::model::lora::Adapter;
use crate::model::norm::{Norm, Statistics};
use crate::model::order::{BlockSegments, Order};
use crate::model::segment::{Bucket, Weights};
use crate::model::weights::Model;
use crate::model::workspace::{Keep, Slot, Views, Workspace, spread};
use crate::ops::NormGradients;
use tch::Tensor;
use tracing::trace_span;

/// What one pass works with.
pub(crate) struct Pass<'a> {
    pub(crate) model: &'a Model,
    pub(crate) order: &'a Order,
    /// What the forward pass keeps for the backward pass.
    pub(crate) keep: Keep,
    /// Whether adapters take part, if the model has them.
    pub(crate) adapters: bool,
    pub(crate) workspace: &'a mut Workspace,
    pub(crate) source: &'a mut dyn WeightSource,
}

/// The weights of a block and its adapters, while they are lent.
struct BlockWeights {
    base: Weights,
    adapter: Option<Weights>,
}

/// The weights of both heads, while they are lent.
struct HeadWeights {
    reward: Weights,
    vocabulary: Option<Weights>,
}

impl Pass<'_> {
    /// See [`super::Engine::score`].
    pub(crate) fn score(mut self, batch: &PackedBatch, log_probs: bool) -> Result<Vec<PairScores>> {
        if batch.pairs.is_empty() {
            return Ok(Vec::new());
        }
        let read = batch.read_rows(log_probs);
        let hidden = self.final_hidden(batch, &read.rows)?;
        let weights = self.lend_heads()?;
        let scores = self.heads(&weights).scores(&hidden, &read.pairs, log_probs)?;
        self.give_back_heads(weights)?;
        Ok(scores)
    }

    /// See [`super::Engine::token_log_probs`].
    pub(crate) fn token_log_probs(mut self, batch: &PackedBatch) -> Result<Vec<Vec<Vec<f64>>>> {
        if batch.pairs.is_empty() {
            return Ok(Vec::new());
        }
        let read = batch.read_rows(true);
        let hidden = self.final_hidden(batch, &read.rows)?;
        let weights = self.lend_heads()?;
        let log_probs = self.heads(&weights).token_log_probs(&hidden, &read.pairs)?;
        self.give_back_heads(weights)?;
        Ok(log_probs)
    }

    /// Final hidden states at some rows `[N]` of a batch, [N, D].
    pub(crate) fn hidden(mut self, batch: &PackedBatch, rows: &Tensor) -> Result<Tensor> {
        self.final_hidden(batch, rows)
    }

    /// The experts of each token if the heads read these rows `[N]`: of these rows alone, [N, K], in the last block.
    pub(crate) fn experts(mut self, batch: &PackedBatch, rows: &Tensor) -> Result<Vec<Tensor>> {
        let mut views = self.views(batch, Keep::Nothing);
        let _ = self.forward(batch, rows, &mut views, &self.context(batch)?)?;
        Ok(views.states.into_iter().filter_map(|state| Some(state.routes?.chosen.experts)).collect())
    }

    fn final_hidden(&mut self, batch: &PackedBatch, rows: &Tensor) -> Result<Tensor> {
        let _span = trace_span!("score", pairs = batch.pairs.len(), tokens = batch.token_count()).entered();
        let mut views = self.views(batch, Keep::Nothing);
        let output = self.forward(batch, rows, &mut views, &self.context(batch)?)?;
        let (normed, _) = self.final_norm(&output)?;
        Ok(normed)
    }

    /// See [`super::Engine::forward_backward`].
    pub(crate) fn forward_backward<'o>(
        mut self,
        batch: &PackedBatch,
        objective: &Objective<'o>,
        sink: &mut dyn GradientSink,
    ) -> Result<Losses<'o>> {
        if batch.pairs.is_empty() {
            // A rank without pairs still takes part in every reduction, in the same order.
            for &segment in &self.order.completions {
                if let Some(bucket) = sink.lend(segment)? {
                    sink.complete(segment, bucket)?;
                }
            }
            return Ok(Losses::none(*objective));
        }
        let _span = trace_span!("micro-batch", pairs = batch.pairs.len(), tokens = batch.token_count()).entered();
        let mut views = self.views(batch, self.keep);
        let (context, read) =
            trace_span!("plan").in_scope(|| (self.context(batch), batch.read_rows(objective.log_probs)));
        let Model { architecture, device, .. } = self.model;
        let context = context?.training(architecture, &batch.groups, objective.config.router_balance, *device);
        let output = self.forward(batch, &read.rows, &mut views, &context)?;
        let (normed, statistics) = self.final_norm(&output)?;

        let weights = self.lend_heads()?;
        let mut buckets = HeadBuckets { reward: sink.lend(self.order.reward_head)?, vocabulary: None };
        if let Some(vocabulary) = self.order.vocabulary() {
            buckets.vocabulary = sink.lend(vocabulary)?;
        }
        let (mut losses, gradient) = trace_span!("heads")
            .in_scope(|| self.heads(&weights).forward_backward(&normed, &read.pairs, objective, &mut buckets))?;
        self.give_back_heads(weights)?;
        let embedding = self.complete_heads(buckets, sink)?;
        self.norm_backward([&gradient, &output, &views.shared[Slot::Gradient]], &statistics, sink)?;
        drop((gradient, normed, output));
        if context.routes_all() {
            spread(&views.shared[Slot::Gradient], &read.rows);
        }
        for block in (0..self.order.blocks.len()).rev() {
            losses.routing.extend(self.block_backward(block, &read.rows, &mut views, &context, sink)?);
        }
        losses.routing.reverse();
        self.embedding_backward(batch, &views.shared[Slot::Gradient], embedding, sink)?;
        Ok(losses)
    }

    /// Gives the heads' buckets back, except that of a tied vocabulary matrix: it is returned, for the embedding to add to.
    fn complete_heads(&self, buckets: HeadBuckets, sink: &mut dyn GradientSink) -> Result<Option<Bucket>> {
        if let Some(bucket) = buckets.reward {
            sink.complete(self.order.reward_head, bucket)?;
        }
        match (self.order.language_model_head, buckets.vocabulary) {
            (Some(head), Some(bucket)) => sink.complete(head, bucket).map(|()| None),
            (_, tied) => Ok(tied),
        }
    }

    /// Embedding and blocks; fills the states of `views` that are kept. Returns the last block's output at the rows `[N]`,
    /// [N, D].
    fn forward(&mut self, batch: &PackedBatch, rows: &Tensor, views: &mut Views, context: &Context) -> Result<Tensor> {
        let Views { states, output, .. } = views;
        let inputs: Vec<Tensor> = states.iter().map(|state| state.buffers[Slot::Input].shallow_clone()).collect();
        let first = inputs.first().unwrap_or(output);
        let weights = self.source.lend(self.order.embedding)?;
        trace_span!("forward", segment = 0)
            .in_scope(|| embedding::embed(&self.model.architecture, &weights, &batch.tokens, first))?;
        self.source.give_back(self.order.embedding, weights)?;
        for (number, state) in states.iter_mut().enumerate() {
            let _span = trace_span!("forward", segment = self.order.blocks[number].base).entered();
            let output = inputs.get(number + 1).unwrap_or(output);
            let weights = self.lend_block(number)?;
            block(self.model, number, &weights, (rows, context)).forward(state, output, context)?;
            self.give_back_block(number, weights)?;
        }
        Ok(match context.routes_all() {
            true => output.f_index_select(0, rows)?,
            false => output.narrow(0, 0, rows.size()[0]),
        })
    }

    /// The final norm's output [N, D] and its statistics.
    fn final_norm(&mut self, hidden: &Tensor) -> Result<(Tensor, Statistics)> {
        let _span = trace_span!("forward", segment = self.order.norm).entered();
        let weights = self.source.lend(self.order.norm)?;
        let norm = Norm::of(&self.model.architecture, &weights, 0);
        let statistics = Statistics::new(norm.kind, hidden.size()[0], self.model.device);
        let normed = hidden.empty_like();
        norm.forward(hidden, &normed, &statistics)?;
        self.source.give_back(self.order.norm, weights)?;
        Ok((normed, statistics))
    }

    /// From the gradient [N, D] of the final norm's output to that of its `input`, which goes to the first N rows of
    /// `buffer`.
    fn norm_backward(
        &mut self,
        [gradient, input, buffer]: [&Tensor; 3],
        statistics: &Statistics,
        sink: &mut dyn GradientSink,
    ) -> Result<()> {
        let segment = self.order.norm;
        let _span = trace_span!("backward", segment).entered();
        let (weights, mut bucket) = (self.source.lend(segment)?, sink.lend(segment)?);
        let input_gradient = buffer.narrow(0, 0, input.size()[0]);
        let gradients = NormGradients { output: gradient, residual: None, input: &input_gradient };
        Norm::of(&self.model.architecture, &weights, 0).backward(gradients, input, statistics, bucket.as_mut())?;
        self.source.give_back(segment, weights)?;
        complete(sink, segment, bucket)
    }

    /// From the gradient of a block's output to that of its input, both in [`Slot::Gradient`]. Returns the block's routing.
    fn block_backward(
        &mut self,
        number: usize,
        rows: &Tensor,
        views: &mut Views,
        context: &Context,
        sink: &mut dyn GradientSink,
    ) -> Result<Option<Routing>> {
        let BlockSegments { base, adapter } = self.order.blocks[number];
        let _span = trace_span!("backward", segment = base).entered();
        let weights = self.lend_block(number)?;
        let mut own = sink.lend(base)?;
        let mut of_adapter = adapter.map_or(Ok(None), |adapter| sink.lend(adapter))?;
        let state = &mut views.states[number];
        let block = block(self.model, number, &weights, (rows, context));
        if self.keep == Keep::Inputs {
            // The output is already known: it goes to a free buffer.
            block.forward(state, &views.shared[Slot::MiddleGradient], context)?;
        }
        let sums = BlockSums { base: own.as_mut(), adapter: of_adapter.as_mut() };
        let routing = block.backward(state, sums, &mut self.workspace.scratch, context)?;
        self.give_back_block(number, weights)?;
        complete(sink, base, own)?;
        adapter.map_or(Ok(()), |adapter| complete(sink, adapter, of_adapter))?;
        Ok(routing)
    }

    /// Adds the embedding's gradient to its bucket, which is `tied` if the heads have already lent it.
    fn embedding_backward(
        &self,
        batch: &PackedBatch,
        gradient: &Tensor,
        tied: Option<Bucket>,
        sink: &mut dyn GradientSink,
    ) -> Result<()> {
        let segment = self.order.embedding;
        let _span = trace_span!("backward", segment).entered();
        let mut bucket = match tied {
            Some(bucket) => Some(bucket),
            None => sink.lend(segment)?,
        };
        if let Some(bucket) = &mut bucket {
            embedding::embed_backward(&self.model.architecture, bucket, &batch.tokens, gradient)?;
        }
        complete(sink, segment, bucket)
    }

    fn views(&mut self, batch: &PackedBatch, keep: Keep) -> Views {
        let Model { architecture, kind, device, .. } = self.model;
        self.workspace.views(architecture, batch.token_count() as i64, keep, (*kind, *device))
    }

    fn context(&self, batch: &PackedBatch) -> Result<Context> {
        let Model { architecture, kind, device, .. } = self.model;
        let rows = (&batch.groups[..], &batch.positions);
        Context::new(self.model.ops(), architecture, rows, (*kind, *device))
    }

    fn lend_block(&mut self, number: usize) -> Result<BlockWeights> {
        let BlockSegments { base, adapter } = self.order.blocks[number];
        let adapter = adapter.filter(|_| self.adapters).map(|adapter| self.source.lend(adapter)).transpose()?;
        Ok(BlockWeights { base: self.source.lend(base)?, adapter })
    }

    fn give_back_block(&mut self, number: usize, weights: BlockWeights) -> Result<()> {
        let BlockSegments { base, adapter } = self.order.blocks[number];
        self.source.give_back(base, weights.base)?;
        match (adapter, weights.adapter) {
            (Some(adapter), Some(weights)) => self.source.give_back(adapter, weights),
            _ => Ok(()),
        }
    }

    fn lend_heads(&mut self) -> Result<HeadWeights> {
        let vocabulary = self.order.vocabulary().map(|segment| self.source.lend(segment)).transpose()?;
        Ok(HeadWeights { reward: self.source.lend(self.order.reward_head)?, vocabulary })
    }

    fn give_back_heads(&mut self, weights: HeadWeights) -> Result<()> {
        self.source.give_back(self.order.reward_head, weights.reward)?;
        match (self.order.vocabulary(), weights.vocabulary) {
            (Some(segment), Some(weights)) => self.source.give_back(segment, weights),
            _ => Ok(()),
        }
    }

    fn heads<'b>(&'b mut self, weights: &'b HeadWeights) -> Heads<'b> {
        let most_rows = self.workspace.reserved().min(ROWS_AT_ONCE);
        let Workspace { logits, scratch, .. } = &mut *self.workspace;
        let Architecture { logit_scale, logit_cap: soft_cap, .. } = self.model.architecture;
        let HeadWeights { reward, vocabulary } = weights;
        Heads { reward, vocabulary: vocabulary.as_ref(), logit_scale, soft_cap, most_rows, logits, scratch }
    }
}

/// A block; after its attention the last one computes these rows `[N]` alone, unless all are to be routed.
fn block<'a>(
    model: &'a Model,
    number: usize,
    weights: &'a BlockWeights,
    (rows, context): (&'a Tensor, &Context),
) -> Block<'a> {
    let last = number + 1 == model.architecture.blocks.len() && !context.routes_all();
    let adapter = weights.adapter.as_ref().zip(model.lora.as_ref());
    let adapter = adapter.map(|(own, lora)| Adapter::new(lora, &weights.base, own));
    Block::new(&model.architecture, number, &weights.base).with_adapter(adapter).with_rows(last.then_some(rows))
}

fn complete(sink: &mut dyn GradientSink, segment: usize, bucket: Option<Bucket>) -> Result<()> {
    bucket.map_or(Ok(()), |bucket| sink.complete(segment, bucket))
}
