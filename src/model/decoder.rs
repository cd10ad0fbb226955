//! The decoder as segments, each with a forward and a backward pass of its own.
//!
//! The order of segments is that of the forward pass: embedding, blocks, final norm, language-model head (untied models
//! only), reward head. A backward pass takes the gradient of a segment's output, adds parameter gradients to the
//! segment's bucket and returns the gradient of its input. The two heads are driven by `head.rs`.
//!
//! Legend: T tokens, D width, H query heads, G key/value heads, E head width, F width of the MLP.

use super::attention::{AttentionPlan, Heads};
use super::config::Architecture;
use super::lora::Adapter;
use super::norm;
use super::rope::Rotation;
use super::segment::Segment;
use super::swiglu;
use super::workspace::{BlockState, Scratch, Shared};
use crate::error::Result;
use std::ops::Range;
use tch::{Kind, Tensor};

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The token embedding, and with tied weights the vocabulary product too.
    Embedding,
    /// The block of this number.
    Block(usize),
    /// The final norm.
    Norm,
    /// The untied language-model head.
    LanguageModelHead,
    /// The scalar reward head, always computed in f32.
    RewardHead,
    /// The adapters of the block of this number; after all others, and only where a model has adapters.
    Adapter(usize),
}

impl Part {
    /// Every part of a model but its adapters, in the order of the forward pass.
    pub fn all(architecture: &Architecture) -> Vec<Self> {
        let mut parts = vec![Self::Embedding];
        parts.extend((0..architecture.layers).map(Self::Block));
        parts.push(Self::Norm);
        if !architecture.tied {
            parts.push(Self::LanguageModelHead);
        }
        parts.push(Self::RewardHead);
        parts
    }

    /// Names and shapes of the part's parameters, as in the checkpoint; the order is relied on below. Those of adapters
    /// are [`Lora::shapes`](super::lora::Lora::shapes).
    pub fn shapes(self, architecture: &Architecture) -> Vec<(String, Vec<i64>)> {
        let Architecture { vocabulary, width, mlp_width, heads, kv_heads, head_width, .. } = *architecture;
        let [vocabulary, width, mlp] = [vocabulary, width, mlp_width].map(|size| size as i64);
        let [query, key] = [heads * head_width, kv_heads * head_width].map(|size| size as i64);
        match self {
            Self::Embedding => vec![("model.embed_tokens.weight".into(), vec![vocabulary, width])],
            Self::Norm => vec![("model.norm.weight".into(), vec![width])],
            Self::LanguageModelHead => vec![("lm_head.weight".into(), vec![vocabulary, width])],
            Self::RewardHead => vec![("score.weight".into(), vec![1, width])],
            Self::Adapter(_) => Vec::new(),
            Self::Block(index) => {
                let name = |rest: &str| format!("model.layers.{index}.{rest}");
                let mut shapes = vec![
                    (name("input_layernorm.weight"), vec![width]),
                    (name("self_attn.q_proj.weight"), vec![query, width]),
                    (name("self_attn.k_proj.weight"), vec![key, width]),
                    (name("self_attn.v_proj.weight"), vec![key, width]),
                    (name("self_attn.o_proj.weight"), vec![width, query]),
                    (name("post_attention_layernorm.weight"), vec![width]),
                    (name("mlp.gate_proj.weight"), vec![mlp, width]),
                    (name("mlp.up_proj.weight"), vec![mlp, width]),
                    (name("mlp.down_proj.weight"), vec![width, mlp]),
                ];
                if architecture.attention_bias {
                    shapes.extend([
                        (name("self_attn.q_proj.bias"), vec![query]),
                        (name("self_attn.k_proj.bias"), vec![key]),
                        (name("self_attn.v_proj.bias"), vec![key]),
                        (name("self_attn.o_proj.bias"), vec![width]),
                    ]);
                }
                if architecture.mlp_bias {
                    shapes.extend([
                        (name("mlp.gate_proj.bias"), vec![mlp]),
                        (name("mlp.up_proj.bias"), vec![mlp]),
                        (name("mlp.down_proj.bias"), vec![width]),
                    ]);
                }
                shapes
            }
        }
    }
}

