//! Log-softmax of logits at given places, and the gradient written over the logits.
//!
//! Logits may be capped, c tanh(logit / c), as they are read; raw logits stay stored, so that the cap is not rounded to the
//! compute kind.
//!
//! Legend: rows of V logits.

use super::{Element, LANES, exp, tanh};
use crate::ops::parallel;
use multiversion::multiversion;

/// How a stored logit is read.
trait Reading: Copy + Send + Sync {
    /// The argument of the softmax.
    fn value(self, logit: f32) -> f32;
    /// The derivative of a value with respect to the logit.
    fn slope(self, value: f32) -> f32;
}

/// Unchanged.
#[derive(Clone, Copy)]
struct Plain;

impl Reading for Plain {
    #[inline(always)]
    fn value(self, logit: f32) -> f32 {
        logit
    }

    #[inline(always)]
    fn slope(self, _: f32) -> f32 {
        1.0
    }
}

/// c tanh(logit / c).
#[derive(Clone, Copy)]
struct Capped(f32);

impl Reading for Capped {
    #[inline(always)]
    fn value(self, logit: f32) -> f32 {
        self.0 * tanh(logit / self.0)
    }

    #[inline(always)]
    fn slope(self, value: f32) -> f32 {
        let part = value / self.0;
        1.0 - part * part
    }
}

/// The argument of the softmax for a stored `logit`, and its derivative.
pub(crate) fn read<E: Element>(logit: E, soft_cap: Option<f32>) -> (f32, f32) {
    let value = soft_cap.map_or(logit.wide(), |cap| Capped(cap).value(logit.wide()));
    (value, soft_cap.map_or(1.0, |cap| Capped(cap).slope(value)))
}

/// log(sum(exp(row))) of each row.
pub(crate) fn log_sum_exp<E: Element>(logits: &[E], width: usize, soft_cap: Option<f32>, sums: &mut [f32]) {
    let rows = logits.chunks(width).zip(sums);
    match soft_cap {
        None => parallel::for_each(rows, |(row, sum)| *sum = log_sum_exp_of(row, Plain)),
        Some(cap) => parallel::for_each(rows, |(row, sum)| *sum = log_sum_exp_of(row, Capped(cap))),
    }
}

/// Each row of logits becomes -slope * softmax(row), given its log-sum-exp; with a cap times its derivative.
pub(crate) fn negative_softmax<E: Element>(
    logits: &mut [E],
    width: usize,
    soft_cap: Option<f32>,
    sums: &[f32],
    slopes: &[f32],
) {
    let rows = logits.chunks_mut(width).zip(sums).zip(slopes);
    match soft_cap {
        None => parallel::for_each(rows, |((row, sum), slope)| negative_softmax_of(row, Plain, *sum, *slope)),
        Some(cap) => {
            parallel::for_each(rows, |((row, sum), slope)| negative_softmax_of(row, Capped(cap), *sum, *slope));
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn log_sum_exp_of<E: Element, R: Reading>(row: &[E], reading: R) -> f32 {
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
    // The largest logit has the largest value.
    let largest = reading.value(largest.into_iter().fold(rest_largest, f32::max));
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += exp(reading.value(chunk[lane].wide()) - largest);
        }
    }
    let rest: f32 = rest.iter().map(|value| exp(reading.value(value.wide()) - largest)).sum();
    largest + (sums.iter().sum::<f32>() + rest).ln()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn negative_softmax_of<E: Element, R: Reading>(row: &mut [E], reading: R, sum: f32, slope: f32) {
    for logit in row {
        let value = reading.value(logit.wide());
        *logit = E::narrow(-slope * exp(value - sum) * reading.slope(value));
    }
}
