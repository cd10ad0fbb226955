//! Adds the product of an adapter's thin factors (`model/lora.rs`) to rows. libtorch would write the product in f32, and add it to
//! bf16 rows number by number.
//!
//! Rows are widened, and sums narrowed, in registers. Sums run in one order, whatever the number of threads.
//!
//! Legend: T rows, C columns of each that are added to, R rank.

use super::{Element, LANES, ROWS};
use crate::ops::parallel;
use multiversion::multiversion;

/// Rows, and columns of them, whose sums are in registers together.
const BLOCK: usize = 4;
const COLUMNS: usize = 2 * LANES;

/// Which columns of rows are added to.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// Numbers from a row to the next.
    pub(crate) stride: usize,
    /// The first column.
    pub(crate) first: usize,
    /// Number of columns, C.
    pub(crate) count: usize,
}

/// The columns [T, C] of rows += inner [T, R] factor [R, C], each rounded once.
pub(crate) fn add<E: Element>(inner: &[f32], factor: &[f32], rows: &mut [E], span: Span) {
    let rank = factor.len() / span.count;
    let parts = rows.chunks_mut(ROWS * span.stride).zip(inner.chunks(ROWS * rank));
    parallel::for_each(parts, |(rows, inner)| add_rows(inner, factor, rows, span));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_rows<E: Element>(inner: &[f32], factor: &[f32], rows: &mut [E], span: Span) {
    let rank = factor.len() / span.count;
    // Over columns first: this part of the factor stays in the first cache for all rows.
    for column in (0..span.count).step_by(COLUMNS) {
        let at = span.first + column;
        let whole = column + COLUMNS <= span.count;
        for (rows, inner) in rows.chunks_mut(BLOCK * span.stride).zip(inner.chunks(BLOCK * rank)) {
            if whole && inner.len() == BLOCK * rank {
                add_block::<E>(inner, factor, (column, span), &mut rows[at..]);
                continue;
            }
            for (row, inner) in inner.chunks(rank).enumerate() {
                let width = COLUMNS.min(span.count - column);
                add_row(inner, factor, (column, span.count), &mut rows[row * span.stride + at..][..width]);
            }
        }
    }
}

/// Adds to `COLUMNS` columns of `BLOCK` rows; `rows` starts at the first of them.
#[inline(always)]
fn add_block<E: Element>(inner: &[f32], factor: &[f32], (column, span): (usize, Span), rows: &mut [E]) {
    let rank = factor.len() / span.count;
    let mut sums = [[0f32; COLUMNS]; BLOCK];
    for at in 0..rank {
        let factor = &factor[at * span.count + column..][..COLUMNS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let inner = inner[row * rank + at];
            for (sum, value) in sums.iter_mut().zip(factor) {
                *sum += inner * value;
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (value, sum) in rows[row * span.stride..][..COLUMNS].iter_mut().zip(sums) {
            *value = E::narrow(value.wide() + sum);
        }
    }
}

/// Adds to a few columns of one row.
#[inline(always)]
fn add_row<E: Element>(inner: &[f32], factor: &[f32], (column, count): (usize, usize), row: &mut [E]) {
    let mut sums = [0f32; COLUMNS];
    for (inner, factor) in inner.iter().zip(factor.chunks_exact(count)) {
        for (sum, value) in sums.iter_mut().zip(&factor[column..column + row.len()]) {
            *sum += inner * value;
        }
    }
    row.iter_mut().zip(sums).for_each(|(value, sum)| *value = E::narrow(value.wide() + sum));
}
