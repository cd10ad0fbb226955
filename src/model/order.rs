//! The order of a model's segments: in the forward pass, and the order in which the backward pass completes their buckets.
//!
//! `engine/pass.rs` walks it, and tests/all/lending.rs compares; plan and messages read it.

use super::layout::Part;
use crate::error::{Error, Result};
use std::cmp::Reverse;

/// The segments of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSegments {
    /// Its own parameters.
    pub base: usize,
    /// Its adapters, where there are any.
    pub adapter: Option<usize>,
}

/// Numbers of a model's segments, by what they do. Forward: embedding, blocks, norm, heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The token embedding.
    pub embedding: usize,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSegments>,
    /// The final norm.
    pub norm: usize,
    /// An untied language-model head, where the model has one.
    pub language_model_head: Option<usize>,
    /// The reward head.
    pub reward_head: usize,
    /// All of them in the order in which the backward pass completes their buckets.
    pub completions: Vec<usize>,
    /// Whether the vocabulary product is by the token embedding.
    tied: bool,
}

impl Order {
    /// Of the parts of a model, in the order of its segments.
    ///
    /// # Errors
    /// A part that every model has is missing.
    pub fn of(parts: &[Part], tied: bool) -> Result<Self> {
        let find = |part: Part| parts.iter().position(|other| *other == part);
        let place = |part: Part| find(part).ok_or_else(|| Error::runtime(format!("the model has no {part:?}")));
        let layers = parts.iter().filter(|part| matches!(part, Part::Block(_))).count();
        let block =
            |number| Ok(BlockSegments { base: place(Part::Block(number))?, adapter: find(Part::Adapter(number)) });
        Ok(Self {
            embedding: place(Part::Embedding)?,
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: place(Part::Norm)?,
            language_model_head: find(Part::LanguageModelHead),
            reward_head: place(Part::RewardHead)?,
            completions: completions(parts),
            tied,
        })
    }

    /// The segment whose first parameter is the vocabulary matrix [V, D]; none in an untied model without such a head.
    pub fn vocabulary(&self) -> Option<usize> {
        if self.tied { Some(self.embedding) } else { self.language_model_head }
    }
}

/// Numbers of these parts in the order in which the backward pass completes their buckets: from the heads to the embedding,
/// with which a tied vocabulary matrix is complete.
pub fn completions(parts: &[Part]) -> Vec<usize> {
    let key = |part: &Part| match *part {
        Part::RewardHead => (0, Reverse(0), 0),
        Part::LanguageModelHead => (1, Reverse(0), 0),
        Part::Norm => (2, Reverse(0), 0),
        Part::Block(number) => (3, Reverse(number), 0),
        Part::Adapter(number) => (3, Reverse(number), 1),
        Part::Embedding => (4, Reverse(0), 0),
    };
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&number| key(&parts[number]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_complete_from_the_heads_to_the_embedding() {
        let untied = [
            Part::Embedding,
            Part::Block(0),
            Part::Block(1),
            Part::Norm,
            Part::LanguageModelHead,
            Part::RewardHead,
            Part::Adapter(0),
            Part::Adapter(1),
        ];
        let order = Order::of(&untied, false).unwrap();
        assert_eq!((order.completions.clone(), order.vocabulary()), (vec![5, 4, 3, 2, 7, 1, 6, 0], Some(4)));
        let tied = [Part::Embedding, Part::Block(0), Part::Norm, Part::RewardHead];
        let order = Order::of(&tied, true).unwrap();
        assert_eq!((order.completions.clone(), order.vocabulary()), (vec![3, 2, 1, 0], Some(0)));
        assert!(Order::of(&tied[..3], true).is_err());
    }
}