/// Places of a block's parameters in `Part::shapes`; what lies side by side is one product.
mod place {
    use std::ops::Range;

    pub const INPUT_NORM: usize = 0;
    pub const QUERY_KEY_VALUE: Range<usize> = 1..4;
    pub const OUTPUT: Range<usize> = 4..5;
    pub const MLP_NORM: usize = 5;
    pub const GATE_UP: Range<usize> = 6..8;
    pub const DOWN: Range<usize> = 8..9;
    pub const BIASES: usize = 9;
}

/// What every block of one micro-batch shares.
pub struct Context {
    /// Which rows see which.
    pub attention: AttentionPlan,
    /// Rotation by position.
    pub rotation: Rotation,
}

/// One block's description: its architecture and where its biases lie.
pub struct Block<'a> {
    architecture: &'a Architecture,
    segment: &'a Segment,
    adapter: Option<Adapter<'a>>,
}

impl<'a> Block<'a> {
    /// The block whose parameters are in `segment`, with adapters or without.
    pub fn new(architecture: &'a Architecture, segment: &'a Segment, adapter: Option<Adapter<'a>>) -> Self {
        Self { architecture, segment, adapter }
    }

    /// Hidden states `state.input` [T, D] -> `output` [T, D]; fills `state` for the backward pass.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn forward(&self, state: &mut BlockState, output: &Tensor, shared: &Shared, context: &Context) -> Result<()> {
        let (heads, epsilon) = (self.architecture.attention_heads(), self.architecture.norm_epsilon);
        norm::forward(&state.input, self.weight(place::INPUT_NORM), epsilon, &shared.normed, &state.input_scale)?;
        self.project(&shared.normed, place::QUERY_KEY_VALUE, &state.query_key_value);
        let rows = heads_of(&state.query_key_value, heads);
        context.rotation.apply(&rows, heads.query + heads.key)?;
        state.log_sums = context.attention.forward(&rows, &heads_of(&state.attended, heads))?;
        self.project(&state.attended, place::OUTPUT, &shared.change);
        norm::add_forward(
            (&state.input, &shared.change),
            self.weight(place::MLP_NORM),
            epsilon,
            &state.middle,
            &shared.normed,
            &state.middle_scale,
        )?;
        self.project(&shared.normed, place::GATE_UP, &state.gate_up);
        swiglu::forward(&state.gate_up, &shared.activated)?;
        self.project(&shared.activated, place::DOWN, &shared.change);
        norm::add(&state.middle, &shared.change, output)
    }

    /// Gradient of the output in `shared.gradient` [T, D] -> gradient of the input, in the same place; parameter
    /// gradients go to the bucket.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn backward(&self, state: &BlockState, shared: &Shared, scratch: &Scratch, context: &Context) -> Result<()> {
        let add_product = |places, gradient: &Tensor, x: &Tensor| self.project_backward(places, gradient, x, scratch);
        // The MLP, from its output to the hidden states between the halves.
        self.input_gradient(&shared.gradient, place::DOWN, &shared.activated_gradient);
        swiglu::backward(&state.gate_up, &shared.activated_gradient, &shared.activated, &shared.gate_up_gradient)?;
        add_product(place::DOWN, &shared.gradient, &shared.activated)?;
        norm::apply(&state.middle, self.weight(place::MLP_NORM), &state.middle_scale, &shared.normed)?;
        add_product(place::GATE_UP, &shared.gate_up_gradient, &shared.normed)?;
        self.input_gradient(&shared.gate_up_gradient, place::GATE_UP, &shared.change);
        norm::backward(
            (&shared.change, Some(&shared.gradient)),
            &state.middle,
            self.weight(place::MLP_NORM),
            &state.middle_scale,
            &shared.middle_gradient,
            self.segment.gradient_view(place::MLP_NORM),
        )?;
        // Attention, from there to the input.
        self.input_gradient(&shared.middle_gradient, place::OUTPUT, &shared.attended_gradient);
        add_product(place::OUTPUT, &shared.middle_gradient, &state.attended)?;
        let heads = self.architecture.attention_heads();
        let rows_gradient = heads_of(&shared.query_key_value_gradient, heads);
        context.attention.backward(
            &heads_of(&shared.attended_gradient, heads),
            &heads_of(&state.query_key_value, heads),
            &heads_of(&state.attended, heads),
            &state.log_sums,
            &rows_gradient,
        )?;
        context.rotation.backward(&rows_gradient, heads.query + heads.key)?;
        norm::apply(&state.input, self.weight(place::INPUT_NORM), &state.input_scale, &shared.normed)?;
        add_product(place::QUERY_KEY_VALUE, &shared.query_key_value_gradient, &shared.normed)?;
        self.input_gradient(&shared.query_key_value_gradient, place::QUERY_KEY_VALUE, &shared.change);
        norm::backward(
            (&shared.change, Some(&shared.middle_gradient)),
            &state.input,
            self.weight(place::INPUT_NORM),
            &state.input_scale,
            &shared.gradient,
            self.segment.gradient_view(place::INPUT_NORM),
        )
    }

    fn weight(&self, at: usize) -> &Tensor {
        self.segment.weight(at)
    }

    /// `output` [T, out] = x [T, in] W^T + b.
    fn project(&self, x: &Tensor, places: Range<usize>, output: &Tensor) {
        let weight = self.segment.stacked_weight(places.clone()).tr();
        let _ = match self.biases(places.clone()) {
            Some(biases) => self.segment.stacked_weight(biases).addmm_out(output, x, &weight),
            None => x.mm_out(output, &weight),
        };
        if let Some(adapter) = &self.adapter {
            adapter.add(x, places, output);
        }
    }

    /// Adds the gradients of W and b of [`Block::project`] to the bucket.
    fn project_backward(&self, places: Range<usize>, gradient: &Tensor, x: &Tensor, scratch: &Scratch) -> Result<()> {
        if let Some(adapter) = &self.adapter {
            // The projection itself is frozen.
            return adapter.backward(places, gradient, x, scratch);
        }
        self.segment.add_product(places.clone(), gradient, x, scratch)?;
        if let Some(mut sum) = self.biases(places).and_then(|biases| self.segment.stacked_gradient(biases)) {
            let _ = sum.g_add_(&gradient.sum_dim_intlist(0, false, Kind::Float));
        }
        Ok(())
    }

    /// `input_gradient` [T, in] = gradient [T, out] W.
    fn input_gradient(&self, gradient: &Tensor, places: Range<usize>, input_gradient: &Tensor) {
        let _ = gradient.mm_out(input_gradient, &self.segment.stacked_weight(places.clone()));
        if let Some(adapter) = &self.adapter {
            adapter.add_input_gradient(gradient, places, input_gradient);
        }
    }

    /// Places of the biases of the projections at `places`, if this model has them.
    fn biases(&self, places: Range<usize>) -> Option<Range<usize>> {
        let Architecture { attention_bias, mlp_bias, .. } = *self.architecture;
        let attention = usize::from(attention_bias) * (place::OUTPUT.end - place::QUERY_KEY_VALUE.start);
        let (has, first, at) = match places.start < place::MLP_NORM {
            true => (attention_bias, place::QUERY_KEY_VALUE.start, place::BIASES),
            false => (mlp_bias, place::GATE_UP.start, place::BIASES + attention),
        };
        has.then(|| at + places.start - first..at + places.end - first)
    }
}

/// [T, heads * E] -> [T, heads, E], a view.
fn heads_of(rows: &Tensor, heads: Heads) -> Tensor {
    rows.view([rows.size()[0], -1, heads.width as i64])
}

/// Token ids `[T]` -> hidden states [T, D], written to `output`.
pub fn embed(segment: &Segment, tokens: &Tensor, output: &Tensor) {
    let _ = segment.weight(0).index_select_out(output, 0, tokens);
}

/// Adds the gradient of [`embed`] to the bucket: gradient [T, D].
pub fn embed_backward(segment: &Segment, tokens: &Tensor, gradient: &Tensor) {
    if let Some(sum) = segment.gradient_view(0) {
        let _ = sum.shallow_clone().index_add_(0, tokens, &gradient.to_kind(Kind::Float));
    }
}
