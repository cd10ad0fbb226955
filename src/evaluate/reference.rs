//! Fills and checks the reference cache: each answer's log-prob under the starting model (with adapters: under its base),
//! computed once. Results are stored every minute, so that a run stopped in between continues from there.
//!
//! Call it while the engine still holds the starting weights; training then needs no second model.

use crate::comm::CommThread;
use crate::data::prepared::PreparedData;
use crate::data::reference_cache::ReferenceCache;
use crate::engine::Engine;
use crate::error::Result;
use crate::evaluate::parts::parts;
use crate::evaluate::scoring::{Progress, ToScore, score_part};
use std::time::{Duration, Instant};
use tracing::{info, trace_span};

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
    // A restarted pass begins at a part, so it packs the rest as the interrupted one would have, and gives the same bits.
    for part in parts(&tokens, engine, comm, tokens_per_micro_batch, 1) {
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
