//! Which pairs make up a step: pure functions of (seed, epoch, step); and how they are dealt to ranks.
//!
//! The order of pairs never depends on the number of ranks: only [`share_out`] and [`deal`] know it. Not here: what a
//! pair holds.

use crate::error::{Error, Result};
use rand::SeedableRng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

/// One source's part of an epoch.
#[derive(Debug, Clone, PartialEq)]
struct SourceShare {
    /// Its pairs in the data set.
    pairs: Range<usize>,
    /// Pairs taken in an epoch: whole passes, then a subset.
    taken: usize,
}

/// Maps steps to the pairs of their global batches.
#[derive(Debug, Clone)]
pub struct Sampler {
    shares: Vec<SourceShare>,
    pairs_per_epoch: usize,
    pairs_per_step: usize,
    shuffle: bool,
    seed: u64,
    /// The epoch asked for last, and its order.
    current: Option<(usize, Vec<usize>)>,
}

impl Sampler {
    /// A sampler of all sources together.
    ///
    /// * `source_ranges`: each source's pairs, as in
    ///   [`PreparedData::source_ranges`](super::prepared::PreparedData::source_ranges);
    /// * `weights`: one per source: an epoch takes round(weight x pairs) pairs of it;
    /// * `pairs_per_step`: size of a global batch;
    /// * `shuffle`: a new order each epoch, over all sources together; else the sources one after the other.
    ///
    /// # Errors
    /// A weight that is negative, not finite, or leaves a source no pairs; no pairs at all; `pairs_per_step` 0.
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
            shares.push(SourceShare { pairs: pairs.clone(), taken });
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

    /// The pairs of a step's global batch, the step counted from 0; independent of earlier calls.
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
        let end = self.shares.iter().map(|share| share.pairs.end).max().unwrap_or(0);
        let (mut seen, mut count) = (vec![false; end], 0);
        for step in 0..steps {
            if count == there_are {
                break;
            }
            for pair in self.global_batch(step) {
                count += usize::from(!std::mem::replace(&mut seen[pair], true));
            }
        }
        (0..end).filter(|pair| seen[*pair]).collect()
    }

    /// All pairs of an epoch, in order.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.pairs_per_epoch);
        for (source, SourceShare { pairs, taken }) in self.shares.iter().enumerate() {
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

/// Deals a global batch to ranks and cuts each rank's pairs into micro-batches of at most `budget` tokens; a pair over the
/// budget has a micro-batch of its own.
///
/// Returns each rank's micro-batches as positions in the batch. All ranks get the same number of micro-batches if they have
/// enough pairs. Token counts are balanced, by moving and swapping pairs, between ranks and between a rank's micro-batches:
/// the step waits for the slowest rank, and a last micro-batch of few tokens would use the machine badly. Tokens are a
/// measure of time: attention's quadratic part is a few percent of the work at these lengths, and its imbalance is a part of
/// that. Every rank computes the same result by itself.
pub fn share_out(token_counts: &[usize], world_size: usize, budget: usize) -> Vec<Vec<Vec<usize>>> {
    let hands = deal(token_counts, world_size);
    let cut = |hand: &[usize], at_least| {
        let tokens: Vec<usize> = hand.iter().map(|&position| token_counts[position]).collect();
        let mut bins = fill(&tokens, budget, at_least);
        bins.iter_mut().flatten().for_each(|place| *place = hand[*place]);
        bins
    };
    let mut shares: Vec<_> = hands.iter().map(|hand| cut(hand, 1)).collect();
    let most = shares.iter().map(Vec::len).max().unwrap_or(0);
    for (share, hand) in shares.iter_mut().zip(&hands) {
        if share.len() < most.min(hand.len()) {
            *share = cut(hand, most);
        }
    }
    shares
}

/// Deals a global batch to ranks so that their token counts balance.
///
/// Returns each rank's positions in the batch, ascending; a rank may get none. The largest and the smallest sum differ
/// by at most the longest pair, usually by far less. Every rank computes the same result by itself.
pub fn deal(token_counts: &[usize], world_size: usize) -> Vec<Vec<usize>> {
    balance(token_counts, world_size)
}

/// Cuts pairs into nearly equal micro-batches of at most `budget` tokens, as few as it finds; a pair over the budget has a
/// micro-batch of its own.
///
/// Returns positions in `token_counts`, ascending in each micro-batch: none empty, each position once.
pub fn micro_batches(token_counts: &[usize], budget: usize) -> Vec<Vec<usize>> {
    fill(token_counts, budget, 1)
}

/// [`micro_batches`], but `at_least` so many if there are enough pairs.
fn fill(token_counts: &[usize], budget: usize, at_least: usize) -> Vec<Vec<usize>> {
    let (small, large): (Vec<usize>, Vec<usize>) =
        (0..token_counts.len()).partition(|&position| token_counts[position] <= budget);
    let tokens: Vec<usize> = small.iter().map(|&position| token_counts[position]).collect();
    let fewest = tokens.iter().sum::<usize>().div_ceil(budget.max(1));
    let mut count = fewest.max(at_least.saturating_sub(large.len())).min(small.len());
    // This ends: with a bin for each pair, each fits. Many bins that are too full need many more, not one.
    let mut bins = loop {
        let bins = balance(&tokens, count);
        match bins.iter().filter(|bin| load(&tokens, bin) > budget).count() {
            0 => break bins,
            too_full => count += (too_full / 8).max(1),
        }
    };
    bins.iter_mut().flatten().for_each(|place| *place = small[*place]);
    bins.extend(large.into_iter().map(|position| vec![position]));
    bins.retain(|bin| !bin.is_empty());
    bins.sort_unstable();
    bins
}

fn load(token_counts: &[usize], bin: &[usize]) -> usize {
    bin.iter().map(|&position| token_counts[position]).sum()
}

/// Spreads positions over `count` bins with nearly equal sums: the longest first, each to the emptiest bin (the first such
/// bin); then the fullest bin exchanges pairs with another one, as long as that evens the two out.
fn balance(token_counts: &[usize], count: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..token_counts.len()).collect();
    longest_first.sort_by_key(|&position| Reverse(token_counts[position]));
    let mut bins = vec![Vec::new(); count];
    // (load, bin), so that the emptiest bin is the first.
    let mut loads: BTreeSet<(usize, usize)> = (0..count).map(|bin| (0, bin)).collect();
    for position in longest_first {
        let Some((load, bin)) = loads.pop_first() else { break };
        bins[bin].push(position);
        loads.insert((load + token_counts[position], bin));
    }
    // Each exchange lowers the fullest bin, so this ends by itself; the limit is for whole data sets, which are large.
    for _ in 0..8 * count {
        let Some(&(most, full)) = loads.last() else { break };
        let exchange = loads.iter().find_map(|&(least, other)| {
            let found = best_exchange(token_counts, [&bins[full], &bins[other]], most - least)?;
            Some((least, other, found))
        });
        let Some((least, other, Exchange { gives, takes, tokens })) = exchange else { break };
        loads.remove(&(most, full));
        loads.remove(&(least, other));
        let given = bins[full].remove(gives);
        if let Some(takes) = takes {
            let taken = bins[other].remove(takes);
            insert(token_counts, &mut bins[full], taken);
        }
        insert(token_counts, &mut bins[other], given);
        loads.insert((most - tokens, full));
        loads.insert((least + tokens, other));
    }
    bins.iter_mut().for_each(|bin| bin.sort_unstable());
    bins
}

