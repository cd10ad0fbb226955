//! Norms of queries and of keys, in place, forward and backward: each head for itself (Qwen 3, arXiv 2505.09388; Phi with
//! `qk_layernorm`), or all heads of a row together (OLMo 2, arXiv 2501.00656).
//!
//! The heads are copied out of their rows and back. Not here: the norm itself (`norm.rs`), whose rows are single heads, or all
//! heads of a row.
//!
//! Legend: T tokens, N heads of a row, n of them that are normed, E head width.

use super::norm::{Norm, Statistics};
use super::segment::Bucket;
use crate::error::Result;
use crate::ops::NormGradients;
use std::ops::Range;
use tch::Tensor;

/// The norm of some heads.
pub(crate) struct HeadNorm<'a> {
    /// Which of a row's N heads.
    pub(crate) heads: Range<usize>,
    /// Its parameters are `[E]`, or [n E] if all heads are normed together.
    pub(crate) norm: Norm<'a>,
}

/// What it keeps for the backward pass.
pub(crate) struct HeadsKept<'a> {
    /// [T, n, E], the heads before the norm.
    pub(crate) before: &'a Tensor,
    /// Those of [T n] rows, or of T if all heads are normed together.
    pub(crate) statistics: Statistics,
}

impl HeadNorm<'_> {
    /// Each head h of `rows` [T, N, E] becomes its norm; `kept` is filled.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub(crate) fn forward(&self, rows: &Tensor, kept: &HeadsKept) -> Result<()> {
        let mut place = narrow(rows, self.heads.clone());
        kept.before.shallow_clone().copy_(&place);
        let normed = kept.before.empty_like();
        self.norm.forward(&self.matrix(kept.before), &self.matrix(&normed), &kept.statistics)?;
        place.copy_(&normed);
        Ok(())
    }

    /// In place in `gradient_rows` [T, N, E]: from the gradient of the normed heads to that of the heads before the norm;
    /// gradients of the parameters go to the `bucket`.
    ///
    /// # Errors
    /// As [`HeadNorm::forward`].
    pub(crate) fn backward(&self, gradient_rows: &Tensor, kept: &HeadsKept, bucket: Option<&mut Bucket>) -> Result<()> {
        let mut place = narrow(gradient_rows, self.heads.clone());
        let (gradient, input_gradient) = (kept.before.empty_like(), kept.before.empty_like());
        gradient.shallow_clone().copy_(&place);
        let (output, input) = (self.matrix(&gradient), self.matrix(&input_gradient));
        let gradients = NormGradients { output: &output, residual: None, input: &input };
        self.norm.backward(gradients, &self.matrix(kept.before), &kept.statistics, bucket)?;
        place.copy_(&input_gradient);
        Ok(())
    }

    /// [T, n, E] -> [T n, E], or [T, n E] if all heads are normed together; a view.
    fn matrix(&self, heads: &Tensor) -> Tensor {
        heads.view([-1, self.norm.width()])
    }
}

