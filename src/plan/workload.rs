//! The work of each rank: lengths of pairs, dealt to ranks and cut into micro-batches exactly as in training.
//!
//! Not here: its cost (`memory.rs`, `time.rs`).

use crate::config::Config;
use crate::data::batch::Packing;
use crate::data::{TokenPair, sampler};
use serde::Serialize;
use std::ops::{Add, AddAssign};

/// Lengths of one tokenized pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PairTokens {
    /// P: tokens common to both sequences, computed once unless `apart`.
    pub prefix: usize,
    /// A: the chosen sequence's other tokens.
    pub chosen: usize,
    /// B: the rejected sequence's other tokens.
    pub rejected: usize,
    /// Whether each sequence has its own copy of the prefix, because their lengths make them rotate differently.
    pub apart: bool,
}

impl PairTokens {
    /// P + A + B, and P once more if the sequences are apart.
    pub fn total(self) -> usize {
        self.prefix * if self.apart { 2 } else { 1 } + self.chosen + self.rejected
    }

    /// The pair's share of a micro-batch's costs.
    fn shape(self) -> Shape {
        let Self { prefix, chosen, rejected, apart } = self;
        let causal = |rows: usize| rows * (rows + 1) / 2;
        let of_rejected = if apart { causal(prefix + rejected) } else { rejected * prefix + causal(rejected) };
        Shape {
            pairs: 1,
            tokens: self.total(),
            answers: chosen + rejected,
            visible: causal(prefix + chosen) + of_rejected,
            mask: if prefix > 0 && !apart { rejected * (prefix + rejected) } else { 0 },
            longest_answers: chosen + rejected,
            longest_sequence: prefix + chosen.max(rejected),
        }
    }
}

/// An upper bound of all micro-batches: the budget full of pairs without a common prefix, or one pair of the longest
/// sequences.
pub(crate) fn longest(config: &Config) -> Shape {
    let pair = PairTokens { prefix: 0, chosen: config.data.max_length, rejected: config.data.max_length, apart: false };
    let one = sum([pair]);
    one.or_larger(one.of_tokens(config.train.tokens_per_micro_batch))
}

/// The lengths of a pair under this packing.
pub fn lengths(pair: &TokenPair, packing: Packing) -> PairTokens {
    let [prefix, chosen, rejected] = [pair.prefix, pair.chosen, pair.rejected].map(<[u32]>::len);
    PairTokens { prefix, chosen, rejected, apart: !packing.shares(pair) }
}

/// The counts of a micro-batch that its cost depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Shape {
    /// Pairs.
    pub pairs: usize,
    /// T: the sum of P + A + B.
    pub tokens: usize,
    /// Rows that go through the vocabulary product: the sum of A + B.
    pub answers: usize,
    /// Pairs of a query and a key visible to it.
    pub visible: usize,
    /// Elements of the attention masks of the second suffixes.
    pub(crate) mask: usize,
    /// A + B of the pair with the longest answers.
    pub(crate) longest_answers: usize,
    /// Tokens of the longest sequence.
    pub(crate) longest_sequence: usize,
}

impl Add for Shape {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            tokens: self.tokens + other.tokens,
            answers: self.answers + other.answers,
            visible: self.visible + other.visible,
            mask: self.mask + other.mask,
            longest_answers: self.longest_answers.max(other.longest_answers),
            longest_sequence: self.longest_sequence.max(other.longest_sequence),
        }
    }
}

impl AddAssign for Shape {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Shape {
    /// A micro-batch of `tokens` tokens with pairs like these.
    pub(crate) fn of_tokens(self, tokens: usize) -> Self {
        let scaled = |count: usize| (count as u128 * tokens as u128).div_ceil(self.tokens.max(1) as u128) as usize;
        Self {
            pairs: scaled(self.pairs),
            tokens,
            answers: scaled(self.answers),
            visible: scaled(self.visible),
            mask: scaled(self.mask),
            longest_answers: self.longest_answers.min(tokens),
            longest_sequence: self.longest_sequence.min(tokens),
        }
    }

    /// The larger of the two in every count.
    pub(crate) fn or_larger(self, other: Self) -> Self {
        Self {
            pairs: self.pairs.max(other.pairs),
            tokens: self.tokens.max(other.tokens),
            answers: self.answers.max(other.answers),
            visible: self.visible.max(other.visible),
            mask: self.mask.max(other.mask),
            longest_answers: self.longest_answers.max(other.longest_answers),
            longest_sequence: self.longest_sequence.max(other.longest_sequence),
        }
    }
}

/// Every rank's micro-batches of one global batch.
pub(crate) fn shares(batch: &[PairTokens], ranks: usize, tokens_per_micro_batch: usize) -> Vec<Vec<Shape>> {
    let tokens: Vec<usize> = batch.iter().map(|pair| pair.total()).collect();
    let micro_batch = |places: Vec<usize>| sum(places.into_iter().map(|place| batch[place]));
    let shares = sampler::share_out(&tokens, ranks, tokens_per_micro_batch);
    shares.into_iter().map(|share| share.into_iter().map(micro_batch).collect()).collect()
}

/// The shape of some pairs packed together.
pub fn sum(pairs: impl IntoIterator<Item = PairTokens>) -> Shape {
    pairs.into_iter().map(PairTokens::shape).fold(Shape::default(), Add::add)
}

/// An upper bound, in every count, of the micro-batches of these global batches on any rank.
pub fn largest(batches: &[Vec<PairTokens>], ranks: usize, tokens_per_micro_batch: usize) -> Shape {
    let shapes = batches.iter().flat_map(|batch| shares(batch, ranks, tokens_per_micro_batch)).flatten();
    shapes.fold(Shape::default(), Shape::or_larger)
}

/// `count` global batches of `size` pairs, taken from `order` again and again. Empty if there are no pairs.
pub(crate) fn batches(order: &[PairTokens], size: usize, count: usize) -> Vec<Vec<PairTokens>> {
    if order.is_empty() {
        return Vec::new();
    }
    let mut round = order.iter().copied().cycle();
    (0..count).map(|_| round.by_ref().take(size).collect()).collect()
}
