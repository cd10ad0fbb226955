//! The TOML file: one struct per table; unknown keys are refused; every key has a default if one makes sense.
//!
//! [`Config::load`] reads, overrides, checks and resolves it once; everything after that takes plain values.
//! Paths in the file are relative to the directory the program is started in; an input that is missing there is looked for
//! beside the file, too.
//!
//! Not here: what the values mean to the trainer. Each field says what it does; `configs/reference.toml`
//! shows them all.

mod defaults;
mod differences;
mod hub_path;
mod keys;
mod load;
mod loss;
pub(crate) mod others;
mod overrides;
mod rows;
mod source;
mod validate;
mod words;

pub(crate) use defaults::domain_of;
pub(crate) use differences::{Difference, listed};
pub use hub_path::HubPath;
pub use keys::known_keys;
pub use loss::{LossConfig, Objective, PolicyLoss, Prior};
pub(crate) use rows::RowRange;
pub use source::{Format, Source};
pub(crate) use words::key_meant;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The name under which all pairs of a split are reported together; no source's domain may have it.
pub const TOTAL: &str = "all";

/// Default of `data.max_row_bytes`: 16 MiB, some four million tokens.
pub(crate) const DEFAULT_MAX_ROW_BYTES: usize = 1 << 24;

/// The hint for a wrong key or value if there is no better one.
const SEE_REFERENCE: &str = "`haf-dist init --reference` shows every key with its default";

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model to start from.
    pub model: ModelConfig,
    /// Pairs to train on and to evaluate on.
    pub data: DataConfig,
    /// What is minimized.
    #[serde(default)]
    pub loss: LossConfig,
    /// How it is minimized.
    #[serde(default)]
    pub train: TrainConfig,
    /// Low-rank adapters beside frozen weights; absent: every weight is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Ranks and threads.
    #[serde(default)]
    pub parallel: ParallelConfig,
    /// Evaluation during the run.
    #[serde(default)]
    pub(crate) eval: EvalConfig,
    /// Saving during the run.
    #[serde(default)]
    pub(crate) checkpoint: CheckpointConfig,
    /// Where the run is written.
    pub output: OutputConfig,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face folder: config.json, safetensors, tokenizer.json; or `hf://owner/name[@revision]`.
    pub path: PathBuf,
    /// Precision of the computation; masters and moments are always f32.
    #[serde(default)]
    pub(crate) dtype: Dtype,
}

/// Precision of the computation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    /// bf16 where the processor or GPU computes in it, else f32.
    #[default]
    Auto,
    /// bfloat16.
    #[value(alias = "bfloat16")]
    Bf16,
    /// float32.
    #[value(aliases = ["float32", "fp32"])]
    F32,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Sources of training pairs.
    pub train: Vec<Source>,
    /// Sources of the pairs that pick the best checkpoint.
    #[serde(default)]
    pub dev: Vec<Source>,
    /// Sources of the pairs that are only reported on, once, at the end.
    #[serde(default)]
    pub test: Vec<Source>,
    /// How a prompt and an answer become text.
    #[serde(default)]
    pub template: TemplateKind,
    /// Longest sequence, in tokens.
    #[serde(default = "defaults::max_length")]
    pub max_length: usize,
    /// A prompt is not cut below this many tokens; after that the answer is cut. Default: 384, or three quarters of a
    /// `max_length` below 512.
    #[serde(default = "defaults::max_prompt_length")]
    pub max_prompt_length: usize,
    /// Shuffle the pairs anew every epoch.
    #[serde(default = "defaults::yes")]
    pub shuffle: bool,
    /// Seed of every shuffle.
    #[serde(default)]
    pub seed: u64,
    /// Treatment of a sequence over `max_length`.
    #[serde(default)]
    pub truncation: Truncation,
    /// Token of a sequence at which the reward is read.
    #[serde(default)]
    pub(crate) reward_at: RewardAt,
    /// Longest row of a source, in bytes. A longer one, as in a hostile archive or a file without line breaks, ends the run
    /// before it takes more memory.
    #[serde(default = "defaults::max_row_bytes")]
    pub(crate) max_row_bytes: usize,
    /// Stop at the first row that does not match its format; otherwise such rows are left out and counted.
    #[serde(default)]
    pub(crate) strict: bool,
    /// Treatment of training pairs in which neither answer is better; such dev and test pairs are dropped.
    #[serde(default)]
    pub(crate) ties: Ties,
    /// Where tokens and reference log-probs are kept between runs.
    #[serde(default = "defaults::cache_dir")]
    pub cache_dir: PathBuf,
}

/// How a prompt and an answer become text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TemplateKind {
    /// The chat template in the model's folder.
    #[default]
    Chat,
    /// `Instruct: {prompt}\nOutput: {answer}`, Phi-2's.
    Instruct,
    /// `\n\nHuman: {prompt}\n\nAssistant: {answer}`, hh-rlhf's.
    Hh,
    /// The prompt and the answer as they are.
    Plain,
}

