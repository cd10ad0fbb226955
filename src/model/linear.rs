//! The linear maps of a block, with their adapters, forward and backward.
//!
//! Not here: which of them a block has, and in what order (`decoder.rs`); products of experts (`experts.rs`).
//!
//! Legend: T rows.

use super::layout::Projection;
use super::lora::Adapter;
use super::segment::{Bucket, Weights};
use crate::error::Result;
use crate::ops::Scratch;
use tch::Tensor;

/// The buckets for the gradients of a block's parameters; none for parameters that are not trained.
pub struct BlockSums<'a> {
    /// Of its own parameters.
    pub base: Option<&'a mut Bucket>,
    /// Of its adapters.
    pub adapter: Option<&'a mut Bucket>,
}

/// A block's weights and its adapters.
pub(crate) struct Linear<'a> {
    /// The block's parameters.
    pub(crate) weights: &'a Weights,
    /// Its adapters; with them its own parameters are frozen.
    pub(crate) adapter: Option<Adapter<'a>>,
}

impl Linear<'_> {
    /// `output` [T, out] = x [T, in] W^T + b.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates, or a device out of memory.
    pub(crate) fn project(&self, x: &Tensor, projection: &Projection, output: &Tensor) -> Result<()> {
        let weight = self.weights.stacked(projection.weights.clone()).tr();
        let _ = match &projection.biases {
            Some(biases) => self.weights.stacked(biases.clone()).f_addmm_out(output, x, &weight)?,
            None => x.f_mm_out(output, &weight)?,
        };
        if let Some(adapter) = &self.adapter {
            adapter.add(x, projection, output)?;
        }
        Ok(())
    }

    /// `input_gradient` [T, in] = gradient [T, out] W. Returns the gradient within the projection's adapters, if it has any.
    ///
    /// # Errors
    /// As [`Linear::project`].
    pub(crate) fn input_gradient(
        &self,
        gradient: &Tensor,
        projection: &Projection,
        input_gradient: &Tensor,
    ) -> Result<Option<Tensor>> {
        let _ = gradient.f_mm_out(input_gradient, &self.weights.stacked(projection.weights.clone()))?;
        match &self.adapter {
            Some(adapter) => adapter.add_input_gradient(gradient, projection, input_gradient),
            None => Ok(None),
        }
    }

    /// Adds the gradients of W and b of [`Linear::project`] to the sums, or those of the projection's adapters: from gradient
    /// [T, out], x [T, in] and the result of [`Linear::input_gradient`].
    ///
    /// # Errors
    /// As [`Linear::project`].
    pub(crate) fn project_backward(
        &self,
        projection: &Projection,
        [gradient, x]: [&Tensor; 2],
        through_adapters: Option<Tensor>,
        sums: &mut BlockSums,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if let (Some(adapter), Some(bucket)) = (&self.adapter, sums.adapter.as_deref_mut()) {
            let inner_gradient = through_adapters.as_ref();
            return inner_gradient
                .map_or(Ok(()), |inner_gradient| adapter.backward(projection, [gradient, inner_gradient, x], bucket));
        }
        let Some(bucket) = sums.base.as_deref_mut() else { return Ok(()) };
        let ops = self.weights.ops;
        bucket.add_product(ops, projection.weights.clone(), [gradient, x], scratch)?;
        match &projection.biases {
            Some(biases) => ops.add_column_sums(gradient, &bucket.stacked(biases.clone())),
            None => Ok(()),
        }
    }
}
