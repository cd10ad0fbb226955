//! The token embedding, forward and backward, scaled where the family does so.
//!
//! Not here: the vocabulary product of models whose head is the embedding (`head.rs`).
//!
//! Legend: T tokens, D width.

use super::architecture::Architecture;
use super::segment::Segment;
use tch::{Kind, Tensor};

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
