//! What the optimiser keeps of a segment: f32 masters and AdamW's moments, of all of it or of one rank's share.

use super::parameters::{Parameter, Parameters};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Shares are a multiple of this many elements: a cache line of f32, so that no cache line belongs to two ranks.
const SHARE_STEP: usize = 16;

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
    /// Of a whole segment, without moments.
    pub fn whole(master: Tensor) -> Self {
        let owned = 0..master.numel();
        Self { master, moments: None, owned, shares: 1 }
    }

    /// Of share number `rank` of `ranks`, from the whole masters and the weights, which must be as long as all shares
    /// together.
    pub fn share_of(whole: &Tensor, weights: &Tensor, rank: usize, ranks: usize) -> Self {
        let share = weights.numel() / ranks;
        let owned = rank * share..(rank + 1) * share;
        // With f32 compute the share is a view of the values; else it has memory of its own.
        let master = if weights.kind() == Kind::Float {
            narrowed(weights, &owned)
        } else {
            let own = Tensor::zeros([share as i64], (Kind::Float, weights.device()));
            // The last shares may reach beyond the values, or lie beyond them.
            let there = owned.start.min(whole.numel())..owned.end.min(whole.numel());
            own.narrow(0, 0, there.len() as i64).copy_(&narrowed(whole, &there));
            own
        };
        Self { master, moments: None, owned, shares: ranks }
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
        let Parameter { offset, length, .. } = parameters[index];
        let start = self.owned.start.clamp(offset, offset + length);
        let end = self.owned.end.clamp(start, offset + length);
        let in_owned = start.saturating_sub(self.owned.start)..end.saturating_sub(self.owned.start);
        (if start < end { in_owned } else { 0..0 }, start - offset..end - offset)
    }

    /// Writes what is this rank's of the parameter at `index` into `flat`, f32 values of the range `owned`.
    pub fn write_owned(&self, flat: &Tensor, parameters: &Parameters, index: usize, value: &Tensor) {
        let (to, from) = self.owned_part(parameters, index);
        narrowed(flat, &to).copy_(&narrowed(&value.contiguous().view(-1), &from));
    }
}

/// Elements of a segment of `elements` in `ranks` equal shares.
pub fn padded(elements: usize, ranks: usize) -> usize {
    elements.div_ceil(ranks).next_multiple_of(SHARE_STEP) * ranks
}

fn narrowed(flat: &Tensor, range: &Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}
