//! The plain formulas as tensor operations: valid on every device, and the oracle for faster implementations.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod experts;
pub(crate) mod hash;
pub(crate) mod layer_norm;
pub(crate) mod log_softmax;
pub(crate) mod low_rank;
pub(crate) mod rms_norm;
pub(crate) mod rope;

use super::Scratch;
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// `sum` = x + change.
pub(crate) fn add(x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
    let _ = x.f_add_out(sum, change)?;
    Ok(())
}

/// Adds column sums of rows to `sum`.
pub(crate) fn add_column_sums(rows: &Tensor, sum: &Tensor) {
    let _ = sum.shallow_clone().g_add_(&rows.sum_dim_intlist(0, false, Kind::Float));
}

/// Adds left^T right to `sum` f32. A bf16 product is rounded once before it is added.
pub(crate) fn add_product(left: &Tensor, right: &Tensor, sum: &Tensor, scratch: &mut Scratch) {
    if left.kind() == Kind::Float {
        let _ = sum.shallow_clone().addmm_(&left.tr(), right);
        return;
    }
    let product = scratch.matrix(left.size()[1], right.size()[1], left.kind(), left.device());
    let _ = left.tr().mm_out(&product, right);
    let _ = sum.shallow_clone().g_add_(&product);
}

/// Sum of all squares `[1]`.
pub(crate) fn sum_of_squares(tensors: &[Tensor]) -> Result<Tensor> {
    if tensors.is_empty() {
        return Ok(Tensor::f_zeros([1], (Kind::Double, Device::Cpu))?);
    }
    let squares: Vec<Tensor> = tensors.iter().map(|values| values.square().sum(Kind::Double)).collect();
    Ok(Tensor::f_stack(&squares, 0)?.sum(Kind::Double).view([1]))
}
