//! The command line: [`Arguments`] is what was typed, [`Request`] is what it means.
//!
//! Not here: doing it (`commands/`), and keys of the config file (`config/`).

mod comparing;
mod costs;
mod evaluating;
mod examples;
mod initializing;
pub mod outcome;
mod request;
mod run_config;
mod values;
mod verifying;

pub(crate) use comparing::{Compared, Comparing, Training, VariantSettings};
pub(crate) use costs::{Bench, Model, Planning};
pub(crate) use evaluating::Evaluating;
pub(crate) use initializing::Initializing;

use crate::config::{Dtype, Format, RewardAt, TemplateKind};
use crate::logging::{Color, Detail, Showing};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use comparing::TypedComparing;
use evaluating::TypedEvaluating;
pub(crate) use request::{Alone, Checking, Output};
pub use request::{Command, Request};
pub(crate) use run_config::RunConfig;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use values::{column, positive};
pub(crate) use verifying::Verifying;

/// Train reward models with the HaF-RM hybrid loss, on one process or many
///
/// Without a command it trains. By default it is one process; --ranks N starts N processes on this machine. Across
/// machines use mpirun or srun. On GPUs start one process per GPU.
#[derive(Debug, Parser)]
#[command(
    name = "haf-dist",
    version,
    after_help = examples::TRAINING,
    long_version = LONG_VERSION,
    override_usage = "haf-dist [train] <CONFIG> [KEY=VALUE]... [--resume | --debug] [--ranks <N>]\n       haf-dist --config <FILE> [--set <KEY=VALUE>]...\n       haf-dist <COMMAND>",
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<TypedCommand>,

    #[command(flatten)]
    run: RunConfig,

    /// Continue from the newest complete checkpoint in the output folder [default: refuse a folder that holds a run]
    #[arg(long, help_heading = "Training")]
    resume: bool,

    /// A few steps on a few pairs in one process without mpirun, every check on [default: off]
    ///
    /// Compares packed with one-pair-at-a-time scores and gradients, names every gradient that is not finite, and shows
    /// the first pairs with the reward token marked.
    #[arg(long, help_heading = "Training", conflicts_with = "resume")]
    debug: bool,

    /// Accept a checkpoint as model.path although its files have changed since it was written [default: refuse it]
    #[arg(long, help_heading = "Training")]
    allow_changed: bool,

    /// Print one JSON object at the end, but nothing if a signal stops the run [default: a table and a verdict]
    #[arg(long, help_heading = "Training", conflicts_with = "debug")]
    json: bool,

    /// Write a trace of what each thread does, for chrome://tracing or ui.perfetto.dev [default: no trace]
    ///
    /// Under mpirun each rank writes its own file: trace.rank-0.json, trace.rank-1.json and so on for trace.json.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Diagnosis")]
    trace: Option<PathBuf>,

    /// Start this many ranks on this machine with the MPI that is found [default: one, or as many as mpirun starts]
    ///
    /// Sets Open MPI's options for binding, for root and for more ranks than cores. Across machines use mpirun or srun.
    #[arg(long, global = true, value_name = "N", value_parser = positive, help_heading = "Ranks")]
    ranks: Option<usize>,

    /// Show only warnings and errors [default: also messages and progress]
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = "Messages")]
    quiet: bool,

    /// Show debug messages, from every rank
    #[arg(long, short, global = true, help_heading = "Messages")]
    verbose: bool,

    /// Color messages: on a terminal, always, or never
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t, help_heading = "Messages")]
    color: Color,
}

impl Arguments {
    /// The trace file, for any command.
    pub fn trace(&self) -> Option<&Path> {
        self.trace.as_deref()
    }

    /// What this rank shows on stderr.
    pub fn showing(&self, rank: Option<usize>) -> Showing {
        let detail = match (self.quiet, self.verbose) {
            (true, _) => Detail::Quiet,
            (_, true) => Detail::Verbose,
            _ => Detail::Normal,
        };
        Showing { rank, traced: self.trace.is_some(), detail, color: self.color }
    }

    /// Number of ranks to start on this machine, for any command.
    pub fn ranks(&self) -> Option<usize> {
        self.ranks
    }
}