/// A pair of the fuller bin for one of the other, or for none; `gives` and `takes` are places within the bins.
struct Exchange {
    gives: usize,
    takes: Option<usize>,
    /// By how much the fuller bin gets lighter.
    tokens: usize,
}

/// The exchange that comes nearest to halving the `gap` between two bins, both sorted longest first; `None` if none brings
/// them closer.
fn best_exchange(token_counts: &[usize], [full, other]: [&[usize]; 2], gap: usize) -> Option<Exchange> {
    let mut best: Option<Exchange> = None;
    for (gives, &given) in full.iter().enumerate() {
        let given = token_counts[given];
        // The best partner is next to the place for a pair of the wanted length.
        let at = place_of(token_counts, other, given.saturating_sub(gap / 2));
        let partners = at.saturating_sub(1)..other.len().min(at + 1);
        for takes in std::iter::once(None).chain(partners.map(Some)) {
            let tokens = given.saturating_sub(takes.map_or(0, |place| token_counts[other[place]]));
            let distance = |tokens: usize| (2 * tokens).abs_diff(gap);
            if tokens > 0 && tokens < gap && best.as_ref().is_none_or(|best| distance(tokens) < distance(best.tokens)) {
                best = Some(Exchange { gives, takes, tokens });
            }
        }
    }
    best
}

/// The place for a pair of `tokens` tokens in a bin that is sorted longest first.
fn place_of(token_counts: &[usize], bin: &[usize], tokens: usize) -> usize {
    bin.partition_point(|&position| token_counts[position] > tokens)
}

fn insert(token_counts: &[usize], bin: &mut Vec<usize>, position: usize) {
    bin.insert(place_of(token_counts, bin, token_counts[position]), position);
}
