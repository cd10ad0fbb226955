//! The decoder as segments, each with a forward and a backward pass of its own.
//!
//! The order of segments is that of the forward pass: embedding, blocks, final norm, language-model head (untied models
//! only), reward head. A backward pass takes the gradient of a segment's output, adds parameter gradients to the
//! segment's bucket and returns the gradient of its input. The two heads are driven by `head.rs`. What sets families
//! apart is described by [`Architecture`] and `layout.rs`.
//!
//! Legend: T tokens, N rows that are read of a block's output (all T, but in the last block), D width, H query heads, G
//! key/value heads, E head width, F width of the MLP.

use super::config::{Architecture, Residual};
use super::head_norm;
use super::layout::{Places, Projection};
use super::lora::Adapter;
use super::norm::Norm;
use super::rope;
use super::segment::Segment;
use super::workspace::{BlockState, PostNorm, Shared};
use crate::error::{Error, Result};
use crate::ops::{Angles, AttentionPlan, Direction, MlpKind, NormGradients, Ops, Scratch};
use crate::packing::{AttentionRules, Group, HeadCounts};
use tch::{Device, Kind, Tensor};

pub use super::layout::Part;

/// What the blocks of one micro-batch share.
pub struct Context {
    /// Which rows see which, under each of the model's rules.
    attention: Vec<(AttentionRules, AttentionPlan)>,
    /// Rotation by position.
    angles: Angles,
}

impl Context {
    /// For packed groups and their positions `[T]`; `frequencies` as from `rope::frequencies`.
    pub fn new(
        ops: &dyn Ops,
        architecture: &Architecture,
        (groups, positions): (&[Group], &Tensor),
        frequencies: &[f32],
        (kind, device): (Kind, Device),
    ) -> Self {
        let heads = architecture.attention_heads();
        let mut attention: Vec<(AttentionRules, AttentionPlan)> = Vec::new();
        for rules in &architecture.attention {
            if !attention.iter().any(|(known, _)| known == rules) {
                attention.push((*rules, ops.plan_attention(groups, heads, *rules, (kind, device))));
            }
        }
        Self { attention, angles: rope::angles(positions, frequencies, device) }
    }

    fn attention(&self, rules: Option<&AttentionRules>) -> Result<&AttentionPlan> {
        let plan = self.attention.iter().find(|(known, _)| Some(known) == rules);
        plan.map(|(_, plan)| plan).ok_or_else(|| Error::runtime("a block without a plan of attention"))
    }
}

/// One block: what it is and where its parameters lie.
pub struct Block<'a> {
    architecture: &'a Architecture,
    index: usize,
    segment: &'a Segment,
    adapter: Option<Adapter<'a>>,
    rows: Option<&'a Tensor>,
    places: Places,
}

impl<'a> Block<'a> {
    /// The block of this number, whose parameters are in `segment`.
    pub fn new(architecture: &'a Architecture, index: usize, segment: &'a Segment) -> Self {
        Self { architecture, index, segment, adapter: None, rows: None, places: Places::of(architecture) }
    }

    /// The same block with adapters, beside which its own parameters are frozen.
    pub fn with_adapter(self, adapter: Option<Adapter<'a>>) -> Self {
        Self { adapter, ..self }
    }

    /// The same block where only these rows `[N]` of its output are read, each once, or all of them. Attention needs
    /// every row of the input; what follows is computed for the rows that are read, and lies in the first N rows of the
    /// buffers.
    pub fn with_rows(self, rows: Option<&'a Tensor>) -> Self {
        Self { rows, ..self }
    }

