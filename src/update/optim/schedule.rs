//! Learning-rate schedules: the share of the peak rate at each update.

use crate::config::Schedule;

/// Share of the peak learning rate at an update, `done` updates after the first.
///
/// Warm-up rises in a straight line and reaches the peak at update `warmup`; then `linear` and `cosine` fall to zero over
/// the rest of `total` updates.
pub(crate) fn schedule(kind: Schedule, done: usize, warmup: usize, total: usize) -> f64 {
    if done < warmup {
        return (done + 1) as f64 / warmup as f64;
    }
    let progress = (done - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    match kind {
        Schedule::Linear => (1.0 - progress).max(0.0),
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
        Schedule::Constant => 1.0,
    }
}
