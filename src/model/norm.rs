//! A family's norm, forward and backward, on hidden states; and the residual addition.
//!
//! Not here: the arithmetic (`ops/`).
//!
//! Legend: T tokens, D width.

use super::architecture::{Architecture, NormKind};
use super::segment::{Bucket, Weights};
use crate::error::Result;
use crate::ops::{Affine, AffineSums, LayerStatistics, NormGradients, NormWeight};
use tch::{Device, Kind, Tensor};

/// A norm's statistics of its rows, for the backward pass.
pub(crate) struct Statistics {
    /// `[T]` f32, factors of the (centered) rows.
    pub(crate) scale: Tensor,
    /// `[T]` f32, means of the rows; of a layer norm only.
    pub(crate) mean: Option<Tensor>,
}

impl Statistics {
    /// Uninitialized statistics of this many rows.
    pub(crate) fn new(kind: NormKind, rows: i64, device: Device) -> Self {
        let new = || Tensor::empty([rows], (Kind::Float, device));
        Self { scale: new(), mean: kind.is_centered().then(new) }
    }

    /// The same numbers, flat: [T, n] -> [T n].
    pub(crate) fn flat(self) -> Self {
        Self { scale: self.scale.view([-1]), mean: self.mean.map(|mean| mean.view([-1])) }
    }

    fn of_layer<'a>(&'a self, mean: &'a Tensor) -> LayerStatistics<'a> {
        LayerStatistics { mean, scale: &self.scale }
    }
}

/// A norm whose parameters lie among the weights of a segment.
pub(crate) struct Norm<'a> {
    /// Its kind.
    pub(crate) kind: NormKind,
    /// Keeps the scale finite.
    pub(crate) epsilon: f64,
    /// The weights that hold its parameters.
    pub(crate) weights: &'a Weights,
    /// The place of its first parameter.
    pub(crate) place: usize,
}

impl<'a> Norm<'a> {
    /// The norm whose parameters lie at `place` of a segment's weights.
    pub(crate) fn of(architecture: &Architecture, weights: &'a Weights, place: usize) -> Self {
        Self { kind: architecture.norm, epsilon: architecture.norm_epsilon, weights, place }
    }

    /// x [T, D] -> `output` [T, D], and its statistics.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates; the same below.
    pub(crate) fn forward(&self, x: &Tensor, output: &Tensor, statistics: &Statistics) -> Result<()> {
        let ops = self.weights.ops;
        match &statistics.mean {
            Some(mean) => ops.layer_norm(x, self.affine(), self.epsilon, output, statistics.of_layer(mean)),
            None => ops.rms_norm(x, self.weight(), self.epsilon, output, &statistics.scale),
        }
    }

    /// `sum` = x + change, then [`Norm::forward`] of it.
    pub(crate) fn add_forward(
        &self,
        (x, change): (&Tensor, &Tensor),
        sum: &Tensor,
        output: &Tensor,
        statistics: &Statistics,
    ) -> Result<()> {
        let ops = self.weights.ops;
        if statistics.mean.is_some() {
            ops.add(x, change, sum)?;
            return self.forward(sum, output, statistics);
        }
        ops.add_rms_norm((x, change), self.weight(), self.epsilon, sum, output, &statistics.scale)
    }

    /// The output of [`Norm::forward`] again: cheaper to recompute than to keep.
    pub(crate) fn apply(&self, x: &Tensor, statistics: &Statistics, output: &Tensor) -> Result<()> {
        let ops = self.weights.ops;
        match &statistics.mean {
            Some(mean) => ops.apply_layer_norm(x, self.affine(), statistics.of_layer(mean), output),
            None => ops.apply_rms_norm(x, self.weight(), &statistics.scale, output),
        }
    }

    /// From the gradient of [`Norm::forward`]'s output [T, D] to that of x; the gradients of the parameters go to the
    /// `bucket`.
    pub(crate) fn backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        statistics: &Statistics,
        bucket: Option<&mut Bucket>,
    ) -> Result<()> {
        let (ops, sums) = (self.weights.ops, bucket.map(Bucket::sums));
        let sum = |offset| sums.as_ref().map(|sums| &sums[self.place + offset]);
        match &statistics.mean {
            Some(mean) => {
                let sums = AffineSums { weight: sum(0), bias: if self.has_bias() { sum(1) } else { None } };
                let weight = self.weights.view(self.place);
                ops.layer_norm_backward(gradients, x, weight, statistics.of_layer(mean), sums)
            }
            None => ops.rms_norm_backward(gradients, x, self.weight(), &statistics.scale, sum(0)),
        }
    }

    /// Columns of the rows that it norms.
    pub(crate) fn width(&self) -> i64 {
        self.weights.view(self.place).size()[0]
    }

    fn weight(&self) -> NormWeight<'_> {
        NormWeight { values: self.weights.view(self.place), plus_one: self.kind == NormKind::RootMeanSquarePlusOne }
    }

    fn has_bias(&self) -> bool {
        self.kind == NormKind::Layer
    }

    /// Weight, and bias if it has one.
    fn affine(&self) -> Affine<'_> {
        let bias = self.has_bias().then(|| self.weights.view(self.place + 1));
        Affine { weight: self.weights.view(self.place), bias }
    }
}
