//! Products with the thin factors of adapters (`model/lora.rs`): libtorch would widen whole matrices to f32 for each of them,
//! and adds f32 to bf16 number by number.
//!
//! Rows are widened, and sums narrowed, in registers. Sums run in one order, whatever the number of threads.
//!
//! Legend: T rows, C columns of each that count, R rank.

use super::{Element, LANES, ROWS};
use crate::ops::parallel;
use multiversion::multiversion;

/// Rows, and rows of a factor, whose sums are in registers together.
const BLOCK: usize = 4;

/// Sums of a gradient that are in registers together, each over [`LANES`] columns.
const RANKS: usize = 8;

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

impl Span {
    /// The columns of a row.
    #[inline(always)]
    fn of<E>(self, rows: &[E], row: usize) -> &[E] {
        &rows[row * self.stride + self.first..][..self.count]
    }
}

/// `inner` [T, R] = the columns [T, C] of rows times the rows of `factor` [R, C].
pub fn product<E: Element>(rows: &[E], span: Span, factor: &[f32], inner: &mut [f32]) {
    let rank = factor.len() / span.count;
    let parts = rows.chunks(ROWS * span.stride).zip(inner.chunks_mut(ROWS * rank));
    parallel::for_each(parts, |(rows, inner)| product_rows(rows, span, factor, inner));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn product_rows<E: Element>(rows: &[E], span: Span, factor: &[f32], inner: &mut [f32]) {
    let rank = factor.len() / span.count;
    for (block, inner) in inner.chunks_mut(BLOCK * rank).enumerate() {
        match inner.len() == BLOCK * rank {
            true => block_of_products::<E, BLOCK>(rows, block * BLOCK, span, factor, inner),
            false => inner.chunks_mut(rank).enumerate().for_each(|(row, inner)| {
                block_of_products::<E, 1>(rows, block * BLOCK + row, span, factor, inner);
            }),
        }
    }
}

/// Of N rows with every row of the factor.
#[inline(always)]
fn block_of_products<E: Element, const N: usize>(
    rows: &[E],
    first: usize,
    span: Span,
    factor: &[f32],
    inner: &mut [f32],
) {
    let rank = factor.len() / span.count;
    let rows: [&[E]; N] = std::array::from_fn(|row| span.of(rows, first + row));
    let of_factor = |at: usize| &factor[at * span.count..][..span.count];
    let mut at = 0;
    while at < rank {
        if at + BLOCK <= rank {
            let found = dots::<E, N, BLOCK>(rows, std::array::from_fn(|next| of_factor(at + next)));
            for (row, found) in found.iter().enumerate() {
                inner[row * rank + at..][..BLOCK].copy_from_slice(found);
            }
            at += BLOCK;
        } else {
            let found = dots::<E, N, 1>(rows, [of_factor(at)]);
            found.iter().enumerate().for_each(|(row, found)| inner[row * rank + at] = found[0]);
            at += 1;
        }
    }
}

/// The sums of products of N rows with M rows, all of one length.
#[inline(always)]
fn dots<E: Element, const N: usize, const M: usize>(rows: [&[E]; N], others: [&[f32]; M]) -> [[f32; M]; N] {
    const WIDE: usize = LANES / 2;
    let mut sums = [[[0f32; WIDE]; M]; N];
    let length = rows.first().map_or(0, |row| row.len());
    let whole = length - length % WIDE;
    for at in (0..whole).step_by(WIDE) {
        for (row, sums) in rows.iter().zip(&mut sums) {
            let row: &[E] = &row[at..at + WIDE];
            for (other, sums) in others.iter().zip(sums) {
                let other = &other[at..at + WIDE];
                for ((sum, value), other) in sums.iter_mut().zip(row).zip(other) {
                    *sum += value.wide() * other;
                }
            }
        }
    }
    let mut totals = [[0f32; M]; N];
    for ((row, sums), totals) in rows.iter().zip(&mut sums).zip(&mut totals) {
        for ((other, sums), total) in others.iter().zip(sums).zip(totals) {
            for ((sum, value), other) in sums.iter_mut().zip(&row[whole..]).zip(&other[whole..]) {
                *sum += value.wide() * other;
            }
            *total = sums.iter().sum();
        }
    }
    totals
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

/// inner [T, R]^T times the columns [T, C] of rows: [R, C].
pub fn gradient<E: Element>(inner: &[f32], rank: usize, rows: &[E], span: Span) -> Vec<f32> {
    let starts: Vec<usize> = (0..span.count).step_by(LANES).collect();
    let parts = parallel::map(starts, |column| gradient_of_columns(inner, rank, rows, (span, column)));
    let mut gradient = vec![0f32; rank * span.count];
    for (part, column) in parts.iter().zip((0..span.count).step_by(LANES)) {
        let width = LANES.min(span.count - column);
        for (gradient, part) in gradient.chunks_mut(span.count).zip(part.chunks(LANES)) {
            gradient[column..column + width].copy_from_slice(&part[..width]);
        }
    }
    gradient
}

/// Of at most `LANES` columns from one on: [R, LANES].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn gradient_of_columns<E: Element>(inner: &[f32], rank: usize, rows: &[E], at: (Span, usize)) -> Vec<f32> {
    let mut gradient = vec![0f32; rank * LANES];
    for (block, gradient) in gradient.chunks_mut(RANKS * LANES).enumerate() {
        let first = block * RANKS;
        match gradient.len() == RANKS * LANES {
            true => gradient_of_ranks::<E, RANKS>(inner, (rank, first), rows, at, gradient),
            false => gradient.chunks_mut(LANES).enumerate().for_each(|(next, gradient)| {
                gradient_of_ranks::<E, 1>(inner, (rank, first + next), rows, at, gradient);
            }),
        }
    }
    gradient
}

#[inline(always)]
fn gradient_of_ranks<E: Element, const M: usize>(
    inner: &[f32],
    (rank, first): (usize, usize),
    rows: &[E],
    (span, column): (Span, usize),
    gradient: &mut [f32],
) {
    let width = LANES.min(span.count - column);
    let mut sums = [[0f32; LANES]; M];
    for (row, inner) in inner.chunks_exact(rank).enumerate() {
        let values = &span.of(rows, row)[column..column + width];
        let mut wide = [0f32; LANES];
        match <&[E; LANES]>::try_from(values) {
            Ok(values) => wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.wide()),
            Err(_) => wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.wide()),
        }
        for (sums, inner) in sums.iter_mut().zip(&inner[first..first + M]) {
            sums.iter_mut().zip(&wide).for_each(|(sum, value)| *sum += inner * value);
        }
    }
    gradient.chunks_mut(LANES).zip(&sums).for_each(|(gradient, sums)| gradient.copy_from_slice(sums));
}
