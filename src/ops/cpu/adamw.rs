//! AdamW in one pass: reads the gradient, updates both moments and the master, and writes the compute copy. Work is cut
//! into pieces of a fixed size, so results do not depend on the number of threads.

use super::Element as _;
use crate::error::{Error, Result};
use crate::ops::parallel;
use crate::ops::{AdamWConstants, AdamWStep, Verdict};
use crate::tensor::{bytes, slice, slice_mut};
use half::bf16;
use multiversion::multiversion;

/// Elements a thread takes at a time.
pub(crate) const PIECE: usize = 1 << 16;

/// One thread's part of a parameter: gradient, moments, master and compute copy, all of the same length.
struct Piece<'a> {
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    master: &'a mut [f32],
    compute: Option<&'a mut [bf16]>,
    decay: f32,
}

/// The constants, and the scales of the verdict.
#[derive(Clone, Copy)]
struct Numbers {
    constants: AdamWConstants,
    gradient_scale: f32,
    first_correction: f32,
    second_correction: f32,
}

/// See [`Ops::adamw`](crate::ops::Ops::adamw).
pub(crate) fn step(step: &AdamWStep) -> Result<()> {
    let Verdict { scales, made } = step.verdict;
    if *bytes(made)? == [0] {
        return Ok(());
    }
    let [gradient_scale, first_correction, second_correction] = *slice::<f32>(scales)? else {
        return Err(Error::runtime(format!("three scales were expected, not {scales:?}")));
    };
    let numbers = Numbers { constants: step.constants, gradient_scale, first_correction, second_correction };
    let gradient = slice::<f32>(&step.gradient)?;
    let [first, second] = &step.moments;
    let (mut first, mut second, mut master) = (slice_mut(first)?, slice_mut(second)?, slice_mut(step.master)?);
    let mut compute = step.compute.as_ref().map(slice_mut::<bf16>).transpose()?;
    let (mut first, mut second, mut master) = (&mut *first, &mut *second, &mut *master);
    let mut compute = compute.as_deref_mut();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::AdamWPart;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn buffers_that_share_memory_are_refused() {
        let all = Tensor::ones([16], (Kind::Float, Device::Cpu));
        let constants = AdamWConstants {
            learning_rate: 0.1,
            decay: 1.0,
            beta1: 0.9,
            beta2: 0.99,
            complements: [0.1, 0.01],
            epsilon: 1e-5,
        };
        let verdict = Verdict { scales: Tensor::from_slice(&[1f32, 1.0, 1.0]), made: Tensor::from_slice(&[true]) };
        let update = |starts: [i64; 4]| {
            let [gradient, first, second, master] = starts.map(|start| all.narrow(0, start, 4));
            let parts = vec![AdamWPart { range: 0..4, decays: false }];
            let moments = &[first, second];
            step(&AdamWStep { gradient, moments, master: &master, compute: None, parts, constants, verdict: &verdict })
        };
        for starts in [[0, 3, 8, 12], [0, 4, 7, 12], [0, 4, 8, 10], [0, 4, 8, 0]] {
            let error = update(starts).unwrap_err();
            assert!(error.message.contains("shares memory"), "{starts:?}: {error}");
        }
        assert!(all.equal(&all.ones_like()), "nothing was written");
        update([0, 4, 8, 12]).unwrap();
    }
}