/// The version, and the commit, sources, libtorch and MPI of this build.
pub(crate) const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit   ",
    env!("HAF_DIST_COMMIT"),
    "\nsources  ",
    env!("HAF_DIST_SOURCES"),
    "\nlibtorch ",
    env!("HAF_DIST_LIBTORCH_VERSION"),
    " at build time, in ",
    env!("HAF_DIST_LIBTORCH"),
    "\nMPI      ",
    env!("HAF_DIST_MPI"),
    " at build time\nhaf-dist doctor shows what is found now",
);

#[derive(Debug, Subcommand)]
enum TypedCommand {
    /// Write a commented config for a model and data, or from TRL's or LLaMA-Factory's config
    #[command(after_help = examples::INIT)]
    Init(Initializing),
    /// Train a reward model
    #[command(after_help = examples::TRAIN)]
    Train {
        #[command(flatten)]
        run: RunConfig,
        /// Continue from the newest complete checkpoint in the output folder [default: refuse a folder that holds a run]
        #[arg(long)]
        resume: bool,
        /// A few steps on a few pairs in one process without mpirun, every check on [default: off]
        #[arg(long, conflicts_with = "resume")]
        debug: bool,
        /// Accept a checkpoint as model.path although its files have changed since it was written [default: refuse it]
        #[arg(long)]
        allow_changed: bool,
        /// Print one JSON object at the end, but nothing if a signal stops the run [default: a table and a verdict]
        #[arg(long, conflicts_with = "debug")]
        json: bool,
    },
    /// Evaluate a checkpoint on pairs (accuracy with its interval, margin and losses per domain) or on benchmarks
    #[command(after_help = examples::EVAL)]
    Eval(TypedEvaluating),
    /// Write a reward for every answer in a file, as JSON lines
    #[command(after_help = examples::SCORE)]
    Score {
        #[command(flatten)]
        scoring: Scoring,
        /// JSONL, a JSON array (both plain, gzip or zstd) or Parquet; - for standard input; or hf://owner/name[@revision][/file
        /// or config/split]
        #[arg(long, value_name = "FILE")]
        data: PathBuf,
        /// Where to write; `-` is standard output
        #[arg(long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// Add `combined`, the weighted sum of both heads that was fitted on the run's dev pairs [default: leave it out]
        #[arg(long)]
        combined: bool,
        /// Add `tokens`: each answer token's part of the implicit reward, and its characters
        ///
        /// `credit` is beta (log-prob - reference log-prob); the credits add up to the implicit reward. `start` and `end` are
        /// character positions in the answer; a token without characters, such as the EOS, has `start` = `end`. Byte-level
        /// tokenizers may split a character into several tokens; each of them covers it, so ranges may overlap.
        #[arg(long)]
        tokens: bool,
    },
    /// Compare runs on the same test pairs: which is better, by how much, and how certain that is; or train them first
    #[command(after_help = examples::COMPARE)]
    Compare(TypedComparing),
    /// Time whole training steps: pairs per second and memory
    #[command(after_help = examples::BENCH)]
    Bench {
        #[command(flatten)]
        bench: Bench,
    },
    /// Tokenize and compute reference log-probs ahead of training, without creating a run folder
    #[command(after_help = examples::PREPARE)]
    Prepare {
        #[command(flatten)]
        run: RunConfig,
        /// Accept a checkpoint as model.path although its files have changed since it was written [default: refuse it]
        #[arg(long)]
        allow_changed: bool,
        /// Print one JSON object: the cache's folder, and what was read, kept, dropped and truncated [default: lines]
        #[arg(long)]
        json: bool,
    },
    /// Copy a checkpoint for other programs, or merge an adapter into its base
    #[command(after_help = examples::EXPORT)]
    Export(Exporting),
    /// Check that a model gives the rewards it had when it was saved, here or in Transformers
    #[command(after_help = examples::VERIFY)]
    Verify(Verifying),
    /// Predict memory, step time and scaling for given hardware
    #[command(after_help = examples::PLAN)]
    Plan(Planning),
    /// List the model families, or check whether a folder would load, with every reason why not
    #[command(after_help = examples::MODELS)]
    Models {
        /// A model's folder [default: a list of the families]
        #[arg(value_name = "FOLDER")]
        folder: Option<PathBuf>,
        /// Print JSON: one line per family, or one object for the folder [default: lines]
        #[arg(long)]
        json: bool,
    },
    /// List the supported layouts of rows, or show one with an example
    Formats {
        /// A layout [default: a table of all]
        #[arg(value_enum, value_name = "NAME")]
        format: Option<Format>,
        /// Print JSON, one line per layout [default: a table]
        #[arg(long)]
        json: bool,
    },
    /// Check whether a run would start: keys, files, the first rows, model, adapter, memory, disk, ranks
    #[command(after_help = examples::CHECK)]
    Check {
        #[command(flatten)]
        run: RunConfig,
        /// Check a run that continues from its newest complete checkpoint
        #[arg(long)]
        resume: bool,
        /// Print one JSON list instead of lines [default: lines]
        #[arg(long)]
        json: bool,
    },
    /// Show what this machine has and what is missing: libtorch, GPUs, MPI, cores, memory, disk
    Doctor {
        /// Print one JSON object instead of lines [default: lines]
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completion script for commands and options
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
}

/// The arguments of `export`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct Exporting {
    /// Merge the checkpoint's adapter into its base: a whole model
    #[arg(long)]
    pub(crate) merge: bool,

