//! A segment: the parameters of one stage of the model in flat buffers.
//!
//! The flat compute buffer is what forward and backward read; the flat f32 gradient is one bucket of the reducer; the
//! flat f32 master is what the optimiser updates. Named tensors are views into them. With f32 compute, master and
//! compute buffer are the same memory.

use super::declared::{Declared, Rows};
use crate::error::Result;
use crate::ops::{self, Ops, Scratch};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Shares are a multiple of this many elements: a cache line of f32, so that two ranks' shares lie in no line together.
const SHARE_STEP: usize = 16;

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
    /// What computes with them: the operations of their device.
    pub ops: &'static dyn Ops,
    /// Its parameters, in the order of the buffers.
    pub parameters: Vec<Parameter>,
    /// Values in the compute kind, flat.
    pub compute: Tensor,
    /// Values in f32, flat, of the range `owned`; absent in a model that is only evaluated.
    pub master: Option<Tensor>,
    /// Gradient sums in f32, flat; absent where nothing is trained.
    pub gradient: Option<Tensor>,
    /// What this rank holds masters of, and updates: all elements, or one share of equal shares, the last of which may
    /// reach beyond the last parameter.
    pub owned: Range<usize>,
    /// Shares that all ranks together hold, one each; 1 where every rank holds all.
    shares: usize,
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
        let ops = ops::of(device);
        Self { ops, parameters, compute, master, gradient, owned: 0..offset, shares: 1, weights, gradients }
    }

    /// Keeps the masters of share number `rank` of `ranks` equal shares and frees the others. Compute and gradient
    /// buffers stay whole, and grow until the shares are equal. Gradient sums so far are lost; nothing happens where
    /// nothing is trained.
    pub fn keep_share(&mut self, rank: usize, ranks: usize) {
        let (Some(master), Some(gradient)) = (&self.master, &self.gradient) else { return };
        let share = self.length().div_ceil(ranks).next_multiple_of(SHARE_STEP);
        let (length, whole) = (self.length() as i64, (share * ranks) as i64);
        let grown = |flat: &Tensor| {
            let grown = Tensor::zeros([whole], (flat.kind(), flat.device()));
            grown.narrow(0, 0, length).copy_(flat);
            grown
        };
        let own = |flat: &Tensor| flat.narrow(0, (rank * share) as i64, share as i64);
        let compute = grown(&self.compute);
        // With f32 compute the share is a view of the values; else it has memory of its own.
        let master = if compute.kind() == Kind::Float { own(&compute) } else { own(&grown(master)).copy() };
        self.weights = self.parameters.iter().map(|parameter| parameter.view(&compute)).collect();
        let gradient = Tensor::zeros([whole], (Kind::Float, gradient.device()));
        (self.compute, self.master, self.owned) = (compute, Some(master), rank * share..(rank + 1) * share);
        self.shares = ranks;
        self.adopt_gradient(gradient);
    }

    /// The elements of the parameter at `index` that are this rank's to update: where they lie in `owned`, counted from
    /// its start, and in the parameter.
    pub fn owned_part(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let Parameter { offset, length, .. } = self.parameters[index];
        let start = self.owned.start.clamp(offset, offset + length);
        let end = self.owned.end.clamp(start, offset + length);
        let in_owned = start.saturating_sub(self.owned.start)..end.saturating_sub(self.owned.start);
        (if start < end { in_owned } else { 0..0 }, start - offset..end - offset)
    }

    /// Writes what is this rank's of the parameter at `index` into `flat`, f32 values of the range `owned`.
    pub fn write_owned(&self, flat: &Tensor, index: usize, value: &Tensor) {
        let (to, from) = self.owned_part(index);
        let part = |flat: &Tensor, range: Range<usize>| flat.narrow(0, range.start as i64, range.len() as i64);
        part(flat, to).copy_(&part(&value.contiguous().view(-1), from));
    }

    /// Collects gradient sums in `buffer` from here on: flat f32, zeroed, as long as the one before.
    pub fn adopt_gradient(&mut self, buffer: Tensor) {
        self.gradients = self.parameters.iter().map(|parameter| parameter.view(&buffer)).collect();
        self.gradient = Some(buffer);
    }

    /// The compute values of the parameter at `index`, in its shape.
    pub fn weight(&self, index: usize) -> &Tensor {
        &self.weights[index]
    }

    /// The values of the parameter at `index`: the master where this rank holds all of it, else the compute values.
    pub fn value(&self, index: usize) -> Tensor {
        let whole = self.master.as_ref().filter(|_| !self.is_share());
        self.parameters[index].view(whole.unwrap_or(&self.compute))
    }

    /// Whether this rank holds masters of a share only.
    pub fn is_share(&self) -> bool {
        self.shares > 1
    }

    /// The gradient sums of the range `owned`.
    pub fn owned_gradient(&self) -> Option<Tensor> {
        self.gradient.as_ref().map(|gradient| self.owned_of(gradient))
    }

    /// The range `owned` of a whole flat buffer.
    pub fn owned_of(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.owned.start as i64, self.owned.len() as i64)
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
        match &self.gradient {
            Some(gradient) => self.ops.add_product(left, right, &self.stack(gradient, places), scratch),
            None => Ok(()),
        }
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
        if let Some(master) = &self.master {
            self.write_owned(master, index, value);
        }
        self.weights[index].copy_(value);
    }

    /// Copies the masters to the compute kind after an update, in the range `owned`.
    pub fn refresh_compute(&mut self) {
        if let Some(master) = &self.master
            && self.compute.kind() != Kind::Float
        {
            self.owned_of(&self.compute).copy_(master);
        }
    }

    /// Number of elements of its parameters.
    pub fn length(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.offset + last.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    #[test]
    fn a_product_is_added_to_the_stacked_matrices_it_belongs_to_in_either_kind() {
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 5e-3)] {
            let shapes = [("norm", vec![3]), ("query", vec![40, 33]), ("key", vec![9, 33]), ("rest", vec![7, 33])];
            let declared = shapes.into_iter().map(|(name, shape)| Declared::new(name, &shape)).collect();
            let mut segment = Segment::new(declared, kind, Device::Cpu, Use::Train);
            let right = waves(&[70, 33], 1.0).to_kind(kind);
            // Rows of their own, and rows that lie in wider ones, which the loops do not take.
            let wide = waves(&[70, 60], 2.0).to_kind(kind);
            let narrow = wide.narrow(1, 5, 49);
            for left in [narrow.contiguous(), narrow] {
                segment.clear_gradient();
                // Twice: it adds.
                for _ in 0..2 {
                    segment.add_product(1..3, &left, &right, &Scratch::default()).unwrap();
                }
                let exact = left.to_kind(Kind::Double).tr().mm(&right.to_kind(Kind::Double)) * 2.0;
                let sum = segment.stacked_gradient(1..3).unwrap().to_kind(Kind::Double);
                let far = ((&sum - &exact).norm() / exact.norm()).double_value(&[]);
                assert!(far < bound, "{kind:?}: {far}");
                for other in [0, 3] {
                    let untouched = segment.gradient_view(other).unwrap().abs().sum(Kind::Float);
                    assert_eq!(untouched.double_value(&[]), 0.0);
                }
                // Control: added once it would be far off.
                assert!(((&sum * 0.5 - &exact).norm() / exact.norm()).double_value(&[]) > 0.4);
            }
        }
    }
}
