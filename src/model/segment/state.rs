//! The optimizer's state of a segment: f32 masters and AdamW's moments, of all of it or of one rank's share.

use super::parameters::{Parameter, Parameters};
use super::sizes::Share;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Masters and moments, flat f32, of the range `owned` of the segment.
pub struct OptimizerState {
    /// The values that are updated. With f32 compute the same memory as the weights.
    pub master: Tensor,
    /// AdamW's first and second moments, once training starts.
    pub moments: Option<[Tensor; 2]>,
    /// What this rank holds, and updates: all elements, or one share of equal shares, the last of which may reach beyond
    /// the last parameter.
    pub(crate) owned: Range<usize>,
    /// Number of shares, one a rank; 1 if every rank holds all.
    shares: usize,
}

/// The elements of a parameter that one rank holds.
pub(crate) struct OwnedPart {
    /// Where they lie in the rank's range, counted from its start.
    pub(crate) in_owned: Range<usize>,
    /// Where they lie in the parameter.
    pub(crate) in_parameter: Range<usize>,
}

impl OptimizerState {
    /// Zero masters for all of the flat `weights`, or for a share of them; if the weights are f32, a view of them. Without
    /// moments.
    pub(crate) fn of(weights: &Tensor, share: Option<Share>) -> Self {
        let owned = share.map_or(0..weights.numel(), |share| share.range(weights.numel()));
        let master = match weights.kind() {
            Kind::Float => narrowed(weights, &owned),
            _ => Tensor::zeros([owned.len() as i64], (Kind::Float, weights.device())),
        };
        Self { master, moments: None, owned, shares: share.map_or(1, |share| share.ranks) }
    }

    /// Whether this rank holds a share only.
    pub fn is_share(&self) -> bool {
        self.shares > 1
    }

    /// Makes zero moments, if there are none.
    pub fn start_moments(&mut self) {
        let Self { master, moments, .. } = self;
        moments.get_or_insert_with(|| [master.zeros_like(), master.zeros_like()]);
    }

    /// The range `owned` of a whole flat buffer.
    pub(crate) fn owned_of(&self, flat: &Tensor) -> Tensor {
        narrowed(flat, &self.owned)
    }

    /// The elements of the parameter at `index` that this rank updates.
    pub(crate) fn owned_part(&self, parameters: &Parameters, index: usize) -> OwnedPart {
        part_in(&self.owned, &parameters[index])
    }

    /// [`Self::owned_part`] of another rank, if each holds a share.
    pub(crate) fn part_of(&self, rank: usize, parameters: &Parameters, index: usize) -> OwnedPart {
        let length = self.owned.len();
        part_in(&(rank * length..(rank + 1) * length), &parameters[index])
    }

    /// Writes this rank's part of the parameter at `index` into `flat`, f32 values of the range `owned`.
    pub(crate) fn write_owned(&self, flat: &Tensor, parameters: &Parameters, index: usize, value: &Tensor) {
        let OwnedPart { in_owned, in_parameter } = self.owned_part(parameters, index);
        narrowed(flat, &in_owned).copy_(&narrowed(&value.contiguous().view(-1), &in_parameter));
    }
}

/// The elements of a parameter that lie in `owned`.
fn part_in(owned: &Range<usize>, parameter: &Parameter) -> OwnedPart {
    let Parameter { offset, length, .. } = *parameter;
    let start = owned.start.clamp(offset, offset + length);
    let end = owned.end.clamp(start, offset + length);
    let in_owned = start.saturating_sub(owned.start)..end.saturating_sub(owned.start);
    OwnedPart { in_owned: if start < end { in_owned } else { 0..0 }, in_parameter: start - offset..end - offset }
}

fn narrowed(flat: &Tensor, range: &Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}
