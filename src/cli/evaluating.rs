//! Arguments of `haf-dist eval`.

use super::Scoring;
use crate::config::Format;
use crate::error::{Error, Result};
use crate::evaluate::suites::Suite;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

/// The arguments of `eval`, as typed.
#[derive(Debug, Clone, Args)]
pub(super) struct TypedEvaluating {
    #[command(flatten)]
    scoring: Scoring,

    /// JSONL, a JSON array (both plain, gzip or zstd) or Parquet; - for standard input; or hf://owner/name[@revision][/file or
    /// config/split]; may be repeated: each file is also reported under its own name
    #[arg(long, value_name = "FILE", required_unless_present_any = ["suite", "best_of"])]
    data: Vec<PathBuf>,

    /// A benchmark and its files, instead of --data: rewardbench, rewardbench2, rm-bench or judgebench, scored as its authors
    /// do; may be repeated
    ///
    /// For example --suite judgebench gpt.jsonl claude.jsonl --suite rewardbench hf://allenai/reward-bench/default/filtered.
    /// Sequences are truncated to the length in the authors' scripts, 2048 tokens (judgebench: not at all), unless --max-length
    /// is given. The prompt loses tokens first, as always here; the scripts cut the text at one end. The result without it is
    /// reported, too.
    #[arg(long, value_names = ["SUITE", "FILE"], num_args = 2.., conflicts_with_all = ["data", "format", "column"])]
    suite: Vec<String>,

    /// Another checkpoint to compare with on the same items of every suite, by the difference and an exact paired test
    #[arg(long, value_name = "DIR", requires = "suite", conflicts_with_all = ["data", "best_of"])]
    against: Option<PathBuf>,

    /// Training files to search for the suites' prompts; may be repeated [default: those of the checkpoint's run]
    #[arg(long, value_name = "FILE", requires = "suite", conflicts_with_all = ["data", "best_of"])]
    train_data: Vec<PathBuf>,

    /// Prompts with scored answers, instead of --data: the expected score of the answer that each head picks out of k
    ///
    /// Rows have `prompt` (a text or messages), `responses` (texts) and `scores` (one number each, such as right or wrong, or
    /// a reference model's reward). Exact for every k, without sampling; the largest k is the smallest number of answers to a
    /// prompt.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "suite", "format", "column", "check_swap"])]
    best_of: Option<PathBuf>,

    /// Compute every pair again with chosen and rejected exchanged: the accuracy must become 1 - accuracy, up to rounding
    #[arg(long, conflicts_with = "suite")]
    check_swap: bool,

    /// How many of each head's worst mistakes, and of the heads' strongest disagreements, to show with their text; 0: none
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with_all = ["suite", "best_of"])]
    worst: usize,

    /// Layout of the rows; auto detects it from the keys of the first row
    #[arg(long, value_enum, default_value_t = Format::Auto, help_heading = "Data")]
    format: Format,

    /// Print JSON lines instead of a table; for pairs, with the keys of metrics.jsonl [default: a table]
    #[arg(long)]
    json: bool,
}

/// The arguments of `eval`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluating {
    /// The model to evaluate; its `data` is empty except for scored answers.
    pub(crate) scoring: Scoring,
    /// Files of pairs; empty with suites or scored answers.
    pub(crate) data: Vec<PathBuf>,
    /// Benchmarks, each with its files.
    pub(crate) suites: Vec<(Suite, Vec<PathBuf>)>,
    /// Another checkpoint to compare with on the same suites.
    pub(crate) against: Option<PathBuf>,
    /// Training files to search for the suites' prompts; empty: the run's own.
    pub(crate) train_data: Vec<PathBuf>,
    /// Prompts with scored answers, instead of pairs.
    pub(crate) best_of: Option<PathBuf>,
    /// Whether pairs are computed again with chosen and rejected exchanged.
    pub(crate) check_swap: bool,
    /// How many of each head's worst mistakes, and of the heads' strongest disagreements, to show.
    pub(crate) worst: usize,
    /// Layout of the rows.
    pub(crate) format: Format,
    /// JSON lines instead of a table.
    pub(crate) json: bool,
}

impl TryFrom<TypedEvaluating> for Evaluating {
    type Error = Error;

    /// # Errors
    /// A file before the first suite's name; a suite without files; a suite that is given twice.
    fn try_from(typed: TypedEvaluating) -> Result<Self> {
        let TypedEvaluating { scoring, data, suite, against, train_data, best_of, check_swap, worst, format, json } =
            typed;
        let scoring = Scoring { data: best_of.clone().unwrap_or_default(), ..scoring };
        Ok(Self {
            scoring,
            data,
            suites: suites(&suite)?,
            against,
            train_data,
            best_of,
            check_swap,
            worst,
            format,
            json,
        })
    }
}

/// Splits the values of all `--suite` options: each suite's name is followed by its files.
fn suites(values: &[String]) -> Result<Vec<(Suite, Vec<PathBuf>)>> {
    let mut suites: Vec<(Suite, Vec<PathBuf>)> = Vec::new();
    for value in values {
        let named = Suite::from_str(value, false).ok();
        if named.is_some_and(|suite| suites.iter().any(|(other, _)| *other == suite)) {
            return Err(Error::input(format!("--suite {value} is given twice")).hint("list all its files after it"));
        }
        match (named, suites.last_mut()) {
            (Some(suite), _) => suites.push((suite, Vec::new())),
            (None, Some((_, files))) => files.push(PathBuf::from(value)),
            (None, None) => {
                let names: Vec<&str> = Suite::value_variants().iter().map(|suite| suite.name()).collect();
                return Err(Error::input(format!("--suite {value}: no suite of that name"))
                    .hint(format!("expected one of {}, then its files", names.join(", "))));
            }
        }
    }
    match suites.iter().find(|(_, files)| files.is_empty()) {
        Some((suite, _)) => {
            let name = suite.name();
            Err(Error::input(format!("--suite {name}: no files are named"))
                .hint(format!("list its files after it; write ./{name} for a file that has a suite's name")))
        }
        None => Ok(suites),
    }
}
