//! AdamW as tensor operations on flat buffers.

use crate::ops::{AdamWStep, Verdict};

/// See [`Ops::adamw`](crate::ops::Ops::adamw). A verdict against the update makes every factor 1 and every summand a zero of the
/// sign that changes no value: nothing branches, and values keep their bits.
pub(crate) fn step(step: &AdamWStep) {
    let (c, Verdict { scales, made }) = (step.constants, step.verdict);
    let [scale, first_correction, second_correction] = [0, 1, 2].map(|place| scales.narrow(0, place, 1));
    let or_one = |factor: f32| (scale.full_like(f64::from(factor))).where_scalarother(made, 1.0);
    let skipped = made.logical_not();
    let gradient = (&step.gradient * &scale).masked_fill_(&skipped, -0.0);
    let [mut first, mut second] = step.moments.each_ref().map(|moment| moment.shallow_clone());
    let _ = first.g_mul_(&or_one(c.beta1)).g_add_(&(&gradient * f64::from(c.complements[0])));
    let _ = second.g_mul_(&or_one(c.beta2)).g_add_(&(gradient.square() * f64::from(c.complements[1])));
    let decay = or_one(c.decay);
    for part in step.parts.iter().filter(|part| part.decays) {
        let mut values = step.master.narrow(0, part.range.start as i64, part.range.len() as i64);
        let _ = values.g_mul_(&decay);
    }
    let denominator = second.sqrt() * second_correction + f64::from(c.epsilon);
    let mut change = first * (first_correction * f64::from(c.learning_rate)) / denominator;
    let _ = step.master.shallow_clone().g_sub_(&change.masked_fill_(&skipped, 0.0));
    if let Some(compute) = &step.compute {
        compute.shallow_clone().copy_(step.master);
    }
}
