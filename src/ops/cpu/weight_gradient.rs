//! Weight gradients on processors with matrix tiles: sums [M, N] += left^T right, bf16 factors, f32 sums.
//!
//! libtorch has no product of bf16 factors into an f32 sum (without tiles a micro-batch's product is rounded to bf16 before
//! it is added), and reads a transposed left factor slowly. Here both factors are packed into panels as they are read, and
//! the tiles add to the sums in place. A panel is 32 columns of a factor over at most `DEPTH` rows: for every 32 rows two
//! tiles of words. Not here: tensors and other processors (`loops.rs`), the tiles themselves (`amx.rs`).
//!
//! One of the few files with `unsafe`: vector instructions. Bounds are checked once, before the loops.
//!
//! Legend: K rows of both factors (tokens), M columns of the left one (outputs), N of the right one (inputs).

#![allow(unsafe_code)]

use half::bf16;

/// `sums` [M, N] += left^T right, left [K, M], right [K, N]. Returns false and does nothing if the processor has no tiles.
pub fn add_product(left: &[bf16], right: &[bf16], (m, n): (usize, usize), sums: &mut [f32]) -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if super::amx::available() {
        x86::add_product(left, right, (m, n), sums);
        return true;
    }
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use crate::ops::cpu::amx::{Strided, Tiles, transpose};
    use crate::ops::parallel;
    use half::bf16;
    use std::arch::x86_64::{
        __m512i, __mmask32, _MM_HINT_T0, _mm_prefetch, _mm512_maskz_loadu_epi16, _mm512_permutex2var_epi32,
        _mm512_setr_epi32, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_unpackhi_epi16, _mm512_unpacklo_epi16,
    };
    use std::cell::RefCell;

    /// Columns of a panel, and rows of a step: two tiles.
    const EDGE: usize = 32;
    /// Words of a step of a panel.
    const STEP: usize = EDGE * EDGE / 2;
    /// Most rows of a panel: the left one then stays in the first cache, and the sums are read and written once for them.
    const DEPTH: usize = 512;
    /// Columns of the right factor whose panels are used together; they stay in the second cache.
    const RIGHT: usize = 1024;
    /// Most columns of the left factor that a thread packs at a time: it reads long stretches of memory.
    const LEFT: usize = 1024;

    thread_local! {
        static LEFT_PANELS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
        static RIGHT_PANELS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }

    /// [`super::add_product`] on a processor with tiles.
    pub(crate) fn add_product(left: &[bf16], right: &[bf16], (m, n): (usize, usize), sums: &mut [f32]) {
        if m == 0 || n == 0 {
            return;
        }
        let k = left.len() / m;
        // Every thread has a part of whole blocks; a sum's block does not depend on the number of threads.
        let part = m.div_ceil(parallel::threads()).next_multiple_of(EDGE).min(LEFT);
        assert!(left.len() == k * m && right.len() == k * n && sums.len() == m * n, "factors and sums do not match");
        for first in (0..k).step_by(DEPTH) {
            let rows = DEPTH.min(k - first);
            let panel = rows.div_ceil(EDGE) * STEP;
            for column in (0..n).step_by(RIGHT) {
                let columns = RIGHT.min(n - column);
                with_panels(&RIGHT_PANELS, columns.div_ceil(EDGE) * panel, |panels| {
                    parallel::for_each(panels.chunks_mut(panel).enumerate(), |(number, panel)| {
                        let at = column + number * EDGE;
                        pack(&right[first * n + at..], (n, rows, n - at), pack_right_step, panel);
                    });
                    let panels = &*panels;
                    parallel::for_each(sums.chunks_mut(part * n).enumerate(), |(number, sums)| {
                        let left = &left[first * m + number * part..];
                        add_part(left, (m, rows, m - number * part), (panels, panel), (n, column, columns), sums);
                    });
                });
            }
        }
    }

    /// Adds to a part of the sums, [at most `LEFT`, N], the product with the packed columns [column, column + columns) of the
    /// right factor. `left` starts at the part's first column, (distance of rows, rows, columns from there on).
    fn add_part(
        left: &[bf16],
        (stride, rows, rest): (usize, usize, usize),
        (right, panel): (&[u32], usize),
        (n, column, columns): (usize, usize, usize),
        sums: &mut [f32],
    ) {
        let blocks = sums.len().div_ceil(EDGE * n);
        with_panels(&LEFT_PANELS, blocks * panel, |panels| {
            // Step by step over all columns: memory is read in long stretches.
            for (step, row) in (0..rows).step_by(EDGE).enumerate() {
                for block in 0..blocks {
                    let to = &mut panels[block * panel + step * STEP..][..STEP];
                    let from = &left[row * stride + block * EDGE..];
                    pack(from, (stride, EDGE.min(rows - row), rest - block * EDGE), pack_left_step, to);
                }
            }
            let tiles = Tiles::configure();
            let mut corner = [0f32; EDGE * EDGE];
            for (sums, left) in sums.chunks_mut(EDGE * n).zip(panels.chunks(panel)) {
                for (number, right) in right.chunks(panel).enumerate() {
                    let at = column + number * EDGE;
                    let width = EDGE.min(column + columns - at);
                    if sums.len() == EDGE * n && width == EDGE {
                        add_block(&tiles, left, right, &mut sums[at..], n);
                        continue;
                    }
                    // Blocks at the edges are not whole.
                    corner.fill(0.0);
                    add_block(&tiles, left, right, &mut corner, EDGE);
                    for (sums, values) in sums.chunks_mut(n).zip(corner.chunks(EDGE)) {
                        sums[at..at + width].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                }
            }
        });
    }

    /// `sums` [32, 32], in rows of `stride`, += left right, two panels.
    fn add_block(tiles: &Tiles, left: &[u32], right: &[u32], sums: &mut [f32], stride: usize) {
        // The next block's sums come while this one computes. A prefetch reads nothing, wherever it points.
        for row in 0..EDGE {
            let next = sums.as_ptr().wrapping_add(row * stride + EDGE);
            // SAFETY: it has no effect but on the cache.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(next.cast());
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(EDGE / 2).cast());
            }
        }
        let panel = |words| Strided { words, row: EDGE / 2, step: STEP, next: STEP / 2 };
        tiles.multiply::<2, 2>(left.len() / STEP, panel(left), panel(right), (sums, stride), true);
    }

    /// Lends memory for this many words, in whole cache lines; its contents are from the last use.
    fn with_panels(of: &'static std::thread::LocalKey<RefCell<Vec<u32>>>, words: usize, work: impl FnOnce(&mut [u32])) {
        const LINE: usize = 16;
        of.with_borrow_mut(|memory| {
            if memory.len() < words + LINE {
                memory.resize(words + LINE, 0);
            }
            let start = memory.as_ptr().align_offset(LINE * size_of::<u32>()).min(LINE);
            work(&mut memory[start..start + words]);
        });
    }

    /// Packs 32 rows into words: (first row, distance of rows, rows that exist, mask of columns that exist, words).
    type PackStep = unsafe fn(*const bf16, usize, usize, __mmask32, *mut u32);

    /// Packs the first 32 columns of `rows`, (distance of rows, rows, columns that exist), by `step`. Missing rows and columns
    /// are 0.
    fn pack(rows: &[bf16], (stride, count, columns): (usize, usize, usize), step: PackStep, panel: &mut [u32]) {
        let columns = columns.min(EDGE);
        assert!(count > 0 && columns > 0 && rows.len() >= (count - 1) * stride + columns, "a factor ends early");
        assert!(panel.len() >= count.div_ceil(EDGE) * STEP, "a panel ends early");
        let mask = u32::MAX >> (EDGE - columns);
        for (number, row) in (0..count).step_by(EDGE).enumerate() {
            // SAFETY: rows, columns and words lie inside by the checks above; who packs has seen the processor's vectors.
            unsafe {
                let (from, to) = (rows.as_ptr().add(row * stride), panel.as_mut_ptr().add(number * STEP));
                step(from, stride, count - row, mask, to);
            }
        }
    }

    /// Two neighboring rows as words: columns 0 to 3, 8 to 11, ... and 4 to 7, 12 to 15, ...
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pair(rows: *const bf16, stride: usize, count: usize, mask: __mmask32, row: usize) -> [__m512i; 2] {
        let load = |row: usize| match row < count {
            // SAFETY: the caller's rows and columns are there.
            true => unsafe { _mm512_maskz_loadu_epi16(mask, rows.add(row * stride).cast()) },
            false => _mm512_setzero_si512(),
        };
        let (one, other) = (load(row), load(row + 1));
        [_mm512_unpacklo_epi16(one, other), _mm512_unpackhi_epi16(one, other)]
    }

    /// Tiles whose rows are pairs of rows and whose columns are columns.
    ///
    /// # Safety
    /// The processor has AVX512F and AVX512BW; `rows` holds the rows and columns that exist, `words` has room for `STEP`
    /// words.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_right_step(rows: *const bf16, stride: usize, count: usize, mask: __mmask32, words: *mut u32) {
        let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        let second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for row in 0..EDGE / 2 {
            // SAFETY: as the caller promises; 16 words a row of a tile.
            unsafe {
                let [low, high] = pair(rows, stride, count, mask, 2 * row);
                let to = words.add(row * 16);
                _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi32(low, first, high));
                _mm512_storeu_si512(to.add(STEP / 2).cast(), _mm512_permutex2var_epi32(low, second, high));
            }
        }
    }

    /// Tiles whose rows are columns and whose columns are pairs of rows.
    ///
    /// # Safety
    /// As [`pack_right_step`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_left_step(rows: *const bf16, stride: usize, count: usize, mask: __mmask32, words: *mut u32) {
        let (mut low, mut high) = ([_mm512_setzero_si512(); 16], [_mm512_setzero_si512(); 16]);
        for row in 0..EDGE / 2 {
            // SAFETY: as the caller promises.
            [low[row], high[row]] = unsafe { pair(rows, stride, count, mask, 2 * row) };
        }
        // SAFETY: the processor has the vectors, as the caller promises.
        let (low, high) = unsafe { (transpose(low), transpose(high)) };
        for (half, columns) in [(0, low), (4, high)] {
            for (number, column) in columns.into_iter().enumerate() {
                let to = 8 * (number / 4) + half + number % 4;
                // SAFETY: 32 columns of 16 words.
                unsafe { _mm512_storeu_si512(words.add(to * 16).cast(), column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<bf16> {
        (0..count).map(|at| bf16::from_f32((((at + seed) as f32) * 12.9898).sin())).collect()
    }

    #[test]
    fn the_product_agrees_with_the_plain_sum_at_every_edge() {
        // Whole blocks; rests of rows, columns and depth; more than one chunk of each.
        for (k, m, n) in
            [(32, 32, 32), (70, 37, 45), (1, 1, 1), (33, 64, 31), (513, 33, 66), (40, 1030, 1090), (0, 3, 5)]
        {
            let (left, right) = (values(k * m, 0), values(k * n, 77));
            let mut sums = vec![0.5f32; m * n];
            if !super::add_product(&left, &right, (m, n), &mut sums) {
                return;
            }
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let products = (0..k).map(|at| left[at * m + row].to_f64() * right[at * n + column].to_f64());
                let (exact, seen) = (0.5 + products.sum::<f64>(), f64::from(sums[row * n + column]));
                assert!((seen - exact).abs() < 1e-4, "{k} {m} {n}, ({row}, {column}): {seen} is not {exact}");
            }
        }
    }
}
