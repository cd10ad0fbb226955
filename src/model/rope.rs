//! Rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864), forward and backward. A family may rotate
//! the first columns of a head only, as GPT-NeoX does.
//!
//! Legend: T tokens, E head width, R rotated columns of a head, even and at most E.

use super::config::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::kernels::{self, Element};
use crate::tensor::{self, Number};
use half::bf16;
use tch::{Device, Kind, Tensor};

/// Cosines and sines of one batch's positions: two tensors [T, R / 2], f32.
pub struct Rotation {
    cosine: Tensor,
    sine: Tensor,
}

/// Angles per position: R / 2 frequencies in radians, f32 like Transformers; `rotated_width` is R.
pub fn frequencies(rope: &Rope, rotated_width: usize) -> Vec<f32> {
    let base = (0..rotated_width / 2).map(|index| (rope.theta).powf(-((2 * index) as f64) / rotated_width as f64));
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
        let frequencies = tensor::on_device(frequencies, device);
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies.unsqueeze(0);
        Self { cosine: angles.cos(), sine: angles.sin() }
    }

    /// Rotates the first R columns of the first `heads` heads of rows [T, any number of heads, E], in place. R is twice
    /// the number of frequencies.
    ///
    /// # Errors
    /// More frequencies than a head has pairs of columns.
    pub fn apply(&self, rows: &Tensor, heads: usize) -> Result<()> {
        self.rotate(rows, heads, 1.0)
    }

    /// Gradient of [`Rotation::apply`], in place: the rotation the other way round.
    ///
    /// # Errors
    /// As [`Rotation::apply`].
    pub fn backward(&self, gradient: &Tensor, heads: usize) -> Result<()> {
        self.rotate(gradient, heads, -1.0)
    }

    fn rotate(&self, rows: &Tensor, heads: usize, sign: f32) -> Result<()> {
        let (width, half) = (rows.size()[2], self.cosine.size()[1]);
        if 2 * half > width {
            return Err(Error::runtime(format!("{half} rotary frequencies do not fit heads {width} wide")));
        }
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
        let (stride, width) = ((rows.size()[1] * rows.size()[2]) as usize, rows.size()[2] as usize);
        let mut rows = rows.shallow_clone();
        let rows = tensor::slice_mut::<E>(&mut rows)?;
        let (cosine, sine) = (tensor::slice(&self.cosine)?, tensor::slice(&self.sine)?);
        kernels::rope::rotate(rows, stride, (heads, width), cosine, sine, sign);
        Ok(())
    }

    fn rotate_with_tensors(&self, rows: &Tensor, heads: usize, sign: f32) {
        let half = self.cosine.size()[1];
        let mut halves = rows.narrow(1, 0, heads as i64).narrow(2, 0, 2 * half).chunk(2, -1);
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

    /// The rotation as a product with a matrix for each row, differentiated by libtorch.
    fn expected(rows: &Tensor, heads: i64, frequencies: &[f32], upstream: &Tensor) -> (Tensor, Tensor) {
        let half = frequencies.len() as i64;
        let leaf = rows.copy().detach().set_requires_grad(true);
        let angles = Tensor::arange(rows.size()[0], (Kind::Float, Device::Cpu)).outer(&Tensor::from_slice(frequencies));
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        let turned = leaf.narrow(1, 0, heads).narrow(2, 0, 2 * half);
        let across = Tensor::cat(&[&turned.narrow(2, half, half).neg(), &turned.narrow(2, 0, half)], -1);
        let turned = turned * angles.cos() + across * angles.sin();
        let rest = leaf.narrow(1, 0, heads).narrow(2, 2 * half, rows.size()[2] - 2 * half);
        let other = leaf.narrow(1, heads, rows.size()[1] - heads);
        let output = Tensor::cat(&[Tensor::cat(&[turned, rest], 2), other], 1);
        let gradient = Tensor::run_backward(&[(&output * upstream).sum(Kind::Float)], &[&leaf], false, false).remove(0);
        (output.detach(), gradient)
    }

    #[test]
    fn both_ways_agree_with_automatic_differentiation_for_whole_and_partial_heads() {
        let frequencies = [1.0, 0.3, 0.02];
        let rotation = Rotation::new(&Tensor::arange(70, (Kind::Int64, Device::Cpu)), &frequencies, Device::Cpu);
        // Heads of 6 are turned whole, of 10 in their first 6 columns.
        for width in [6, 10] {
            let (before, upstream) = (waves(&[70, 5, width], 1.0), waves(&[70, 5, width], 2.0));
            let (expected, expected_gradient) = expected(&before, 3, &frequencies, &upstream);
            for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-2)] {
                let of_kind = || (before.to_kind(kind).copy(), upstream.to_kind(kind).copy());
                let ((fused, fused_gradient), (plain, plain_gradient)) = (of_kind(), of_kind());
                rotation.apply(&fused, 3).unwrap();
                rotation.backward(&fused_gradient, 3).unwrap();
                rotation.rotate_with_tensors(&plain, 3, 1.0);
                rotation.rotate_with_tensors(&plain_gradient, 3, -1.0);
                for (output, gradient) in [(fused, fused_gradient), (plain, plain_gradient)] {
                    assert!((&output - &expected).abs().max().double_value(&[]) < bound);
                    assert!((&gradient - &expected_gradient).abs().max().double_value(&[]) < bound);
                    // What is not turned keeps its bits.
                    let rest = |rows: &Tensor| rows.narrow(1, 0, 3).narrow(2, 6, width - 6);
                    assert_eq!(rest(&output), rest(&before.to_kind(kind)));
                }
            }
        }
        // Heads narrower than the rotation are refused.
        assert!(rotation.apply(&waves(&[70, 5, 4], 1.0), 3).is_err());
    }
}
