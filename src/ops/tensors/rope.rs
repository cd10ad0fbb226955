//! Rotary position embedding as tensor operations.

use crate::ops::{Angles, Direction};
use tch::{Kind, Tensor};

/// See [`Ops::rotate`](crate::ops::Ops::rotate).
pub(crate) fn rotate(rows: &Tensor, heads: usize, angles: &Angles, direction: Direction) {
    let half = angles.cosine.size()[1];
    let mut halves = rows.narrow(1, 0, heads as i64).narrow(2, 0, 2 * half).chunk(2, -1);
    let (one, two) = (halves[0].to_kind(Kind::Float), halves[1].to_kind(Kind::Float));
    let (cosine, sine) = (angles.cosine.unsqueeze(1), angles.sine.unsqueeze(1) * f64::from(direction.sign()));
    // Both before either is written: in f32 `one` and `two` are the rows themselves.
    let rotated = [&one * &cosine - &two * &sine, two * cosine + one * sine];
    halves.iter_mut().zip(&rotated).for_each(|(half, rotated)| half.copy_(rotated));
}
