//! Matrix tiles (AMX-BF16): eight registers of 16 rows of 16 words, and products of two of them added to a third.
//!
//! A word is two bf16 that are neighbors along K. C [16, 16] f32 += A [16 rows, 16 words] times B [16 words, 16 columns]
//! takes one instruction (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18). Not here:
//! the products that are made of them (`weight_gradient.rs`, `tile/`).
//!
//! One of the few files with `unsafe`: the instructions. Bounds are checked once, before the loops.

#![allow(unsafe_code)]

use nix::libc;
use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, __m512i, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile, and words of a row.
pub(crate) const TILE: usize = 16;

/// Whether the processor has tiles and 512-bit vectors, and the kernel lets this process use the tiles (Linux,
/// Documentation/arch/x86/xstate.rst).
pub(crate) fn available() -> bool {
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Leaf 7: AMX-BF16 and AMX-TILE.
        let tiles = (1 << 22) | (1 << 24);
        // SAFETY: every x86-64 processor has the instruction. Older versions of Rust take it for unsafe.
        #[allow(unused_unsafe)]
        let features = unsafe { __cpuid_count(7, 0) }.edx;
        std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512bf16")
            && features & tiles == tiles
            // SAFETY: the call takes two numbers and changes nothing but what this process may use.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    })
}

/// Tiles in memory: one or two along C (along its rows, or its columns), and any number along K.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    /// The words.
    pub(crate) words: &'a [u32],
    /// Words from a row of a tile to the next.
    pub(crate) row: usize,
    /// Words from a tile to the next along K.
    pub(crate) step: usize,
    /// Words from a tile to the next along C.
    pub(crate) next: usize,
}

impl Strided<'_> {
    /// Whether `depth` tiles along K, and `count` along C, lie inside.
    fn holds(&self, depth: usize, count: usize) -> bool {
        self.words.len() >= (depth - 1) * self.step + (count - 1) * self.next + (TILE - 1) * self.row + TILE
    }
}

/// The shapes of the tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's eight tiles, configured in full size while it lives. Have only one at a time, and call nothing of libtorch
/// meanwhile, which configures tiles itself.
pub(crate) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Panics if [`available`] is false.
    pub(crate) fn configure() -> Self {
        assert!(available(), "the processor has no matrix tiles");
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].fill(64);
        shapes.rows[..8].fill(16);
        // SAFETY: palette 1 has these shapes, and the process may use tiles; no code of Rust's uses any.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Self(PhantomData)
    }

    /// C [16 R, 16 N], in rows of `stride`, (+)= left right over `depth` tiles of each; R and N are 1 or 2.
    #[inline]
    pub(crate) fn multiply<const R: usize, const N: usize>(
        &self,
        depth: usize,
        left: Strided,
        right: Strided,
        (sums, stride): (&mut [f32], usize),
        add: bool,
    ) {
        assert!((1..=2).contains(&R) && (1..=2).contains(&N) && depth > 0, "{R} x {N} tiles over {depth}");
        assert!(left.holds(depth, R) && right.holds(depth, N), "a factor ends early");
        assert!(sums.len() >= (TILE * R - 1) * stride + TILE * N, "sums end early");
        // Bytes from row to row, and the places of the four sums.
        let [row, left_row, right_row] = [stride, left.row, right.row].map(|words| words * size_of::<f32>());
        let base = sums.as_mut_ptr();
        let place = |down: usize, across: usize| base.wrapping_add(TILE * (down * stride + across));
        // SAFETY: the tiles are configured, and all that is read and written lies inside by the checks above.
        unsafe {
            if add {
                load::<0>(place(0, 0).cast(), row);
                if N == 2 {
                    load::<1>(place(0, 1).cast(), row);
                }
                if R == 2 {
                    load::<2>(place(1, 0).cast(), row);
                }
                if R == 2 && N == 2 {
                    load::<3>(place(1, 1).cast(), row);
                }
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            }
            for at in 0..depth {
                let left_at = left.words.as_ptr().add(at * left.step);
                let right_at = right.words.as_ptr().add(at * right.step);
                load::<4>(left_at, left_row);
                load::<6>(right_at, right_row);
                asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack, nomem));
                if N == 2 {
                    load::<7>(right_at.add(right.next), right_row);
                    asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem));
                }
                if R == 2 {
                    load::<5>(left_at.add(left.next), left_row);
                    asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem));
                }
                if R == 2 && N == 2 {
                    asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem));
                }
            }
            store::<0>(place(0, 0), row);
            if N == 2 {
                store::<1>(place(0, 1), row);
            }
            if R == 2 {
                store::<2>(place(1, 0), row);
            }
            if R == 2 && N == 2 {
                store::<3>(place(1, 1), row);
            }
        }
    }

    /// Writes the columns of 16 rows of 16 words, `row` words apart, one after the other.
    pub(crate) fn transpose_tile(&self, words: &[u32], row: usize, columns: &mut [u32]) {
        assert!(words.len() >= (TILE - 1) * row + TILE && columns.len() >= TILE * TILE, "a tile ends early");
        // SAFETY: rows and columns lie inside, and a processor with configured tiles has the vectors.
        unsafe { transpose_tile(words.as_ptr(), row, columns.as_mut_ptr()) };
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives back what `configure` took.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Reads tile `T` from rows that are `row` bytes apart.
///
/// # Safety
/// The tiles are configured, and 16 rows of 64 bytes are there.
#[inline(always)]
unsafe fn load<const T: usize>(from: *const u32, row: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("tileloadd tmm{t}, [{from} + {row}]", t = const T, from = in(reg) from, row = in(reg) row,
        options(nostack, readonly))
    };
}

