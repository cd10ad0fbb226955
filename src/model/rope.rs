//! The angles of rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864). A family may rotate the first
//! columns of a head only, as GPT-NeoX does.
//!
//! Not here: rotating (`ops/`).
//!
//! Legend: T tokens, R rotated columns of a head, even and at most the head's width.

use super::architecture::{RopeScaling, Rotation};
use crate::ops::Angles;
use crate::tensor::on_device;
use tch::{Device, Kind, Tensor};

/// Angles per position: R / 2 frequencies in radians, f32 like Transformers.
pub fn frequencies(rotation: &Rotation) -> Vec<f32> {
    let Rotation { rope, width: rotated_width } = rotation;
    let base = (0..rotated_width / 2).map(|index| (rope.theta).powf(-((2 * index) as f64) / *rotated_width as f64));
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

/// Cosines and sines of the given positions `[T]` (i64); `frequencies` as returned by [`frequencies`].
pub fn angles(positions: &Tensor, frequencies: &[f32], device: Device) -> Angles {
    let frequencies = on_device(frequencies, device);
    let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies.unsqueeze(0);
    Angles { cosine: angles.cos(), sine: angles.sin() }
}
