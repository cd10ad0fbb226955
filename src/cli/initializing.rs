//! Arguments of `init`: a model and data, or another program's config.
//!
//! Not here: reading them and writing the config (`commands/init/`).

use super::values::positive;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `init`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Initializing {
    /// The model to start from: a folder, or hf://owner/name
    #[arg(long, value_name = "FOLDER")]
    pub(crate) model: Option<PathBuf>,

    /// Files of training pairs
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) train: Vec<PathBuf>,

    /// Files of the pairs that pick the best checkpoint [default: none]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) dev: Vec<PathBuf>,

    /// Files of the pairs that are reported on at the end [default: none]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) test: Vec<PathBuf>,

    /// Convert TRL's or LLaMA-Factory's YAML config, or the literal arguments of a Python script that uses TRL
    ///
    /// A script is read, never run. Settings without a counterpart are listed at the end of the config.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,

    /// Print a config with every key, its default and what it does, and do nothing else
    #[arg(long, exclusive = true)]
    pub(crate) reference: bool,

    /// Number of the other program's processes, by which its batch size is multiplied
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1, requires = "from")]
    pub(crate) processes: usize,

    /// The run's folder [default: runs/NAME for a config file NAME.toml]
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,

    /// Where to write the config; `-` is standard output. An existing file is never overwritten
    #[arg(long, value_name = "FILE", default_value = "run.toml")]
    pub(crate) out: PathBuf,
}
