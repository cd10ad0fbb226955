//! The gated unit of an MLP, curve(gate) * up, and its gradient, over rows that hold gate and up side by side.
//!
//! Legend: rows [gate | up] of 2 F numbers; F numbers out.

use super::{Element, ROWS, sigmoid};
use crate::ops::parallel;
use multiversion::multiversion;

/// A curve x sigmoid(bend(x)).
pub(crate) trait Curve: Copy + Send + Sync {
    /// The argument of the sigmoid.
    fn bend(self, x: f32) -> f32;
    /// The derivative of [`Curve::bend`].
    fn slope(self, x: f32) -> f32;
}

/// x sigmoid(x).
#[derive(Clone, Copy)]
pub(crate) struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn bend(self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn slope(self, _: f32) -> f32 {
        1.0
    }
}

/// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2 u).
#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;

impl GeluTanh {
    /// 2 sqrt(2 / pi).
    const FACTOR: f32 = std::f32::consts::SQRT_2 * std::f32::consts::FRAC_2_SQRT_PI;
    const CUBIC: f32 = 0.044715;
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn bend(self, x: f32) -> f32 {
        Self::FACTOR * x * (1.0 + Self::CUBIC * x * x)
    }

    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        Self::FACTOR * (1.0 + 3.0 * Self::CUBIC * x * x)
    }
}

/// `output` = curve(gate) * up.
pub(crate) fn forward<E: Element>(curve: impl Curve, gate_up: &[E], width: usize, output: &mut [E]) {
    let rows = gate_up.chunks(2 * ROWS * width).zip(output.chunks_mut(ROWS * width));
    parallel::for_each(rows, |(gate_up, output)| forward_rows(curve, gate_up, width, output));
}

/// From the gradient of [`forward`]'s output: the output again, and the gradient of gate and up side by side.
pub(crate) fn backward<E: Element>(
    curve: impl Curve,
    gate_up: &[E],
    gradient: &[E],
    width: usize,
    output: &mut [E],
    gate_up_gradient: &mut [E],
) {
    let (narrow, wide) = (ROWS * width, 2 * ROWS * width);
    let inputs = gate_up.chunks(wide).zip(gradient.chunks(narrow));
    let outputs = output.chunks_mut(narrow).zip(gate_up_gradient.chunks_mut(wide));
    parallel::for_each(inputs.zip(outputs), |((gate_up, gradient), (output, gate_up_gradient))| {
        backward_rows(curve, gate_up, gradient, width, output, gate_up_gradient);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn forward_rows<E: Element, C: Curve>(curve: C, gate_up: &[E], width: usize, output: &mut [E]) {
    for (gate_up, output) in gate_up.chunks(2 * width).zip(output.chunks_mut(width)) {
        let (gate, up) = gate_up.split_at(width);
        for ((gate, up), output) in gate.iter().zip(up).zip(output) {
            let gate = gate.wide();
            *output = E::narrow(gate * sigmoid(curve.bend(gate)) * up.wide());
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn backward_rows<E: Element, C: Curve>(
    curve: C,
    gate_up: &[E],
    gradient: &[E],
    width: usize,
    output: &mut [E],
    gate_up_gradient: &mut [E],
) {
    let rows = gate_up.chunks(2 * width).zip(gradient.chunks(width));
    let outputs = output.chunks_mut(width).zip(gate_up_gradient.chunks_mut(2 * width));
    for ((gate_up, gradient), (output, gate_up_gradient)) in rows.zip(outputs) {
        let (gate, up) = gate_up.split_at(width);
        let (gate_gradient, up_gradient) = gate_up_gradient.split_at_mut(width);
        let inputs = gate.iter().zip(up).zip(gradient);
        let outputs = output.iter_mut().zip(gate_gradient).zip(up_gradient);
        for (((gate, up), gradient), ((output, gate_gradient), up_gradient)) in inputs.zip(outputs) {
            let (gate, up, gradient) = (gate.wide(), up.wide(), gradient.wide());
            let share = sigmoid(curve.bend(gate));
            let value = gate * share;
            *output = E::narrow(value * up);
            *up_gradient = E::narrow(gradient * value);
            *gate_gradient = E::narrow(gradient * up * share * (1.0 + gate * (1.0 - share) * curve.slope(gate)));
        }
    }
}
