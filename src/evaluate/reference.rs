//! Fills and checks the reference cache: each answer's log-prob under the starting model (with adapters: under its base),
//! computed once. Results are stored every minute, so that a run stopped in between continues from there.
//!
//! Call it while the engine still holds the starting weights; training then needs no second model.

use crate::comm::CommThread;
use crate::data::prepared::PreparedData;
use crate::data::reference_cache::ReferenceCache;
use crate::engine::Engine;
use crate::error::Result;
use crate::evaluate::scoring::{Progress, ToScore, score_part};
use std::ops::Range;
use std::time::{Duration, Instant};
use tracing::{info, trace_span};

/// Most micro-batches of each rank in a part. A restarted pass begins at a part, so that it packs the rest as the interrupted
/// one would have, and gives the same bits. Parts are long because ranks wait for one another at their ends.
const PART: usize = 16;

/// Floating-point operations of each rank in a part, beyond its first micro-batch: about a minute of a fast CPU, after which
/// results are due to be stored. Not measured, or a restarted pass would cut other parts.
const OPERATIONS: usize = 18_000_000_000_000;

/// Time after which results in memory are stored.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// `[chosen, rejected]` log-probs of the data's answers under the model in `engine`, at least for the `needed` pairs; NaN
/// for pairs that neither this call nor an earlier run has computed. All ranks compute what the cache lacks.
///
/// All ranks must call it. Only rank 0 reads and writes the cache; the others pass none.
///
/// # Errors
/// A lost rank, log-probs that are not finite, or a cache folder that cannot be written.
pub fn log_probs(
    engine: &mut Engine,
    (data, needed): (&PreparedData, &[usize]),
    comm: &CommThread,
    cache: Option<&ReferenceCache>,
    tokens_per_micro_batch: usize,
    split: &str,
) -> Result<Vec<[f32; 2]>> {
    let mut values = from_rank_0(cache.and_then(|cache| cache.load(data.len())), comm)?;
    values.resize(data.len(), [f32::NAN; 2]);
    let missing: Vec<usize> = needed.iter().copied().filter(|&pair| values[pair][0].is_nan()).collect();
    if missing.is_empty() {
        info!("reference log-probs of {split}: {} pairs from the cache", needed.len());
        return Ok(values);
    }
    let _span = trace_span!("reference pass", split, pairs = missing.len()).entered();
    let started = Instant::now();
    let kept = needed.len() - missing.len();
    let and_kept = if kept > 0 { format!("; {kept} are in the cache") } else { String::new() };
    // Single answers stand alone, without a rejected one.
    let single = missing.iter().all(|&pair| data.pair(pair).rejected.is_empty());
    let what = if single { "answers" } else { "pairs" };
    info!("reference log-probs of {split}: computing {} {what} with the starting model{and_kept}", missing.len());
    let tokens: Vec<usize> = missing.iter().map(|&pair| data.tokens(pair)).collect();
    let mut progress = Progress::new("reference", missing.len());
    let mut stored = Instant::now();
    let micro_batches = micro_batches(engine.model.parameter_count(), tokens_per_micro_batch);
    for part in parts(&tokens, micro_batches * tokens_per_micro_batch * comm.world_size()) {
        let pairs = &missing[part.clone()];
        let scored = engine.without_adapters(|base| {
            let to_score = ToScore { data, pairs, tokens_per_micro_batch, log_probs: true };
            score_part(base, to_score, comm, &mut progress)
        })?;
        for scores in scored {
            values[scores.index] = scores.log_probs.map(|value| value as f32);
        }
        let due = part.end == missing.len() || stored.elapsed() >= STORE_EVERY;
        comm.agree(match cache {
            Some(cache) if due => {
                stored = Instant::now();
                cache.store(&values)
            }
            _ => Ok(()),
        })?;
    }
    drop(progress);
    info!("reference log-probs of {split}: done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(values)
}

/// The content of rank 0's cache, on every rank; empty if it has none.
fn from_rank_0(found: Option<Vec<[f32; 2]>>, comm: &CommThread) -> Result<Vec<[f32; 2]>> {
    let own = found.unwrap_or_default().iter().flatten().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let bytes = comm.broadcast_bytes(Some(own))?;
    let read = |row: &[u8]| [0, 4].map(|at| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]));
    Ok(bytes.chunks_exact(8).map(read).collect())
}

/// Micro-batches of each rank in a part: a forward pass takes two operations a parameter and token.
fn micro_batches(parameters: usize, tokens: usize) -> usize {
    (OPERATIONS / parameters.saturating_mul(2 * tokens).max(1)).clamp(1, PART)
}

/// Cuts a list of lengths into parts that each sum up to at least `enough`, except the last. Cutting the rest of a list after
/// some parts gives the other parts.
fn parts(lengths: &[usize], enough: usize) -> Vec<Range<usize>> {
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

    #[test]
    fn parts_are_shorter_where_micro_batches_take_longer() {
        let sizes = [1000, 135_000_000, 1_000_000_000, 8_000_000_000];
        assert_eq!(sizes.map(|parameters| micro_batches(parameters, 4096)), [16, 16, 2, 1]);
        assert_eq!(micro_batches(8_000_000_000, 1 << 40), 1);
    }

    #[test]
    fn parts_cover_the_list_and_its_rest_is_cut_alike() {
        let tokens: Vec<usize> = (0..50).map(|index| 1 + index * 7 % 13).collect();
        let all = parts(&tokens, 40);
        assert!(all.len() > 4);
        assert_eq!(all.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        let done = all[2].end;
        let rest = parts(&tokens[done..], 40).into_iter().map(|part| part.start + done..part.end + done);
        assert_eq!(rest.collect::<Vec<_>>(), all[3..]);
        assert_eq!(parts(&tokens, 1).len(), 50);
        assert!(parts(&[], 40).is_empty());
    }
}
