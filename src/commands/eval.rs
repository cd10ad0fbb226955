//! `haf-dist eval`: metrics, calibration and the part of length, of a checkpoint or any reward model folder of a known family,
//! on a file of pairs.

use super::scored::{Scored, open};
use super::setup;
use super::train::concise;
use crate::cli::Scoring;
use crate::comm::CommThread;
use crate::config::{Format, Source};
use crate::error::Result;
use crate::evaluate;
use crate::evaluate::report::{Report, tables};
use crate::evaluate::scoring::score_pairs;
use crate::logging;
use crate::metrics::{EvaluationMetrics, evaluation_table};
use crate::terminal;
use std::path::PathBuf;

/// Runs the command on every rank; `files` are the data, fetched.
///
/// # Errors
/// A folder that is no reward model, or bad data.
pub fn run(scoring: &Scoring, files: &[PathBuf], format: Format, json: bool, comm: &CommThread) -> Result<()> {
    let opened = open(scoring, comm)?;
    let machine = opened.machine(comm)?;
    let max_row_bytes = opened.config.data.max_row_bytes;
    let source = |file| Source { format, columns: scoring.columns(), max_row_bytes, ..Source::new(file) };
    let sources: Vec<Source> = files.iter().map(source).collect();
    let data = setup::prepared(&sources, "eval", &opened.config, &opened.encoder, comm)?;
    if comm.rank() == 0 {
        logging::above_progress(|| terminal::note(data.report().render()));
    }
    let references = opened.references(&data, &machine, comm)?;
    let Scored { mut engine, reported } = opened.model(references.is_some(), &machine, comm)?;
    let budget = scoring.tokens_per_micro_batch;
    let all: Vec<usize> = (0..data.len()).collect();
    let scores = score_pairs(&mut engine, (&data, &all), comm, budget, reported.policy, "eval")?;
    let references = references.unwrap_or_default();
    let rows = evaluate::metrics("eval", opened.state.step, &data, &scores, &references, reported);
    if comm.rank() == 0 {
        print(&rows, &evaluate::reports("eval", &data, &scores, &references, reported), json)?;
    }
    Ok(())
}

fn print(rows: &[EvaluationMetrics], reports: &[Report], json: bool) -> Result<()> {
    if json {
        terminal::lines(rows.iter().filter_map(|row| serde_json::to_string(row).ok()))?;
        terminal::lines(reports.iter().filter_map(|report| serde_json::to_string(report).ok()))
    } else {
        terminal::out(format_args!("{}\n\n{}", evaluation_table(&concise(rows)), tables(reports)))
    }
}
