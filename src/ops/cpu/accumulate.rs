//! Adds values of the compute kind to f32 sums.

use super::Element;
use crate::ops::parallel;
use multiversion::multiversion;

/// Numbers that a thread takes at a time.
const PIECE: usize = 1 << 16;

/// Columns that a thread takes at a time; their sums stay in its cache.
const COLUMNS: usize = 1 << 12;

/// `sums` += `values`.
pub(crate) fn add<E: Element>(values: &[E], sums: &mut [f32]) {
    parallel::for_each(values.chunks(PIECE).zip(sums.chunks_mut(PIECE)), |(values, sums)| add_piece(values, sums));
}

/// `sums` += the sum of the rows of `values`, each as long as `sums`; row after row, whatever the number of threads.
pub fn add_rows<E: Element>(values: &[E], sums: &mut [f32]) {
    let width = sums.len();
    parallel::for_each(sums.chunks_mut(COLUMNS).enumerate(), |(piece, sums)| {
        for row in values.chunks_exact(width) {
            add_piece(&row[piece * COLUMNS..], sums);
        }
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_piece<E: Element>(values: &[E], sums: &mut [f32]) {
    for (value, sum) in values.iter().zip(sums) {
        *sum += value.wide();
    }
}
