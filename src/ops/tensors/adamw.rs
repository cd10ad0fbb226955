//! AdamW as tensor operations on flat buffers.

use crate::ops::AdamWStep;

/// See [`Ops::adamw`](crate::ops::Ops::adamw).
pub fn step(step: &AdamWStep) {
    let c = step.constants;
    let gradient = &step.gradient * f64::from(c.gradient_scale);
    let [mut first, mut second] = step.moments.each_ref().map(|moment| moment.shallow_clone());
    let _ = first.g_mul_scalar_(f64::from(c.beta1)).g_add_(&(&gradient * f64::from(c.complements[0])));
    let _ = second.g_mul_scalar_(f64::from(c.beta2)).g_add_(&(gradient.square() * f64::from(c.complements[1])));
    for part in step.parts.iter().filter(|part| part.decays) {
        let mut values = step.master.narrow(0, part.range.start as i64, part.range.len() as i64);
        let _ = values.g_mul_scalar_(f64::from(c.decay));
    }
    let denominator = second.sqrt() * f64::from(c.second_correction) + f64::from(c.epsilon);
    let change = first * f64::from(c.first_correction * c.learning_rate) / denominator;
    let _ = step.master.shallow_clone().g_sub_(&change);
    if let Some(compute) = &step.compute {
        compute.shallow_clone().copy_(step.master);
    }
}
