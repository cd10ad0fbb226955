//! Adds the product of an adapter's thin factors (`model/lora.rs`) to rows. libtorch adds f32 to bf16 number by number: for
//! 1,024 x 3,072 that took 20 ms, beside 3 ms of the base's own product.
//!
//! Rows are widened, and sums narrowed, in registers. Sums run in one order, whatever the number of threads.
//!
//! Legend: T rows, C columns of each that count, R rank.

use super::{Element, LANES, ROWS};
use crate::ops::parallel;
use multiversion::multiversion;

/// Rows whose sums are in registers together.
const BLOCK: usize = 4;

/// Which columns of rows count.
#[derive(Clone, Copy)]
pub struct Span {
    /// Numbers from a row to the next.
    pub stride: usize,
    /// The first column.
    pub first: usize,
    /// C.
    pub count: usize,
}

/// The columns [T, C] of rows += inner [T, R] factor [R, C], each rounded once.
pub fn add<E: Element>(inner: &[f32], factor: &[f32], rows: &mut [E], span: Span) {
    let rank = factor.len() / span.count;
    let parts = rows.chunks_mut(ROWS * span.stride).zip(inner.chunks(ROWS * rank));
    parallel::for_each(parts, |(rows, inner)| add_rows(inner, factor, rows, span));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_rows<E: Element>(inner: &[f32], factor: &[f32], rows: &mut [E], span: Span) {
    let rank = factor.len() / span.count;
    // Over columns first: this part of the factor stays in the first cache for all rows.
    for column in (0..span.count).step_by(2 * LANES) {
        let width = (2 * LANES).min(span.count - column);
        let at = span.first + column;
        for (rows, inner) in rows.chunks_mut(BLOCK * span.stride).zip(inner.chunks(BLOCK * rank)) {
            match inner.len() == BLOCK * rank {
                true => add_block::<E, BLOCK>(inner, factor, (column, width, span), &mut rows[at..]),
                false => {
                    for (row, inner) in inner.chunks(rank).enumerate() {
                        let rows = &mut rows[row * span.stride + at..];
                        add_block::<E, 1>(inner, factor, (column, width, span), rows);
                    }
                }
            }
        }
    }
}

/// To at most 2 `LANES` columns of N rows; `rows` starts at the first of them.
#[inline(always)]
fn add_block<E: Element, const N: usize>(
    inner: &[f32],
    factor: &[f32],
    (column, width, span): (usize, usize, Span),
    rows: &mut [E],
) {
    let rank = factor.len() / span.count;
    let mut sums = [[0f32; 2 * LANES]; N];
    for (at, factor) in factor.chunks_exact(span.count).enumerate() {
        let factor = &factor[column..column + width];
        for (row, sums) in sums.iter_mut().enumerate() {
            let inner = inner[row * rank + at];
            // A length that the compiler knows keeps the sums in registers.
            match <&[f32; 2 * LANES]>::try_from(factor) {
                Ok(factor) => sums.iter_mut().zip(factor).for_each(|(sum, value)| *sum += inner * value),
                Err(_) => sums.iter_mut().zip(factor).for_each(|(sum, value)| *sum += inner * value),
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (value, sum) in rows[row * span.stride..][..width].iter_mut().zip(sums) {
            *value = E::narrow(value.wide() + sum);
        }
    }
}
