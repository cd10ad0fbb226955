//! Reads a run's dev evaluations back from its `metrics.jsonl`.

use super::jsonl::METRICS;
use crate::config::{Objective, TOTAL};
use crate::error::{Result, file_error};
use crate::files;
use serde_json::Value;
use std::path::Path;

/// One evaluation of all dev pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DevPoint {
    /// Updates done before it.
    pub(crate) step: u64,
    /// Accuracy of the head that the objective ranks by; None if a score was not finite.
    pub(crate) accuracy: Option<f64>,
    /// That head's loss; None if it was not finite.
    pub(crate) loss: Option<f64>,
}

/// A run's evaluations of all dev pairs, ordered by step.
///
/// # Errors
/// A file that cannot be read. Lines that are not evaluations are skipped.
pub(crate) fn dev_history(run: &Path, objective: Objective) -> Result<Vec<DevPoint>> {
    let path = run.join(METRICS);
    let text = files::read_to_string(&path).map_err(|error| file_error(&path, "read", &error))?;
    let (accuracy, loss) = match objective {
        Objective::Policy => ("policy_accuracy", "policy_loss"),
        Objective::Hybrid | Objective::Reward => ("accuracy", "reward_loss"),
    };
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let dev = lines.filter(|line| line["eval"] == "dev" && line["domain"] == TOTAL);
    let point = |line: Value| {
        Some(DevPoint { step: line["step"].as_u64()?, accuracy: line[accuracy].as_f64(), loss: line[loss].as_f64() })
    };
    let mut points: Vec<DevPoint> = dev.filter_map(point).collect();
    points.sort_by_key(|point| point.step);
    Ok(points)
}
