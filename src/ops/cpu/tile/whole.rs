//! The part of a small product that fills whole matrix tiles, in words of two bf16.
//!
//! Not here: the remaining rows and words, and processors without tiles (`mod.rs`).

use super::{Done, Left, Size, TILE};
use crate::ops::cpu::amx::{Strided, Tiles};

/// Memory of two tiles of A.
#[repr(align(64))]
struct Transposed([u32; 2 * TILE * TILE]);

/// Computes the whole tiles of the product.
pub(crate) fn multiply(
    (m, n, k): Size,
    a: Left<u32>,
    b: (&[u32], usize),
    (c, c_row): (&mut [f32], usize),
    add: bool,
) -> Done {
    let tiles = Tiles::configure();
    let (rows, depth) = (m / TILE, k / TILE);
    let mut transposed = Transposed([0; 2 * TILE * TILE]);
    for row in (0..rows).step_by(2) {
        let down = (rows - row).min(2);
        let mut block = |depth: usize, left: Strided, words: usize, add: bool| {
            for column in (0..n).step_by(2 * TILE) {
                let right = Strided { words: &b.0[words * b.1 + column..], row: b.1, step: TILE * b.1, next: TILE };
                let sums = (&mut c[row * TILE * c_row + column..], c_row);
                match (down, n - column >= 2 * TILE) {
                    (2, true) => tiles.multiply::<2, 2>(depth, left, right, sums, add),
                    (2, false) => tiles.multiply::<2, 1>(depth, left, right, sums, add),
                    (_, true) => tiles.multiply::<1, 2>(depth, left, right, sums, add),
                    (_, false) => tiles.multiply::<1, 1>(depth, left, right, sums, add),
                }
            }
        };
        if a.step == 1 {
            let words = &a.words[row * TILE * a.row..];
            block(depth, Strided { words, row: a.row, step: TILE, next: TILE * a.row }, 0, add);
            continue;
        }
        // A is stored transposed: its tiles are transposed one after the other.
        for at in 0..depth {
            for half in 0..down {
                let from = &a.words[(row + half) * TILE + at * TILE * a.step..];
                tiles.transpose_tile(from, a.step, &mut transposed.0[half * TILE * TILE..]);
            }
            let left = Strided { words: &transposed.0, row: TILE, step: 0, next: TILE * TILE };
            block(1, left, at * TILE, add || at > 0);
        }
    }
    Done { rows: rows * TILE, words: depth * TILE }
}
