//! Operations on a row of scores between the products: soft cap, exponentials, and their gradients.
//!
//! Not here: which scores a row has, and which of them it sees (`block.rs`).

use crate::ops::cpu::tile::COLUMNS;
use crate::ops::cpu::{exp, tanh};
use multiversion::multiversion;

/// x -> cap * tanh(x * scale / cap).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn soft_cap(row: &mut [f32], scale: f32, cap: f32) {
    for value in row {
        *value = cap * tanh(*value * scale / cap);
    }
}

/// [`soft_cap`], and its derivative with respect to x * scale.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn soft_cap_and_slopes(row: &mut [f32], slopes: &mut [f32], scale: f32, cap: f32) {
    for (value, slope) in row.iter_mut().zip(slopes) {
        let part = tanh(*value * scale / cap);
        (*value, *slope) = (cap * part, 1.0 - part * part);
    }
}

/// gradient -> gradient * slope.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn times_slopes(gradients: &mut [f32], slopes: &[f32]) {
    for (gradient, slope) in gradients.iter_mut().zip(slopes) {
        // A hidden score has no gradient, whatever its slope.
        *gradient = if *gradient == 0.0 { 0.0 } else { *gradient * slope };
    }
}

/// score -> probability * (score - along) * scale.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn score_gradients(scores: &mut [f32], probabilities: &[f32], along: f32, scale: f32) {
    for (score, probability) in scores.iter_mut().zip(probabilities) {
        // A hidden score has probability 0 and no meaning.
        *score = if *probability == 0.0 { 0.0 } else { probability * (*score - along) * scale };
    }
}

/// x -> exp(x * scale - largest); returns the scaled largest and the sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn exponentials(row: &mut [f32], scale: f32) -> (f32, f32) {
    let largest = row.iter().fold(f32::NEG_INFINITY, |most, &value| if value > most { value } else { most }) * scale;
    for value in row.iter_mut() {
        *value = exp(*value * scale - largest);
    }
    let mut lanes = [0f32; COLUMNS];
    let chunks = row.chunks_exact(COLUMNS);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    (largest, lanes.iter().sum::<f32>() + rest)
}

/// x -> exp(x * scale - less).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn exponentials_less(row: &mut [f32], scale: f32, less: f32) {
    for value in row {
        *value = exp(*value * scale - less);
    }
}
