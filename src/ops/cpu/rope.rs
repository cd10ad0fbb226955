//! Rotates heads within rows, in place: (first half, second half) of each head's rotated columns by its position's angles.
//!
//! Legend: rows of `stride` numbers, of which the first `heads` heads of E are rotated; of each head the first R columns,
//! the rest stay. Cosines and sines are R / 2 a row.

use super::{Element, ROWS};
use crate::ops::parallel;
use multiversion::multiversion;

/// Rotates; with `sign` -1 backward, which is the gradient.
pub(crate) fn rotate<E: Element>(
    rows: &mut [E],
    stride: usize,
    (heads, width): (usize, usize),
    cosine: &[f32],
    sine: &[f32],
    sign: f32,
) {
    let Some(half) = cosine.len().checked_div(rows.len() / stride.max(1)) else { return };
    let angles = cosine.chunks(ROWS * half).zip(sine.chunks(ROWS * half));
    parallel::for_each(rows.chunks_mut(ROWS * stride).zip(angles), |(rows, (cosine, sine))| {
        rotate_rows(rows, (stride, heads, width, half), cosine, sine, sign);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn rotate_rows<E: Element>(
    rows: &mut [E],
    (stride, heads, width, half): (usize, usize, usize, usize),
    cosine: &[f32],
    sine: &[f32],
    sign: f32,
) {
    let angles = cosine.chunks(half).zip(sine.chunks(half));
    for (row, (cosine, sine)) in rows.chunks_mut(stride).zip(angles) {
        for head in row[..heads * width].chunks_mut(width) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            let pairs = first.iter_mut().zip(second).zip(cosine.iter().zip(sine));
            for ((first, second), (cosine, sine)) in pairs {
                let (one, two, sine) = (first.wide(), second.wide(), sine * sign);
                *first = E::narrow(one * cosine - two * sine);
                *second = E::narrow(two * cosine + one * sine);
            }
        }
    }
}
