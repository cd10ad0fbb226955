//! Small matrix products for attention: C [m, n] (+)= A [m, k] B [k, n], f32 sums, over words packed along k.
//!
//! A word is one f32, or two bf16 of one multiply-add if the processor has it (AVX512-BF16). If it has matrix tiles
//! (`amx.rs`), they compute the part that fills whole tiles. B's rows and C's are padded to [`COLUMNS`]; A is read one word
//! at a time, so it may be strided. Not here: large products (libtorch, `weight_gradient.rs`).
//!
//! One of the few files with `unsafe`: the vector instructions. Bounds are checked once, before the loops.

#![allow(unsafe_code)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod whole;

use half::bf16;

/// n is a multiple of this: one 512-bit register of f32.
pub(crate) const COLUMNS: usize = 16;

/// Rows and words of a matrix tile.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const TILE: usize = super::amx::TILE;

/// Rows of C that are summed together.
const ROWS: usize = 4;

/// A number type with its words.
pub(crate) trait Packed: super::Element {
    /// An operand of one multiply-add, of A or B.
    type Word: Copy + Default + Send + Sync;
    /// Numbers a word.
    const PER_WORD: usize;
    /// A word of one number (f32), or of two neighbors along k (bf16), rounded from f32.
    fn word(first: f32, second: f32) -> Self::Word;
    /// Neighboring numbers of a row -> its words.
    fn pack(numbers: &[Self], words: &mut [Self::Word]);
    /// C (+)= A B; `add` keeps what C holds. Panics if a slice is too short.
    fn multiply(size: Size, a: Left<Self::Word>, b: (&[Self::Word], usize), c: (&mut [f32], usize), add: bool);
}

/// m rows, n columns, k words.
pub(crate) type Size = (usize, usize, usize);

/// A: words, and the distance between its rows and between its words along k.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, W> {
    /// The words.
    pub(crate) words: &'a [W],
    /// Words from a row to the next.
    pub(crate) row: usize,
    /// Words from one to the next along k.
    pub(crate) step: usize,
}

impl Packed for f32 {
    type Word = f32;
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn word(first: f32, _: f32) -> f32 {
        first
    }

    #[inline(always)]
    fn pack(numbers: &[f32], words: &mut [f32]) {
        words.copy_from_slice(numbers);
    }

    fn multiply(size: Size, a: Left<f32>, b: (&[f32], usize), c: (&mut [f32], usize), add: bool) {
        check(size, &a, b, (c.0.len(), c.1));
        portable(size, a, b, c, add);
    }
}

impl Packed for bf16 {
    type Word = u32;
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn word(first: f32, second: f32) -> u32 {
        use super::Element;
        u32::from(Self::narrow(first).to_bits()) | u32::from(Self::narrow(second).to_bits()) << 16
    }

    #[inline(always)]
    fn pack(numbers: &[Self], words: &mut [u32]) {
        for (word, pair) in words.iter_mut().zip(numbers.chunks_exact(2)) {
            *word = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        }
    }

    fn multiply(size: Size, a: Left<u32>, b: (&[u32], usize), c: (&mut [f32], usize), add: bool) {
        check(size, &a, b, (c.0.len(), c.1));
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512f") {
            let Done { rows: done, words } = with_tiles(size, a, b, (&mut *c.0, c.1), add);
            let (m, n, k) = size;
            let rest = |row: usize, word: usize| Left { words: &a.words[row * a.row + word * a.step..], ..a };
            // SAFETY: the processor has the instructions, and `check` has seen that every index lies inside.
            unsafe {
                if done > 0 && words < k {
                    x86::multiply(
                        (done, n, k - words),
                        rest(0, words),
                        (&b.0[words * b.1..], b.1),
                        (&mut *c.0, c.1),
                        true,
                    );
                }
                if done < m {
                    x86::multiply((m - done, n, k), rest(done, 0), b, (&mut c.0[done * c.1..], c.1), add);
                }
            }
            return;
        }
        portable(size, a, b, c, add);
    }
}

/// Panics unless every word that the loops below touch is inside its slice.
fn check<W>((m, n, k): Size, a: &Left<W>, b: (&[W], usize), (c_length, c_row): (usize, usize)) {
    assert!(n.is_multiple_of(COLUMNS), "{n} columns are not whole registers");
    if m == 0 || n == 0 {
        return;
    }
    assert!(k == 0 || a.words.len() > (m - 1) * a.row + (k - 1) * a.step, "A ends early");
    assert!(k == 0 || b.0.len() >= (k - 1) * b.1 + n, "B ends early");
    assert!(c_length >= (m - 1) * c_row + n, "C ends early");
}

/// The part of a product that is done.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, PartialEq)]
struct Done {
    /// The first rows.
    rows: usize,
    /// The first words along k of these rows.
    words: usize,
}

