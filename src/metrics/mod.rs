//! Sinks for a run's numbers: the trait every sink implements, `metrics.jsonl`, the terminal, the closing table, and the
//! outcome of every test pair.
//!
//! Only rank 0 has sinks. Not here: how the numbers are computed. A new sink is one struct that implements [`Sink`].

mod history;
mod jsonl;
mod pairs;
mod router;

pub use crate::config::TOTAL;
pub(crate) use history::{DevPoint, dev_history};
pub use jsonl::Jsonl;
pub(crate) use jsonl::METRICS;
pub(crate) use pairs::TEST_PAIRS;
pub use pairs::{PairOutcome, RunFacts, read_pairs, write_pairs};
pub(crate) use router::RouterMetrics;

use crate::checkpoint::{Fitted, MetricsMark};
use crate::error::Result;
use crate::logging::{self, Progress, Unit};
use crate::statistics::{Interval, Spread};
use crate::terminal::Table;
use serde::Serialize;
use std::time::Instant;

/// One update, as written to `metrics.jsonl`: the names are an interface. Numbers that are not computed, or not finite, are
/// null there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Number of the update, from 1; the losses are from before it.
    pub step: usize,
    /// reward_weight * reward_loss + alpha * policy_loss, and with experts router_balance times their balance loss.
    pub loss: f64,
    /// Mean Bradley-Terry loss per pair of the global batch.
    pub reward_loss: Option<f64>,
    /// Mean policy loss per pair of the global batch.
    pub policy_loss: Option<f64>,
    /// Share of the batch's pairs that the reward ranks correctly; a tie, in the rewards or in the data, counts as one half.
    pub accuracy: Option<f64>,
    /// Mean difference of reward, chosen minus rejected.
    pub margin: Option<f64>,
    /// Routers' choices, in models with experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterMetrics>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Pairs a second, over all ranks.
    pub pairs_per_s: f64,
    /// Tokens a second over all ranks: P + A + B, a prefix counted once.
    pub tokens_per_s: f64,
    /// Wall-clock time of the step, in seconds.
    pub seconds: f64,
}

/// One evaluation of one domain, as written to `metrics.jsonl`: the names are an interface. Numbers that are not computed, or
/// not finite, are null there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationMetrics {
    /// Name of the split: `dev` or `test`.
    pub eval: String,
    /// Updates done before it.
    pub step: usize,
    /// The pairs' domain; [`TOTAL`] for all of them.
    pub domain: String,
    /// Number of pairs.
    pub pairs: usize,
    /// Share of pairs that the reward ranks correctly; a tie counts as one half.
    pub accuracy: Option<f64>,
    /// Lower end of its 95% interval.
    pub accuracy_low: Option<f64>,
    /// Upper end of its 95% interval.
    pub accuracy_high: Option<f64>,
    /// Share of pairs that the policy's implicit reward ranks correctly; a tie counts as one half.
    pub policy_accuracy: Option<f64>,
    /// Lower end of its 95% interval.
    pub policy_accuracy_low: Option<f64>,
    /// Upper end of its 95% interval.
    pub policy_accuracy_high: Option<f64>,
    /// Mean difference of reward, chosen minus rejected.
    pub margin: Option<f64>,
    /// Mean Bradley-Terry loss per pair.
    pub reward_loss: Option<f64>,
    /// Mean policy loss per pair.
    pub policy_loss: Option<f64>,
    /// Share of pairs whose chosen answer is the longer one, in tokens; equal lengths count as one half. The accuracy of a
    /// model that always prefers the longer answer.
    pub longer_accuracy: f64,
    /// 95% interval of the accuracy (of the reward head, or else the policy) minus `longer_accuracy`, on the same pairs; only for
    /// the verdict.
    #[serde(skip)]
    pub over_length: Option<Interval>,
    /// Mean and standard deviation of the rewards of all answers, only for exported models.
    #[serde(skip)]
    pub rewards: Option<Spread>,
    /// Fitted on these pairs if they are the dev pairs, only for exported models.
    #[serde(skip)]
    pub fitted: Option<Fitted>,
}

