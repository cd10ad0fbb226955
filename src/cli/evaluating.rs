//! What may be typed behind `haf-dist eval`.

use super::Scoring;
use crate::config::Format;
use crate::error::{Error, Result};
use crate::evaluate::suites::Suite;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

/// What `eval` evaluates and how, as typed.
#[derive(Debug, Clone, Args)]
pub(super) struct TypedEvaluating {
    #[command(flatten)]
    scoring: Scoring,

    /// JSONL, a JSON array (both gzipped or not) or Parquet; - for standard input; or hf://owner/name[@revision][/file or
    /// config/split]; may be repeated: each file is reported under its name too
    #[arg(long, value_name = "FILE", required_unless_present_any = ["suite", "best_of"])]
    data: Vec<PathBuf>,

    /// A benchmark and its files, in place of --data: rewardbench, rewardbench2, rm-bench or judgebench, with its own number;
    /// may be repeated
    ///
    /// For example --suite judgebench gpt.jsonl claude.jsonl --suite rewardbench hf://allenai/reward-bench/default/filtered.
    /// Cut to the length of the authors' scripts, 2048 tokens (judgebench: not at all), unless --max-length is given: the
    /// prompt first, as everywhere here, where the scripts cut the text at one end. The number without cutting stands beside.
    #[arg(long, value_names = ["SUITE", "FILE"], num_args = 2.., conflicts_with_all = ["data", "format", "column"])]
    suite: Vec<String>,

    /// Another checkpoint, whose outcomes on the same items of every suite are subtracted, with an exact paired test
    #[arg(long, value_name = "DIR", requires = "suite", conflicts_with_all = ["data", "best_of"])]
    against: Option<PathBuf>,

    /// Files of training data to look for the suites' prompts in; may be repeated [default: those of the checkpoint's run]
    #[arg(long, value_name = "FILE", requires = "suite", conflicts_with_all = ["data", "best_of"])]
    train_data: Vec<PathBuf>,

    /// Prompts with scored answers, in place of --data: the expected score of the best of k answers that each head picks
    ///
    /// Rows have `prompt` (a text or messages), `responses` (texts) and `scores` (a number each, such as right or wrong, or a
    /// reference model's reward). Exact for every k, without sampling; k goes up to the fewest answers of a prompt.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "suite", "format", "column", "check_swap"])]
    best_of: Option<PathBuf>,

    /// Compute every pair again with its sides exchanged: accuracy must be 1 - accuracy, what differs is rounding
    #[arg(long, conflicts_with = "suite")]
    check_swap: bool,

    /// How many of each head's worst mistakes, and of the heads' strongest disagreements, to show with their text; 0: none
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with_all = ["suite", "best_of"])]
    worst: usize,

    /// Shape of the rows; auto tells it by the keys of the first
    #[arg(long, value_enum, default_value_t = Format::Auto, help_heading = "Data")]
    format: Format,

    /// Print JSON lines, of pairs with the keys of metrics.jsonl, instead of a table [default: a table]
    #[arg(long)]
    json: bool,
}

/// What `eval` evaluates and how.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluating {
    /// With which model; its `data` is empty but for scored answers.
    pub scoring: Scoring,
    /// The pairs; none where there are suites or scored answers.
    pub data: Vec<PathBuf>,
    /// Benchmarks, each with its files.
    pub suites: Vec<(Suite, Vec<PathBuf>)>,
    /// Another checkpoint to be held against on the same suites.
    pub against: Option<PathBuf>,
    /// Files of training data to look for the suites' prompts in; the run's own where there are none.
    pub train_data: Vec<PathBuf>,
    /// Prompts with scored answers, in place of pairs.
    pub best_of: Option<PathBuf>,
    /// Whether pairs are computed again with their sides exchanged.
    pub check_swap: bool,
    /// How many of each head's worst mistakes, and of the heads' strongest disagreements, to show.
    pub worst: usize,
    /// Shape of the rows.
    pub format: Format,
    /// JSON lines instead of a table.
    pub json: bool,
}

impl TryFrom<TypedEvaluating> for Evaluating {
    type Error = Error;

    /// # Errors
    /// A file before the name of a suite, a suite without files or there twice.
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

/// The values of all `--suite`, one after the other: a suite's name starts a suite.
fn suites(values: &[String]) -> Result<Vec<(Suite, Vec<PathBuf>)>> {
    let mut suites: Vec<(Suite, Vec<PathBuf>)> = Vec::new();
    for value in values {
        let named = Suite::from_str(value, false).ok();
        if named.is_some_and(|suite| suites.iter().any(|(other, _)| *other == suite)) {
            return Err(Error::input(format!("--suite {value} is there twice")).hint("name all its files behind it"));
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
            Err(Error::input(format!("--suite {name}: no file is named"))
                .hint(format!("name its files behind it; a file that is called as a suite is written ./{name}")))
        }
        None => Ok(suites),
    }
}
