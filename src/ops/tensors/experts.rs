//! Experts as tensor operations: a router's shares, and products of rows that are sorted by expert.
//!
//! Not here: which expert takes which row (`model/experts.rs`).

use crate::error::Result;
use std::ops::Range;
use tch::{Kind, Tensor};

/// See [`Ops::route`](crate::ops::Ops::route).
pub(crate) fn route(x: &Tensor, weight: &Tensor, shares: &Tensor) -> Result<()> {
    let logits = x.f_to_kind(Kind::Float)?.f_mm(&weight.f_to_kind(Kind::Float)?.tr())?;
    shares.shallow_clone().copy_(&logits.f_softmax(-1, Kind::Float)?);
    Ok(())
}

/// Calls `work` with each expert that has rows, and the range of these.
pub(crate) fn each(counts: &[i64], mut work: impl FnMut(i64, Range<i64>) -> Result<()>) -> Result<()> {
    let mut start = 0;
    for (expert, count) in counts.iter().enumerate() {
        if *count > 0 {
            work(expert as i64, start..start + count)?;
        }
        start += count;
    }
    Ok(())
}

/// See [`Ops::grouped_product`](crate::ops::Ops::grouped_product).
pub(crate) fn product(x: &Tensor, weights: &Tensor, counts: &[i64], output: &Tensor) -> Result<()> {
    each(counts, |expert, rows| {
        let part = |of: &Tensor| of.narrow(0, rows.start, rows.end - rows.start);
        let _ = part(x).f_mm_out(&part(output), &weights.get(expert).tr())?;
        Ok(())
    })
}

/// See [`Ops::grouped_input_gradient`](crate::ops::Ops::grouped_input_gradient).
pub(crate) fn input_gradient(gradient: &Tensor, weights: &Tensor, counts: &[i64], x_gradient: &Tensor) -> Result<()> {
    each(counts, |expert, rows| {
        let part = |of: &Tensor| of.narrow(0, rows.start, rows.end - rows.start);
        let _ = part(gradient).f_mm_out(&part(x_gradient), &weights.get(expert))?;
        Ok(())
    })
}
