//! The step plan: the order of a model's segments in the forward pass, the order in which the backward pass completes their
//! buckets, and which buckets are reduced together.
//!
//! `engine/pass.rs` and `update/reducer.rs` follow it, which tests/all/lending.rs checks; `plan` and messages read it.

use super::layout::Part;
use crate::error::{Error, Result};
use std::cmp::Reverse;
use std::sync::Arc;

/// A bucket of fewer elements is reduced together with the next: a final norm and a reward head are too small for a
/// collective of their own.
const SMALL: usize = 1 << 14;

/// The segments of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSegments {
    /// Its own parameters.
    pub base: usize,
    /// Its adapters, if there are any.
    pub adapter: Option<usize>,
}

/// Segments whose buckets are reduced together, group after group.
pub(crate) type Reductions = Arc<[Vec<usize>]>;

/// Numbers of a model's segments, by their parts. Forward: embedding, blocks, norm, heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The token embedding.
    pub embedding: usize,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSegments>,
    /// The final norm.
    pub(crate) norm: usize,
    /// An untied language-model head, if the model has one.
    pub(crate) language_model_head: Option<usize>,
    /// The reward head.
    pub(crate) reward_head: usize,
    /// All of them in the order in which the backward pass completes their buckets.
    pub completions: Vec<usize>,
    /// Those that are trained, in the groups whose buckets are reduced together, in the order of these collectives.
    pub(crate) reductions: Reductions,
    /// Whether the vocabulary product is by the token embedding.
    tied: bool,
}

impl Order {
    /// For the parts of a model, in the order of its segments; `trained` gives the number of elements of a trained segment.
    ///
    /// # Errors
    /// A part that every model has is missing.
    pub(crate) fn of(parts: &[Part], tied: bool, trained: impl Fn(usize) -> Option<usize>) -> Result<Self> {
        let find = |part: Part| parts.iter().position(|other| *other == part);
        let place = |part: Part| find(part).ok_or_else(|| Error::runtime(format!("the model has no {part:?}")));
        let layers = parts.iter().filter(|part| matches!(part, Part::Block(_))).count();
        let block =
            |number| Ok(BlockSegments { base: place(Part::Block(number))?, adapter: find(Part::Adapter(number)) });
        let completions = completions(parts);
        Ok(Self {
            embedding: place(Part::Embedding)?,
            blocks: (0..layers).map(block).collect::<Result<_>>()?,
            norm: place(Part::Norm)?,
            language_model_head: find(Part::LanguageModelHead),
            reward_head: place(Part::RewardHead)?,
            reductions: reductions(&completions, trained).into(),
            completions,
            tied,
        })
    }

    /// The segment whose first parameter is the vocabulary matrix [V, D]; none in an untied model without such a head.
    pub fn vocabulary(&self) -> Option<usize> {
        if self.tied { Some(self.embedding) } else { self.language_model_head }
    }
}

/// Numbers of these parts in the order in which the backward pass completes their buckets: from the heads to the embedding,
/// which also completes a tied vocabulary matrix.
pub(crate) fn completions(parts: &[Part]) -> Vec<usize> {
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

/// The trained ones of these segments in the groups whose buckets are reduced together: a group ends with the first bucket
/// that is not small. `trained` gives the number of elements of a trained segment.
pub fn reductions(completions: &[usize], trained: impl Fn(usize) -> Option<usize>) -> Vec<Vec<usize>> {
    let (mut groups, mut open) = (Vec::new(), Vec::new());
    for &segment in completions {
        let Some(elements) = trained(segment) else { continue };
        open.push(segment);
        if elements >= SMALL {
            groups.push(std::mem::take(&mut open));
        }
    }
    groups.extend((!open.is_empty()).then_some(open));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buckets_wait_for_the_next_that_is_trained() {
        let elements =
            |segment: usize| [Some(SMALL), None, Some(3), Some(SMALL + 1), Some(7), Some(8)].get(segment).copied()?;
        assert_eq!(reductions(&[5, 4, 3, 2, 1, 0], elements), [vec![5, 4, 3], vec![2, 0]]);
        assert_eq!(reductions(&[3, 1, 2, 5], elements), [vec![3], vec![2, 5]]);
        assert!(reductions(&[1], elements).is_empty());
    }

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
        let order = Order::of(&untied, false, |segment| (segment != 4).then_some(1 << 20)).unwrap();
        assert_eq!((order.completions.clone(), order.vocabulary()), (vec![5, 4, 3, 2, 7, 1, 6, 0], Some(4)));
        assert_eq!(order.reductions.concat(), [5, 3, 2, 7, 1, 6, 0]);
        let tied = [Part::Embedding, Part::Block(0), Part::Norm, Part::RewardHead];
        let order = Order::of(&tied, true, |_| Some(1)).unwrap();
        assert_eq!((order.completions.clone(), order.vocabulary()), (vec![3, 2, 1, 0], Some(0)));
        assert!(Order::of(&tied[..3], true, |_| Some(1)).is_err());
    }
}