/// Computes the part of the product that fills whole tiles, if the processor has them.
#[cfg(target_arch = "x86_64")]
fn with_tiles((m, n, k): Size, a: Left<u32>, b: (&[u32], usize), (c, c_row): (&mut [f32], usize), add: bool) -> Done {
    #[cfg(target_os = "linux")]
    if m >= TILE && k >= TILE && (a.step == 1 || a.row == 1) && super::amx::available() {
        return whole::multiply((m, n, k), a, b, (c, c_row), add);
    }
    Done { rows: 0, words: 0 }
}

/// One multiply-add of words.
trait MultiplyAdd: Copy {
    fn multiply_add(self, other: Self, sum: f32) -> f32;
}

impl MultiplyAdd for f32 {
    #[inline(always)]
    fn multiply_add(self, other: Self, sum: f32) -> f32 {
        self * other + sum
    }
}

impl MultiplyAdd for u32 {
    #[inline(always)]
    fn multiply_add(self, other: Self, sum: f32) -> f32 {
        let low = f32::from_bits(self << 16) * f32::from_bits(other << 16);
        let high = f32::from_bits(self & 0xffff_0000) * f32::from_bits(other & 0xffff_0000);
        sum + low + high
    }
}

/// The product in plain Rust, for the compiler to vectorize.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn portable<W: MultiplyAdd>((m, n, k): Size, a: Left<W>, b: (&[W], usize), (c, c_row): (&mut [f32], usize), add: bool) {
    let mut row = 0;
    while row < m {
        let rows = ROWS.min(m - row);
        for column in (0..n).step_by(COLUMNS) {
            match rows {
                ROWS => block::<W, ROWS>((row, column, k), a, b, (c, c_row), add),
                _ => (row..row + rows).for_each(|row| block::<W, 1>((row, column, k), a, b, (c, c_row), add)),
            }
        }
        row += rows;
    }
}