    /// The base of an adapter [default: as its adapter_config.json says]
    #[arg(long, value_name = "DIR", requires = "merge")]
    pub(crate) base: Option<PathBuf>,

    /// Accept a checkpoint although its files have changed since it was written [default: refuse it]
    #[arg(long)]
    pub(crate) allow_changed: bool,

    /// Print one JSON object: the folder and its files [default: the folder]
    #[arg(long)]
    pub(crate) json: bool,

    /// A run's folder (its best checkpoint by dev pairs, else its newest), a checkpoint of it, or a LoRA folder as PEFT
    /// writes it; or hf://owner/name
    pub(crate) checkpoint: PathBuf,

    /// The folder to create
    pub(crate) out: PathBuf,
}

/// Options that `eval` and `score` share. `None` stands for the value with which the checkpoint was trained, or the config's
/// default for a folder that haf-dist did not write.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct Scoring {
    /// A run's folder (its best checkpoint by dev pairs, else its newest), a checkpoint of it, any
    /// *ForSequenceClassification folder of a known model family, or a PEFT LoRA folder; or hf://owner/name
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,

    /// The base of a checkpoint that is an adapter [default: as its adapter_config.json says]
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,

    /// Accept a checkpoint although its files have changed since it was written [default: refuse it]
    #[arg(long)]
    pub(crate) allow_changed: bool,

    /// The rows to score; each command decides whether they are required.
    #[arg(skip)]
    pub(crate) data: PathBuf,

    /// The rows' name for a key of the format, e.g. prompt=question or chosen=answers.best; may be repeated
    #[arg(long, value_name = "KEY=PATH", value_parser = column, help_heading = "Data")]
    pub(crate) column: Vec<(String, String)>,

    /// How a prompt and an answer become text [default: as trained, else chat]
    #[arg(long, value_enum, help_heading = "Data")]
    pub(crate) template: Option<TemplateKind>,

    /// Token at which the reward is read [default: as trained, else end, where Transformers reads it]
    #[arg(long, value_enum, help_heading = "Data")]
    pub(crate) reward_at: Option<RewardAt>,

    /// Longest sequence, in tokens; longer ones are truncated and reported [default: the model's own limit]
    #[arg(long, value_name = "TOKENS", value_parser = positive, help_heading = "Data")]
    pub(crate) max_length: Option<usize>,

    /// A prompt keeps at least this many tokens; then the answer is truncated [default: as trained, or three quarters of the
    /// longest sequence]
    #[arg(long, value_name = "TOKENS", value_parser = positive, help_heading = "Data")]
    pub(crate) max_prompt_length: Option<usize>,

    /// Precision of the computation [default: as trained, else auto: bf16 where the processor or GPU computes in it]
    #[arg(long, value_enum, help_heading = "Computation")]
    pub(crate) dtype: Option<Dtype>,

    /// Size of a micro-batch in tokens; lower it if memory runs out
    #[arg(long, value_name = "TOKENS", value_parser = positive, default_value_t = 4096, help_heading = "Computation")]
    pub(crate) tokens_per_micro_batch: usize,

    /// Threads per rank; 0: this node's cores divided by its ranks
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Computation")]
    pub(crate) threads: usize,
}

impl Scoring {
    /// The rows' names for keys of the format.
    pub(crate) fn columns(&self) -> BTreeMap<String, String> {
        self.column.iter().cloned().collect()
    }
}

/// Every command, in the order of `--help`.
fn command_names() -> Vec<String> {
    Arguments::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

/// The completion script of `shell` for this command line.
pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "haf-dist", &mut script);
    script
}
