//! Promise: the number of threads changes no bit of a weight gradient. In a program of its own: a process has one pool of
//! threads, which stays.

use haf_dist::ops::cpu::{accumulate, weight_gradient};
use haf_dist::ops::parallel;
use half::bf16;

fn values(count: usize, seed: usize) -> Vec<bf16> {
    (0..count).map(|at| bf16::from_f32((((at + seed) as f32) * 12.9898).sin())).collect()
}

#[test]
fn two_threads_sum_as_one_does() {
    // Parts of several blocks, blocks that are not whole, and more rows than are packed at a time.
    let (k, m, n) = (600, 1100, 70);
    let (left, right) = (values(k * m, 0), values(k * n, 77));
    let sums = || {
        let mut product = vec![0.25f32; m * n];
        // Where the processor has no matrix tiles libtorch makes the product, and only this sum is ours.
        let made = weight_gradient::add_product(&left, &right, (m, n), &mut product);
        let mut rows = vec![0.5f32; m];
        accumulate::add_rows(&left, &mut rows);
        (made, product, rows)
    };
    let alone = sums();
    assert_eq!(parallel::threads(), 1);
    parallel::start(2).unwrap();
    assert_eq!(parallel::threads(), 2);
    let shared = sums();
    assert!(alone == shared, "two threads give other sums than one");
    // Control: sums that start elsewhere are told apart.
    let mut other = vec![0.5f32; m];
    accumulate::add_rows(&left[m..], &mut other);
    assert!(other != alone.2);
}
