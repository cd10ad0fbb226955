//! The values of a segment's parameters in the compute kind: what forward and backward read.

use super::parameters::Parameters;
use crate::ops::{self, Ops};
use std::ops::Range;
use tch::Tensor;

/// Values in the compute kind in one flat buffer, with a view of each parameter.
pub struct Weights {
    /// The operations of their device.
    pub ops: &'static dyn Ops,
    /// Its parameters, in the order of the buffer.
    pub parameters: Parameters,
    /// The values, flat.
    pub flat: Tensor,
    views: Vec<Tensor>,
}

impl Weights {
    /// Weights over a flat buffer, which may be longer than the values.
    pub fn over(parameters: Parameters, flat: Tensor) -> Self {
        let views = parameters.views(&flat);
        Self { ops: ops::of(flat.device()), parameters, flat, views }
    }

    /// The same values in the same memory.
    pub fn share(&self) -> Self {
        Self {
            ops: self.ops,
            parameters: self.parameters.clone(),
            flat: self.flat.shallow_clone(),
            views: self.views.iter().map(Tensor::shallow_clone).collect(),
        }
    }

    /// The parameter at `index`, in its shape.
    pub fn view(&self, index: usize) -> &Tensor {
        &self.views[index]
    }

    /// See [`Parameters::stack`].
    pub(crate) fn stacked(&self, places: Range<usize>) -> Tensor {
        self.parameters.stack(&self.flat, places)
    }
}
