//! Layer norm of rows, with the residual addition that follows its gradient.
//!
//! Legend: rows of D numbers; scale = 1 / standard deviation of a row.

use super::{Element, LANES, ROWS};
use crate::ops::parallel;
use multiversion::multiversion;

/// `output` = (x - mean) * scale * weight + bias row by row, and each row's mean and scale.
pub(crate) fn forward<E: Element>(
    x: &[E],
    (weight, bias): (&[E], &[E]),
    epsilon: f32,
    output: &mut [E],
    mean: &mut [f32],
    scale: &mut [f32],
) {
    let size = ROWS * weight.len();
    let statistics = mean.chunks_mut(ROWS).zip(scale.chunks_mut(ROWS));
    let rows = x.chunks(size).zip(output.chunks_mut(size)).zip(statistics);
    parallel::for_each(rows, |((x, output), (mean, scale))| {
        statistics_of(x, weight.len(), epsilon, mean, scale);
        apply_rows(x, (weight, bias), (mean, scale), output);
    });
}

/// The output of [`forward`] again, from the means and scales that it gave.
pub(crate) fn apply<E: Element>(x: &[E], parameters: (&[E], &[E]), (mean, scale): (&[f32], &[f32]), output: &mut [E]) {
    let size = ROWS * parameters.0.len();
    let statistics = mean.chunks(ROWS).zip(scale.chunks(ROWS));
    let rows = x.chunks(size).zip(output.chunks_mut(size)).zip(statistics);
    parallel::for_each(rows, |((x, output), statistics)| apply_rows(x, parameters, statistics, output));
}

/// From the gradient of [`forward`]'s output: `input_gradient` = residual + gradient of x (`residual` is the gradient
/// that reaches x around the norm), and the gradients of weight and bias added to the two sums.
pub(crate) fn backward<E: Element>(
    (gradient, residual): (&[E], Option<&[E]>),
    x: &[E],
    weight: &[E],
    (mean, scale): (&[f32], &[f32]),
    input_gradient: &mut [E],
    (weight_gradient, bias_gradient): (&mut [f32], &mut [f32]),
) {
    let width = weight.len();
    let size = ROWS * width;
    // Sums for each block of rows, added in order: the number of threads changes no bit.
    let mut sums = vec![0f32; scale.len().div_ceil(ROWS) * 2 * width];
    let inputs = gradient.chunks(size).zip(x.chunks(size)).zip(mean.chunks(ROWS).zip(scale.chunks(ROWS)));
    let outputs = input_gradient.chunks_mut(size).zip(sums.chunks_mut(2 * width)).enumerate();
    parallel::for_each(inputs.zip(outputs), |(((gradient, x), statistics), (block, (input_gradient, sums)))| {
        let residual = residual.map(|residual| &residual[block * size..][..x.len()]);
        backward_rows((gradient, residual), x, weight, statistics, input_gradient, sums.split_at_mut(width));
    });
    for sums in sums.chunks(2 * width) {
        let (weights, biases) = sums.split_at(width);
        weight_gradient.iter_mut().zip(weights).for_each(|(total, part)| *total += part);
        bias_gradient.iter_mut().zip(biases).for_each(|(total, part)| *total += part);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn statistics_of<E: Element>(x: &[E], width: usize, epsilon: f32, mean: &mut [f32], scale: &mut [f32]) {
    for ((x, mean), scale) in x.chunks(width).zip(mean).zip(scale) {
        *mean = lanes_sum(x, |value| value) / width as f32;
        // In a second pass over the row: a mean of squares less a squared mean would lose digits.
        let squares = lanes_sum(x, |value| (value - *mean) * (value - *mean));
        *scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn apply_rows<E: Element>(x: &[E], (weight, bias): (&[E], &[E]), (mean, scale): (&[f32], &[f32]), output: &mut [E]) {
    let width = weight.len();
    let rows = x.chunks(width).zip(output.chunks_mut(width)).zip(mean.iter().zip(scale));
    for ((x, output), (mean, scale)) in rows {
        for ((x, output), (weight, bias)) in x.iter().zip(output).zip(weight.iter().zip(bias)) {
            *output = E::narrow((x.wide() - mean) * scale * weight.wide() + bias.wide());
        }
    }
}

/// Sum of `of` over the numbers of a row.
#[inline(always)]
fn lanes_sum<E: Element>(row: &[E], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|value| of(value.wide())).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += of(value.wide()));
    }
    lanes.iter().sum::<f32>() + rest
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn backward_rows<E: Element>(
    (gradient, residual): (&[E], Option<&[E]>),
    x: &[E],
    weight: &[E],
    (mean, scale): (&[f32], &[f32]),
    input_gradient: &mut [E],
    (weight_gradient, bias_gradient): (&mut [f32], &mut [f32]),
) {
    let width = weight.len();
    let rows = gradient.chunks(width).zip(x.chunks(width)).zip(input_gradient.chunks_mut(width));
    for (row, (((gradient, x), input_gradient), (mean, scale))) in rows.zip(mean.iter().zip(scale)).enumerate() {
        // With n = (x - mean) * scale and u = gradient * weight: d x = (u - mean(u) - n * mean(u n)) * scale.
        let (mut plain, mut along) = ([0f32; LANES], [0f32; LANES]);
        for at in (0..width).step_by(LANES) {
            let end = (at + LANES).min(width);
            let numbers = gradient[at..end].iter().zip(&x[at..end]).zip(&weight[at..end]);
            let sums = weight_gradient[at..end].iter_mut().zip(&mut bias_gradient[at..end]);
            let lanes = plain.iter_mut().zip(&mut along);
            for ((((gradient, x), weight), (weight_sum, bias_sum)), (plain, along)) in numbers.zip(sums).zip(lanes) {
                let (gradient, normed) = (gradient.wide(), (x.wide() - mean) * scale);
                *weight_sum += gradient * normed;
                *bias_sum += gradient;
                let upstream = gradient * weight.wide();
                *plain += upstream;
                *along += upstream * normed;
            }
        }
        let [plain, along] = [plain, along].map(|lanes| lanes.iter().sum::<f32>() / width as f32);
        let own = |gradient: &E, x: &E, weight: &E| {
            (gradient.wide() * weight.wide() - plain - (x.wide() - mean) * scale * along) * scale
        };
        let numbers = gradient.iter().zip(x).zip(weight).zip(input_gradient);
        match residual {
            Some(residual) => {
                for ((((gradient, x), weight), input_gradient), residual) in numbers.zip(&residual[row * width..]) {
                    *input_gradient = E::narrow(residual.wide() + own(gradient, x, weight));
                }
            }
            None => {
                for (((gradient, x), weight), input_gradient) in numbers {
                    *input_gradient = E::narrow(own(gradient, x, weight));
                }
            }
        }
    }
}
