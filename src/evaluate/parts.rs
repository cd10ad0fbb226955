//! Cuts a data set into parts that all ranks score together, and a part into micro-batches.
//!
//! Ranks meet after every part. Without meetings, a rank that is a little slower would be late by hours at the end of a long
//! evaluation, and taken for one that stalls. Parts also bound the work of packing, which grows faster than their size.
//!
//! Not here: what is computed (`scoring.rs`, `reference.rs`, `tokens.rs`).

use crate::comm::CommThread;
use crate::data::sampler;
use crate::engine::Engine;
use crate::machine;
use std::ops::Range;

/// Most micro-batches of each rank in a part. Parts are long because ranks wait for one another at their ends.
const PART: usize = 16;

/// Cuts pairs of these lengths into parts: `fewest` micro-batches of each rank, or as many as take about a minute, up to
/// [`PART`].
pub(super) fn parts(
    lengths: &[usize],
    engine: &Engine,
    comm: &CommThread,
    tokens_per_micro_batch: usize,
    fewest: usize,
) -> Vec<Range<usize>> {
    let operations = machine::operations_per_minute(engine.model.device);
    let micro_batches = micro_batches(engine.model.parameter_count(), tokens_per_micro_batch, operations).max(fewest);
    // A little less, so that a rank whose share is larger needs no further micro-batch.
    let tokens = micro_batches.saturating_mul(tokens_per_micro_batch) / 20 * 19;
    cut(lengths, tokens.saturating_mul(comm.world_size()))
}

/// Most rows that a micro-batch of a rank has, about: a small data set needs no buffers for a whole budget.
pub(super) fn most_rows(lengths: &[usize], comm: &CommThread, tokens_per_micro_batch: usize) -> usize {
    let share = lengths.iter().sum::<usize>().div_ceil(comm.world_size()) + lengths.iter().max().unwrap_or(&0);
    tokens_per_micro_batch.min(share)
}

/// This rank's share of a part: micro-batches of positions in the whole list of `lengths`.
pub(super) fn share(
    lengths: &[usize],
    part: Range<usize>,
    comm: &CommThread,
    tokens_per_micro_batch: usize,
) -> Vec<Vec<usize>> {
    let of_part = &lengths[part.clone()];
    let mine = sampler::deal(of_part, comm.world_size()).swap_remove(comm.rank());
    let my_lengths: Vec<usize> = mine.iter().map(|&place| of_part[place]).collect();
    let mut batches = sampler::micro_batches(&my_lengths, tokens_per_micro_batch);
    batches.iter_mut().flatten().for_each(|place| *place = part.start + mine[*place]);
    batches
}

/// Micro-batches in so many operations: a forward pass takes two a parameter and token.
fn micro_batches(parameters: usize, tokens: usize, operations: usize) -> usize {
    (operations / parameters.saturating_mul(2).saturating_mul(tokens).max(1)).clamp(1, PART)
}

/// Cuts a list of lengths into parts that each sum up to at least `enough`, except the last. Cutting the rest of a list after
/// some parts gives the other parts.
fn cut(lengths: &[usize], enough: usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, length) in lengths.iter().enumerate() {
        sum += length;
        if sum >= enough || index + 1 == lengths.len() {
            parts.push(start..index + 1);
            (start, sum) = (index + 1, 0);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn parts_are_shorter_where_micro_batches_take_longer() {
        let sizes = [1000, 135_000_000, 1_000_000_000, 8_000_000_000];
        let [cpu, gpu] = [Device::Cpu, Device::Cuda(0)].map(machine::operations_per_minute);
        assert_eq!(sizes.map(|parameters| micro_batches(parameters, 4096, cpu)), [16, 16, 2, 1]);
        assert_eq!(sizes.map(|parameters| micro_batches(parameters, 4096, gpu)), [16; 4]);
        assert_eq!(micro_batches(8_000_000_000, usize::MAX, cpu), 1);
    }

    #[test]
    fn parts_cover_the_list_and_its_rest_is_cut_alike() {
        let tokens: Vec<usize> = (0..50).map(|index| 1 + index * 7 % 13).collect();
        let all = cut(&tokens, 40);
        assert!(all.len() > 4);
        assert_eq!(all.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        let done = all[2].end;
        let rest = cut(&tokens[done..], 40).into_iter().map(|part| part.start + done..part.end + done);
        assert_eq!(rest.collect::<Vec<_>>(), all[3..]);
        assert_eq!(cut(&tokens, 1).len(), 50);
        assert!(cut(&[], 40).is_empty());
    }
}
