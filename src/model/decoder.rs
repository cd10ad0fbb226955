//! The decoder as segments, each with a forward and a backward pass of its own.
//!
//! The order of segments is that of the forward pass: embedding, blocks, final norm, language-model head (untied models
//! only), reward head. A backward pass takes the gradient of a segment's output, adds parameter gradients to the
//! segment's bucket and returns the gradient of its input. The two heads are driven by `head.rs`.
//!
//! Legend: T tokens, D width, H query heads, G key/value heads, E head width, F width of the MLP.

use super::attention::AttentionPlan;
use super::config::Architecture;
use super::norm;
use super::rope::Rotation;
use super::segment::Segment;
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
}

impl Part {
    /// Every part of a model, in the order of the forward pass.
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

    /// Names and shapes of the part's parameters, as in the checkpoint; the order is relied on below.
    pub fn shapes(self, architecture: &Architecture) -> Vec<(String, Vec<i64>)> {
        let Architecture { vocabulary, width, mlp_width, heads, kv_heads, head_width, .. } = *architecture;
        let [vocabulary, width, mlp] = [vocabulary, width, mlp_width].map(|size| size as i64);
        let [query, key] = [heads * head_width, kv_heads * head_width].map(|size| size as i64);
        match self {
            Self::Embedding => vec![("model.embed_tokens.weight".into(), vec![vocabulary, width])],
            Self::Norm => vec![("model.norm.weight".into(), vec![width])],
            Self::LanguageModelHead => vec![("lm_head.weight".into(), vec![vocabulary, width])],
            Self::RewardHead => vec![("score.weight".into(), vec![1, width])],
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

/// Places of a block's parameters in `Part::shapes`.
mod place {
    pub const INPUT_NORM: usize = 0;
    pub const QUERY: usize = 1;
    pub const KEY: usize = 2;
    pub const VALUE: usize = 3;
    pub const OUTPUT: usize = 4;
    pub const MLP_NORM: usize = 5;
    pub const GATE: usize = 6;
    pub const UP: usize = 7;
    pub const DOWN: usize = 8;
    pub const BIASES: usize = 9;
}

/// What every block of one micro-batch shares.
pub struct Context {
    /// Which rows see which.
    pub attention: AttentionPlan,
    /// Rotation by position.
    pub rotation: Rotation,
}

/// What a block keeps for its backward pass.
pub struct BlockState {
    input: Tensor,
    input_scale: norm::Scale,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    log_sums: Vec<Tensor>,
    middle: Tensor,
    middle_scale: norm::Scale,
    gate: Tensor,
    up: Tensor,
}

impl BlockState {
    /// Bytes of all that is kept; `plan::memory::block_state` predicts them.
    pub fn bytes(&self) -> usize {
        // Without `..`: whoever adds a field is led here, and from here to the prediction.
        let Self { input, input_scale, query, key, value, attended, log_sums, middle, middle_scale, gate, up } = self;
        let tensors = [input, &input_scale.0, query, key, value, attended, middle, &middle_scale.0, gate, up];
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        tensors.into_iter().chain(log_sums).map(bytes).sum()
    }
}

/// One block's description: its architecture and where its biases lie.
pub struct Block<'a> {
    architecture: &'a Architecture,
    segment: &'a Segment,
}

impl<'a> Block<'a> {
    /// The block whose parameters are in `segment`.
    pub fn new(architecture: &'a Architecture, segment: &'a Segment) -> Self {
        Self { architecture, segment }
    }

    /// Hidden states [T, D] -> hidden states [T, D], and what the backward pass needs.
    pub fn forward(&self, input: Tensor, context: &Context) -> (Tensor, BlockState) {
        let epsilon = self.architecture.norm_epsilon;
        let (normed, input_scale) = norm::forward(&input, self.segment.weight(place::INPUT_NORM), epsilon);
        let query = context.rotation.apply(&self.heads(&self.project(&normed, place::QUERY)));
        let key = context.rotation.apply(&self.heads(&self.project(&normed, place::KEY)));
        let value = self.heads(&self.project(&normed, place::VALUE));
        let (attended, log_sums) = context.attention.forward(&query, &key, &value);
        let middle = &input + self.project(&attended.flatten(1, 2), place::OUTPUT);
        let (normed, middle_scale) = norm::forward(&middle, self.segment.weight(place::MLP_NORM), epsilon);
        let gate = self.project(&normed, place::GATE);
        let up = self.project(&normed, place::UP);
        let output = &middle + self.project(&(gate.silu() * &up), place::DOWN);
        let state =
            BlockState { input, input_scale, query, key, value, attended, log_sums, middle, middle_scale, gate, up };
        (output, state)
    }

    /// Gradient of the output [T, D] -> gradient of the input [T, D]; parameter gradients go to the bucket.
    pub fn backward(&self, gradient: &Tensor, state: BlockState, context: &Context) -> Tensor {
        let middle_gradient = gradient + self.mlp_backward(gradient, &state);
        let input_gradient = self.attention_backward(&middle_gradient, &state, context);
        middle_gradient + input_gradient
    }

    fn mlp_backward(&self, gradient: &Tensor, state: &BlockState) -> Tensor {
        let activated = state.gate.silu();
        let product = self.project_backward(gradient, &(&activated * &state.up), place::DOWN);
        let up_gradient = &product * activated;
        let gate_gradient = state.gate.silu_backward(&(product * &state.up));
        let normed = self.normed(&state.middle, place::MLP_NORM);
        let normed_gradient = self.project_backward(&gate_gradient, &normed, place::GATE)
            + self.project_backward(&up_gradient, &normed, place::UP);
        self.norm_backward(&normed_gradient, &state.middle, &state.middle_scale, place::MLP_NORM)
    }

    fn attention_backward(&self, gradient: &Tensor, state: &BlockState, context: &Context) -> Tensor {
        let attended_gradient = self.project_backward(gradient, &state.attended.flatten(1, 2), place::OUTPUT);
        let (query, key, value) = context.attention.backward(
            &self.heads(&attended_gradient),
            &state.query,
            &state.key,
            &state.value,
            &state.attended,
            &state.log_sums,
        );
        let normed = self.normed(&state.input, place::INPUT_NORM);
        let normed_gradient =
            self.project_backward(&context.rotation.backward(&query).flatten(1, 2), &normed, place::QUERY)
                + self.project_backward(&context.rotation.backward(&key).flatten(1, 2), &normed, place::KEY)
                + self.project_backward(&value.flatten(1, 2), &normed, place::VALUE);
        self.norm_backward(&normed_gradient, &state.input, &state.input_scale, place::INPUT_NORM)
    }

    /// x [T, in] -> x W^T + b [T, out].
    fn project(&self, x: &Tensor, at: usize) -> Tensor {
        let bias = self.bias(at).map(|at| self.segment.weight(at));
        x.linear(self.segment.weight(at), bias)
    }

    /// Gradient of [`Block::project`] with respect to x; those of W and b go to the bucket.
    fn project_backward(&self, gradient: &Tensor, x: &Tensor, at: usize) -> Tensor {
        self.segment.add_product(at, gradient, x);
        if let Some(bias) = self.bias(at) {
            self.segment.add_gradient(bias, &gradient.sum_dim_intlist(0, false, Kind::Float));
        }
        gradient.mm(self.segment.weight(at))
    }

    /// The norm's output again: cheaper to recompute than to keep.
    fn normed(&self, x: &Tensor, at: usize) -> Tensor {
        norm::forward(x, self.segment.weight(at), self.architecture.norm_epsilon).0
    }

    fn norm_backward(&self, gradient: &Tensor, x: &Tensor, scale: &norm::Scale, at: usize) -> Tensor {
        let (x_gradient, weight_gradient) = norm::backward(gradient, x, self.segment.weight(at), scale);
        self.segment.add_gradient(at, &weight_gradient);
        x_gradient
    }

    /// Place of the bias of the projection at `at`, if this model has one.
    fn bias(&self, at: usize) -> Option<usize> {
        let attention = usize::from(self.architecture.attention_bias) * 4;
        match at {
            place::QUERY..=place::OUTPUT if self.architecture.attention_bias => Some(place::BIASES + at - place::QUERY),
            place::GATE..=place::DOWN if self.architecture.mlp_bias => {
                Some(place::BIASES + attention + at - place::GATE)
            }
            _ => None,
        }
    }

    /// [T, heads * E] -> [T, heads, E].
    fn heads(&self, rows: &Tensor) -> Tensor {
        rows.view([rows.size()[0], -1, self.architecture.head_width as i64])
    }
}

/// Token ids `[T]` -> hidden states `[T, D]`.
pub fn embed(segment: &Segment, tokens: &Tensor) -> Tensor {
    segment.weight(0).index_select(0, tokens)
}

/// Adds the gradient of [`embed`] to the bucket: gradient [T, D].
pub fn embed_backward(segment: &Segment, tokens: &Tensor, gradient: &Tensor) {
    if let Some(sum) = segment.gradient_view(0) {
        let _ = sum.shallow_clone().index_add_(0, tokens, &gradient.to_kind(Kind::Float));
    }
}

/// Final hidden states [T, D] before the norm -> after it.
pub fn final_norm(architecture: &Architecture, segment: &Segment, hidden: &Tensor) -> (Tensor, norm::Scale) {
    norm::forward(hidden, segment.weight(0), architecture.norm_epsilon)
}

/// Gradient of [`final_norm`] with respect to its input; that of the weight goes to the bucket.
pub fn final_norm_backward(segment: &Segment, gradient: &Tensor, hidden: &Tensor, scale: &norm::Scale) -> Tensor {
    let (hidden_gradient, weight_gradient) = norm::backward(gradient, hidden, segment.weight(0), scale);
    segment.add_gradient(0, &weight_gradient);
    hidden_gradient
}
