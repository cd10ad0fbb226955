//! Root-mean-square norm (Zhang and Sennrich, arXiv 1910.07467), forward and backward.
//!
//! Legend: T tokens, D width. Statistics are computed in f32 whatever the compute kind, as Transformers does.

use tch::{Kind, Tensor};

/// What the backward pass needs besides the input: 1 / rms of each row, [T, 1] f32.
pub struct Scale(pub(super) Tensor);

/// x [T, D] -> (x / rms(x)) * weight `[D]`, in x's kind.
pub fn forward(x: &Tensor, weight: &Tensor, epsilon: f64) -> (Tensor, Scale) {
    let wide = x.to_kind(Kind::Float);
    let scale = (wide.square().mean_dim(-1, true, Kind::Float) + epsilon).rsqrt();
    let y = (wide * &scale).to_kind(x.kind()) * weight;
    (y, Scale(scale))
}

/// Gradients of [`forward`]: of x [T, D] in x's kind, and of the weight `[D]` in f32.
pub fn backward(gradient: &Tensor, x: &Tensor, weight: &Tensor, scale: &Scale) -> (Tensor, Tensor) {
    let normalised = x.to_kind(Kind::Float) * &scale.0;
    let wide = gradient.to_kind(Kind::Float);
    let weight_gradient = (&wide * &normalised).sum_dim_intlist(0, false, Kind::Float);
    let upstream = wide * weight.to_kind(Kind::Float);
    let projection = (&upstream * &normalised).mean_dim(-1, true, Kind::Float);
    let x_gradient = (upstream - normalised * projection) * &scale.0;
    (x_gradient.to_kind(x.kind()), weight_gradient)
}
