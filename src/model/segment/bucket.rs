//! The gradient sums of a segment: one bucket of the reducer.
//!
//! A bucket has one owner at a time. It is lent for a backward pass and moved into its reduction: nobody can add to it, or
//! read it, before it has come back, unless a clone of its tensor was kept.

use super::parameters::Parameters;
use crate::error::Result;
use crate::ops::{Ops, Scratch};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// f32 gradient sums in one flat buffer, with a view of each parameter.
pub struct Bucket {
    parameters: Parameters,
    flat: Tensor,
    views: Vec<Tensor>,
}

impl Bucket {
    /// A zeroed bucket of `elements`, or of the parameters' elements if they are more.
    pub(crate) fn zeros(parameters: Parameters, elements: usize, device: Device) -> Self {
        let flat = Tensor::zeros([elements.max(parameters.elements()) as i64], (Kind::Float, device));
        Self::over(parameters, flat)
    }

    /// A bucket over a flat f32 buffer, which may be longer than the sums.
    pub fn over(parameters: Parameters, flat: Tensor) -> Self {
        let views = parameters.views(&flat);
        Self { parameters, flat, views }
    }

    /// All sums, flat.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The sums of each parameter, in its shape.
    pub fn views(&self) -> &[Tensor] {
        &self.views
    }

    /// The same, to add to.
    pub(crate) fn sums(&mut self) -> &mut [Tensor] {
        &mut self.views
    }

    /// The sums of parameters that lie one after the other, to add to; see [`Parameters::stack`].
    pub(crate) fn stacked(&mut self, places: Range<usize>) -> Tensor {
        self.parameters.stack(&self.flat, places)
    }

    /// Adds left^T right to the sums of the stacked matrices of `places`: left [T, out], right [T, in] -> [out, in].
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates, or a device out of memory.
    pub(crate) fn add_product(
        &mut self,
        ops: &dyn Ops,
        places: Range<usize>,
        [left, right]: [&Tensor; 2],
        scratch: &mut Scratch,
    ) -> Result<()> {
        ops.add_product(left, right, &self.stacked(places), scratch)
    }

    /// Zeroes the sums.
    pub(crate) fn clear(&mut self) {
        let _ = self.flat.zero_();
    }

    /// Whether every sum is a finite number.
    pub(crate) fn is_finite(&self) -> bool {
        self.flat.isfinite().all().int64_value(&[]) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::declared::Declared;
    use crate::tensor::waves;

    #[test]
    fn a_product_is_added_to_the_stacked_matrices_it_belongs_to_in_either_kind() {
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 5e-3)] {
            let shapes = [("norm", vec![3]), ("query", vec![40, 33]), ("key", vec![9, 33]), ("rest", vec![7, 33])];
            let declared = shapes.into_iter().map(|(name, shape)| Declared::new(name, &shape)).collect();
            let mut bucket = Bucket::zeros(Parameters::new(declared), 0, Device::Cpu);
            let right = waves(&[70, 33], 1.0).to_kind(kind);
            // Contiguous rows, and rows within wider ones, which the loops do not take.
            let wide = waves(&[70, 60], 2.0).to_kind(kind);
            let narrow = wide.narrow(1, 5, 49);
            for left in [narrow.contiguous(), narrow] {
                bucket.clear();
                // Twice: it adds.
                for _ in 0..2 {
                    let ops = crate::ops::of(Device::Cpu);
                    bucket.add_product(ops, 1..3, [&left, &right], &mut Scratch::default()).unwrap();
                }
                let exact = left.to_kind(Kind::Double).tr().mm(&right.to_kind(Kind::Double)) * 2.0;
                let sum = bucket.stacked(1..3).to_kind(Kind::Double);
                let far = ((&sum - &exact).norm() / exact.norm()).double_value(&[]);
                assert!(far < bound, "{kind:?}: {far}");
                for other in [0, 3] {
                    assert_eq!(bucket.views()[other].abs().sum(Kind::Float).double_value(&[]), 0.0);
                }
                // Control: added once it would be far off.
                assert!(((&sum * 0.5 - &exact).norm() / exact.norm()).double_value(&[]) > 0.4);
            }
        }
    }
}
