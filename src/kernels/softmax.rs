//! Log-softmax of logits at given places, and the gradient written over the logits.
//!
//! Legend: rows of V logits.

use super::{Element, LANES, exp};
use crate::parallel;
use multiversion::multiversion;

/// log(sum(exp(row))) of each row.
pub fn log_sum_exp<E: Element>(logits: &[E], width: usize, sums: &mut [f32]) {
    parallel::for_each(logits.chunks(width).zip(sums), |(row, sum)| *sum = log_sum_exp_of(row));
}

/// Each row of logits becomes -slope * softmax(row), given its log-sum-exp.
pub fn negative_softmax<E: Element>(logits: &mut [E], width: usize, sums: &[f32], slopes: &[f32]) {
    let rows = logits.chunks_mut(width).zip(sums).zip(slopes);
    parallel::for_each(rows, |((row, sum), slope)| negative_softmax_of(row, *sum, *slope));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn log_sum_exp_of<E: Element>(row: &[E]) -> f32 {
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.clone() {
        for lane in 0..LANES {
            let value = chunk[lane].wide();
            largest[lane] = if value > largest[lane] { value } else { largest[lane] };
        }
    }
    let rest_largest = rest.iter().fold(f32::NEG_INFINITY, |most, value| most.max(value.wide()));
    let largest = largest.into_iter().fold(rest_largest, f32::max);
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += exp(chunk[lane].wide() - largest);
        }
    }
    let rest: f32 = rest.iter().map(|value| exp(value.wide() - largest)).sum();
    largest + (sums.iter().sum::<f32>() + rest).ln()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn negative_softmax_of<E: Element>(row: &mut [E], sum: f32, slope: f32) {
    for value in row {
        *value = E::narrow(-slope * exp(value.wide() - sum));
    }
}
