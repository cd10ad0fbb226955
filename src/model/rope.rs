//! Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864), forward and backward.
//!
//! Legend: T tokens, H heads, E head width.

use super::config::{Rope, RopeScaling};
use tch::{Device, Kind, Tensor};

/// Cosines and sines of one batch's positions: two tensors [T, 1, E] in the compute kind.
pub struct Rotation {
    cosine: Tensor,
    sine: Tensor,
}

/// Angles per position: E/2 frequencies in radians, f32 like Transformers.
pub fn frequencies(rope: &Rope, head_width: usize) -> Vec<f32> {
    let base = (0..head_width / 2).map(|index| (rope.theta).powf(-((2 * index) as f64) / head_width as f64));
    match rope.scaling {
        RopeScaling::None => base.map(|frequency| frequency as f32).collect(),
        RopeScaling::Linear { factor } => base.map(|frequency| (frequency / factor) as f32).collect(),
        RopeScaling::Llama3 { factor, low_factor, high_factor, original } => base
            .map(|frequency| {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                let scaled = if wavelength > original / low_factor {
                    frequency / factor
                } else if wavelength < original / high_factor {
                    frequency
                } else {
                    let smooth = (original / wavelength - low_factor) / (high_factor - low_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                };
                scaled as f32
            })
            .collect(),
    }
}

impl Rotation {
    /// Rotation of the given positions `[T]` (i64); `frequencies` as returned by [`frequencies`].
    pub fn new(positions: &Tensor, frequencies: &[f32], kind: Kind, device: Device) -> Self {
        let frequencies = Tensor::from_slice(frequencies).to_device(device);
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies.unsqueeze(0);
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Self { cosine: angles.cos().to_kind(kind), sine: angles.sin().to_kind(kind) }
    }

    /// Rotates [T, H, E].
    pub fn apply(&self, heads: &Tensor) -> Tensor {
        heads * &self.cosine + rotate_half(heads) * &self.sine
    }

    /// Gradient of [`Rotation::apply`]: the rotation the other way round.
    pub fn backward(&self, gradient: &Tensor) -> Tensor {
        gradient * &self.cosine - rotate_half(gradient) * &self.sine
    }
}

/// (first half, second half) -> (-second half, first half).
fn rotate_half(heads: &Tensor) -> Tensor {
    let halves = heads.chunk(2, -1);
    Tensor::cat(&[&halves[1].neg(), &halves[0]], -1)
}
