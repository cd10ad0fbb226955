//! Root-mean-square norm of rows, with the residual addition that precedes it or follows its gradient.
//!
//! Legend: rows of D numbers; scale = 1 / rms of a row.

use super::{Element, LANES, ROWS};
use crate::ops::parallel;
use multiversion::multiversion;

/// Factors of normed rows.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a, E> {
    /// One number a column.
    pub(crate) values: &'a [E],
    /// Whether the factor is 1 + the number (Gemma's form, which rounds once, after the product) or the number itself
    /// (everyone else's, which rounds before it too).
    pub(crate) plus_one: bool,
}

/// `output` = x / rms(x) * weight row by row, and each row's scale.
pub(crate) fn forward<E: Element>(x: &[E], weight: Weight<E>, epsilon: f32, output: &mut [E], scale: &mut [f32]) {
    let size = ROWS * weight.values.len();
    let rows = x.chunks(size).zip(output.chunks_mut(size)).zip(scale.chunks_mut(ROWS));
    parallel::for_each(rows, |((x, output), scale)| forward_block(x, weight, epsilon, output, scale));
}

/// `sum` = x + change, then [`forward`] of it.
pub(crate) fn add_forward<E: Element>(
    (x, change): (&[E], &[E]),
    weight: Weight<E>,
    epsilon: f32,
    sum: &mut [E],
    output: &mut [E],
    scale: &mut [f32],
) {
    let size = ROWS * weight.values.len();
    let inputs = x.chunks(size).zip(change.chunks(size));
    let outputs = sum.chunks_mut(size).zip(output.chunks_mut(size)).zip(scale.chunks_mut(ROWS));
    parallel::for_each(inputs.zip(outputs), |((x, change), ((sum, output), scale))| {
        add_rows(x, change, sum);
        forward_block(sum, weight, epsilon, output, scale);
    });
}

fn forward_block<E: Element>(x: &[E], weight: Weight<E>, epsilon: f32, output: &mut [E], scale: &mut [f32]) {
    match weight.plus_one {
        false => forward_rows::<E, false>(x, weight.values, epsilon, output, scale),
        true => forward_rows::<E, true>(x, weight.values, epsilon, output, scale),
    }
}

/// `sum` = x + change.
pub(crate) fn add<E: Element>(x: &[E], change: &[E], sum: &mut [E]) {
    const SIZE: usize = 1 << 15;
    let pieces = x.chunks(SIZE).zip(change.chunks(SIZE)).zip(sum.chunks_mut(SIZE));
    parallel::for_each(pieces, |((x, change), sum)| add_rows(x, change, sum));
}

/// The output of [`forward`] again, from the scales that it gave.
pub(crate) fn apply<E: Element>(x: &[E], weight: Weight<E>, scale: &[f32], output: &mut [E]) {
    let size = ROWS * weight.values.len();
    let rows = x.chunks(size).zip(output.chunks_mut(size)).zip(scale.chunks(ROWS));
    parallel::for_each(rows, |((x, output), scale)| match weight.plus_one {
        false => apply_rows::<E, false>(x, weight.values, scale, output),
        true => apply_rows::<E, true>(x, weight.values, scale, output),
    });
}