    /// Hidden states `state.input` [T, D] -> the first N rows of `output` [T, D]; fills `state` for the backward pass.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn forward(&self, state: &mut BlockState, output: &Tensor, shared: &Shared, context: &Context) -> Result<()> {
        self.attend(state, shared, context)?;
        match self.rows {
            Some(rows) => {
                let output = output.narrow(0, 0, rows.size()[0]);
                self.follow(&state.of_rows(rows), &output, &shared.of_rows(rows))
            }
            None => self.follow(state, output, shared),
        }
    }

    /// What follows attention, every row for itself: its result and the block's input -> `output`.
    fn follow(&self, state: &BlockState, output: &Tensor, shared: &Shared) -> Result<()> {
        let places = &self.places;
        let post = places.post_attention_norm;
        self.contribute(&state.attended, &places.attention_output, post, &state.post_attention, shared)?;
        let change = (&state.input, &shared.change);
        match self.architecture.residual {
            Residual::Sequential => {
                let norm = self.norm(places.mlp_norm);
                norm.add_forward(change, &state.middle, &shared.normed, &state.middle_statistics)?;
            }
            Residual::Parallel => {
                self.segment.ops.add(change.0, change.1, &state.middle)?;
                if places.mlp_norm != places.input_norm {
                    let norm = self.norm(places.mlp_norm);
                    norm.forward(&state.input, &shared.normed, &state.middle_statistics)?;
                }
            }
        }
        self.project(&shared.normed, &places.up, &state.inner);
        self.segment.ops.activate(self.mlp(), &state.inner, &shared.activated)?;
        self.contribute(&shared.activated, &places.down, places.post_mlp_norm, &state.post_mlp, shared)?;
        self.segment.ops.add(&state.middle, &shared.change, output)
    }

    /// Attention: the block's input -> `state.attended`; its norm stays in `shared.normed`.
    fn attend(&self, state: &mut BlockState, shared: &Shared, context: &Context) -> Result<()> {
        let (places, heads, ops) = (&self.places, self.architecture.attention_heads(), self.segment.ops);
        self.norm(places.input_norm).forward(&state.input, &shared.normed, &state.input_statistics)?;
        self.project(&shared.normed, &places.query_key_value, &state.query_key_value);
        let rows = heads_of(&state.query_key_value, heads);
        if let (Some(place), Some(kept)) = (places.head_norms, &state.head_norms) {
            let ranges = [0..heads.query, heads.query..heads.query + heads.key];
            for ((offset, range), kept) in ranges.into_iter().enumerate().zip(kept) {
                let (weight, epsilon) = (self.segment.weight(place + offset), self.architecture.norm_epsilon);
                head_norm::forward(ops, &rows, range, weight, epsilon, &kept.before, &kept.scale)?;
            }
        }
        ops.rotate(&rows, heads.query + heads.key, &context.angles, Direction::Forward)?;
        let plan = context.attention(self.rules())?;
        state.log_sums = ops.attention(plan, &rows, &heads_of(&state.attended, heads))?;
        Ok(())
    }

    /// What a half of the block adds to the hidden states, in `shared.change`: the projection of its result, normed
    /// once more where the family does so.
    fn contribute(
        &self,
        result: &Tensor,
        projection: &Projection,
        post_norm: Option<usize>,
        kept: &Option<PostNorm>,
        shared: &Shared,
    ) -> Result<()> {
        match (post_norm, kept) {
            (Some(place), Some(kept)) => {
                self.project(result, projection, &kept.before);
                self.norm(place).forward(&kept.before, &shared.change, &kept.statistics)
            }
            _ => {
                self.project(result, projection, &shared.change);
                Ok(())
            }
        }
    }

    /// Gradient of the output in the first N rows of `shared.gradient` [T, D] -> gradient of the input, in all T of
    /// them; parameter gradients go to the bucket.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn backward(&self, state: &BlockState, shared: &Shared, scratch: &Scratch, context: &Context) -> Result<()> {
        match self.rows {
            Some(rows) => {
                self.follow_backward(&state.of_rows(rows), &shared.of_rows(rows), scratch)?;
                spread(&shared.attended_gradient, rows);
                spread(&shared.middle_gradient, rows);
            }
            None => self.follow_backward(state, shared, scratch)?,
        }
        self.attend_backward(state, shared, scratch, context)
    }

    /// The backward pass of [`Block::follow`]: from `shared.gradient` to `shared.attended_gradient`, and to what reaches
    /// the input besides, in `shared.middle_gradient`.
    fn follow_backward(&self, state: &BlockState, shared: &Shared, scratch: &Scratch) -> Result<()> {
        let places = &self.places;
        let parallel = self.architecture.residual == Residual::Parallel;
        // The MLP, from its output to the hidden states that it read.
        let gradient = self.contribute_backward(&shared.gradient, places.post_mlp_norm, &state.post_mlp, shared)?;
        self.input_gradient(gradient, &places.down, &shared.activated_gradient);
        let (given, activated) = (&shared.activated_gradient, &shared.activated);
        self.segment.ops.activate_backward(self.mlp(), &state.inner, given, activated, &shared.inner_gradient)?;
        self.project_backward(&places.down, gradient, &shared.activated, scratch)?;
        let read = if parallel { &state.input } else { &state.middle };
        let same = places.mlp_norm == places.input_norm;
        let statistics = if same { &state.input_statistics } else { &state.middle_statistics };
        let norm = self.norm(places.mlp_norm);
        norm.apply(read, statistics, &shared.normed)?;
        self.project_backward(&places.up, &shared.inner_gradient, &shared.normed, scratch)?;
        self.input_gradient(&shared.inner_gradient, &places.up, &shared.change);
        let (output, input) = (&shared.change, &shared.middle_gradient);
        norm.backward(NormGradients { output, residual: Some(&shared.gradient), input }, read, statistics)?;
        // From there to attention's result. Side by side both halves have the same gradient.
        let gradient = if parallel { &shared.gradient } else { &shared.middle_gradient };
        let post = places.post_attention_norm;
        let gradient = self.contribute_backward(gradient, post, &state.post_attention, shared)?;
        self.input_gradient(gradient, &places.attention_output, &shared.attended_gradient);
        self.project_backward(&places.attention_output, gradient, &state.attended, scratch)
    }

    /// Gradient of the projection's output that [`Block::contribute`] made, from that of what it added.
    fn contribute_backward<'b>(
        &self,
        gradient: &'b Tensor,
        post_norm: Option<usize>,
        kept: &Option<PostNorm>,
        shared: &'b Shared,
    ) -> Result<&'b Tensor> {
        let (Some(place), Some(kept)) = (post_norm, kept) else { return Ok(gradient) };
        let gradients = NormGradients { output: gradient, residual: None, input: &shared.change };
        self.norm(place).backward(gradients, &kept.before, &kept.statistics)?;
        Ok(&shared.change)
    }

    /// From `shared.attended_gradient`, and what reaches the input besides, to the gradient of the input in
    /// `shared.gradient`.
    fn attend_backward(&self, state: &BlockState, shared: &Shared, scratch: &Scratch, context: &Context) -> Result<()> {
        let (places, heads, ops) = (&self.places, self.architecture.attention_heads(), self.segment.ops);
        let rows_gradient = heads_of(&shared.query_key_value_gradient, heads);
        ops.attention_backward(
            context.attention(self.rules())?,
            &heads_of(&shared.attended_gradient, heads),
            &heads_of(&state.query_key_value, heads),
            &heads_of(&state.attended, heads),
            &state.log_sums,
            &rows_gradient,
        )?;
        ops.rotate(&rows_gradient, heads.query + heads.key, &context.angles, Direction::Backward)?;
        if let (Some(place), Some(kept)) = (places.head_norms, &state.head_norms) {
            let ranges = [0..heads.query, heads.query..heads.query + heads.key];
            for ((offset, range), kept) in ranges.into_iter().enumerate().zip(kept) {
                let (weight, sum) = (self.segment.weight(place + offset), self.segment.gradient_view(place + offset));
                head_norm::backward(ops, &rows_gradient, range, &kept.before, &kept.scale, weight, sum)?;
            }
        }
        let norm = self.norm(places.input_norm);
        norm.apply(&state.input, &state.input_statistics, &shared.normed)?;
        self.project_backward(&places.query_key_value, &shared.query_key_value_gradient, &shared.normed, scratch)?;
        self.input_gradient(&shared.query_key_value_gradient, &places.query_key_value, &shared.change);
        let (output, residual, input) = (&shared.change, Some(&shared.middle_gradient), &shared.gradient);
        norm.backward(NormGradients { output, residual, input }, &state.input, &state.input_statistics)
    }

    fn mlp(&self) -> MlpKind {
        MlpKind { activation: self.architecture.activation, gated: self.architecture.gated }
    }

    fn rules(&self) -> Option<&AttentionRules> {
        self.architecture.attention.get(self.index)
    }

    fn norm(&self, place: usize) -> Norm<'_> {
        norm_of(self.architecture, self.segment, place)
    }

    /// `output` [T, out] = x [T, in] W^T + b.
    fn project(&self, x: &Tensor, projection: &Projection, output: &Tensor) {
        let weight = self.segment.stacked_weight(projection.weights.clone()).tr();
        let _ = match &projection.biases {
            Some(biases) => self.segment.stacked_weight(biases.clone()).addmm_out(output, x, &weight),
            None => x.mm_out(output, &weight),
        };
        if let Some(adapter) = &self.adapter {
            adapter.add(x, projection, output);
        }
    }

    /// Adds the gradients of W and b of [`Block::project`] to the bucket.
    fn project_backward(
        &self,
        projection: &Projection,
        gradient: &Tensor,
        x: &Tensor,
        scratch: &Scratch,
    ) -> Result<()> {
        if let Some(adapter) = &self.adapter {
            return adapter.backward(projection, gradient, x, scratch);
        }
        self.segment.add_product(projection.weights.clone(), gradient, x, scratch)?;
        let biases = projection.biases.clone();
        match biases.and_then(|biases| self.segment.stacked_gradient(biases)) {
            Some(sum) => self.segment.ops.add_column_sums(gradient, &sum),
            None => Ok(()),
        }
    }

    /// `input_gradient` [T, in] = gradient [T, out] W.
    fn input_gradient(&self, gradient: &Tensor, projection: &Projection, input_gradient: &Tensor) {
        let _ = gradient.mm_out(input_gradient, &self.segment.stacked_weight(projection.weights.clone()));
        if let Some(adapter) = &self.adapter {
            adapter.add_input_gradient(gradient, projection, input_gradient);
        }
    }
}