/// Treatment of training pairs in which neither answer is better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// Leave them out and count them.
    #[default]
    Drop,
    /// Half a label in each direction: the loss is the mean over both orders.
    Half,
}

/// Treatment of a sequence over `max_length`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// Cut the start of the prompt, then the end of the answer.
    #[default]
    Cut,
    /// Leave the pair out.
    Drop,
}

/// Token of a sequence at which the reward is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RewardAt {
    /// The EOS of the answer's turn, as in the paper; what the template writes after it is left out.
    #[default]
    Eos,
    /// The last token of the template's rendering, as TRL does.
    End,
    /// Trained at both, half of the Bradley-Terry loss each; scored at the EOS.
    Both,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training pairs; default 1. Not together with `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Updates. Not together with `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Global batch size in pairs, over all ranks.
    pub pairs_per_step: usize,
    /// Size of a micro-batch in tokens, which bounds the memory. A longer pair is computed alone.
    pub tokens_per_micro_batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Peak learning rate of the reward head; 0: the same.
    pub(crate) head_learning_rate: f64,
    /// Learning-rate schedule after the warm-up.
    pub(crate) schedule: Schedule,
    /// Updates over which the learning rate rises from zero.
    pub warmup_steps: usize,
    /// AdamW's decoupled decay, on matrices only.
    pub(crate) weight_decay: f64,
    /// AdamW's decay rate of the first moment.
    pub(crate) adam_beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub(crate) adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub(crate) clip_norm: f64,
    /// Recompute each block in the backward pass instead of keeping what it computed.
    pub activation_checkpointing: bool,
    /// Compare the ranks' weights and metrics, bit for bit, every N steps; 0: only when a checkpoint is saved.
    pub(crate) check_every: usize,
    /// Compare the gradients of the two losses, on the same 16 pairs, every N steps; 0: never. It does not change the
    /// result.
    pub(crate) conflict_every: usize,
}

/// `[lora]`: only adapters at the named projections of every block, and the reward head, are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the adapters.
    #[serde(default = "defaults::lora_rank")]
    pub rank: usize,
    /// An adapter's product is multiplied by alpha / rank.
    #[serde(default = "defaults::lora_alpha")]
    pub alpha: f64,
    /// Projections with an adapter, by their module's name: `q_proj`, or `mlp.up_proj`; or `all-linear`, all of them.
    pub targets: Vec<String>,
    /// Seed of A's initial values; B starts at zero.
    #[serde(default)]
    pub seed: u64,
    /// Multiply by alpha / sqrt(rank) instead of alpha / rank.
    #[serde(default)]
    pub use_rslora: bool,
    /// The base model, if `model.path` is an adapter; default: the one that its adapter_config.json names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
}

/// Learning-rate schedule after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Schedule {
    /// Down to zero in a straight line.
    #[default]
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
    /// No change.
    Constant,
}

/// `[parallel]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParallelConfig {
    /// The library that sums gradients over ranks.
    pub(crate) backend: Backend,
    /// Precision in which gradients are summed over ranks.
    pub(crate) reduce_dtype: ReduceDtype,
    /// Whether each rank keeps f32 masters and moments only of its share (ZeRO stage 1, arXiv 1910.02054).
    pub shard_optimizer: bool,
    /// The operations to compute with: the device's own, or the plain formulas.
    pub(crate) kernels: Kernels,
    /// Whether GPUs always compute a step in the same order, so that it gives the same bits.
    pub(crate) deterministic: bool,
    /// Seconds that ranks wait for one another without progress before the job ends. Announced work, such as saving, does
    /// not count.
    pub(crate) timeout_seconds: usize,
    /// Threads per rank; 0: this node's cores divided by its ranks.
    pub threads: usize,
}

/// The library that sums gradients over ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// NCCL between GPUs, MPI between CPUs.
    #[default]
    Auto,
    /// MPI.
    Mpi,
    /// NCCL, one rank per GPU.
    Nccl,
}

/// The operations to compute with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kernels {
    /// The device's own operations; on a GPU each is compared with its formula first, and replaced by that if it is wrong.
    #[default]
    Auto,
    /// The plain formulas, as tensor operations: slow.
    Plain,
}

/// Precision in which gradients are summed over ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReduceDtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16: half the traffic. Only with NCCL.
    Bf16,
}

/// `[eval]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvalConfig {
    /// Evaluate on the dev pairs every N steps, after the last, and with each checkpoint, because it decides which
    /// checkpoint is the best; 0: only at checkpoints and after the last.
    pub(crate) every: usize,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CheckpointConfig {
    /// Save every N steps, and after the last; 0: only after the last.
    pub(crate) every: usize,
    /// Number of newest checkpoints to keep; the best one is always kept, too.
    pub(crate) keep: usize,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// The run's folder; it must not hold another run.
    pub dir: PathBuf,
}