/// A comparison of the two losses' gradients, as written to `metrics.jsonl`: the names are an interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conflict {
    /// Number of pairs whose gradients are compared, the same every time.
    pub(crate) conflict: usize,
    /// Updates done before it.
    pub(crate) step: usize,
    /// Cosine between the gradient of the weighted reward loss and that of the weighted policy loss, over all trained
    /// parameters: below 0 each loss undoes the other's progress. Null if one of the gradients is 0.
    pub(crate) cosine: Option<f64>,
    /// The same over the parts that both losses reach. The policy loss has no gradient in the reward head, which draws `cosine`
    /// toward 0.
    pub(crate) shared_cosine: Option<f64>,
    /// Norm of the weighted reward loss's gradient, averaged over the pairs.
    pub(crate) reward_norm: f64,
    /// Norm of the weighted policy loss's gradient, averaged over the pairs.
    pub(crate) policy_norm: f64,
    /// The same for each part of the model.
    pub(crate) parts: Vec<PartConflict>,
    /// Time that the comparison took, in seconds.
    pub(crate) seconds: f64,
}

/// [`Conflict`] in one part of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PartConflict {
    /// `embedding`, `block 1` and so on, `norm`, `language-model head`, `reward head`.
    pub(crate) part: String,
    /// See [`Conflict::cosine`].
    pub(crate) cosine: Option<f64>,
    /// See [`Conflict::reward_norm`].
    pub(crate) reward_norm: f64,
    /// See [`Conflict::policy_norm`].
    pub(crate) policy_norm: f64,
}

/// Receives a run's numbers.
pub trait Sink {
    /// Takes one update.
    ///
    /// # Errors
    /// A failed write.
    fn step(&mut self, metrics: &StepMetrics) -> Result<()>;

    /// Takes one evaluation of one domain, or of all of them.
    ///
    /// # Errors
    /// A failed write.
    fn evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()>;

    /// Takes a comparison of the two losses' gradients.
    ///
    /// # Errors
    /// A failed write.
    fn conflict(&mut self, _conflict: &Conflict) -> Result<()> {
        Ok(())
    }

    /// Returns once everything this sink was given is on the disk; with the mark that a checkpoint keeps, if the sink has one.
    ///
    /// # Errors
    /// A failed write.
    fn settle(&mut self) -> Result<Option<MetricsMark>> {
        Ok(None)
    }
}

/// Several sinks act as one; so does an empty list (on ranks other than 0).
impl Sink for Vec<Box<dyn Sink>> {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.iter_mut().try_for_each(|sink| sink.step(metrics))
    }

    fn evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        self.iter_mut().try_for_each(|sink| sink.evaluation(metrics))
    }

    fn conflict(&mut self, conflict: &Conflict) -> Result<()> {
        self.iter_mut().try_for_each(|sink| sink.conflict(conflict))
    }

    fn settle(&mut self) -> Result<Option<MetricsMark>> {
        let mut mark = None;
        for sink in self {
            mark = sink.settle()?.or(mark);
        }
        Ok(mark)
    }
}

/// A progress bar if this process shows one, else a plain line every half minute and for the first and last step. An
/// evaluation is a log line above the bar.
pub(crate) struct Terminal {
    last_step: usize,
    progress: Progress,
    has_printed: bool,
}

impl Terminal {
    /// For a run up to `last_step` that has done `done` steps already.
    pub(crate) fn new(done: usize, last_step: usize) -> Self {
        Self {
            last_step,
            progress: Progress::new("train", Unit::Steps, done as u64, last_step as u64),
            has_printed: false,
        }
    }

    /// The plain line for a step, if one is due: for the first step, the last, and every half minute in between.
    fn plain_line(&mut self, metrics: &StepMetrics, now: Instant) -> Option<String> {
        let first = !std::mem::replace(&mut self.has_printed, true);
        let due = self.progress.due(now);
        if logging::shows_progress() || !(due || first || metrics.step >= self.last_step) {
            return None;
        }
        let left = self.progress.left(now).map_or(String::new(), |left| format!(", {left} left"));
        Some(format!("step {}/{}{left}: {}", metrics.step, self.last_step, summary(metrics)))
    }
}

impl Sink for Terminal {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.progress.at_with(metrics.step as u64, summary(metrics));
        if metrics.step >= self.last_step {
            self.progress.keep();
        }
        if let Some(line) = self.plain_line(metrics, Instant::now()) {
            tracing::info!("{line}");
        }
        Ok(())
    }

    fn evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        // The domains are in metrics.jsonl and in the closing table.
        if metrics.domain == TOTAL {
            tracing::info!("{}", evaluation_line(metrics));
        }
        Ok(())
    }

    fn conflict(&mut self, conflict: &Conflict) -> Result<()> {
        let Conflict { step, cosine, shared_cosine, reward_norm, policy_norm, .. } = conflict;
        let [shared, all] = [*shared_cosine, *cosine].map(number);
        tracing::info!(
            "gradients after step {step}: cosine {shared} over parameters that both losses reach, {all} over all; norms: reward \
             loss {reward_norm:.4}, policy loss {policy_norm:.4}"
        );
        Ok(())
    }
}

