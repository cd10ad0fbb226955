//! Root-mean-square norm of each head of queries and keys (Qwen 3, arXiv 2505.09388), in place, forward and backward.
//!
//! Not here: the norm itself (`ops/`), of which a head is a row. The heads are copied out of their rows and back.
//!
//! Legend: T tokens, N heads of a row, n of them that are normed, E head width.

use crate::error::Result;
use crate::ops::{NormGradients, NormWeight, Ops};
use std::ops::Range;
use tch::Tensor;

/// Each head h of `heads` in `rows` [T, N, E] becomes h / rms(h) * weight `[E]`. `before` [T, n, E] takes the heads as they
/// were and `scale` [T, n] f32 takes 1 / rms: what the backward pass needs.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn forward(
    ops: &dyn Ops,
    rows: &Tensor,
    heads: Range<usize>,
    weight: &Tensor,
    epsilon: f64,
    before: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    let mut place = narrow(rows, heads);
    before.shallow_clone().copy_(&place);
    let normed = before.empty_like();
    ops.rms_norm(&matrix(before), plain(weight), epsilon, &matrix(&normed), &scale.view([-1]))?;
    place.copy_(&normed);
    Ok(())
}

/// In `gradient_rows` [T, N, E] the gradient of what [`forward`] made of `heads` becomes the gradient of what they were;
/// that of the weight is added to `weight_gradient` `[E]` f32, where there is one.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    ops: &dyn Ops,
    gradient_rows: &Tensor,
    heads: Range<usize>,
    before: &Tensor,
    scale: &Tensor,
    weight: &Tensor,
    weight_gradient: Option<&Tensor>,
) -> Result<()> {
    let mut place = narrow(gradient_rows, heads);
    let (gradient, input_gradient) = (before.empty_like(), before.empty_like());
    gradient.shallow_clone().copy_(&place);
    let (output, input) = (matrix(&gradient), matrix(&input_gradient));
    let gradients = NormGradients { output: &output, residual: None, input: &input };
    ops.rms_norm_backward(gradients, &matrix(before), plain(weight), &scale.view([-1]), weight_gradient)?;
    place.copy_(&input_gradient);
    Ok(())
}

fn plain(values: &Tensor) -> NormWeight<'_> {
    NormWeight { values, plus_one: false }
}

/// Some heads of rows [T, N, E], a view.
fn narrow(rows: &Tensor, heads: Range<usize>) -> Tensor {
    rows.narrow(1, heads.start as i64, heads.len() as i64)
}

/// [T, n, E] -> [T n, E], a view.
fn matrix(heads: &Tensor) -> Tensor {
    heads.view([-1, heads.size()[2]])
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
        let rms = (part.square().mean_dim(-1, true, Kind::Double) + 1e-6).sqrt();
        let (first, rest) = (heads.start as i64, rows.size()[1] - heads.end as i64);
        let parts =
            [leaves[0].narrow(1, 0, first), part / rms * &leaves[1], leaves[0].narrow(1, heads.end as i64, rest)];
        let output = Tensor::cat(&parts, 1);
        let loss = (&output * upstream.to_kind(Kind::Double)).sum(Kind::Double);
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        std::iter::once(output.detach()).chain(gradients).collect()
    }

    #[test]
    fn each_head_agrees_with_automatic_differentiation_and_others_stay() {
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2), (Kind::Double, 1e-5)] {
            for heads in [0..3, 3..5] {
                let rows = waves(&[40, 6, 8], 1.0).to_kind(kind);
                let (weight, upstream) = (waves(&[8], 2.0).to_kind(kind), waves(&[40, 6, 8], 3.0).to_kind(kind));
                let wanted = expected(&rows, heads.clone(), &weight, &upstream);
                let (made, gradient) = (rows.copy(), upstream.copy());
                let before = Tensor::empty([40, heads.len() as i64, 8], (kind, Device::Cpu));
                let scale = Tensor::empty([40, heads.len() as i64], (Kind::Float, Device::Cpu));
                let sum = Tensor::ones([8], (Kind::Float, Device::Cpu));
                forward(&Cpu, &made, heads.clone(), &weight, 1e-6, &before, &scale).unwrap();
                backward(&Cpu, &gradient, heads.clone(), &before, &scale, &weight, Some(&sum)).unwrap();
                assert!(distance(&made, &wanted[0]) < bound, "{kind:?}");
                assert!(distance(&gradient, &wanted[1]) < bound, "{kind:?}");
                assert!(distance(&(sum - 1.0), &wanted[2]) < bound, "{kind:?}");
                // The last head is in neither range: not a bit of it moves. Control: those of the range moved far.
                assert_eq!(made.narrow(1, 5, 1), rows.narrow(1, 5, 1));
                assert!(distance(&narrow(&made, heads.clone()), &narrow(&rows, heads)) > 0.1);
            }
        }
    }
}
