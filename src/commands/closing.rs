//! What a run says at its end: the closing table, whether the model is any good, the paths of its files and the next command.
//!
//! Not here: the table's cells (`metrics/`), and how the verdict is reached (`evaluate/verdict.rs`).

use super::shell;
use crate::checkpoint::{self, TrainState};
use crate::config::{Config, Format, RowRange, Source};
use crate::error::Result;
use crate::evaluate::verdict::{overfitted, verdict};
use crate::files;
use crate::logging;
use crate::metrics::{self, EvaluationMetrics, Jsonl, evaluation_table};
use crate::terminal;
use crate::train::Trainer;
use serde::Serialize;
use std::path::PathBuf;
use tracing::warn;

/// The end of a run as one JSON object: the names are an interface.
#[derive(Serialize)]
struct Closing<'a> {
    /// The run's folder.
    run: &'a PathBuf,
    /// Updates done.
    step: usize,
    /// Whether the run was finished before this command.
    already_finished: bool,
    /// Updates that were skipped, because their gradients were not finite.
    updates_skipped: usize,
    /// The last checkpoint.
    checkpoint: PathBuf,
    /// The best checkpoint by dev pairs.
    best: Option<Best>,
    /// The file with a line for every step and evaluation.
    metrics: PathBuf,
    /// The test pairs' evaluation after the last step, by domain, with the keys of `metrics.jsonl`.
    test: &'a [EvaluationMetrics],
    /// Whether the model is better than chance, in a sentence.
    verdict: Option<String>,
    /// A sentence if the dev loss has been rising.
    overfitted: Option<String>,
    /// The command to continue with.
    next: String,
}

#[derive(Serialize)]
struct Best {
    step: usize,
    /// On the dev pairs.
    accuracy: f64,
    checkpoint: PathBuf,
}

/// Prints the end of a run on stdout, or one JSON object.
///
/// # Errors
/// A metrics file that cannot be read, or a closed stdout.
pub(crate) fn print(config: &Config, trainer: &Trainer, rows: &[EvaluationMetrics], json: bool) -> Result<()> {
    let (run, state) = (&config.output.dir, &trainer.state);
    let (skipped, done) = (state.updates_skipped, state.step);
    if skipped > 0 {
        warn!(
            "{skipped} of {done} updates were skipped, because their gradients were not finite; a lower train.learning_rate \
             or model.dtype = \"f32\" may help"
        );
    }
    let history = metrics::dev_history(run, config.loss.objective)?;
    let verdict = rows.first().or(trainer.last_dev.as_ref()).and_then(verdict);
    let closing = Closing {
        next: next(config, verdict.as_ref().map(|verdict| verdict.good), !rows.is_empty()),
        verdict: verdict.map(|verdict| verdict.sentence),
        overfitted: overfitted(&history),
        test: rows,
        updates_skipped: skipped,
        ..of(config, state)
    };
    if json {
        return logging::above_progress(|| terminal::out(closing.json()));
    }
    let mut lines = Vec::new();
    if !rows.is_empty() {
        lines.push(evaluation_table(&concise(rows)));
    }
    lines.extend(closing.verdict.clone());
    if closing.verdict.is_some() && rows.is_empty() {
        lines.push("There are no test pairs (data.test), so this is of the dev pairs.".to_owned());
    }
    lines.extend(closing.overfitted);
    lines.push(String::new());
    lines.push(format!("checkpoint  {}", closing.checkpoint.display()));
    if let Some(best) = closing.best.filter(|best| best.step != done) {
        lines.push(format!("best on dev {} (accuracy {:.4})", best.checkpoint.display(), best.accuracy));
    }
    lines.push(format!("metrics     {}", closing.metrics.display()));
    lines.push(format!("next        {}", closing.next));
    logging::above_progress(|| terminal::lines(lines))
}

/// The same for a run that `--resume` found finished.
///
/// # Errors
/// A metrics file that lacks lines, or a closed stdout.
pub(crate) fn finished_before(config: &Config, state: &TrainState, json: bool) -> Result<()> {
    Jsonl::check(&config.output.dir, state.step, state.metrics.as_ref())?;
    let (run, steps) = (config.output.dir.display(), state.step);
    let closing = Closing { already_finished: true, ..of(config, state) };
    if json {
        return terminal::out(closing.json());
    }
    terminal::lines([
        format!("{run} is finished: all of its {steps} steps are done, so there was nothing to do"),
        "to train further: raise train.steps or train.epochs".to_owned(),
        format!("next        {}", closing.next),
    ])
}

/// The rows without the one of an only domain, which would repeat the total.
pub(crate) fn concise(rows: &[EvaluationMetrics]) -> Vec<EvaluationMetrics> {
    if rows.len() == 2 { rows[..1].to_vec() } else { rows.to_vec() }
}

/// What is known of a run without an evaluation.
fn of<'a>(config: &'a Config, state: &TrainState) -> Closing<'a> {
    let run = &config.output.dir;
    let place = shell::quoted(&run.to_string_lossy());
    Closing {
        run,
        step: state.step,
        already_finished: false,
        updates_skipped: state.updates_skipped,
        checkpoint: checkpoint::step_path(run, state.step),
        best: state.best.map(|best| Best {
            step: best.step,
            accuracy: best.accuracy,
            checkpoint: checkpoint::step_path(run, best.step),
        }),
        metrics: run.join(metrics::METRICS),
        test: &[],
        verdict: None,
        overfitted: None,
        next: format!("haf-dist eval --checkpoint {place} --data PAIRS"),
    }
}

impl Closing<'_> {
    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The command to continue with after a run; `good`: whether it is shown to be better than chance, if that is known.
fn next(config: &Config, good: Option<bool>, tested: bool) -> String {
    let place = shell::quoted(&config.output.dir.to_string_lossy());
    let seen = config.data.test.first().or(config.data.dev.first());
    // A command line has no rows, columns and so on.
    let file = |pairs: &Source| {
        let simple = pairs.rows == RowRange::default() && pairs.columns.is_empty() && pairs.format == Format::Auto;
        let is_file = pairs.path.as_os_str() != files::STANDARD_INPUT;
        (simple && is_file && !pairs.single_turn).then(|| shell::quoted(&pairs.path.to_string_lossy()))
    };
    match (good, seen) {
        (Some(false), Some(pairs)) => format!(
            "haf-dist eval --checkpoint {place} --data {} --worst 20, to see which pairs it ranks wrongly",
            file(pairs).unwrap_or_else(|| "PAIRS".to_owned())
        ),
        _ if !tested => format!("haf-dist eval --checkpoint {place} --data PAIRS, with pairs it was not trained on"),
        _ if config.lora.is_some() => format!("haf-dist export --merge {place} FOLDER, for other programs"),
        _ => format!("haf-dist export {place} FOLDER, for other programs"),
    }
}
