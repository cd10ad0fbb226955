//! The token embedding, forward and backward, scaled if the family does so.
//!
//! Not here: the vocabulary product of models whose head is the embedding (`engine/head/`).
//!
//! Legend: T tokens, D width.

use super::architecture::Architecture;
use super::segment::{Bucket, Weights};
use crate::error::Result;
use crate::ops::add_rows;
use tch::{Kind, Tensor};

/// Token ids `[T]` -> hidden states [T, D], written to `output`.
///
/// # Errors
/// A device out of memory.
pub(crate) fn embed(architecture: &Architecture, weights: &Weights, tokens: &Tensor, output: &Tensor) -> Result<()> {
    let mut output = weights.view(0).f_index_select_out(output, 0, tokens)?;
    if let Some(scale) = embedding_scale(architecture, output.kind()) {
        let _ = output.f_mul_scalar_(scale)?;
    }
    Ok(())
}

/// Adds the gradient of [`embed`] to the bucket: gradient [T, D].
///
/// # Errors
/// As [`embed`].
pub(crate) fn embed_backward(
    architecture: &Architecture,
    bucket: &mut Bucket,
    tokens: &Tensor,
    gradient: &Tensor,
) -> Result<()> {
    let wide = gradient.f_to_kind(Kind::Float)?;
    let wide = match embedding_scale(architecture, gradient.kind()) {
        Some(scale) => wide.f_mul_scalar(scale)?,
        None => wide,
    };
    add_rows(&bucket.sums()[0], tokens, &wide)
}

/// Rounded to the compute kind, as in training by Gemma's authors and in Transformers.
fn embedding_scale(architecture: &Architecture, kind: Kind) -> Option<f64> {
    let round = |scale: f64| match kind {
        Kind::BFloat16 => half::bf16::from_f64(scale).to_f64(),
        _ => scale,
    };
    architecture.embedding_scale.map(round)
}
