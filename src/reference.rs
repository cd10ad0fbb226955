//! Fills and checks the reference cache: each answer's log-prob under the starting model (of a model with adapters, its
//! base alone), computed once.
//!
//! Call it while the engine still holds the starting weights; training then needs no second model.

use crate::comm::CommThread;
use crate::data::prepared::PreparedData;
use crate::data::reference_cache::ReferenceCache;
use crate::engine::Engine;
use crate::error::Result;
use crate::scoring::score_pairs;
use tracing::{info, trace_span};

/// `[chosen, rejected]` log-probs of the data's answers under the model in `engine`: of the `needed` pairs at least, NaN
/// where neither this call nor an earlier run has computed them. What the cache lacks is computed with every rank's help.
///
/// All ranks must call it. Only rank 0 reads and writes the cache; the others pass none.
///
/// # Errors
/// A lost rank, log-probs that are not finite, or a cache folder that cannot be written.
pub fn log_probs(
    engine: &Engine,
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
    let started = std::time::Instant::now();
    let _base_alone = engine.without_adapters();
    info!("reference log-probs of {split}: computing {} pairs with the starting model", missing.len());
    for scores in score_pairs(engine, (data, &missing), comm, tokens_per_micro_batch, true, "reference")? {
        values[scores.index] = scores.log_probs.map(|value| value as f32);
    }
    comm.agree(cache.map_or(Ok(()), |cache| cache.store(&values)))?;
    info!("reference log-probs of {split}: done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(values)
}

/// What rank 0's cache holds, on every rank; nothing where it holds nothing.
fn from_rank_0(found: Option<Vec<[f32; 2]>>, comm: &CommThread) -> Result<Vec<[f32; 2]>> {
    let own = found.unwrap_or_default().iter().flatten().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let bytes = comm.broadcast_bytes(Some(own))?;
    let read = |row: &[u8]| [0, 4].map(|at| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]));
    Ok(bytes.chunks_exact(8).map(read).collect())
}