/// From the gradient of [`forward`]'s output: `input_gradient` = residual + gradient of x (`residual` is the gradient
/// that reaches x around the norm), and the gradient of the weight added to `weight_gradient`.
pub(crate) fn backward<E: Element>(
    (gradient, residual): (&[E], &[E]),
    x: &[E],
    weight: Weight<E>,
    scale: &[f32],
    input_gradient: &mut [E],
    weight_gradient: &mut [f32],
) {
    let width = weight.values.len();
    let size = ROWS * width;
    // A sum for each block of rows, added in order: the number of threads changes no bit.
    let mut sums = vec![0f32; scale.len().div_ceil(ROWS) * width];
    let inputs = gradient.chunks(size).zip(residual.chunks(size)).zip(x.chunks(size)).zip(scale.chunks(ROWS));
    let outputs = input_gradient.chunks_mut(size).zip(sums.chunks_mut(width));
    parallel::for_each(inputs.zip(outputs), |((((gradient, residual), x), scale), (input_gradient, sum))| match weight
        .plus_one
    {
        false => backward_rows::<E, false>((gradient, residual), x, weight.values, scale, input_gradient, sum),
        true => backward_rows::<E, true>((gradient, residual), x, weight.values, scale, input_gradient, sum),
    });
    for sum in sums.chunks(width) {
        weight_gradient.iter_mut().zip(sum).for_each(|(total, part)| *total += part);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_rows<E: Element>(x: &[E], change: &[E], sum: &mut [E]) {
    for ((x, change), sum) in x.iter().zip(change).zip(sum) {
        *sum = E::narrow(x.wide() + change.wide());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn forward_rows<E: Element, const PLUS_ONE: bool>(
    x: &[E],
    weight: &[E],
    epsilon: f32,
    output: &mut [E],
    scale: &mut [f32],
) {
    let width = weight.len();
    for ((x, output), scale) in x.chunks(width).zip(output.chunks_mut(width)).zip(scale) {
        let squares = lanes_sum(x, x);
        *scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
        apply_row::<E, PLUS_ONE>(x, weight, *scale, output);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn apply_rows<E: Element, const PLUS_ONE: bool>(x: &[E], weight: &[E], scale: &[f32], output: &mut [E]) {
    let width = weight.len();
    for ((x, output), scale) in x.chunks(width).zip(output.chunks_mut(width)).zip(scale) {
        apply_row::<E, PLUS_ONE>(x, weight, *scale, output);
    }
}

/// Rounds where Transformers does.
#[inline(always)]
fn apply_row<E: Element, const PLUS_ONE: bool>(x: &[E], weight: &[E], scale: f32, output: &mut [E]) {
    for ((x, weight), output) in x.iter().zip(weight).zip(output) {
        let normed = x.wide() * scale;
        let normed = if PLUS_ONE { normed } else { E::narrow(normed).wide() };
        *output = E::narrow(normed * factor::<E, PLUS_ONE>(*weight));
    }
}

#[inline(always)]
fn factor<E: Element, const PLUS_ONE: bool>(weight: E) -> f32 {
    if PLUS_ONE { 1.0 + weight.wide() } else { weight.wide() }
}

/// Sum of products of two rows.
#[inline(always)]
fn lanes_sum<E: Element>(left: &[E], right: &[E]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(l, r)| l.wide() * r.wide()).sum();
    for (left, right) in left.zip(right) {
        for lane in 0..LANES {
            lanes[lane] += left[lane].wide() * right[lane].wide();
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn backward_rows<E: Element, const PLUS_ONE: bool>(
    (gradient, residual): (&[E], &[E]),
    x: &[E],
    weight: &[E],
    scale: &[f32],
    input_gradient: &mut [E],
    weight_gradient: &mut [f32],
) {
    let width = weight.len();
    let rows = gradient.chunks(width).zip(residual.chunks(width)).zip(x.chunks(width));
    for ((((gradient, residual), x), scale), input_gradient) in rows.zip(scale).zip(input_gradient.chunks_mut(width)) {
        // With n = x * scale and u = gradient * weight: d x = (u - n * mean(u n)) * scale.
        let mut lanes = [0f32; LANES];
        let mut rest = 0f32;
        let whole = width - width % LANES;
        for at in (0..whole).step_by(LANES) {
            let (gradient, x, weight) = (&gradient[at..at + LANES], &x[at..at + LANES], &weight[at..at + LANES]);
            let sum = &mut weight_gradient[at..at + LANES];
            for lane in 0..LANES {
                let along = gradient[lane].wide() * (x[lane].wide() * scale);
                sum[lane] += along;
                lanes[lane] += along * factor::<E, PLUS_ONE>(weight[lane]);
            }
        }
        for at in whole..width {
            let along = gradient[at].wide() * (x[at].wide() * scale);
            weight_gradient[at] += along;
            rest += along * factor::<E, PLUS_ONE>(weight[at]);
        }
        let projection = (lanes.iter().sum::<f32>() + rest) / width as f32;
        let row = gradient.iter().zip(weight).zip(x).zip(residual).zip(input_gradient);
        for ((((gradient, weight), x), residual), input_gradient) in row {
            let upstream = gradient.wide() * factor::<E, PLUS_ONE>(*weight);
            let own = (upstream - x.wide() * scale * projection) * scale;
            *input_gradient = E::narrow(residual.wide() + own);
        }
    }
}
