//! How many elements each buffer of a segment has on one rank: the one table that allocation and `plan` read.
//!
//! Not here: the buffers themselves (`mod.rs`, `bucket.rs`, `state.rs`).

use super::Use;
use std::ops::Range;
use tch::Kind;

/// Shares are a multiple of this many elements: a cache line of f32, so that no cache line belongs to two ranks.
const SHARE_STEP: usize = 16;

/// Elements of a segment's buffers on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Values in the compute kind: all of them on every rank, padded with zeros to equal shares.
    pub(crate) weights: usize,
    /// f32 gradient sums; 0 if nothing is trained.
    pub(crate) bucket: usize,
    /// f32 masters with memory of their own; 0 if the weights are f32 themselves.
    pub(crate) masters: usize,
    /// Each of AdamW's two moments.
    pub(crate) moment: usize,
}

impl Sizes {
    /// Of a segment of this many elements, computed in `kind`.
    pub(crate) fn of(elements: usize, kind: Kind, purpose: Use) -> Self {
        let (weights, owned) = match purpose {
            Use::TrainShare(Share { ranks, .. }) => {
                let share = share_length(elements, ranks);
                (share * ranks, share)
            }
            Use::Train | Use::Evaluate => (elements, elements),
        };
        if !purpose.trains() {
            return Self { weights, bucket: 0, masters: 0, moment: 0 };
        }
        Self { weights, bucket: weights, masters: if kind == Kind::Float { 0 } else { owned }, moment: owned }
    }
}

/// One rank's share of the trained parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its rank.
    pub rank: usize,
    /// Number of ranks, which hold one share each; 2 or more.
    pub(crate) ranks: usize,
}

impl Share {
    /// Where it lies in a flat buffer that is as long as all shares together.
    pub(crate) fn range(self, flat: usize) -> Range<usize> {
        let length = flat / self.ranks;
        self.rank * length..(self.rank + 1) * length
    }
}

/// Elements of one of `ranks` equal shares of a segment of `elements`; the last ones may reach beyond it.
pub(crate) fn share_length(elements: usize, ranks: usize) -> usize {
    elements.div_ceil(ranks).next_multiple_of(SHARE_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_cache_lines_that_cover_the_segment() {
        for (elements, ranks, share) in [(1, 2, 16), (33, 2, 32), (1000, 3, 336), (32, 2, 16)] {
            let sizes = Sizes::of(elements, Kind::BFloat16, Use::TrainShare(Share { rank: 0, ranks }));
            assert_eq!(
                sizes,
                Sizes { weights: share * ranks, bucket: share * ranks, masters: share, moment: share },
                "{elements} over {ranks}"
            );
            assert!(sizes.weights >= elements);
        }
        let f32 = Sizes::of(100, Kind::Float, Use::Train);
        assert_eq!(f32, Sizes { weights: 100, bucket: 100, masters: 0, moment: 100 });
        let frozen = Sizes::of(100, Kind::BFloat16, Use::Evaluate);
        assert_eq!(frozen, Sizes { weights: 100, bucket: 0, masters: 0, moment: 0 });
    }
}
