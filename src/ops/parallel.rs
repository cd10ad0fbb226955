//! Distributes loops over the rank's threads. One pool a process; without one everything runs on the calling thread.
//!
//! Not here: libtorch's own threads, which `machine/` sets to the same number.

use crate::error::{Error, Result};
use rayon::prelude::*;
use std::sync::OnceLock;

static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();

/// Sets the number of threads; the first call counts. Until then, and with one thread, there is no pool.
///
/// # Errors
/// The system refuses the threads.
pub fn start(threads: usize) -> Result<()> {
    if threads > 1 && POOL.get().is_none() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| Error::runtime(format!("{threads} threads could not be started: {error}")))?;
        // Another rank of this process (tests) may have been first.
        let _ = POOL.set(pool);
    }
    Ok(())
}

/// Number of threads that [`for_each`] and [`map`] use.
pub fn threads() -> usize {
    POOL.get().map_or(1, rayon::ThreadPool::current_num_threads)
}

/// Calls `work` on every item, in no particular order; returns when all are done.
pub(crate) fn for_each<I: Send>(items: impl Iterator<Item = I> + Send, work: impl Fn(I) + Send + Sync) {
    match POOL.get() {
        Some(pool) => {
            let items: Vec<I> = items.collect();
            pool.install(|| items.into_par_iter().for_each(work));
        }
        None => items.for_each(work),
    }
}

/// The results of `work` for all items, in their order.
pub(crate) fn map<I: Send, O: Send>(items: Vec<I>, work: impl Fn(I) -> O + Send + Sync) -> Vec<O> {
    match POOL.get() {
        Some(pool) => pool.install(|| items.into_par_iter().map(work).collect()),
        None => items.into_iter().map(work).collect(),
    }
}
