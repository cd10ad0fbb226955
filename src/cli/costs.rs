//! Arguments of the commands that tell the cost of training: `plan` predicts it, `bench` measures it.
//!
//! Not here: the commands themselves (`commands/plan/`, `commands/bench/`).

use super::run_config::RunConfig;
use super::values::{above_zero, pair_tokens, positive, ranks, share};
use crate::config::{Dtype, Objective};
use crate::plan::workload::PairTokens;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `plan`. `None` stands for the value from the hardware table or from the data.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct Planning {
    /// The config, if any
    #[command(flatten)]
    pub(crate) run: RunConfig,

    /// Plan for this model instead of the config's: a folder with config.json, or hf://owner/name
    #[arg(long, value_name = "FOLDER", conflicts_with = "shape", help_heading = "Model")]
    model: Option<PathBuf>,

    /// Plan for a common model by name, e.g. llama-3.1-8b or 8b; its files are not needed
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    shape: Option<String>,

    /// Ranks, one per GPU
    #[arg(long, value_name = "N", value_parser = ranks, default_value_t = 1)]
    pub(crate) gpus: usize,

    /// Tokens of a micro-batch, instead of train.tokens_per_micro_batch
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub(crate) tokens: Option<usize>,

    /// The GPU: h100, h200, a100, a100-40, l40s or rtx4090; cpu: ranks that share this computer
    #[arg(long, value_name = "NAME", default_value = "h100", help_heading = "Hardware")]
    pub(crate) gpu: String,

    /// Assumed share of the peak matrix-product rate that a step reaches [default: by GPU]
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Hardware")]
    pub(crate) mfu: Option<f64>,

    /// Peak matrix-product rate of a rank in TFLOP/s [default: the data sheet's]
    #[arg(long, value_name = "TFLOPS", value_parser = above_zero, help_heading = "Hardware")]
    pub(crate) flops: Option<f64>,

    /// Bandwidth between nodes per GPU, one direction, in GB/s [default: by GPU]
    #[arg(long, value_name = "GB/S", value_parser = above_zero, help_heading = "Hardware")]
    pub(crate) network: Option<f64>,

    /// Tokens of a pair: common prefix, chosen rest, rejected rest [default: those of the data]
    #[arg(long, value_name = "P,A,B", value_parser = pair_tokens, help_heading = "Data")]
    pub(crate) pair_tokens: Option<PairTokens>,

    /// Print one JSON object instead of tables [default: tables]
    #[arg(long)]
    pub(crate) json: bool,
}

/// A model that is named instead of a config's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Model<'p> {
    /// A folder with config.json, or an `hf://` path.
    Folder(&'p Path),
    /// One of `plan::shapes`.
    Shape(&'p str),
}

impl Planning {
    /// The model that is named instead of the config's.
    pub(crate) fn model(&self) -> Option<Model<'_>> {
        let folder = self.model.as_deref().map(Model::Folder);
        folder.or_else(|| self.shape.as_deref().map(Model::Shape))
    }
}

/// Arguments of `bench`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct Bench {
    /// A model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,

    /// JSONL or JSONL.gz with prompt, chosen, rejected as texts, or hh-rlhf transcripts
    #[arg(long, value_name = "FILE")]
    pub(crate) pairs: PathBuf,

    /// The loss to minimize
    #[arg(long, value_enum, default_value_t = Objective::Hybrid)]
    pub(crate) objective: Objective,

    /// Pairs to time, after a warm-up with one global batch of 16 pairs per rank
    #[arg(long, value_name = "PAIRS", value_parser = positive, default_value_t = 32)]
    pub(crate) count: usize,

    /// Longest sequence, in tokens; pairs with a longer one are left out
    #[arg(long, value_name = "TOKENS", value_parser = positive, default_value_t = 512)]
    pub(crate) max_length: usize,

    /// Precision of the computation
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    pub(crate) dtype: Dtype,

    /// Threads per rank; 0: this node's cores divided by its ranks
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,

    /// Size of a micro-batch in tokens
    #[arg(long, value_name = "TOKENS", value_parser = positive, default_value_t = 2048)]
    pub(crate) tokens_per_micro_batch: usize,

    /// Compute the common prefix twice, to measure the gain from sharing it
    #[arg(long)]
    pub(crate) unshared: bool,

    /// Print one JSON line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}
