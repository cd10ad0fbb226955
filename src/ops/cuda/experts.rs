//! Products of rows, sorted by expert, with their experts' matrices: one grouped product of libtorch for all experts.
//!
//! Not here: gradients of the experts' weights. A grouped product would round them to bf16, so each is a product of its own.
//!
//! Legend: X experts, A rows, N and M columns.

use crate::error::Result;
use crate::tensor::on_device;
use tch::{Kind, Tensor};

/// Alignment of every row and matrix, in bytes.
const ALIGNED: i64 = 16;

/// Whether the grouped product takes this factor: bf16 rows that are contiguous and aligned.
fn takes(factor: &Tensor) -> bool {
    let columns = factor.size().last().copied().unwrap_or_default();
    let bytes = factor.kind().elt_size_in_bytes() as i64 * columns;
    let start = factor.data_ptr() as usize as i64;
    factor.kind() == Kind::BFloat16 && factor.is_contiguous() && bytes % ALIGNED == 0 && start % ALIGNED == 0
}

/// Writes each row of x [A, N] times its expert's matrix of `matrices` [X, N, M] to `output` [A, M]. The matrices may be a
/// transposed view. Returns false and does nothing if the grouped product does not take these tensors.
pub(crate) fn product(x: &Tensor, matrices: &Tensor, counts: &[i64], output: &Tensor) -> Result<bool> {
    let stored = if matrices.is_contiguous() { matrices.shallow_clone() } else { matrices.transpose(1, 2) };
    if ![x, &stored, output].into_iter().all(takes) || x.size()[0] == 0 {
        return Ok(false);
    }
    // Where the rows of each expert end.
    let ends = counts.iter().scan(0, |end, count| {
        *end += *count as i32;
        Some(*end)
    });
    let ends = on_device(&ends.collect::<Vec<i32>>(), x.device());
    let product = x.f_internal_grouped_mm(matrices, Some(&ends), None, None)?;
    output.shallow_clone().f_copy_(&product)?;
    Ok(true)
}
