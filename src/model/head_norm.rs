//! Root-mean-square norms of queries and of keys, in place, forward and backward: each head for itself (Qwen 3, arXiv
//! 2505.09388), or all heads of a row together (OLMo 2, arXiv 2501.00656).
//!
//! Not here: the norm itself (`ops/`), of which a head or all heads are a row. The heads are copied out of their rows and
//! back.
//!
//! Legend: T tokens, N heads of a row, n of them that are normed, E head width.

use crate::error::Result;
use crate::ops::{NormGradients, NormWeight, Ops};
use std::ops::Range;
use tch::Tensor;

/// The norm of some heads.
pub struct HeadNorm<'a> {
    /// Which of a row's N heads.
    pub heads: Range<usize>,
    /// `[E]`, or [n E] where all heads are normed together.
    pub weight: &'a Tensor,
    /// Whether the weight counts from 1.
    pub plus_one: bool,
    /// What keeps the scale finite.
    pub epsilon: f64,
}

/// What it keeps for the backward pass.
#[derive(Clone, Copy)]
pub struct HeadsKept<'a> {
    /// [T, n, E], the heads as they were.
    pub before: &'a Tensor,
    /// [T, n] f32, or [T, 1] where all heads are normed together: 1 / rms.
    pub scale: &'a Tensor,
}

impl HeadNorm<'_> {
    /// Each head h of `rows` [T, N, E] becomes h / rms(h) * weight; `kept` is filled.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn forward(&self, ops: &dyn Ops, rows: &Tensor, kept: HeadsKept) -> Result<()> {
        let mut place = narrow(rows, self.heads.clone());
        kept.before.shallow_clone().copy_(&place);
        let normed = kept.before.empty_like();
        let (before, output) = (self.matrix(kept.before), self.matrix(&normed));
        ops.rms_norm(&before, self.norm_weight(), self.epsilon, &output, &kept.scale.view([-1]))?;
        place.copy_(&normed);
        Ok(())
    }

    /// In `gradient_rows` [T, N, E] the gradient of what [`HeadNorm::forward`] made becomes the gradient of what the heads
    /// were; that of the weight is added to its sum, f32.
    ///
    /// # Errors
    /// As [`HeadNorm::forward`].
    pub fn backward(
        &self,
        ops: &dyn Ops,
        gradient_rows: &Tensor,
        kept: HeadsKept,
        weight_sum: Option<&Tensor>,
    ) -> Result<()> {
        let mut place = narrow(gradient_rows, self.heads.clone());
        let (gradient, input_gradient) = (kept.before.empty_like(), kept.before.empty_like());
        gradient.shallow_clone().copy_(&place);
        let (output, input) = (self.matrix(&gradient), self.matrix(&input_gradient));
        let gradients = NormGradients { output: &output, residual: None, input: &input };
        let (before, scale) = (self.matrix(kept.before), kept.scale.view([-1]));
        ops.rms_norm_backward(gradients, &before, self.norm_weight(), &scale, weight_sum)?;
        place.copy_(&input_gradient);
        Ok(())
    }

    fn norm_weight(&self) -> NormWeight<'_> {
        NormWeight { values: self.weight, plus_one: self.plus_one }
    }

    /// [T, n, E] -> [T n, E], or [T, n E] where all heads are normed together; a view.
    fn matrix(&self, heads: &Tensor) -> Tensor {
        heads.view([-1, self.weight.size()[0]])
    }
}

/// Some heads of rows [T, N, E], a view.
fn narrow(rows: &Tensor, heads: Range<usize>) -> Tensor {
    rows.narrow(1, heads.start as i64, heads.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::Cpu;
    use crate::tensor::waves;
    use tch::{Device, Kind};

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        let (left, right) = (left.to_kind(Kind::Double), right.to_kind(Kind::Double));
        ((left - &right).norm() / right.norm()).double_value(&[])
    }

    /// Rows after the norm, and gradients of the rows and the weight, by libtorch in doubles.
    fn expected(rows: &Tensor, heads: Range<usize>, weight: &Tensor, upstream: &Tensor) -> Vec<Tensor> {
        let leaves = [rows, weight].map(|leaf| leaf.to_kind(Kind::Double).copy().detach().set_requires_grad(true));
        let part = narrow(&leaves[0], heads.clone());
        let matrix = part.reshape([-1, weight.size()[0]]);
        let rms = (matrix.square().mean_dim(-1, true, Kind::Double) + 1e-6).sqrt();
        let normed = (matrix / rms * &leaves[1]).view_as(&part);
        let (first, rest) = (heads.start as i64, rows.size()[1] - heads.end as i64);
        let parts = [leaves[0].narrow(1, 0, first), normed, leaves[0].narrow(1, heads.end as i64, rest)];
        let output = Tensor::cat(&parts, 1);
        let loss = (&output * upstream.to_kind(Kind::Double)).sum(Kind::Double);
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        std::iter::once(output.detach()).chain(gradients).collect()
    }

    #[test]
    fn heads_agree_with_automatic_differentiation_and_others_stay() {
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2), (Kind::Double, 1e-5)] {
            for (heads, together) in [(0..3, false), (3..5, false), (0..3, true), (3..5, true)] {
                let count = heads.len() as i64;
                let (width, scales) = if together { (count * 8, 1) } else { (8, count) };
                let rows = waves(&[40, 6, 8], 1.0).to_kind(kind);
                let (weight, upstream) = (waves(&[width], 2.0).to_kind(kind), waves(&[40, 6, 8], 3.0).to_kind(kind));
                let wanted = expected(&rows, heads.clone(), &weight, &upstream);
                let (made, gradient) = (rows.copy(), upstream.copy());
                let before = Tensor::empty([40, count, 8], (kind, Device::Cpu));
                let scale = Tensor::empty([40, scales], (Kind::Float, Device::Cpu));
                let sum = Tensor::ones([width], (Kind::Float, Device::Cpu));
                let norm = HeadNorm { heads: heads.clone(), weight: &weight, plus_one: false, epsilon: 1e-6 };
                let kept = HeadsKept { before: &before, scale: &scale };
                norm.forward(&Cpu, &made, kept).unwrap();
                norm.backward(&Cpu, &gradient, kept, Some(&sum)).unwrap();
                assert!(distance(&made, &wanted[0]) < bound, "{kind:?}");
                assert!(distance(&gradient, &wanted[1]) < bound, "{kind:?}");
                assert!(distance(&(&sum - 1.0), &wanted[2]) < bound, "{kind:?}");
                // The last head is in neither range: not a bit of it moves. Control: those of the range moved far.
                assert_eq!(made.narrow(1, 5, 1), rows.narrow(1, 5, 1));
                assert!(distance(&narrow(&made, heads.clone()), &narrow(&rows, heads)) > 0.1);
            }
        }
    }
}
