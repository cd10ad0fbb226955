//! The angles of rotary position embedding, rotate-half form (Su et al., arXiv 2104.09864). A family may rotate the first
//! columns of a head only, as GPT-NeoX does.
//!
//! Not here: the rotation itself (`ops/`).
//!
//! Legend: T tokens, R rotated columns of a head, even and at most the head's width.

use super::architecture::{QueryGrowth, RopeScaling, Rotation};
use crate::error::{Error, Result};
use crate::ops::{Angles, Direction, Ops};
use crate::packing::{Group, HeadCounts};
use crate::tensor::on_device;
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// Angles per position in a sequence of `length` tokens: R / 2 frequencies in radians, f32 like Transformers.
pub(crate) fn frequencies(rotation: &Rotation, length: usize) -> Vec<f32> {
    let Rotation { rope, width, period, .. } = rotation;
    let count = width / 2;
    let of_base = |base: f64| (0..count).map(move |index| base.powf(-((2 * index) as f64) / *period as f64));
    let base = of_base(rope.theta);
    let all: Vec<f64> = match &rope.scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|frequency| frequency / factor).collect(),
        RopeScaling::Llama3 { factor, low_factor, high_factor, original } => base
            .map(|frequency| {
                let wavelength = 2.0 * PI / frequency;
                if wavelength > original / low_factor {
                    frequency / factor
                } else if wavelength < original / high_factor {
                    frequency
                } else {
                    let smooth = (original / wavelength - low_factor) / (high_factor - low_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect(),
        RopeScaling::Yarn { factor, fast, slow, original, truncate, .. } => {
            let period = *period as f64;
            // The number of the frequency with this many turns within the original length.
            let number = |turns: f64| period * (original / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
            let ends = (number(*fast), number(*slow));
            let (start, end) = if *truncate { (ends.0.floor(), ends.1.ceil()) } else { ends };
            let (start, end) = (start.max(0.0), end.min(period - 1.0));
            let end = if start == end { end + 0.001 } else { end };
            let divided = |index: usize| ((index as f64 - start) / (end - start)).clamp(0.0, 1.0);
            let mix = |(index, frequency)| frequency / factor * divided(index) + frequency * (1.0 - divided(index));
            base.enumerate().map(mix).collect()
        }
        RopeScaling::Dynamic { original, .. } if length <= *original => base.collect(),
        RopeScaling::Dynamic { factor, original } => {
            let stretch = factor * length as f64 / *original as f64 - (factor - 1.0);
            let period = *period as f64;
            of_base(rope.theta * stretch.powf(period / (period - 2.0))).collect()
        }
        RopeScaling::Long { short, long, original, .. } => {
            let divisors = if length <= *original { short } else { long };
            base.zip(divisors).map(|(frequency, divisor)| frequency / divisor).collect()
        }
    };
    all.into_iter().map(|frequency| frequency as f32).collect()
}

/// Factor of cosines and sines.
fn magnitude(rotation: &Rotation) -> f64 {
    match rotation.rope.scaling {
        RopeScaling::Yarn { magnitude, .. } | RopeScaling::Long { magnitude, .. } => magnitude,
        _ => 1.0,
    }
}

/// Cosines and sines of the packed groups' positions `[T]` (i64).
///
/// # Errors
/// Sequences of one group that are not rotated alike: they cannot share a prefix.
pub(crate) fn angles(rotation: &Rotation, groups: &[Group], positions: &Tensor, device: Device) -> Result<Angles> {
    let positions = positions.to_kind(Kind::Float).unsqueeze(-1);
    let angles = match rotation.rope.scaling.alike() {
        None => positions * on_device(&frequencies(rotation, 0), device).unsqueeze(0),
        Some(alike) => {
            let (mut lengths, mut of_rows) = (Vec::new(), Vec::new());
            for group in groups {
                let mut own: Vec<usize> =
                    group.suffixes.iter().map(|suffix| alike.first_like(group.prefix + suffix)).collect();
                own.dedup();
                let [length] = own[..] else {
                    return Err(Error::runtime("a prefix was packed once for sequences that are rotated differently"));
                };
                let place = lengths.iter().position(|other| *other == length).unwrap_or_else(|| {
                    lengths.push(length);
                    lengths.len() - 1
                });
                of_rows.extend(std::iter::repeat_n(place as i64, group.rows()));
            }
            let table: Vec<f32> = lengths.iter().flat_map(|&length| frequencies(rotation, length)).collect();
            let table = on_device(&table, device).view([lengths.len() as i64, (rotation.width / 2) as i64]);
            positions * table.index_select(0, &on_device(&of_rows, device))
        }
    };
    let (cosine, sine) = (angles.cos(), angles.sin());
    Ok(match magnitude(rotation) {
        1.0 => Angles { cosine, sine },
        magnitude => Angles { cosine: cosine * magnitude, sine: sine * magnitude },
    })
}

/// A rotation of one batch.
pub(crate) struct Turned {
    angles: Angles,
    /// Factors of the rotated queries, [T, 1, 1] in the kind of the computation.
    query_scale: Option<Tensor>,
}

impl Turned {
    /// For packed groups and their positions `[T]` (i64).
    ///
    /// # Errors
    /// As [`angles`].
    pub(crate) fn new(
        rotation: &Rotation,
        groups: &[Group],
        positions: &Tensor,
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        let growth = |QueryGrowth { beta, original }| {
            let times = (positions.to_kind(Kind::Float) / original).floor();
            (times.log1p() * beta + 1.0).to_kind(kind).view([-1, 1, 1])
        };
        let query_scale = rotation.query_growth.map(growth);
        Ok(Self { angles: angles(rotation, groups, positions, device)?, query_scale })
    }

    /// Rotates the queries and keys of rows [T, H + 2 G, E] in place, and scales the queries; or, backward, their gradients.
    ///
    /// # Errors
    /// As [`Ops::rotate`].
    pub(crate) fn rotate(&self, ops: &dyn Ops, rows: &Tensor, heads: HeadCounts, direction: Direction) -> Result<()> {
        // Scaling and rotating a head commute.
        if let Some(scale) = &self.query_scale {
            let _ = rows.narrow(1, 0, heads.query as i64).f_mul_(scale)?;
        }
        ops.rotate(rows, heads.query + heads.key, &self.angles, direction)
    }
}