#[inline(always)]
fn block<W: MultiplyAdd, const R: usize>(
    (row, column, k): (usize, usize, usize),
    a: Left<W>,
    b: (&[W], usize),
    (c, c_row): (&mut [f32], usize),
    add: bool,
) {
    let mut sums = [[0f32; COLUMNS]; R];
    for word in 0..k {
        let b = &b.0[word * b.1 + column..][..COLUMNS];
        for (offset, sums) in sums.iter_mut().enumerate() {
            let a = a.words[(row + offset) * a.row + word * a.step];
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.multiply_add(*b, *sum);
            }
        }
    }
    for (offset, sums) in sums.iter().enumerate() {
        let c = &mut c[(row + offset) * c_row + column..][..COLUMNS];
        for (c, sum) in c.iter_mut().zip(sums) {
            *c = if add { *c + sum } else { *sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{COLUMNS, Left, ROWS, Size};
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    /// The same bits, read as bf16.
    #[inline(always)]
    fn bits(words: __m512i) -> __m512bh {
        // SAFETY: both are 512 plain bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
    }

    /// # Safety
    /// The processor has AVX512F and AVX512-BF16, and `super::check` holds.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) unsafe fn multiply(
        (m, n, k): Size,
        a: Left<u32>,
        b: (&[u32], usize),
        (c, c_row): (&mut [f32], usize),
        add: bool,
    ) {
        let mut row = 0;
        while row < m {
            let rows = if m - row >= ROWS { ROWS } else { 1 };
            let mut column = 0;
            while column < n {
                // SAFETY: rows row..row + rows and the columns of each block lie inside, by `check`.
                column += unsafe {
                    match (rows, (n - column) / COLUMNS) {
                        (ROWS, 4..) => block::<ROWS, 4>((row, column, k), a, b, (&mut *c, c_row), add),
                        (ROWS, 2..) => block::<ROWS, 2>((row, column, k), a, b, (&mut *c, c_row), add),
                        (ROWS, _) => block::<ROWS, 1>((row, column, k), a, b, (&mut *c, c_row), add),
                        (_, 4..) => block::<1, 4>((row, column, k), a, b, (&mut *c, c_row), add),
                        _ => block::<1, 1>((row, column, k), a, b, (&mut *c, c_row), add),
                    }
                };
            }
            row += rows;
        }
    }

    /// R rows, N registers of columns; returns the columns done.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn block<const R: usize, const N: usize>(
        (row, column, k): (usize, usize, usize),
        a: Left<u32>,
        b: (&[u32], usize),
        (c, c_row): (&mut [f32], usize),
        add: bool,
    ) -> usize {
        let mut sums = [[_mm512_setzero_ps(); N]; R];
        // SAFETY: every address is inside its slice, by `super::check`; 512-bit integers and bf16 vectors are both plain
        // bits.
        unsafe {
            for word in 0..k {
                let b = b.0.as_ptr().add(word * b.1 + column);
                let right: [_; N] = std::array::from_fn(|at| _mm512_loadu_si512(b.add(at * COLUMNS).cast()));
                for (offset, sums) in sums.iter_mut().enumerate() {
                    let left = _mm512_set1_epi32(*a.words.as_ptr().add((row + offset) * a.row + word * a.step) as i32);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm512_dpbf16_ps(*sum, bits(left), bits(right));
                    }
                }
            }
            for (offset, sums) in sums.iter().enumerate() {
                for (at, sum) in sums.iter().enumerate() {
                    let c = c.as_mut_ptr().add((row + offset) * c_row + column + at * COLUMNS);
                    let sum: __m512 = if add { _mm512_add_ps(_mm512_loadu_ps(c), *sum) } else { *sum };
                    _mm512_storeu_ps(c, sum);
                }
            }
        }
        N * COLUMNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::Element;

    fn value(index: usize) -> f32 {
        bf16::narrow((index as f32 * 12.9898).sin()).wide()
    }

    /// `transposed`: A's rows lie next to each other, else its words along k.
    fn agrees<E: Packed>((m, n, k): Size, transposed: bool) {
        let left = |row: usize, at: usize| value(row * 31 + at);
        let right = |at: usize, column: usize| value(at * 57 + column + 1000);
        let pair = |at: usize, of: &dyn Fn(usize) -> f32| {
            E::word(of(at * E::PER_WORD), if E::PER_WORD == 2 { of(at * 2 + 1) } else { 0.0 })
        };
        let word = |row: usize, at: usize| pair(at, &|at| left(row, at));
        let a: Vec<_> = match transposed {
            true => (0..k).flat_map(|at| (0..m).map(move |row| word(row, at))).collect(),
            false => (0..m).flat_map(|row| (0..k).map(move |at| word(row, at))).collect(),
        };
        let b: Vec<_> = (0..k).flat_map(|at| (0..n).map(move |column| pair(at, &|at| right(at, column)))).collect();
        let mut c = vec![1f32; m * n];
        let (row, step) = if transposed { (1, m) } else { (k, 1) };
        let a = Left { words: &a, row, step };
        E::multiply((m, n, k), a, (&b, n), (&mut c, n), true);
        let mut again = c.clone();
        E::multiply((m, n, k), a, (&b, n), (&mut again, n), false);
        for row in 0..m {
            for column in 0..n {
                let products = (0..k * E::PER_WORD).map(|at| f64::from(left(row, at)) * f64::from(right(at, column)));
                let exact = products.sum::<f64>();
                let (added, plain) = (f64::from(c[row * n + column]), f64::from(again[row * n + column]));
                assert!((added - 1.0 - exact).abs() < 1e-5, "{m} {n} {k}: {added} is not {exact} + 1");
                assert!((plain - exact).abs() < 1e-5, "{m} {n} {k}: {plain} is not {exact}");
            }
        }
    }

    #[test]
    fn products_of_both_types_agree_with_the_plain_sum() {
        // Five rows: four at once and one alone; 112 columns: four registers, two and one. Then whole matrix tiles, one and
        // two either way, with and without remainders.
        for size in [(5, 112, 6), (16, 16, 16), (32, 32, 32), (37, 48, 35), (48, 64, 17), (15, 16, 40)] {
            for transposed in [false, true] {
                agrees::<f32>(size, transposed);
                agrees::<bf16>(size, transposed);
            }
        }
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn matrix_tiles_are_used_if_the_processor_lists_them() {
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = |flag: &str| processor.split_whitespace().any(|word| word == flag);
        let listed = ["amx_tile", "amx_bf16", "avx512_bf16", "avx512bw"].into_iter().all(has);
        let (words, mut c) = (vec![0u32; 32 * 32], vec![0f32; 40 * 32]);
        let (a, b) = (Left { words: &words, row: 20, step: 1 }, (words.as_slice(), 32));
        let done = with_tiles((40, 32, 20), a, b, (&mut c, 32), false);
        let expected = if listed { Done { rows: 32, words: 16 } } else { Done { rows: 0, words: 0 } };
        assert_eq!(done, expected);
        assert_eq!(crate::ops::cpu::weight_gradient::add_product(&[], &[], (1, 1), &mut [0.0]), listed);
    }

    #[test]
    fn the_portable_product_equals_the_vector_instructions() {
        let words: Vec<u32> = (0..64).map(|at| bf16::word(value(at), value(at + 500))).collect();
        let a = Left { words: &words, row: 4, step: 1 };
        let (mut fast, mut plain) = (vec![0f32; 64], vec![0f32; 64]);
        bf16::multiply((4, 16, 4), a, (&words, 16), (&mut fast, 16), false);
        portable((4, 16, 4), a, (&words, 16), (&mut plain, 16), false);
        for (fast, plain) in fast.iter().zip(&plain) {
            assert!((fast - plain).abs() < 1e-6);
        }
    }
}