/// Some heads of rows [T, N, E], a view.
fn narrow(rows: &Tensor, heads: Range<usize>) -> Tensor {
    rows.narrow(1, heads.start as i64, heads.len() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::architecture::NormKind;
    use crate::model::declared::Declared;
    use crate::model::segment::{Parameters, Weights};
    use crate::tensor::waves;
    use tch::{Device, Kind};

    const EPSILON: f64 = 1e-6;

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        let (left, right) = (left.to_kind(Kind::Double), right.to_kind(Kind::Double));
        ((left - &right).norm() / right.norm()).double_value(&[])
    }

    /// Rows after the norm, and gradients of the rows and of the parameters, by libtorch in doubles.
    fn expected(kind: NormKind, rows: &Tensor, heads: Range<usize>, own: &[&Tensor], upstream: &Tensor) -> Vec<Tensor> {
        let leaves = [rows].into_iter().chain(own.iter().copied());
        let leaf = |leaf: &Tensor| leaf.to_kind(Kind::Double).copy().detach().set_requires_grad(true);
        let leaves: Vec<Tensor> = leaves.map(leaf).collect();
        let part = narrow(&leaves[0], heads.clone());
        let mut matrix = part.reshape([-1, own[0].size()[0]]);
        if kind.is_centered() {
            matrix = &matrix - matrix.mean_dim(-1, true, Kind::Double);
        }
        let scale = (matrix.square().mean_dim(-1, true, Kind::Double) + EPSILON).sqrt();
        let mut normed = matrix / scale * &leaves[1];
        if let Some(bias) = leaves.get(2) {
            normed += bias;
        }
        let (first, rest) = (heads.start as i64, rows.size()[1] - heads.end as i64);
        let normed = normed.view_as(&part);
        let parts = [leaves[0].narrow(1, 0, first), normed, leaves[0].narrow(1, heads.end as i64, rest)];
        let output = Tensor::cat(&parts, 1);
        let loss = (&output * upstream.to_kind(Kind::Double)).sum(Kind::Double);
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        std::iter::once(output.detach()).chain(gradients).collect()
    }

    /// Norms these of six heads, in numbers of `kind`; results must be within `bound`.
    fn check(norm: NormKind, (kind, bound): (Kind, f64), heads: Range<usize>, together: bool) {
        let count = heads.len() as i64;
        let (width, rows_normed) = if together { (count * 8, 40) } else { (8, 40 * count) };
        let declared = norm.parameters().iter().map(|name| Declared::new(*name, &[width])).collect();
        let parameters = Parameters::new(declared);
        let flat = waves(&[parameters.elements() as i64], 2.0).to_kind(kind);
        let weights = Weights::over(parameters.clone(), flat);
        let own: Vec<&Tensor> = (0..parameters.len()).map(|place| weights.view(place)).collect();
        let rows = waves(&[40, 6, 8], 1.0).to_kind(kind);
        let upstream = waves(&[40, 6, 8], 3.0).to_kind(kind);
        let wanted = expected(norm, &rows, heads.clone(), &own, &upstream);

        let (made, gradient) = (rows.copy(), upstream.copy());
        let before = Tensor::empty([40, count, 8], (kind, Device::Cpu));
        let kept = HeadsKept { before: &before, statistics: Statistics::new(norm, rows_normed, Device::Cpu) };
        let mut bucket = Bucket::zeros(parameters, 0, Device::Cpu);
        let head_norm =
            HeadNorm { heads: heads.clone(), norm: Norm { kind: norm, epsilon: EPSILON, weights: &weights, place: 0 } };
        head_norm.forward(&made, &kept).unwrap();
        // Gradients are added to the sums: after two passes they are twice as large.
        for _ in 0..2 {
            gradient.shallow_clone().copy_(&upstream);
            head_norm.backward(&gradient, &kept, Some(&mut bucket)).unwrap();
        }
        assert!(distance(&made, &wanted[0]) < bound, "{norm:?} {kind:?}");
        assert!(distance(&gradient, &wanted[1]) < bound, "{norm:?} {kind:?}");
        for (sum, wanted) in bucket.sums().iter().zip(&wanted[2..]) {
            assert!(distance(&(sum / 2.0), wanted) < bound, "{norm:?} {kind:?}");
        }
        // The last head is in neither range: not a bit of it moves. Control: those of the range moved far.
        assert_eq!(made.narrow(1, 5, 1), rows.narrow(1, 5, 1));
        assert!(distance(&narrow(&made, heads.clone()), &narrow(&rows, heads)) > 0.1);
    }

    #[test]
    fn heads_agree_with_automatic_differentiation_and_others_stay() {
        for kind in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2), (Kind::Double, 1e-5)] {
            for norm in [NormKind::RootMeanSquare, NormKind::Layer] {
                for (heads, together) in [(0..3, false), (3..5, false), (0..3, true), (3..5, true)] {
                    check(norm, kind, heads, together);
                }
            }
        }
    }
}
