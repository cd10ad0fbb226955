//! A data set with its reference log-probs, and its pairs as packed batches.

use super::batch::{PackedBatch, Packing, PairToPack};
use super::prepared::PreparedData;
use tch::Device;

/// A data set with its reference log-probs (empty where the loss needs none).
pub struct Split {
    /// `train`, `dev` or `test`.
    pub name: &'static str,
    /// Its pairs.
    pub data: PreparedData,
    /// Log-probs of each pair's answers under the starting model.
    pub references: Vec<[f32; 2]>,
}

impl Split {
    /// Rows that a pair takes in a batch.
    pub(crate) fn tokens(&self, pair: usize, packing: Packing) -> usize {
        packing.rows(&self.data.pair(pair))
    }

    /// Packs the pairs of the given numbers, with their references.
    pub(crate) fn pack(&self, pairs: &[usize], packing: Packing, device: Device) -> PackedBatch {
        let items = pairs.iter().map(|&index| PairToPack {
            index,
            pair: self.data.pair(index),
            reference: self.references.get(index).copied().unwrap_or_default(),
        });
        PackedBatch::new(items, packing, device)
    }
}
