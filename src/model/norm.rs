//! The norm that a family has, forward and backward, on hidden states; and the residual addition.
//!
//! Not here: the formulas, which are `rms_norm.rs`'s and `layer_norm.rs`'s.
//!
//! Legend: T tokens, D width.

use super::layer_norm;
use super::rms_norm::{self, Weight};
use super::segment::Segment;
use crate::error::Result;
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};

/// What hidden states are normed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) * weight.
    RootMeanSquare,
    /// x / rms(x) * (1 + weight), Gemma's.
    RootMeanSquarePlusOne,
    /// (x - mean(x)) / deviation(x) * weight + bias.
    Layer,
}

impl NormKind {
    /// Names of its parameters, each `[D]`, in the order of the segment.
    pub fn parameters(self) -> &'static [&'static str] {
        if self == Self::Layer { &["weight", "bias"] } else { &["weight"] }
    }
}

/// What a norm keeps of its rows for the backward pass.
pub struct Statistics {
    /// `[T]` f32, what centred rows were multiplied by.
    pub scale: Tensor,
    /// `[T]` f32, of a layer norm only.
    pub mean: Option<Tensor>,
}

impl Statistics {
    /// Uninitialised statistics of so many rows.
    pub fn new(kind: NormKind, rows: i64, device: Device) -> Self {
        let new = || Tensor::empty([rows], (Kind::Float, device));
        Self { scale: new(), mean: (kind == NormKind::Layer).then(new) }
    }

    /// A view of each tensor.
    pub fn map(&self, view: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { scale: view(&self.scale), mean: self.mean.as_ref().map(view) }
    }

    /// Every tensor.
    pub fn all(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.scale).chain(&self.mean)
    }
}

/// A norm whose parameters lie in a segment.
pub struct Norm<'a> {
    /// What it is.
    pub kind: NormKind,
    /// What keeps the scale finite.
    pub epsilon: f64,
    /// Where its parameters are.
    pub segment: &'a Segment,
    /// The place of the first of them.
    pub place: usize,
}

impl Norm<'_> {
    /// x [T, D] -> `output` [T, D], and its statistics.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates; so too below.
    pub fn forward(&self, x: &Tensor, output: &Tensor, statistics: &Statistics) -> Result<()> {
        match &statistics.mean {
            Some(mean) => layer_norm::forward(x, self.affine(), self.epsilon, output, mean, &statistics.scale),
            None => rms_norm::forward(x, self.weight(), self.epsilon, output, &statistics.scale),
        }
    }

    /// `sum` = x + change, then [`Norm::forward`] of it.
    pub fn add_forward(
        &self,
        (x, change): (&Tensor, &Tensor),
        sum: &Tensor,
        output: &Tensor,
        statistics: &Statistics,
    ) -> Result<()> {
        if statistics.mean.is_some() {
            add(x, change, sum)?;
            return self.forward(sum, output, statistics);
        }
        rms_norm::add_forward((x, change), self.weight(), self.epsilon, sum, output, &statistics.scale)
    }

    /// The output of [`Norm::forward`] again: cheaper to recompute than to keep.
    pub fn apply(&self, x: &Tensor, statistics: &Statistics, output: &Tensor) -> Result<()> {
        match &statistics.mean {
            Some(mean) => layer_norm::apply(x, self.affine(), mean, &statistics.scale, output),
            None => rms_norm::apply(x, self.weight(), &statistics.scale, output),
        }
    }

    /// From the gradient of [`Norm::forward`]'s output [T, D]: `input_gradient` = residual + gradient of x; the
    /// gradients of the parameters go to the segment's bucket.
    pub fn backward(
        &self,
        gradients: (&Tensor, Option<&Tensor>),
        x: &Tensor,
        statistics: &Statistics,
        input_gradient: &Tensor,
    ) -> Result<()> {
        let sum = |offset| self.segment.gradient_view(self.place + offset);
        match &statistics.mean {
            Some(mean) => {
                let (weight, scale) = (self.segment.weight(self.place), &statistics.scale);
                layer_norm::backward(gradients, x, weight, mean, scale, input_gradient, (sum(0), sum(1)))
            }
            None => rms_norm::backward(gradients, x, self.weight(), &statistics.scale, input_gradient, sum(0)),
        }
    }

    fn weight(&self) -> Weight<'_> {
        Weight { values: self.segment.weight(self.place), plus_one: self.kind == NormKind::RootMeanSquarePlusOne }
    }

    /// Weight and bias.
    fn affine(&self) -> (&Tensor, &Tensor) {
        (self.segment.weight(self.place), self.segment.weight(self.place + 1))
    }
}

/// `sum` = x + change.
pub fn add(x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
    fn on_cpu<E: Element + Number>(x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
        kernels::norm::add(slice::<E>(x)?, slice(change)?, slice_mut(&mut sum.shallow_clone())?);
        Ok(())
    }
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>(x, change, sum),
        Some(Kind::BFloat16) => on_cpu::<bf16>(x, change, sum),
        _ => {
            let _ = x.add_out(sum, change);
            Ok(())
        }
    }
}
