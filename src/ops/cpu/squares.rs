//! Sums of squares in f64, piece by piece in order, so that the number of threads changes no bit.

use super::adamw::PIECE;
use crate::ops::parallel;

/// Sum of the squares of all values.
pub(crate) fn sum(values: &[f32]) -> f64 {
    parallel::map(values.chunks(PIECE).collect(), square_sum).iter().sum()
}

/// Sum of squares in f64, in eight lanes so that the loop vectorizes.
fn square_sum(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&value| f64::from(value).powi(2)).sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest
}
