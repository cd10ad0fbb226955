//! AdamW as tensor operations on flat buffers.

use crate::ops::{AdamWStep, Verdict};

/// See [`Ops::adamw`](crate::ops::Ops::adamw).
pub fn step(step: &AdamWStep) {
    let (c, Verdict { scales, made }) = (step.constants, step.verdict);
    let [scale, first_correction, second_correction] = [0, 1, 2].map(|place| scales.narrow(0, place, 1));
    let gradient = &step.gradient * scale;
    let [first, second] = step.moments;
    let new_first = first * f64::from(c.beta1) + &gradient * f64::from(c.complements[0]);
    let new_second = second * f64::from(c.beta2) + gradient.square() * f64::from(c.complements[1]);
    let new_master = step.master.copy();
    for part in step.parts.iter().filter(|part| part.decays) {
        let mut values = new_master.narrow(0, part.range.start as i64, part.range.len() as i64);
        let _ = values.g_mul_scalar_(f64::from(c.decay));
    }
    let denominator = new_second.sqrt() * second_correction + f64::from(c.epsilon);
    let change = &new_first * (first_correction * f64::from(c.learning_rate)) / denominator;
    for (old, new) in [(first, new_first), (second, new_second), (step.master, new_master - change)] {
        // What was not finite is not taken, and a value that stays keeps its bits.
        old.shallow_clone().copy_(&new.where_self(made, old));
    }
    if let Some(compute) = &step.compute {
        let new = step.master.to_kind(compute.kind()).where_self(made, compute);
        compute.shallow_clone().copy_(&new);
    }
}
