//! Arguments of `haf-dist verify`.

use super::Scoring;
use crate::config::Dtype;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Args)]
pub struct Verifying {
    /// A run's folder, a checkpoint of it or an export, with its self-test.json; or hf://owner/name
    pub(crate) checkpoint: PathBuf,

    /// The base of an adapter [default: as its adapter_config.json says]
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,

    /// Write a script that checks it in Transformers, and do nothing else [default: check it here]
    #[arg(long, value_name = "FILE")]
    pub(crate) python: Option<PathBuf>,

    /// Print JSON, one line per conversation [default: a table]
    #[arg(long, conflicts_with = "python")]
    pub(crate) json: bool,

    /// Precision of the computation [default: as trained]
    #[arg(long, value_enum, help_heading = "Computation")]
    pub(crate) dtype: Option<Dtype>,

    /// Threads per rank; 0: this node's cores divided by its ranks
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Computation")]
    pub(crate) threads: usize,
}

impl Verifying {
    /// The model, opened as `score` would open it.
    pub(crate) fn scoring(&self) -> Scoring {
        Scoring {
            checkpoint: self.checkpoint.clone(),
            base: self.base.clone(),
            // This command looks for changes: it warns of changed files and shows how the rewards differ.
            allow_changed: true,
            data: PathBuf::new(),
            column: Vec::new(),
            template: None,
            max_length: None,
            max_prompt_length: None,
            reward_at: None,
            dtype: self.dtype,
            tokens_per_micro_batch: 4096,
            threads: self.threads,
        }
    }
}
