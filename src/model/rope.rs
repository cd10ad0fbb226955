//! Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864), forward and backward.
//!
//! Legend: T tokens, H heads, E head width.

use super::config::{Rope, RopeScaling};
use crate::error::Result;
use crate::kernels::{self, Element};
use crate::tensor::{self, Number};
use half::bf16;
use tch::{Device, Kind, Tensor};

/// Cosines and sines of one batch's positions: two tensors [T, E / 2], f32.
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
    pub fn new(positions: &Tensor, frequencies: &[f32], device: Device) -> Self {
        let frequencies = Tensor::from_slice(frequencies).to_device(device);
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies.unsqueeze(0);
        Self { cosine: angles.cos(), sine: angles.sin() }
    }

    /// Rotates the first `heads` heads of rows [T, any number of heads, E], in place.
    pub fn apply(&self, rows: &Tensor, heads: usize) -> Result<()> {
        self.rotate(rows, heads, 1.0)
    }

    /// Gradient of [`Rotation::apply`], in place: the rotation the other way round.
    pub fn backward(&self, gradient: &Tensor, heads: usize) -> Result<()> {
        self.rotate(gradient, heads, -1.0)
    }

    fn rotate(&self, rows: &Tensor, heads: usize, sign: f32) -> Result<()> {
        match tensor::cpu_kind(rows) {
            Some(Kind::Float) => self.rotate_on_cpu::<f32>(rows, heads, sign),
            Some(Kind::BFloat16) => self.rotate_on_cpu::<bf16>(rows, heads, sign),
            _ => {
                self.rotate_with_tensors(rows, heads, sign);
                Ok(())
            }
        }
    }

    fn rotate_on_cpu<E: Element + Number>(&self, rows: &Tensor, heads: usize, sign: f32) -> Result<()> {
        let stride = rows.size()[1..].iter().product::<i64>() as usize;
        let mut rows = rows.shallow_clone();
        let rows = tensor::slice_mut::<E>(&mut rows)?;
        let (cosine, sine) = (tensor::slice(&self.cosine)?, tensor::slice(&self.sine)?);
        kernels::rope::rotate(rows, stride, heads, cosine, sine, sign);
        Ok(())
    }

    fn rotate_with_tensors(&self, rows: &Tensor, heads: usize, sign: f32) {
        let mut halves = rows.narrow(1, 0, heads as i64).chunk(2, -1);
        let (one, two) = (halves[0].to_kind(Kind::Float), halves[1].to_kind(Kind::Float));
        let (cosine, sine) = (self.cosine.unsqueeze(1), self.sine.unsqueeze(1) * f64::from(sign));
        // Both before either is written: in f32 `one` and `two` are the rows themselves.
        let rotated = [&one * &cosine - &two * &sine, two * cosine + one * sine];
        halves.iter_mut().zip(&rotated).for_each(|(half, rotated)| half.copy_(rotated));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    #[test]
    fn the_fused_loop_equals_the_tensor_formulas_and_its_gradient_undoes_it() {
        let positions = Tensor::arange(70, (Kind::Int64, Device::Cpu));
        let rotation = Rotation::new(&positions, &[1.0, 0.3, 0.02], Device::Cpu);
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-2)] {
            let before = waves(&[70, 5, 6], 1.0).to_kind(kind);
            let (fused, plain) = (before.copy(), before.copy());
            rotation.apply(&fused, 3).unwrap();
            rotation.rotate_with_tensors(&plain, 3, 1.0);
            assert!((&fused - &plain).abs().max().double_value(&[]) < bound);
            // Control: the first heads moved, the others did not.
            assert!((&fused - &before).narrow(1, 0, 3).abs().max().double_value(&[]) > 0.1);
            assert_eq!((&fused - &before).narrow(1, 3, 2).abs().max().double_value(&[]), 0.0);
            rotation.backward(&fused, 3).unwrap();
            assert!((&fused - &before).abs().max().double_value(&[]) < bound);
        }
    }
}
