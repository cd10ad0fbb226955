//! AdamW in one pass: reads the gradient, updates both moments and the master, and writes the compute copy. Work is cut
//! into pieces of a fixed size, so results do not depend on the number of threads.

use super::Element as _;
use crate::error::{Error, Result};
use crate::ops::parallel;
use crate::ops::{AdamWConstants, AdamWStep, Verdict};
use crate::tensor;
use half::bf16;
use multiversion::multiversion;
use tch::Tensor;

/// Elements a thread takes at a time.
pub const PIECE: usize = 1 << 16;

/// One thread's part of a parameter: gradient, moments, master and compute copy, all of the same length.
struct Piece<'a> {
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    master: &'a mut [f32],
    compute: Option<&'a mut [bf16]>,
    decay: f32,
}

/// The constants, and what the gradients have decided.
#[derive(Clone, Copy)]
struct Numbers {
    constants: AdamWConstants,
    gradient_scale: f32,
    first_correction: f32,
    second_correction: f32,
}

/// See [`Ops::adamw`](crate::ops::Ops::adamw).
pub fn step(step: &AdamWStep) -> Result<()> {
    let Verdict { scales, made } = step.verdict;
    if tensor::bytes(made)? == [0] {
        return Ok(());
    }
    let [gradient_scale, first_correction, second_correction] = *tensor::slice::<f32>(scales)? else {
        return Err(Error::runtime(format!("three scales were expected, not {scales:?}")));
    };
    let numbers = Numbers { constants: step.constants, gradient_scale, first_correction, second_correction };
    let [mut first, mut second] = step.moments.each_ref().map(Tensor::shallow_clone);
    let (mut master, mut compute) = (step.master.shallow_clone(), step.compute.as_ref().map(Tensor::shallow_clone));
    let gradient = tensor::slice::<f32>(&step.gradient)?;
    let mut first = tensor::slice_mut::<f32>(&mut first)?;
    let mut second = tensor::slice_mut::<f32>(&mut second)?;
    let mut master = tensor::slice_mut::<f32>(&mut master)?;
    let mut compute = compute.as_mut().map(tensor::slice_mut::<bf16>).transpose()?;
    let mut pieces = Vec::new();
    for part in step.parts.iter().filter(|part| !part.range.is_empty()) {
        for start in part.range.clone().step_by(PIECE) {
            let length = PIECE.min(part.range.end - start);
            pieces.push(Piece {
                gradient: &gradient[start..start + length],
                first: take(&mut first, length),
                second: take(&mut second, length),
                master: take(&mut master, length),
                compute: compute.as_mut().map(|rest| take(rest, length)),
                decay: if part.decays { step.constants.decay } else { 1.0 },
            });
        }
    }
    parallel::for_each(pieces.into_iter(), |piece| update_piece(piece, numbers));
    Ok(())
}

/// Cuts `length` elements off the front of a slice.
fn take<'a, T>(rest: &mut &'a mut [T], length: usize) -> &'a mut [T] {
    let (front, back) = std::mem::take(rest).split_at_mut(length);
    *rest = back;
    front
}

fn update_piece(piece: Piece, numbers: Numbers) {
    let Piece { gradient, first, second, master, compute, decay } = piece;
    update_values(gradient, (first, second, master), decay, numbers);
    if let Some(compute) = compute {
        narrow_values(master, compute);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn update_values(
    gradient: &[f32],
    (first, second, master): (&mut [f32], &mut [f32], &mut [f32]),
    decay: f32,
    numbers: Numbers,
) {
    let Numbers { constants: c, gradient_scale, first_correction, second_correction } = numbers;
    let values = gradient.iter().zip(first.iter_mut()).zip(second.iter_mut()).zip(master.iter_mut());
    for (((gradient, first), second), master) in values {
        let gradient = gradient * gradient_scale;
        *first = c.beta1 * *first + c.complements[0] * gradient;
        *second = c.beta2 * *second + c.complements[1] * gradient * gradient;
        let denominator = second.sqrt() * second_correction + c.epsilon;
        *master = *master * decay - c.learning_rate * (*first * first_correction) / denominator;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn narrow_values(master: &[f32], compute: &mut [bf16]) {
    for (compute, master) in compute.iter_mut().zip(master) {
        *compute = bf16::narrow(*master);
    }
}
