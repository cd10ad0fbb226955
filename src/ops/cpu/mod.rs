//! Fused loops over rows of numbers in CPU memory: what libtorch would do in several passes over f32 copies.
//!
//! Values may be f32 or bf16; arithmetic is f32 throughout, so f32 results agree with the plain formulas up to the order
//! of sums. Each loop is compiled for several instruction sets and picks the best at run time; sums run in a fixed
//! number of lanes, so that results do not depend on which one that is (except for bf16 in `tile/` and `amx.rs`, whose
//! instructions round differently). Rows are distributed over the rank's threads.
//! Not here: tensors, except in `loops.rs` and `slices.rs`, which pass their memory to the loops.

pub mod accumulate;
mod adamw;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod gated;
mod layer_norm;
mod loops;
mod low_rank;
mod norm;
mod rope;
mod slices;
mod softmax;
mod squares;
mod tile;
pub mod weight_gradient;

pub use loops::Cpu;

use half::bf16;

/// Lanes of a sum: two 512-bit registers.
const LANES: usize = 32;

/// Rows that a thread takes at a time.
const ROWS: usize = 64;

/// A number that rows are made of.
pub trait Element: Copy + Send + Sync + Default {
    /// Its value.
    fn wide(self) -> f32;
    /// The nearest number of this type, ties to even.
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // `bf16::from_f32` branches on NaN, which keeps a loop from being vectorized.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        Self::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
}

/// e^x within two units in the last place for x <= 0 or moderate x > 0; 0 below -87, infinity above 88.7.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 in two parts keeps r exact. Taylor to r^7 leaves less than 2^-25.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let whole = shifted.to_bits() as i32 - SHIFT.to_bits() as i32;
    let n = shifted - SHIFT;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    // 2^n in two factors, since 2^128 is not an f32.
    let half = whole >> 1;
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    let value = sum * power(half) * power(whole - half);
    // Comparisons are false for NaN, which then stays.
    if x < -87.3 {
        0.0
    } else if x > 88.7 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        value
    }
}

/// tanh(x) within a few units in the last place, for small x too.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near 0 Lambert's continued fraction, cut after seven steps: there 1 less something near 1 would lose digits.
    let square = x * x;
    let above = ((square + 378.0) * square + 17_325.0) * square + 135_135.0;
    let below = ((28.0 * square + 3150.0) * square + 62_370.0) * square + 135_135.0;
    let near = x * above / below;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    // A comparison is false for NaN, which `exp` keeps.
    if x.abs() < 0.7 { near } else { far }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -8700..=8860 {
            let x = step as f32 * 0.01 + 0.003;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2.4e-7, "e^{x}: {} is not {exact}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-1000.0), exp(f32::NEG_INFINITY), exp(1000.0)), (1.0, 0.0, 0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_four_units_in_the_last_place() {
        for step in -12_000..=12_000 {
            let x = (step as f32 * 1e-3 + 3e-4).powi(3) * 0.01;
            let exact = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) / exact - 1.0).abs() < 4.8e-7, "tanh {x}: {} is not {exact}", tanh(x));
        }
        assert_eq!((tanh(0.0), tanh(1e4), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn narrowing_equals_the_crates() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            let (mine, theirs) = (bf16::narrow(value), bf16::from_f32(value));
            assert!(mine == theirs || (mine.is_nan() && theirs.is_nan()), "{value}: {mine} is not {theirs}");
            assert_eq!(theirs.is_nan(), theirs.wide().is_nan());
        }
    }
}
