//! The decoder as segments, each with a forward and a backward pass of its own.
//!
//! The order of segments is that of the forward pass: embedding, blocks, final norm, language-model head (untied models
//! only), reward head. A backward pass takes the gradient of a segment's output, adds parameter gradients to the
//! segment's bucket and writes the gradient of its input. The two heads are in `engine/head/`. [`Architecture`] and
//! `layout.rs` describe the differences of families.
//!
//! Legend: T tokens, N rows that are read of a block's output (all T, but in the last block), D width, H query heads, G
//! key/value heads, E head width, F width of the MLP.

use super::architecture::{Architecture, BeforeMlp, BlockDescription, Residual};
use super::balance::{Balance, Routing};
use super::experts::ExpertMlp;
use super::head_norm::{HeadNorm, HeadsKept};
use super::layout::Places;
use super::linear::Linear;
use super::lora::Adapter;
use super::norm::{Norm, Statistics};
use super::routes::Routes;
use super::segment::Weights;
use super::workspace::{BlockState, Buffers, Slot, spread};
use crate::error::Result;
use crate::ops::{Direction, NormGradients, Scratch};
use crate::packing::HeadCounts;
use tch::Tensor;

pub use super::context::Context;
pub use super::layout::Part;
pub use super::linear::BlockSums;

/// One block: its description and its parameters.
pub struct Block<'a> {
    architecture: &'a Architecture,
    description: &'a BlockDescription,
    weights: &'a Weights,
    linear: Linear<'a>,
    rows: Option<&'a Tensor>,
    places: Places,
}

/// The norm after a half of a block: its place, and what it keeps.
struct PostNorm<'a> {
    place: usize,
    before: &'a Tensor,
    statistics: Statistics,
}

impl<'a> Block<'a> {
    /// The block of this number, whose parameters are `weights`.
    pub fn new(architecture: &'a Architecture, index: usize, weights: &'a Weights) -> Self {
        let (description, places) = (&architecture.blocks[index], Places::of(architecture, index));
        let linear = Linear { weights, adapter: None };
        Self { architecture, description, weights, linear, rows: None, places }
    }

    /// The same block with adapters; its own parameters are then frozen.
    pub(crate) fn with_adapter(self, adapter: Option<Adapter<'a>>) -> Self {
        Self { linear: Linear { weights: self.weights, adapter }, ..self }
    }

    /// The same block if only these rows `[N]` of its output are read, each once; none: all. Attention needs every row of
    /// the input; what follows it is computed only for the rows that are read, in the first N rows of the buffers.
    pub(crate) fn with_rows(self, rows: Option<&'a Tensor>) -> Self {
        Self { rows, ..self }
    }

