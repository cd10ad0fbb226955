//! A segment: the parameters of one stage of the model in flat buffers.
//!
//! The flat compute buffer is what forward and backward read; the flat f32 gradient is one bucket of the reducer; the
//! flat f32 master is what the optimiser updates. Named tensors are views into them. With f32 compute, master and
//! compute buffer are the same memory.

use super::layout::{Declared, Rows};
use super::workspace::Scratch;
use crate::error::Result;
use crate::kernels;
use crate::tensor;
use half::bf16;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// One parameter of a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Where it starts in the flat buffers, in elements.
    pub offset: usize,
    /// Its number of elements.
    pub length: usize,
    /// The order of its rows in files: masters, moments and exports are read and written through it.
    pub rows: Rows,
}

impl Parameter {
    /// The parameter's part of a flat buffer of its segment, in its shape.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.offset as i64, self.length as i64).view(self.shape.as_slice())
    }
}

/// The parameters of one stage of the model (embedding, a block, ...) in flat buffers.
pub struct Segment {
    /// Its parameters, in the order of the buffers.
    pub parameters: Vec<Parameter>,
    /// Values in the compute kind, flat.
    pub compute: Tensor,
    /// Values in f32, flat; absent in a model that is only evaluated.
    pub master: Option<Tensor>,
    /// Gradient sums in f32, flat; absent where nothing is trained.
    pub gradient: Option<Tensor>,
    weights: Vec<Tensor>,
    gradients: Vec<Tensor>,
}

/// What a segment's buffers are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Forward and backward: compute buffer, master and gradient.
    Train,
    /// Forward only: just the compute buffer.
    Evaluate,
}

impl Segment {
    /// Zero-filled buffers for the given parameters.
    pub fn new(declared: Vec<Declared>, kind: Kind, device: Device, purpose: Use) -> Self {
        let mut offset = 0;
        let mut parameters = Vec::with_capacity(declared.len());
        for Declared { name, shape, rows } in declared {
            let length = shape.iter().product::<i64>() as usize;
            parameters.push(Parameter { name, shape, offset, length, rows });
            offset += length;
        }
        let flat = |kind| Tensor::zeros([offset as i64], (kind, device));
        let master = (purpose == Use::Train).then(|| flat(Kind::Float));
        let gradient = (purpose == Use::Train).then(|| flat(Kind::Float));
        let compute = match &master {
            Some(master) if kind == Kind::Float => master.shallow_clone(),
            _ => flat(kind),
        };
        let views = |flat: &Tensor| parameters.iter().map(|parameter| parameter.view(flat)).collect::<Vec<_>>();
        let weights = views(&compute);
        let gradients = gradient.as_ref().map(views).unwrap_or_default();
        Self { parameters, compute, master, gradient, weights, gradients }
    }

    /// Collects gradient sums in `buffer` from here on: flat f32, zeroed, of the segment's length.
    pub fn adopt_gradient(&mut self, buffer: Tensor) {
        self.gradients = self.parameters.iter().map(|parameter| parameter.view(&buffer)).collect();
        self.gradient = Some(buffer);
    }

    /// The compute values of the parameter at `index`, in its shape.
    pub fn weight(&self, index: usize) -> &Tensor {
        &self.weights[index]
    }

    /// The f32 values of the parameter at `index`: the master where there is one, else the compute values.
    pub fn value(&self, index: usize) -> Tensor {
        self.parameters[index].view(self.master.as_ref().unwrap_or(&self.compute))
    }

    /// Whether gradients are collected.
    pub fn trains(&self) -> bool {
        self.gradient.is_some()
    }

    /// The gradient sum of the parameter at `index`, in its shape.
    pub fn gradient_view(&self, index: usize) -> Option<&Tensor> {
        self.gradients.get(index)
    }

    /// Adds to the gradient sum of the parameter at `index`; nothing where nothing is trained.
    pub fn add_gradient(&self, index: usize, gradient: &Tensor) {
        if let Some(sum) = self.gradients.get(index) {
            let _ = sum.shallow_clone().g_add_(gradient);
        }
    }

    /// Adds left^T right to the gradient sum of the stacked matrices of `places`: left [T, out], right [T, in] ->
    /// [out, in].
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn add_product(&self, places: Range<usize>, left: &Tensor, right: &Tensor, scratch: &Scratch) -> Result<()> {
        let Some(gradient) = &self.gradient else { return Ok(()) };
        let mut sum = self.stack(gradient, places);
        if left.kind() == Kind::Float {
            let _ = sum.addmm_(&left.tr(), right);
            return Ok(());
        }
        // There is no product of bf16 factors into an f32 sum on CPUs.
        let product = scratch.matrix(left.size()[1], right.size()[1], left.kind(), left.device());
        let _ = left.tr().mm_out(&product, right);
        match tensor::cpu_kind(&product) {
            Some(Kind::BFloat16) => {
                kernels::accumulate::add::<bf16>(tensor::slice(&product)?, tensor::slice_mut(&mut sum)?);
            }
            _ => {
                let _ = sum.g_add_(&product);
            }
        }
        Ok(())
    }

    /// The compute values of matrices or vectors that lie one after the other, as one: matrices [out, in] stacked to
    /// [sum of outs, in].
    pub fn stacked_weight(&self, places: Range<usize>) -> Tensor {
        self.stack(&self.compute, places)
    }

    /// As [`Segment::stacked_weight`], of the gradient sums.
    pub fn stacked_gradient(&self, places: Range<usize>) -> Option<Tensor> {
        self.gradient.as_ref().map(|gradient| self.stack(gradient, places))
    }

    fn stack(&self, flat: &Tensor, places: Range<usize>) -> Tensor {
        let parameters = &self.parameters[places];
        let length: usize = parameters.iter().map(|parameter| parameter.length).sum();
        let mut shape = parameters[0].shape.clone();
        shape[0] = -1;
        flat.narrow(0, parameters[0].offset as i64, length as i64).view(shape.as_slice())
    }

    /// Zeroes the gradient sums.
    pub fn clear_gradient(&mut self) {
        if let Some(gradient) = &mut self.gradient {
            let _ = gradient.zero_();
        }
    }

    /// Sets the parameter at `index` from a tensor of its shape, in any kind.
    pub fn set(&mut self, index: usize, value: &Tensor) {
        let parameter = &self.parameters[index];
        if let Some(master) = &self.master {
            parameter.view(master).copy_(value);
        }
        self.weights[index].copy_(value);
    }

    /// Copies the masters to the compute kind after an update.
    pub fn refresh_compute(&mut self) {
        if let Some(master) = &self.master
            && self.compute.kind() != Kind::Float
        {
            self.compute.copy_(master);
        }
    }

    /// Number of elements.
    pub fn length(&self) -> usize {
        tensor::count(&self.compute)
    }
}
