//! Which pairs make up a step: pure functions of (seed, epoch, step), and how they are dealt out.
//!
//! The order of pairs never depends on the number of ranks: only [`deal`] knows it. Not here: what a pair holds.

use crate::error::{Error, Result};
use rand::SeedableRng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::collections::BinaryHeap;
use std::ops::Range;

/// One source's share of an epoch.
#[derive(Debug, Clone, PartialEq)]
struct Share {
    /// Its pairs in the data set.
    pairs: Range<usize>,
    /// Pairs taken in an epoch: whole passes, then a subset.
    taken: usize,
}

/// Maps steps to the pairs of their global batches.
#[derive(Debug, Clone)]
pub struct Sampler {
    shares: Vec<Share>,
    pairs_per_epoch: usize,
    pairs_per_step: usize,
    shuffle: bool,
    seed: u64,
    /// The epoch asked for last, and its order.
    current: Option<(usize, Vec<usize>)>,
}

impl Sampler {
    /// * `source_ranges`: each source's pairs, as in
    ///   [`PreparedData::source_ranges`](super::prepared::PreparedData::source_ranges);
    /// * `weights`: one a source: an epoch takes round(weight x pairs) of it;
    /// * `pairs_per_step`: size of a global batch;
    /// * `shuffle`: a new order each epoch, over all sources together; else the sources one after the other.
    ///
    /// # Errors
    /// A weight that is negative, not finite, or leaves nothing of a source; no pairs at all; `pairs_per_step` 0.
    pub fn new(
        source_ranges: &[Range<usize>],
        weights: &[f64],
        pairs_per_step: usize,
        shuffle: bool,
        seed: u64,
    ) -> Result<Self> {
        if source_ranges.len() != weights.len() {
            return Err(Error::runtime(format!("{} sources but {} weights", source_ranges.len(), weights.len())));
        }
        if pairs_per_step == 0 {
            return Err(Error::input("train.pairs_per_step is 0: at least 1 was expected"));
        }
        let mut shares = Vec::with_capacity(weights.len());
        let mut pairs_per_epoch = 0;
        for (source, (pairs, &weight)) in source_ranges.iter().zip(weights).enumerate() {
            let taken =
                taken(pairs.len(), weight).map_err(|error| error.at(format_args!("data.train[{source}].weight")))?;
            shares.push(Share { pairs: pairs.clone(), taken });
            pairs_per_epoch += taken;
        }
        if pairs_per_epoch == 0 {
            return Err(Error::input("there is no pair to draw: at least one was expected"));
        }
        Ok(Self { shares, pairs_per_epoch, pairs_per_step, shuffle, seed, current: None })
    }

    /// Pairs in one epoch.
    pub fn pairs_per_epoch(&self) -> usize {
        self.pairs_per_epoch
    }

    /// Steps in one epoch; a short last batch is a step.
    pub fn steps_per_epoch(&self) -> usize {
        self.pairs_per_epoch.div_ceil(self.pairs_per_step)
    }

    /// The epoch that a step belongs to, both from 0.
    pub fn epoch_of(&self, step0: usize) -> usize {
        step0 / self.steps_per_epoch()
    }

    /// The pairs of a step's global batch, the step counted from 0; the same whatever was asked before.
    /// Takes `&mut self` only to keep the epoch's order for the next call.
    pub fn global_batch(&mut self, step0: usize) -> Vec<usize> {
        let epoch = self.epoch_of(step0);
        let order = match self.current.take() {
            Some((kept, order)) if kept == epoch => order,
            _ => self.order(epoch),
        };
        let start = (step0 % self.steps_per_epoch()) * self.pairs_per_step;
        let batch = order[start..order.len().min(start + self.pairs_per_step)].to_vec();
        self.current = Some((epoch, order));
        batch
    }

    /// Every pair that a run of `steps` updates sees, ascending, each once.
    pub fn pairs_of_run(&mut self, steps: usize) -> Vec<usize> {
        let there_are: usize = self.shares.iter().map(|share| share.pairs.len()).sum();
        let mut seen = BTreeSet::new();
        for step in 0..steps {
            if seen.len() == there_are {
                break;
            }
            seen.extend(self.global_batch(step));
        }
        seen.into_iter().collect()
    }

    /// All pairs of an epoch, in order.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.pairs_per_epoch);
        for (source, Share { pairs, taken }) in self.shares.iter().enumerate() {
            let (passes, rest) = (taken / pairs.len().max(1), taken % pairs.len().max(1));
            for _ in 0..passes {
                order.extend(pairs.clone());
            }
            let mut random = generator(self.seed, epoch, 1 + source);
            let mut subset = index::sample(&mut random, pairs.len(), rest).into_vec();
            subset.sort_unstable();
            order.extend(subset.into_iter().map(|pair| pairs.start + pair));
        }
        if self.shuffle {
            order.shuffle(&mut generator(self.seed, epoch, 0));
        }
        order
    }
}

/// round(weight x pairs).
fn taken(pairs: usize, weight: f64) -> Result<usize> {
    if !weight.is_finite() || weight < 0.0 {
        return Err(Error::input(format!("{weight}: a finite number above 0 was expected")));
    }
    let taken = (weight * pairs as f64).round();
    if taken == 0.0 && pairs > 0 {
        return Err(Error::input(format!("{weight} x {pairs} pairs rounds to none: at least one was expected"))
            .hint("raise the weight, or take the source out of the list"));
    }
    // One epoch's order lives in memory.
    if taken > f64::from(u32::MAX) {
        return Err(Error::input(format!("{weight} x {pairs} pairs are more than an epoch can hold"))
            .hint("lower the weight and train for more epochs"));
    }
    Ok(taken as usize)
}

/// An independent random stream for each (seed, epoch, purpose).
fn generator(seed: u64, epoch: usize, purpose: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key.chunks_exact_mut(8).zip([seed, epoch as u64, purpose as u64]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Deals a global batch to ranks so that their token counts balance: the longest pair first, each to the rank with
/// the fewest tokens so far (the lowest such rank).
///
/// Returns each rank's positions in the batch, ascending; a rank may get none. The largest and the smallest sum
/// differ by at most the longest pair. Every rank computes the same answer by itself.
pub fn deal(token_counts: &[usize], world_size: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..token_counts.len()).collect();
    longest_first.sort_by_key(|&position| Reverse(token_counts[position]));
    let mut loads: BinaryHeap<_> = (0..world_size).map(|rank| Reverse((0, rank))).collect();
    let mut hands = vec![Vec::new(); world_size];
    for position in longest_first {
        let Some(Reverse((load, rank))) = loads.pop() else { break };
        hands[rank].push(position);
        loads.push(Reverse((load + token_counts[position], rank)));
    }
    for hand in &mut hands {
        hand.sort_unstable();
    }
    hands
}

/// Cuts a rank's pairs, in order, into micro-batches of at most `budget` tokens; a pair over the budget goes alone.
///
/// Returns ranges of positions in `token_counts`: none empty, together all of them.
pub fn micro_batches(token_counts: &[usize], budget: usize) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (position, &tokens) in token_counts.iter().enumerate() {
        if position > start && sum + tokens > budget {
            cuts.push(start..position);
            (start, sum) = (position, 0);
        }
        sum += tokens;
    }
    if start < token_counts.len() {
        cuts.push(start..token_counts.len());
    }
    cuts
}
