//! The operations of adapters with the inputs on which they are tried, ready to be called.
//!
//! Not here: the other operations (`prepared.rs`).
//!
//! Legend: as in `ops/mod.rs`.

use super::super::Columns;
use super::inputs::{BlockWidths, Widths};
use super::prepared::{Prepared, bytes, same};
use tch::Tensor;

/// Rank of the adapter in a trial.
const RANK: usize = 16;

pub(crate) fn low_rank(widths: &Widths, _: &BlockWidths) -> Prepared {
    let [rows, factor, _] = of_adapter(widths);
    Prepared::new(bytes(&[&rows, &factor]), move |ops| Ok(vec![ops.low_rank(projected(&rows), &factor)?]))
}

pub(crate) fn add_low_rank(widths: &Widths, _: &BlockWidths) -> Prepared {
    let [rows, factor, inner] = of_adapter(widths);
    Prepared::new(bytes(&[&rows, &rows, &factor, &inner]), move |ops| {
        ops.add_low_rank(&inner, &factor, projected(&rows))?;
        Ok(same(&[&rows]))
    })
}

/// The sum is transposed, as that of the second factor is.
pub(crate) fn add_low_rank_gradient(widths: &Widths, _: &BlockWidths) -> Prepared {
    let [rows, factor, inner] = of_adapter(widths);
    let sum = factor.tr().contiguous();
    Prepared::new(bytes(&[&rows, &inner, &sum, &sum]), move |ops| {
        ops.add_low_rank_gradient(&inner, projected(&rows), &sum.tr())?;
        Ok(same(&[&sum]))
    })
}

/// Rows that are wider than an adapter's projection, a factor [R, D] of the adapter, and inner values [T, R].
fn of_adapter(widths: &Widths) -> [Tensor; 3] {
    let rows = widths.waves(&[widths.rows, widths.width + 8], 1.0);
    [rows, widths.f32_waves(&[RANK, widths.width], 2.0), widths.f32_waves(&[widths.rows, RANK], 3.0)]
}

/// The columns of these rows that belong to the projection.
fn projected(rows: &Tensor) -> Columns<'_> {
    Columns { rows, first: 5, count: rows.size()[1] - 8 }
}
