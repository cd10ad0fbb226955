//! Adds values of the compute kind to f32 sums.

use super::Element;
use crate::parallel;
use multiversion::multiversion;

/// Numbers that a thread takes at a time.
const PIECE: usize = 1 << 16;

/// `sums` += `values`.
pub fn add<E: Element>(values: &[E], sums: &mut [f32]) {
    parallel::for_each(values.chunks(PIECE).zip(sums.chunks_mut(PIECE)), |(values, sums)| add_piece(values, sums));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_piece<E: Element>(values: &[E], sums: &mut [f32]) {
    for (value, sum) in values.iter().zip(sums) {
        *sum += value.wide();
    }
}