/// Brings the first N rows of a gradient to the rows `[N]` that they belong to; the others have none.
fn spread(gradient: &Tensor, rows: &Tensor) {
    let read = gradient.narrow(0, 0, rows.size()[0]).copy();
    let _ = gradient.shallow_clone().zero_().index_copy_(0, rows, &read);
}

/// [T, heads * E] -> [T, heads, E], a view.
fn heads_of(rows: &Tensor, heads: HeadCounts) -> Tensor {
    rows.view([rows.size()[0], -1, heads.width as i64])
}

/// The norm of hidden states whose parameters lie at `place` of a segment.
pub fn norm_of<'a>(architecture: &Architecture, segment: &'a Segment, place: usize) -> Norm<'a> {
    Norm { kind: architecture.norm, epsilon: architecture.norm_epsilon, segment, place }
}

/// Token ids `[T]` -> hidden states [T, D], written to `output`.
pub fn embed(architecture: &Architecture, segment: &Segment, tokens: &Tensor, output: &Tensor) {
    let _ = segment.weight(0).index_select_out(output, 0, tokens);
    if let Some(scale) = embedding_scale(architecture, output.kind()) {
        let _ = output.shallow_clone().g_mul_scalar_(scale);
    }
}

/// Adds the gradient of [`embed`] to the bucket: gradient [T, D].
pub fn embed_backward(architecture: &Architecture, segment: &Segment, tokens: &Tensor, gradient: &Tensor) {
    if let Some(sum) = segment.gradient_view(0) {
        let wide = gradient.to_kind(Kind::Float);
        let wide = match embedding_scale(architecture, gradient.kind()) {
            Some(scale) => wide * scale,
            None => wide,
        };
        let _ = sum.shallow_clone().index_add_(0, tokens, &wide);
    }
}

/// Rounded to the compute kind, as in training by Gemma's authors and in Transformers.
fn embedding_scale(architecture: &Architecture, kind: Kind) -> Option<f64> {
    let round = |scale: f64| match kind {
        Kind::BFloat16 => half::bf16::from_f64(scale).to_f64(),
        _ => scale,
    };
    architecture.embedding_scale.map(round)
}
