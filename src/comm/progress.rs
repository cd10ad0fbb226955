//! What this rank is doing: written by the threads that do it, read by the rank's watchdog.
//!
//! Not here: how other ranks learn of it (`watch/link.rs`), and what follows from it (`watch/judge.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long ranks wait for one another until a config sets it.
const DEFAULT_LIMIT: Duration = Duration::from_secs(600);

/// What a rank is doing, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Doing {
    /// Collectives it has begun so far. All ranks begin the same ones in the same order.
    pub(crate) begun: u64,
    /// Whether the last one is still under way.
    pub(crate) inside: bool,
    /// What the last one is for: the same text on every rank.
    pub(crate) purpose: String,
    /// Long work that others are expected to wait for; empty if there is none.
    pub(crate) work: String,
}

/// Shared by the threads of a rank. A collective takes two uncontended locks.
#[derive(Debug)]
pub struct Progress {
    doing: Mutex<Doing>,
    /// Long work under way, each with a number; messages name the last one.
    work: Mutex<Vec<(u64, String)>>,
    works: AtomicU64,
    limit_ms: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            doing: Mutex::default(),
            work: Mutex::default(),
            works: AtomicU64::new(0),
            limit_ms: AtomicU64::new(DEFAULT_LIMIT.as_millis() as u64),
        }
    }
}

/// Length of the longest beginning of `text` that has at most `most` bytes and cuts no character.
pub(super) fn whole_letters(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    /// A collective begins.
    pub(super) fn begin(&self, purpose: &str) {
        let mut doing = lock(&self.doing);
        doing.begun += 1;
        doing.inside = true;
        doing.purpose.clear();
        doing.purpose.push_str(purpose);
    }

    /// The collective is over for this rank.
    pub(super) fn end(&self) {
        lock(&self.doing).inside = false;
    }

    /// What this rank is doing.
    pub(super) fn now(&self) -> Doing {
        let work = lock(&self.work).last().map(|(_, what)| what.clone()).unwrap_or_default();
        Doing { work, ..lock(&self.doing).clone() }
    }

    /// How long ranks may wait for one another.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms.load(Ordering::Relaxed))
    }

    /// Sets the [`limit`](Self::limit).
    pub(super) fn set_limit(&self, limit: Duration) {
        self.limit_ms.store(limit.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Long work of this rank that others wait for: no stall while this value lives and the rank's process runs.
#[derive(Debug)]
#[must_use = "the work is announced for as long as this lives"]
pub struct AtWork {
    progress: Arc<Progress>,
    number: u64,
}

impl AtWork {
    pub(super) fn start(progress: &Arc<Progress>, what: String) -> Self {
        let number = progress.works.fetch_add(1, Ordering::Relaxed);
        lock(&progress.work).push((number, what));
        Self { progress: progress.clone(), number }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        lock(&self.progress.work).retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_under_way_is_reported_until_it_is_over() {
        let progress = Arc::new(Progress::default());
        assert_eq!(progress.now(), Doing::default());
        progress.begin("bucket 3 of step 7");
        let inside = Doing { begun: 1, inside: true, purpose: "bucket 3 of step 7".into(), work: String::new() };
        assert_eq!(progress.now(), inside);
        progress.end();
        assert_eq!(progress.now(), Doing { inside: false, ..inside.clone() });
        let outer = AtWork::start(&progress, "saving".into());
        let inner = AtWork::start(&progress, "writing weights".into());
        assert_eq!(progress.now().work, "writing weights");
        drop(outer);
        assert_eq!(progress.now().work, "writing weights", "in whatever order they end");
        drop(inner);
        assert_eq!(progress.now().work, "");
    }
}