    /// Hidden states in `Slot::Input` [T, D] -> the first N rows of `output` [T, D]; fills `state` for the backward pass.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn forward(&self, state: &mut BlockState, output: &Tensor, context: &Context) -> Result<()> {
        state.log_sums = self.attend(&state.buffers, context)?;
        state.routes = match self.rows {
            Some(rows) => {
                // First, because moving the rows that are read overwrites others.
                state.routing = self.route_all(&state.buffers, context)?;
                let output = output.narrow(0, 0, rows.size()[0]);
                self.follow(&state.buffers.of_rows(rows), &output)?
            }
            None => self.follow(&state.buffers, output)?,
        };
        Ok(())
    }

    /// Attention: the block's input -> `Slot::Attended`; its norm, if it has one, stays in `Slot::Normed`. Returns the
    /// log-sum-exps of each attention call.
    fn attend(&self, at: &Buffers, context: &Context) -> Result<Vec<Tensor>> {
        let (heads, ops) = (self.description.heads, self.weights.ops);
        let read = match self.norm(self.places.input_norm) {
            Some(norm) => {
                norm.forward(&at[Slot::Input], &at[Slot::Normed], &self.input_statistics(at))?;
                &at[Slot::Normed]
            }
            None => &at[Slot::Input],
        };
        self.linear.project(read, &self.places.query_key_value, &at[Slot::QueryKeyValue])?;
        let rows = heads_of(&at[Slot::QueryKeyValue], heads);
        for (norm, kept) in self.query_key_norms(at) {
            norm.forward(&rows, &kept)?;
        }
        if let Some(rotation) = self.description.rotation {
            context.rotations[rotation].rotate(ops, &rows, heads, Direction::Forward)?;
        }
        let plan = context.attention(&self.description.rules)?;
        ops.attention(plan, &rows, &heads_of(&at[Slot::Attended], heads))
    }

    /// The routing of all rows, in training with experts.
    fn route_all(&self, at: &Buffers, context: &Context) -> Result<Option<Routing>> {
        let (Some(experts), Some(balance)) = (self.experts(), &context.balance) else { return Ok(None) };
        self.add_attended(at)?;
        let chosen = experts.choose(self.mlp_input(at), at)?;
        Ok(Some(balance.of(&at[Slot::Shares], &chosen)?.0))
    }

    /// Attention's result and the block's input -> `Slot::Middle`; the MLP's input stays in `Slot::Normed`, if it is normed.
    fn add_attended(&self, at: &Buffers) -> Result<()> {
        let (places, ops) = (&self.places, self.weights.ops);
        let attended = |to: &Tensor| self.linear.project(&at[Slot::Attended], &places.attention_output, to);
        self.contribute(attended, self.post_attention(at), at)?;
        let (input, change, middle) = (&at[Slot::Input], &at[Slot::Change], &at[Slot::Middle]);
        let own = self.norm(places.mlp_norm).filter(|_| self.description.norms.before_mlp == BeforeMlp::Own);
        let (normed, statistics) = (&at[Slot::Normed], self.middle_statistics(at));
        match own {
            Some(norm) if self.description.residual == Residual::Sequential => {
                norm.add_forward((input, change), middle, normed, &statistics)
            }
            own => {
                ops.add(input, change, middle)?;
                own.map_or(Ok(()), |norm| norm.forward(input, normed, &statistics))
            }
        }
    }

    /// The rest of the block after attention, row by row: attention's result and the block's input -> `output`. Returns which
    /// rows went through which experts, if there are any.
    fn follow(&self, at: &Buffers, output: &Tensor) -> Result<Option<Routes>> {
        self.add_attended(at)?;
        let (places, ops) = (&self.places, self.weights.ops);
        let routes = match self.experts() {
            Some(experts) => {
                let routed = |to: &Tensor| experts.forward(self.mlp_input(at), at, to);
                Some(self.contribute(routed, self.post_mlp(at), at)?)
            }
            None => {
                self.linear.project(self.mlp_input(at), &places.up, &at[Slot::Inner])?;
                ops.activate(self.description.mlp.kind, &at[Slot::Inner], &at[Slot::Activated])?;
                let activated = |to: &Tensor| self.linear.project(&at[Slot::Activated], &places.down, to);
                self.contribute(activated, self.post_mlp(at), at)?;
                None
            }
        };
        ops.add(&at[Slot::Middle], &at[Slot::Change], output)?;
        Ok(routes)
    }

    /// A half's contribution to the hidden states, in `Slot::Change`: what `result` writes, normed and scaled if the family
    /// does so.
    fn contribute<T>(
        &self,
        result: impl FnOnce(&Tensor) -> Result<T>,
        post_norm: Option<PostNorm>,
        at: &Buffers,
    ) -> Result<T> {
        let change = &at[Slot::Change];
        let made = match post_norm {
            Some(PostNorm { place, before, statistics }) => {
                let made = result(before)?;
                Norm::of(self.architecture, self.weights, place).forward(before, change, &statistics)?;
                made
            }
            None => result(change)?,
        };
        if let Some(scale) = self.description.residual_scale {
            let _ = change.shallow_clone().f_mul_scalar_(scale)?;
        }
        Ok(made)
    }

    /// Gradient of the output in the first N rows of `Slot::Gradient` [T, D] -> gradient of the input, in all T of them;
    /// parameter gradients are added to `sums`. Returns the routing, in training with experts.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn backward(
        &self,
        state: &mut BlockState,
        mut sums: BlockSums,
        scratch: &mut Scratch,
        context: &Context,
    ) -> Result<Option<Routing>> {
        let (at, routes) = (&state.buffers, state.routes.as_ref());
        let routing = match self.rows {
            Some(rows) => {
                self.follow_backward((&at.of_rows(rows), routes, None), &mut sums, scratch)?;
                spread(&at[Slot::AttendedGradient], rows);
                spread(&at[Slot::MiddleGradient], rows);
                state.routing.take()
            }
            None => self.follow_backward((at, routes, context.balance.as_ref()), &mut sums, scratch)?,
        };
        self.attend_backward(state, &mut sums, scratch, context)?;
        Ok(routing)
    }

    /// The backward pass of [`Block::follow`]: from `Slot::Gradient` to `Slot::AttendedGradient`, and to the gradient that
    /// reaches the input by other paths, in `Slot::MiddleGradient`. Returns the routing, if there is a `balance`.
    fn follow_backward(
        &self,
        (at, routes, balance): (&Buffers, Option<&Routes>, Option<&Balance>),
        sums: &mut BlockSums,
        scratch: &mut Scratch,
    ) -> Result<Option<Routing>> {
        let (places, ops) = (&self.places, self.weights.ops);
        let parallel = self.description.residual == Residual::Parallel;
        // The MLP, from its output to the hidden states that it read.
        let gradient = self.contribute_backward(&at[Slot::Gradient], self.post_mlp(at), at, sums)?;
        let (read, output) = (if parallel { &at[Slot::Input] } else { &at[Slot::Middle] }, &at[Slot::Change]);
        let norm = self.norm(places.mlp_norm);
        let shared = self.description.norms.before_mlp == BeforeMlp::Shared;
        let statistics = || if shared { self.input_statistics(at) } else { self.middle_statistics(at) };
        let normed = || match &norm {
            Some(norm) => norm.apply(read, &statistics(), &at[Slot::Normed]).map(|()| &at[Slot::Normed]),
            None => Ok(read),
        };
        let routing = match (self.experts(), routes) {
            (Some(experts), Some(routes)) => {
                let tensors = [normed()?, gradient, output];
                experts.backward(tensors, (routes, balance), at, sums.base.as_deref_mut(), scratch)?
            }
            _ => self.mlp_backward(gradient, normed, at, sums, scratch).map(|()| None)?,
        };
        match &norm {
            Some(norm) => {
                let (residual, input) = (Some(&at[Slot::Gradient]), &at[Slot::MiddleGradient]);
                let gradients = NormGradients { output, residual, input };
                norm.backward(gradients, read, &statistics(), sums.base.as_deref_mut())?;
            }
            None => ops.add(output, &at[Slot::Gradient], &at[Slot::MiddleGradient])?,
        }
        // From there to attention's result. Parallel halves have the same gradient.
        let gradient = if parallel { &at[Slot::Gradient] } else { &at[Slot::MiddleGradient] };
        let gradient = self.contribute_backward(gradient, self.post_attention(at), at, sums)?;
        let through = self.linear.input_gradient(gradient, &places.attention_output, &at[Slot::AttendedGradient])?;
        let factors = [gradient, &at[Slot::Attended]];
        self.linear.project_backward(&places.attention_output, factors, through, sums, scratch)?;
        Ok(routing)
    }

    /// From the gradient of the MLP's output to that of its input, in `Slot::Change`; `input` computes the input again.
    fn mlp_backward<'b>(
        &self,
        gradient: &Tensor,
        input: impl FnOnce() -> Result<&'b Tensor>,
        at: &Buffers,
        sums: &mut BlockSums,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (places, inner) = (&self.places, &at[Slot::InnerGradient]);
        let through = self.linear.input_gradient(gradient, &places.down, &at[Slot::ActivatedGradient])?;
        let (given, activated) = (&at[Slot::ActivatedGradient], &at[Slot::Activated]);
        self.weights.ops.activate_backward(self.description.mlp.kind, &at[Slot::Inner], given, activated, inner)?;
        self.linear.project_backward(&places.down, [gradient, activated], through, sums, scratch)?;
        let through = self.linear.input_gradient(inner, &places.up, &at[Slot::Change])?;
        self.linear.project_backward(&places.up, [inner, input()?], through, sums, scratch)
    }

    /// The backward pass of [`Block::contribute`]: from the gradient of the contribution to that of the half's result, which
    /// may be in `Slot::Change`.
    fn contribute_backward<'b>(
        &self,
        gradient: &'b Tensor,
        post_norm: Option<PostNorm>,
        at: &'b Buffers,
        sums: &mut BlockSums,
    ) -> Result<&'b Tensor> {
        let change = &at[Slot::Change];
        match (post_norm, self.description.residual_scale) {
            (None, None) => return Ok(gradient),
            (None, Some(scale)) => drop(gradient.f_mul_scalar_out(change, scale)?),
            (Some(PostNorm { place, before, statistics }), scale) => {
                let scaled = scale.map(|scale| gradient.f_mul_scalar(scale)).transpose()?;
                let output = scaled.as_ref().unwrap_or(gradient);
                let gradients = NormGradients { output, residual: None, input: change };
                let norm = Norm::of(self.architecture, self.weights, place);
                norm.backward(gradients, before, &statistics, sums.base.as_deref_mut())?;
            }
        }
        Ok(change)
    }

    /// From `Slot::AttendedGradient`, and the input's gradient by other paths in `Slot::MiddleGradient`, to the gradient of
    /// the input in `Slot::Gradient`.
    fn attend_backward(
        &self,
        state: &BlockState,
        sums: &mut BlockSums,
        scratch: &mut Scratch,
        context: &Context,
    ) -> Result<()> {
        let (places, heads, ops, at) = (&self.places, self.description.heads, self.weights.ops, &state.buffers);
        let rows_gradient = heads_of(&at[Slot::QueryKeyValueGradient], heads);
        ops.attention_backward(
            context.attention(&self.description.rules)?,
            &heads_of(&at[Slot::AttendedGradient], heads),
            &heads_of(&at[Slot::QueryKeyValue], heads),
            &heads_of(&at[Slot::Attended], heads),
            &state.log_sums,
            &rows_gradient,
        )?;
        if let Some(rotation) = self.description.rotation {
            context.rotations[rotation].rotate(ops, &rows_gradient, heads, Direction::Backward)?;
        }
        for (norm, kept) in self.query_key_norms(at) {
            norm.backward(&rows_gradient, &kept, sums.base.as_deref_mut())?;
        }
        let (gradient, output) = (&at[Slot::QueryKeyValueGradient], &at[Slot::Change]);
        let (residual, input) = (&at[Slot::MiddleGradient], &at[Slot::Gradient]);
        let through = self.linear.input_gradient(gradient, &places.query_key_value, output)?;
        match self.norm(places.input_norm) {
            Some(norm) => {
                let statistics = self.input_statistics(at);
                norm.apply(&at[Slot::Input], &statistics, &at[Slot::Normed])?;
                let factors = [gradient, &at[Slot::Normed]];
                self.linear.project_backward(&places.query_key_value, factors, through, sums, scratch)?;
                let gradients = NormGradients { output, residual: Some(residual), input };
                norm.backward(gradients, &at[Slot::Input], &statistics, sums.base.as_deref_mut())
            }
            None => {
                let factors = [gradient, &at[Slot::Input]];
                self.linear.project_backward(&places.query_key_value, factors, through, sums, scratch)?;
                ops.add(output, residual, input)
            }
        }
    }

    /// The norms of queries and of keys, if there are any, and what each keeps.
    fn query_key_norms<'b>(&'b self, at: &'b Buffers) -> impl Iterator<Item = (HeadNorm<'b>, HeadsKept<'b>)> {
        let HeadCounts { query, key, .. } = self.description.heads;
        let queries = (0..query, Slot::Queries, (Slot::QueryScale, Slot::QueryMean));
        let keys = (query..query + key, Slot::Keys, (Slot::KeyScale, Slot::KeyMean));
        let places = self.places.query_key_norms.into_iter().flatten();
        places.zip([queries, keys]).map(|(place, (heads, before, (scale, mean)))| {
            let norm = Norm::of(self.architecture, self.weights, place);
            let statistics = at.statistics(scale, mean).flat();
            (HeadNorm { heads, norm }, HeadsKept { before: &at[before], statistics })
        })
    }

    /// The experts in place of the MLP, if there are any.
    fn experts(&self) -> Option<ExpertMlp<'_>> {
        ExpertMlp::of(self.description.mlp, self.weights, &self.places)
    }

    /// The MLP's input.
    fn mlp_input<'b>(&self, at: &'b Buffers) -> &'b Tensor {
        match (self.description.norms.before_mlp, self.description.residual) {
            (BeforeMlp::Own | BeforeMlp::Shared, _) => &at[Slot::Normed],
            (BeforeMlp::None, Residual::Sequential) => &at[Slot::Middle],
            (BeforeMlp::None, Residual::Parallel) => &at[Slot::Input],
        }
    }

    fn input_statistics(&self, at: &Buffers) -> Statistics {
        at.statistics(Slot::InputScale, Slot::InputMean)
    }

    fn middle_statistics(&self, at: &Buffers) -> Statistics {
        at.statistics(Slot::MiddleScale, Slot::MiddleMean)
    }

    fn post_attention<'b>(&self, at: &'b Buffers) -> Option<PostNorm<'b>> {
        let statistics = at.statistics(Slot::PostAttentionScale, Slot::PostAttentionMean);
        self.places.post_attention_norm.map(|place| PostNorm { place, before: &at[Slot::PostAttention], statistics })
    }

    fn post_mlp<'b>(&self, at: &'b Buffers) -> Option<PostNorm<'b>> {
        let statistics = at.statistics(Slot::PostMlpScale, Slot::PostMlpMean);
        self.places.post_mlp_norm.map(|place| PostNorm { place, before: &at[Slot::PostMlp], statistics })
    }

    fn norm(&self, place: Option<usize>) -> Option<Norm<'_>> {
        place.map(|place| Norm::of(self.architecture, self.weights, place))
    }
}

/// [T, heads * E] -> [T, heads, E], a view.
fn heads_of(rows: &Tensor, heads: HeadCounts) -> Tensor {
    rows.view([rows.size()[0], -1, heads.width as i64])
}
