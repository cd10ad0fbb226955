//! Defaults of the config's keys, including those that depend on other keys.
//!
//! Not here: what a key means (`mod.rs`) or which values it may take (`validate.rs`).

use super::*;

impl Config {
    /// Fills in what follows from other keys: one epoch if neither epochs nor steps are given, each source's domain, and the
    /// keys of `[data]` that its sources copy.
    pub(super) fn resolve(&mut self) {
        if self.train.epochs.is_none() && self.train.steps.is_none() {
            self.train.epochs = Some(1);
        }
        let data = &mut self.data;
        for source in data.train.iter_mut().chain(&mut data.dev).chain(&mut data.test) {
            if source.domain.is_none() {
                source.domain = domain_of(&source.path);
            }
            source.max_row_bytes = data.max_row_bytes;
            source.strict = data.strict;
        }
        data.train.iter_mut().for_each(|source| source.ties = data.ties);
    }
}

/// The default domain of a source: `pairs` for `data/pairs.jsonl.gz` or `.zst`, and `name` for `hf://owner/name/split`.
pub(crate) fn domain_of(path: &std::path::Path) -> Option<String> {
    if let Some(Ok(on_hub)) = HubPath::parse(path) {
        return Some(on_hub.name().to_string());
    }
    let name = path.file_name()?.to_string_lossy();
    let name = [".gz", ".zst"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(&name);
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    // A dot file has nothing before its dot.
    Some(if stem.is_empty() { name } else { stem }.to_string())
}

/// Default degrees of freedom of Student's distribution: heavy tails, but a finite variance.
pub(super) const DEFAULT_PRIOR_DEGREES: f64 = 4.0;

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            objective: Objective::Hybrid,
            alpha: 0.2,
            reward_weight: 1.0,
            policy: PolicyLoss::Dpo,
            beta: 0.1,
            simpo_gamma: 0.0,
            label_smoothing: 0.0,
            centering: 0.0,
            prior: Prior::Logistic,
            prior_degrees: DEFAULT_PRIOR_DEGREES,
            router_balance: 0.0,
            alternate_every: 0,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: None,
            steps: None,
            pairs_per_step: 16,
            tokens_per_micro_batch: 4096,
            learning_rate: 1e-5,
            head_learning_rate: 0.0,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-5,
            clip_norm: 1.0,
            activation_checkpointing: false,
            check_every: 100,
            conflict_every: 0,
        }
    }
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            reduce_dtype: ReduceDtype::F32,
            shard_optimizer: false,
            kernels: Kernels::Auto,
            deterministic: true,
            // Longer than ranks should ever wait for one another, but short enough that a hung job wastes little time.
            timeout_seconds: 600,
            threads: 0,
        }
    }
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every: 50 }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 50, keep: 2 }
    }
}

pub(super) fn max_row_bytes() -> usize {
    DEFAULT_MAX_ROW_BYTES
}

pub(super) fn max_length() -> usize {
    512
}

pub(super) fn max_prompt_length() -> usize {
    384
}

/// Sets the default that depends on another key: `data.max_prompt_length` is three quarters of a `data.max_length` below
/// its default.
pub(super) fn set_dependent(config: &mut toml::Value) {
    let Some(data) = config.get_mut("data").and_then(toml::Value::as_table_mut) else { return };
    if let (Some(length), None) =
        (data.get("max_length").and_then(toml::Value::as_integer), data.get("max_prompt_length"))
        && length > 0
        && length < max_length() as i64
    {
        data.insert("max_prompt_length".into(), toml::Value::Integer(length * 3 / 4));
    }
}

pub(super) fn yes() -> bool {
    true
}

pub(super) fn weight() -> f64 {
    1.0
}

pub(super) fn margin_scale() -> f64 {
    1.0
}

pub(super) fn cache_dir() -> PathBuf {
    PathBuf::from(".cache")
}

pub(super) fn lora_rank() -> usize {
    64
}

pub(super) fn lora_alpha() -> f64 {
    16.0
}
