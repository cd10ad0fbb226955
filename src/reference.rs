//! Fills and checks the reference cache: each answer's log-prob under the starting model, computed once.
//!
//! Call it while the engine still holds the starting weights; training then needs no second model.

use crate::comm::CommThread;
use crate::data::prepared::PreparedData;
use crate::data::reference_cache::ReferenceCache;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::scoring::score_all;
use tracing::info;

/// Log-probs of every pair's answers under the model in `engine`, from the cache or computed with every rank's help.
///
/// All ranks must call it. Only rank 0 reads and writes the cache; `cache` is made there.
///
/// # Errors
/// A lost rank, or a cache folder that cannot be written.
pub fn log_probs(
    engine: &Engine,
    data: &PreparedData,
    comm: &CommThread,
    cache: Option<&ReferenceCache>,
    tokens_per_micro_batch: usize,
    split: &str,
) -> Result<Vec<[f32; 2]>> {
    let found = cache.and_then(|cache| cache.load(data.len()));
    let bytes = found.map(|values| values.iter().flatten().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    let bytes = comm.broadcast_bytes((comm.rank() == 0).then(|| bytes.unwrap_or_default()))?;
    if !bytes.is_empty() {
        info!("reference log-probs of {split}: {} pairs from the cache", data.len());
        let read = |row: &[u8]| [0, 4].map(|at| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]));
        return Ok(bytes.chunks_exact(8).map(read).collect());
    }
    let started = std::time::Instant::now();
    info!("reference log-probs of {split}: computing {} pairs with the starting model", data.len());
    let scores = score_all(engine, data, comm, tokens_per_micro_batch, true, "reference")?;
    let values: Vec<[f32; 2]> = scores.iter().map(|scores| scores.log_probs.map(|value| value as f32)).collect();
    let finite = values.iter().flatten().all(|value| value.is_finite());
    let stored = match cache {
        _ if !finite => {
            Err(Error::runtime(format!("the starting model gives log-probs of {split} that are not finite"))
                .hint("are the model's weights whole? try model.dtype = \"f32\""))
        }
        Some(cache) => cache.store(&values),
        None => Ok(()),
    };
    comm.agree(stored)?;
    info!("reference log-probs of {split}: done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(values)
}