impl Drop for Terminal {
    /// Leaves the bar in place if a run stopped early, so that the error that follows starts on a line of its own.
    fn drop(&mut self) {
        self.progress.keep();
    }
}

fn summary(metrics: &StepMetrics) -> String {
    let accuracy = metrics.accuracy.map(|accuracy| format!(", accuracy {accuracy:.3}")).unwrap_or_default();
    // A narrow terminal cuts the end off.
    format!(
        "{:.2} pairs/s, loss {:.4}{accuracy}, gradient norm {:.3}, {:.0} tokens/s",
        metrics.pairs_per_s, metrics.loss, metrics.grad_norm, metrics.tokens_per_s
    )
}

fn evaluation_line(metrics: &EvaluationMetrics) -> String {
    format!(
        "{} after step {}: {} pairs, accuracy {}, policy accuracy {}, margin {}; the longer answer's {}",
        metrics.eval,
        metrics.step,
        metrics.pairs,
        with_interval(metrics.accuracy, Interval::between(metrics.accuracy_low, metrics.accuracy_high)),
        number(metrics.policy_accuracy),
        number(metrics.margin),
        number(Some(metrics.longer_accuracy))
    )
}

/// A plain table of evaluations, one row each in the given order; `-` stands for a number that was not computed.
pub fn evaluation_table(rows: &[EvaluationMetrics]) -> String {
    let mut table = Table::new([
        "split",
        "step",
        "domain",
        "pairs",
        "accuracy (95%)",
        "policy accuracy (95%)",
        "longer answer",
        "margin",
        "reward loss",
        "policy loss",
    ])
    // Names to the left, numbers to the right.
    .right([1, 3, 4, 5, 6, 7, 8, 9]);
    for row in rows {
        table.row([
            row.eval.clone(),
            row.step.to_string(),
            row.domain.clone(),
            row.pairs.to_string(),
            with_interval(row.accuracy, Interval::between(row.accuracy_low, row.accuracy_high)),
            with_interval(row.policy_accuracy, Interval::between(row.policy_accuracy_low, row.policy_accuracy_high)),
            number(Some(row.longer_accuracy)),
            number(row.margin),
            number(row.reward_loss),
            number(row.policy_loss),
        ]);
    }
    table.to_string()
}

/// A plain table; the first `left` columns are left-aligned, the others, which are numbers, right-aligned.
pub(crate) fn table(header: &[&str], left: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new(header.to_vec()).right(left..header.len());
    rows.into_iter().for_each(|row| table.row(row));
    table.to_string()
}

/// A number as written in tables; `-` for none.
pub(crate) fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}

/// A number with its interval, if there is one.
pub(crate) fn with_interval(value: Option<f64>, interval: Option<Interval>) -> String {
    let interval = interval.map(|Interval { low, high }| format!(" ({low:.3} to {high:.3})")).unwrap_or_default();
    number(value) + &interval
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn plain_lines_come_for_the_first_step_the_last_and_every_half_minute() {
        let start = Instant::now();
        let mut terminal = Terminal::new(0, 10);
        let mut line_of = |step: usize, seconds: u64| {
            let metrics = StepMetrics {
                step,
                loss: 0.5,
                reward_loss: None,
                policy_loss: None,
                accuracy: None,
                margin: None,
                router: None,
                grad_norm: 1.0,
                lr: 0.0,
                pairs_per_s: 2.0,
                tokens_per_s: 300.0,
                seconds: 1.0,
            };
            terminal.plain_line(&metrics, start + Duration::from_secs(seconds))
        };
        let first = line_of(1, 1).unwrap();
        assert_eq!(first, "step 1/10: 2.00 pairs/s, loss 0.5000, gradient norm 1.000, 300 tokens/s");
        assert_eq!(line_of(2, 29), None);
        assert!(line_of(3, 31).is_some());
        assert_eq!(line_of(4, 60), None);
        assert!(line_of(10, 60).is_some());
    }
}
