//! What the optimiser keeps of a segment: f32 masters and AdamW's moments, of all of it or of one rank's share.

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
    pub owned: Range<usize>,
    /// Shares that all ranks together hold, one each; 1 where every rank holds all.
    shares: usize,
}

impl OptimizerState {
    /// Zero masters of all of the flat `weights`, or of a share of them; a view of them where they are f32. Without
    /// moments.
    pub fn of(weights: &Tensor, share: Option<Share>) -> Self {
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

    /// Zero moments, where there are none.
    pub fn start_moments(&mut self) {
        let Self { master, moments, .. } = self;
        moments.get_or_insert_with(|| [master.zeros_like(), master.zeros_like()]);
    }

    /// The range `owned` of a whole flat buffer.
    pub fn owned_of(&self, flat: &Tensor) -> Tensor {
        narrowed(flat, &self.owned)
    }

    /// The elements of the parameter at `index` that are this rank's to update: where they lie in `owned`, counted from
    /// its start, and in the parameter.
    pub fn owned_part(&self, parameters: &Parameters, index: usize) -> (Range<usize>, Range<usize>) {
        part_in(&self.owned, &parameters[index])
    }

    /// [`Self::owned_part`] of another rank, where each holds a share.
    pub fn part_of(&self, rank: usize, parameters: &Parameters, index: usize) -> (Range<usize>, Range<usize>) {
        let length = self.owned.len();
        part_in(&(rank * length..(rank + 1) * length), &parameters[index])
    }

    /// Writes what is this rank's of the parameter at `index` into `flat`, f32 values of the range `owned`.
    pub fn write_owned(&self, flat: &Tensor, parameters: &Parameters, index: usize, value: &Tensor) {
        let (to, from) = self.owned_part(parameters, index);
        narrowed(flat, &to).copy_(&narrowed(&value.contiguous().view(-1), &from));
    }
}

/// Elements of a parameter that lie in `owned`: where in it, and where in the parameter.
fn part_in(owned: &Range<usize>, parameter: &Parameter) -> (Range<usize>, Range<usize>) {
    let Parameter { offset, length, .. } = *parameter;
    let start = owned.start.clamp(offset, offset + length);
    let end = owned.end.clamp(start, offset + length);
    let in_owned = start.saturating_sub(owned.start)..end.saturating_sub(owned.start);
    (if start < end { in_owned } else { 0..0 }, start - offset..end - offset)
}

fn narrowed(flat: &Tensor, range: &Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}
