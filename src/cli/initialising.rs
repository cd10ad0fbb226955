//! What `init` is asked: a model and data, or another program's config.
//!
//! Not here: looking at them and writing the config (`commands/init/`).

use super::values::positive;
use clap::Args;
use std::path::PathBuf;

/// What a config is written for.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Initialising {
    /// The model to start from: a folder, or hf://owner/name
    #[arg(long, value_name = "FOLDER")]
    pub model: Option<PathBuf>,

    /// Files of training pairs
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub train: Vec<PathBuf>,

    /// Files of the pairs that pick the best checkpoint [default: none]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub dev: Vec<PathBuf>,

    /// Files of the pairs that are reported on at the end [default: none]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub test: Vec<PathBuf>,

    /// Take over what TRL's or LLaMA-Factory's YAML says, or the literal arguments of a Python script that uses TRL
    ///
    /// A script is read and never run. What has no counterpart is listed at the end of the config.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Processes that the other program ran on, which its batch is multiplied with
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1, requires = "from")]
    pub processes: usize,

    /// The folder of the run [default: runs/ and the config's name]
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,

    /// Where the config goes; `-` is standard output. A file that is there is never overwritten
    #[arg(long, value_name = "FILE", default_value = "run.toml")]
    pub out: PathBuf,
}
