//! Chooses the learning rate of each variant in a comparison: the one with the best accuracy on the dev pairs, after the last
//! step of a run with seed 1. Test pairs take no part in the choice.
//!
//! Not here: training those runs (`train.rs`).

use crate::config::Objective;
use crate::error::{Error, Result};
use crate::metrics::{dev_history, number, table};
use serde::Serialize;
use std::path::Path;

/// The result of a run with one of the rates on the dev pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Tried {
    /// The variant's name.
    pub(crate) variant: String,
    /// The rate, as typed.
    pub(crate) learning_rate: String,
    /// Accuracy of the head that the objective trains for ranking.
    pub(crate) dev_accuracy: f64,
    /// That head's loss.
    pub(crate) dev_loss: f64,
    /// Whether the variant is trained with it.
    pub(crate) chosen: bool,
}

/// A run's result on the dev pairs.
pub(crate) struct DevResult {
    /// Accuracy of the head that the objective trains for ranking.
    pub(crate) accuracy: f64,
    /// That head's loss.
    pub(crate) loss: f64,
}

/// Marks the best rate of each variant: the highest accuracy, then the lowest loss.
pub(crate) fn choose(tried: &mut [Tried]) {
    let better = |a: &Tried, b: &Tried| {
        a.dev_accuracy > b.dev_accuracy || (a.dev_accuracy == b.dev_accuracy && a.dev_loss < b.dev_loss)
    };
    for index in 0..tried.len() {
        let of_variant = tried.iter().enumerate().filter(|(_, other)| other.variant == tried[index].variant);
        let beaten = of_variant
            .filter(|(at, _)| *at != index)
            .any(|(at, other)| better(other, &tried[index]) || (at < index && !better(&tried[index], other)));
        tried[index].chosen = !beaten;
    }
}

/// A finished run's result on the dev pairs, after its last step.
///
/// # Errors
/// A run without dev pairs.
pub(crate) fn last_dev(run: &Path, objective: Objective) -> Result<DevResult> {
    let last = dev_history(run, objective)?.pop().ok_or_else(|| {
        Error::input(format!("{} has no evaluation of dev pairs", run.display()))
            .hint("learning rates are chosen on dev pairs: name some ([data] dev) in the config")
    })?;
    // A rate at which training diverges is the worst.
    Ok(DevResult { accuracy: last.accuracy.unwrap_or(0.0), loss: last.loss.unwrap_or(f64::INFINITY) })
}

/// The rates that were tried, as a table with a title.
pub(crate) fn markdown(tried: &[Tried]) -> String {
    let row = |row: &Tried| {
        let (accuracy, loss) = (number(Some(row.dev_accuracy)), number(Some(row.dev_loss)));
        let chosen = if row.chosen { "chosen" } else { "" };
        vec![row.variant.clone(), row.learning_rate.clone(), accuracy, loss, chosen.to_owned()]
    };
    let rows = table(&["variant", "learning rate", "dev accuracy", "dev loss", ""], 1, tried.iter().map(row));
    format!("Learning rates, tried with seed 1, chosen by accuracy on the dev pairs:\n\n{rows}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: one rate of each variant is chosen, by accuracy, then by loss, then the first.
    #[test]
    fn the_best_rate_of_each_variant_is_chosen() {
        let tried = |variant: &str, dev_accuracy: f64, dev_loss: f64| Tried {
            variant: variant.into(),
            learning_rate: "1".into(),
            dev_accuracy,
            dev_loss,
            chosen: false,
        };
        let mut all = [
            tried("a", 0.5, 0.1),
            tried("a", 0.6, 0.7),
            tried("b", 0.6, 0.7),
            tried("b", 0.6, 0.6),
            tried("b", 0.6, 0.6),
        ];
        choose(&mut all);
        assert_eq!(all.map(|row| row.chosen), [false, true, false, true, false]);
    }
}
