//! The request to the program: what the typed command line means.
//!
//! Not here: what may be typed (`mod.rs`), and doing it (`commands/`).

use super::{
    Arguments, Bench, Comparing, Evaluating, Exporting, Initializing, Planning, RunConfig, Scoring, TypedCommand,
    Verifying,
};
use crate::config::Format;
use crate::error::{Error, Result};
use clap_complete::Shell;
use serde::Serialize;
use std::path::PathBuf;

/// A request to the program.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// For one process, without libtorch and MPI.
    Alone(Alone),
    /// For all ranks.
    Together(Command),
}

/// Commands for one process.
#[derive(Debug, Clone, PartialEq)]
pub enum Alone {
    /// Predict memory and time.
    Plan(Planning),
    /// List the model families, or check whether a folder would load.
    Models {
        /// A model's folder; none: the families.
        folder: Option<PathBuf>,
        /// JSON instead of lines.
        json: bool,
    },
    /// List the layouts of rows, or show one.
    Formats {
        /// One of them; none: all.
        format: Option<Format>,
        /// JSON instead of lines.
        json: bool,
    },
    /// Write a config.
    Init(Initializing),
    /// Check whether a run would start.
    Check(Checking),
    /// Show what this machine has and lacks.
    Doctor {
        /// One JSON object instead of lines.
        json: bool,
    },
    /// Compare runs, or train runs and compare them.
    Compare(Comparing),
    /// Print a shell's completions.
    Completions(Shell),
}

/// The arguments of `check`.
#[derive(Debug, Clone, PartialEq)]
pub struct Checking {
    /// The config.
    pub(crate) run: RunConfig,
    /// Whether the run would continue from its newest checkpoint.
    pub(crate) resume: bool,
    /// One JSON list instead of lines.
    pub(crate) json: bool,
    /// Number of ranks that the run would have.
    pub(crate) ranks: usize,
}

/// Commands for all ranks, which compare the serialized command before they start it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Train a model.
    Train {
        /// The config file.
        config: PathBuf,
        /// `table.key=value` overrides, in order.
        set: Vec<String>,
        /// Continue from the newest complete checkpoint.
        resume: bool,
        /// A few steps in one process with every check on.
        debug: bool,
        /// Whether files of the model may have changed since they were written.
        allow_changed: bool,
        /// One JSON object at the end instead of lines.
        json: bool,
    },
    /// Evaluate a checkpoint.
    Eval(Evaluating),
    /// Write rewards.
    Score {
        /// The model and the rows.
        scoring: Scoring,
        /// Where the rewards go.
        output: Output,
        /// Whether the two heads' sum is written too.
        combined: bool,
        /// Whether each token's part of the implicit reward is written too.
        tokens: bool,
    },
    /// Time whole training steps.
    Bench(Bench),
    /// Fill the caches that training would fill.
    Prepare {
        /// The config file.
        config: PathBuf,
        /// `table.key=value` overrides, in order.
        set: Vec<String>,
        /// Whether files of the model may have changed since they were written.
        allow_changed: bool,
        /// JSON instead of lines.
        json: bool,
    },
    /// Copy or merge a checkpoint.
    Export(Exporting),
    /// Check a checkpoint's self-test.
    Verify(Verifying),
}

/// Where text goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl TryFrom<Arguments> for Request {
    type Error = Error;

    /// # Errors
    /// Neither a config nor a command; a command that lacks its config; invalid suites or comparisons.
    fn try_from(typed: Arguments) -> Result<Self> {
        let Arguments { command, run, resume, debug, allow_changed, json, ranks, .. } = typed;
        let Some(command) = command else {
            let (config, set) = run.of_training()?;
            return Ok(Self::Together(Command::Train { config, set, resume, debug, allow_changed, json }));
        };
        Ok(match command {
            TypedCommand::Plan(planning) => Self::Alone(Alone::Plan(planning)),
            TypedCommand::Models { folder, json } => Self::Alone(Alone::Models { folder, json }),
            TypedCommand::Formats { format, json } => Self::Alone(Alone::Formats { format, json }),
            TypedCommand::Check { run, resume: continues, json } => {
                let resume = resume || continues;
                Self::Alone(Alone::Check(Checking { run, resume, json, ranks: ranks.unwrap_or(1) }))
            }
            TypedCommand::Init(asked) => Self::Alone(Alone::Init(asked)),
            TypedCommand::Doctor { json } => Self::Alone(Alone::Doctor { json }),
            TypedCommand::Completions { shell } => Self::Alone(Alone::Completions(shell)),
            TypedCommand::Train { run, resume, debug, allow_changed, json } => {
                let (config, set) = run.resolve()?;
                Self::Together(Command::Train { config, set, resume, debug, allow_changed, json })
            }
            TypedCommand::Eval(typed) => Self::Together(Command::Eval(Evaluating::try_from(typed)?)),
            TypedCommand::Score { scoring, data, output, combined, tokens } => {
                let scoring = Scoring { data, ..scoring };
                let output = if output.as_os_str() == "-" { Output::Stdout } else { Output::File(output) };
                Self::Together(Command::Score { scoring, output, combined, tokens })
            }
            TypedCommand::Compare(typed) => Self::Alone(Alone::Compare(typed.understood(ranks)?)),
            TypedCommand::Bench { bench } => Self::Together(Command::Bench(bench)),
            TypedCommand::Prepare { run, allow_changed, json } => {
                let (config, set) = run.resolve()?;
                Self::Together(Command::Prepare { config, set, allow_changed, json })
            }
            TypedCommand::Export(exporting) => Self::Together(Command::Export(exporting)),
            TypedCommand::Verify(verifying) => Self::Together(Command::Verify(verifying)),
        })
    }
}
