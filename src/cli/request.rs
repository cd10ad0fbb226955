//! What the program is asked to do: the typed command line, understood.
//!
//! Not here: what may be typed (`mod.rs`), and doing it (`commands/`).

use super::{
    Arguments, Bench, Evaluating, Exporting, Initialising, Planning, RunConfig, Scoring, TypedCommand, Verifying,
};
use crate::config::Format;
use crate::error::{Error, Result};
use clap_complete::Shell;
use serde::Serialize;
use std::path::PathBuf;

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// What one process answers by itself, without libtorch and MPI.
    Alone(Alone),
    /// What all ranks do.
    Together(Command),
}

/// What one process answers by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Alone {
    /// Predict memory and time.
    Plan(Planning),
    /// List the model families, or say whether a folder would load.
    Models(Option<PathBuf>),
    /// List the layouts of rows, or show one.
    Formats(Option<Format>),
    /// Write a config.
    Init(Initialising),
    /// Say whether a run would start.
    Check(Checking),
    /// Say what this machine has and lacks.
    Doctor {
        /// One JSON object instead of lines.
        json: bool,
    },
    /// Print a shell's completions.
    Completions(Shell),
}

/// What `check` looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct Checking {
    /// The config.
    pub run: RunConfig,
    /// One JSON list instead of lines.
    pub json: bool,
    /// As many ranks as the run would have.
    pub ranks: usize,
}

/// What all ranks are asked to do. Serialised, it is what they compare before they do it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Train a model.
    Train {
        /// The config file.
        config: PathBuf,
        /// `table.key=value` overrides, in order.
        set: Vec<String>,
        /// Go on from the newest whole checkpoint.
        resume: bool,
        /// A few steps in one process with every check on.
        debug: bool,
        /// Whether files of the model may have changed since they were written.
        allow_changed: bool,
    },
    /// Evaluate a checkpoint.
    Eval(Evaluating),
    /// Write rewards.
    Score {
        /// What is scored with what.
        scoring: Scoring,
        /// Where the rewards go.
        output: Output,
        /// Whether the two heads' sum is written too.
        combined: bool,
        /// Whether each token's part of the implicit reward is written too.
        tokens: bool,
    },
    /// Compare finished runs.
    Compare {
        /// Their folders.
        runs: Vec<PathBuf>,
        /// Whether their outcomes may have changed since they were written.
        allow_changed: bool,
        /// JSON lines instead of tables.
        json: bool,
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
    /// Neither `--config` nor a command; a config without a file; suites that are not as they should be.
    fn try_from(typed: Arguments) -> Result<Self> {
        let Arguments { command, config, set, resume, debug, allow_changed, ranks, trace: _ } = typed;
        let Some(command) = command else {
            let config = config.ok_or_else(nothing)?;
            return Ok(Self::Together(Command::Train { config, set, resume, debug, allow_changed }));
        };
        Ok(match command {
            TypedCommand::Plan(planning) => Self::Alone(Alone::Plan(planning)),
            TypedCommand::Models { folder } => Self::Alone(Alone::Models(folder)),
            TypedCommand::Formats { format } => Self::Alone(Alone::Formats(format)),
            TypedCommand::Check { run, json } => {
                Self::Alone(Alone::Check(Checking { run, json, ranks: ranks.unwrap_or(1) }))
            }
            TypedCommand::Init(asked) => Self::Alone(Alone::Init(asked)),
            TypedCommand::Doctor { json } => Self::Alone(Alone::Doctor { json }),
            TypedCommand::Completions { shell } => Self::Alone(Alone::Completions(shell)),
            TypedCommand::Train { run, resume, debug, allow_changed } => {
                let (config, set) = run.resolve()?;
                Self::Together(Command::Train { config, set, resume, debug, allow_changed })
            }
            TypedCommand::Eval(typed) => Self::Together(Command::Eval(Evaluating::try_from(typed)?)),
            TypedCommand::Score { scoring, data, output, combined, tokens } => {
                let scoring = Scoring { data, ..scoring };
                let output = if output.as_os_str() == "-" { Output::Stdout } else { Output::File(output) };
                Self::Together(Command::Score { scoring, output, combined, tokens })
            }
            TypedCommand::Compare { runs, allow_changed, json } => {
                Self::Together(Command::Compare { runs, allow_changed, json })
            }
            TypedCommand::Bench { bench } => Self::Together(Command::Bench(bench)),
            TypedCommand::Prepare { run, allow_changed } => {
                let (config, set) = run.resolve()?;
                Self::Together(Command::Prepare { config, set, allow_changed })
            }
            TypedCommand::Export(exporting) => Self::Together(Command::Export(exporting)),
            TypedCommand::Verify(verifying) => Self::Together(Command::Verify(verifying)),
        })
    }
}

fn nothing() -> Error {
    Error::input(
        "nothing to do: expected --config FILE to train, or a command (init, train, eval, score, compare, prepare, \
         bench, export, verify, plan, models, formats, check, doctor)",
    )
    .hint("haf-dist --help shows them with examples; haf-dist init --model FOLDER --train FILE writes a config")
}