/// Writes tile `T` to rows that are `row` bytes apart.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store<const T: usize>(to: *mut f32, row: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("tilestored [{to} + {row}], tmm{t}", t = const T, to = in(reg) to, row = in(reg) row, options(nostack))
    };
}

/// 16 rows of 16 words -> its columns.
///
/// # Safety
/// The processor has AVX512F.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut twos, mut fours, mut columns) = ([zero; 16], [zero; 16], [zero; 16]);
    for at in (0..16).step_by(2) {
        twos[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        twos[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    // fours[4 g + j] holds column 4 l + j of rows 4 g to 4 g + 3 in its lane l.
    for at in (0..16).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(twos[at], twos[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(twos[at], twos[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(twos[at + 1], twos[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(twos[at + 1], twos[at + 3]);
    }
    for at in 0..4 {
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let [upper_even, lower_even] =
            [0, 8].map(|row| _mm512_shuffle_i32x4::<EVEN>(fours[row + at], fours[row + 4 + at]));
        let [upper_odd, lower_odd] =
            [0, 8].map(|row| _mm512_shuffle_i32x4::<ODD>(fours[row + at], fours[row + 4 + at]));
        columns[at] = _mm512_shuffle_i32x4::<EVEN>(upper_even, lower_even);
        columns[4 + at] = _mm512_shuffle_i32x4::<EVEN>(upper_odd, lower_odd);
        columns[8 + at] = _mm512_shuffle_i32x4::<ODD>(upper_even, lower_even);
        columns[12 + at] = _mm512_shuffle_i32x4::<ODD>(upper_odd, lower_odd);
    }
    columns
}

/// # Safety
/// The processor has AVX512F; 16 rows of 16 words are there, and room for as many.
#[target_feature(enable = "avx512f")]
unsafe fn transpose_tile(words: *const u32, row: usize, columns: *mut u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let rows = std::array::from_fn(|at| _mm512_loadu_si512(words.add(at * row).cast()));
        for (at, column) in transpose(rows).into_iter().enumerate() {
            _mm512_storeu_si512(columns.add(at * TILE).cast(), column);
        }
    }
}
