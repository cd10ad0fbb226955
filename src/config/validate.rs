//! Which values a key may take, and which keys exclude each other.
//!
//! Not here: types and unknown keys, which loading refuses; and whether files exist, which their readers check.

use super::*;
use crate::error::Error;

/// A key and what is wrong with it.
pub(super) struct Complaint {
    /// Dotted, as in the file.
    pub(super) key: String,
    message: String,
    hint: String,
}

type Check = std::result::Result<(), Complaint>;

/// Far beyond any use; numbers without a bound would overflow sums of bytes.
const MOST_PAIRS_PER_STEP: usize = 1 << 20;
/// The same, of a sequence and of a micro-batch.
const MOST_TOKENS: usize = 1 << 24;

impl From<Complaint> for Error {
    fn from(complaint: Complaint) -> Self {
        Error::input(format!("`{}` {}", complaint.key, complaint.message)).hint(complaint.hint)
    }
}

impl Config {
    /// Checks ranges and exclusions of a resolved config. The complaint is about the first broken rule; the caller adds the
    /// place.
    pub(super) fn check(&self) -> Check {
        path("model.path", &self.model.path)?;
        if let Some(Ok(HubPath { part: Some(part), .. })) = HubPath::parse(&self.model.path) {
            let message = format!("ends with \"/{part}\", but a model is a whole repository");
            return refuse("model.path", &message, "expected hf://owner/name, or hf://owner/name@revision");
        }
        path("output.dir", &self.output.dir)?;
        self.parallel.check()?;
        at_least("checkpoint.keep", self.checkpoint.keep, 1)?;
        at_most("checkpoint.keep", self.checkpoint.keep, 10_000)?;
        self.data.check()?;
        self.loss.check()?;
        self.train.check()?;
        if self.train.conflict_every > 0
            && (self.loss.effective_alpha() == 0.0 || self.loss.effective_reward_weight() == 0.0)
        {
            let hint = "set it to 0, or loss.objective to \"hybrid\" with both weights above 0";
            return refuse("train.conflict_every", "needs two losses whose gradients can be compared", hint);
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::check)
    }
}

impl Config {
    /// Checks a `data.max_length` and a `data.max_prompt_length` that do not come from a config file, under their own names.
    ///
    /// # Errors
    /// A value out of its range, or no room for an answer.
    pub(crate) fn check_lengths(named: [(&str, usize); 2]) -> Result<(), Error> {
        lengths(named).map_err(Error::from)
    }

    /// Checks a `parallel.threads` that does not come from a config file, under its own name.
    ///
    /// # Errors
    /// A value out of its range.
    pub(crate) fn check_threads(name: &str, count: usize) -> Result<(), Error> {
        threads(name, count).map_err(Error::from)
    }
}

impl DataConfig {
    fn check(&self) -> Check {
        if self.train.is_empty() {
            let hint = "for example train = [{ path = \"pairs.jsonl\" }]";
            return refuse("data.train", "is empty; expected at least one source of training pairs", hint);
        }
        for (list, sources) in [("train", &self.train), ("dev", &self.dev), ("test", &self.test)] {
            for (index, source) in sources.iter().enumerate() {
                let key = |name: &str| format!("data.{list}.{index}.{name}");
                path(&key("path"), &source.path)?;
                number(&key("weight"), source.weight, source.weight > 0.0, "above 0")?;
                let scale = source.margin_scale;
                number(&key("margin_scale"), scale, (0.0..=1e6).contains(&scale), "from 0 to 1000000")?;
                if source.pairs_per_prompt > 0 && !source.format.makes_several() {
                    let hint = "take it out, or name a format with lists, such as \"ranked\"";
                    return refuse(&key("pairs_per_prompt"), "has no meaning for this format: a row is one pair", hint);
                }
                if list != "train" && source.weight != 1.0 {
                    let message = format!("= {}, but every {list} pair is taken once", source.weight);
                    return refuse(&key("weight"), &message, "take it out: weights are for training sources");
                }
                match source.domain.as_deref() {
                    Some("") => {
                        let hint = "take it out to use the file's name as the domain";
                        return refuse(&key("domain"), "is empty; expected a name", hint);
                    }
                    Some(TOTAL) => {
                        let message = format!("= \"{TOTAL}\" is the name of the total over all domains");
                        let hint = "choose another name (without one, the file's name is the domain)";
                        return refuse(&key("domain"), &message, hint);
                    }
                    _ => {}
                }
            }
        }
        let prompt = ("data.max_prompt_length", self.max_prompt_length);
        lengths([("data.max_length", self.max_length), prompt])?;
        at_least("data.max_row_bytes", self.max_row_bytes, 1024)?;
        path("data.cache_dir", &self.cache_dir)
    }
}

impl LossConfig {
    fn check(&self) -> Check {
        number("loss.alpha", self.alpha, self.alpha >= 0.0, "0 or above")?;
        number("loss.reward_weight", self.reward_weight, self.reward_weight >= 0.0, "0 or above")?;
        number("loss.beta", self.beta, self.beta > 0.0, "above 0")?;
        number("loss.simpo_gamma", self.simpo_gamma, self.simpo_gamma >= 0.0, "0 or above")?;
        number("loss.centering", self.centering, self.centering >= 0.0, "0 or above")?;
        number("loss.router_balance", self.router_balance, self.router_balance >= 0.0, "0 or above")?;
        let smoothing = self.label_smoothing;
        number("loss.label_smoothing", smoothing, (0.0..0.5).contains(&smoothing), "from 0 to below 0.5")?;

        // Refuse settings that another setting would silently ignore.
        let policy_on = self.objective != Objective::Reward;
        let smooths = matches!(self.policy, PolicyLoss::Dpo | PolicyLoss::Simpo);
        if smoothing > 0.0 && policy_on && !smooths {
            return refuse(
                "loss.label_smoothing",
                "has no meaning for this policy loss",
                "set it to 0, or loss.policy to \"dpo\" or \"simpo\"",
            );
        }
        if self.simpo_gamma > 0.0 && policy_on && self.policy != PolicyLoss::Simpo {
            return refuse(
                "loss.simpo_gamma",
                "belongs to loss.policy = \"simpo\" alone",
                "set it to 0, or loss.policy to \"simpo\"",
            );
        }
        let degrees = self.prior_degrees;
        number("loss.prior_degrees", degrees, (1.0..=1000.0).contains(&degrees), "from 1 to 1000")?;
        if degrees != defaults::DEFAULT_PRIOR_DEGREES && self.prior != Prior::Student {
            return refuse(
                "loss.prior_degrees",
                "belongs to loss.prior = \"student\" alone",
                "take it out, or set loss.prior to \"student\"",
            );
        }
        if self.prior != Prior::Logistic && policy_on && self.policy != PolicyLoss::Dpo {
            return refuse(
                "loss.prior",
                "is for Bradley-Terry and dpo, not for this policy loss",
                "set it to \"logistic\", or loss.policy to \"dpo\"",
            );
        }
        if self.centering > 0.0 && self.effective_reward_weight() == 0.0 {
            return refuse("loss.centering", "applies to rewards, but no reward loss is trained", "set it to 0");
        }
        if self.effective_alpha() == 0.0 && self.effective_reward_weight() == 0.0 {
            let key = if policy_on { "loss.alpha" } else { "loss.reward_weight" };
            return refuse(key, "leaves nothing to minimize: every loss has weight 0", "give one a weight above 0");
        }
        if self.alternate_every > 0 {
            let hint = "set it to 0, or loss.objective to \"hybrid\" with both weights above 0";
            if self.effective_alpha() == 0.0 || self.effective_reward_weight() == 0.0 {
                return refuse("loss.alternate_every", "needs two losses to alternate between", hint);
            }
        }
        Ok(())
    }
}

impl TrainConfig {
    fn check(&self) -> Check {
        if self.epochs.is_some() && self.steps.is_some() {
            return refuse("train.steps", "and `train.epochs` are both set; expected one of them", "keep one of them");
        }
        at_least("train.epochs", self.epochs.unwrap_or(1), 1)?;
        at_least("train.steps", self.steps.unwrap_or(1), 1)?;
        at_least("train.pairs_per_step", self.pairs_per_step, 1)?;
        at_most("train.pairs_per_step", self.pairs_per_step, MOST_PAIRS_PER_STEP)?;
        at_least("train.tokens_per_micro_batch", self.tokens_per_micro_batch, 1)?;
        at_most("train.tokens_per_micro_batch", self.tokens_per_micro_batch, MOST_TOKENS)?;
        number("train.learning_rate", self.learning_rate, self.learning_rate > 0.0, "above 0")?;
        number("train.head_learning_rate", self.head_learning_rate, self.head_learning_rate >= 0.0, "0 or above")?;
        number("train.weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or above")?;
        let below_one = |beta: f64| (0.0..1.0).contains(&beta);
        number("train.adam_beta1", self.adam_beta1, below_one(self.adam_beta1), "from 0 to below 1")?;
        number("train.adam_beta2", self.adam_beta2, below_one(self.adam_beta2), "from 0 to below 1")?;
        number("train.adam_epsilon", self.adam_epsilon, self.adam_epsilon > 0.0, "above 0")?;
        number("train.clip_norm", self.clip_norm, self.clip_norm >= 0.0, "0 or above")?;
        match self.steps {
            Some(steps) if self.warmup_steps > steps => {
                let message = format!("= {} is longer than train.steps = {steps}", self.warmup_steps);
                refuse("train.warmup_steps", &message, "lower it, or raise train.steps")
            }
            _ => Ok(()),
        }
    }
}

impl LoraConfig {
    fn check(&self) -> Check {
        at_least("lora.rank", self.rank, 1)?;
        at_most("lora.rank", self.rank, 1 << 16)?;
        number("lora.alpha", self.alpha, self.alpha > 0.0, "above 0")?;
        if let Some(base) = &self.base {
            path("lora.base", base)?;
        }
        if self.targets.is_empty() {
            let hint = "for example targets = [\"gate_proj\", \"up_proj\", \"down_proj\"]";
            return refuse("lora.targets", "is empty; expected at least one projection", hint);
        }
        Ok(())
    }
}

impl ParallelConfig {
    fn check(&self) -> Check {
        threads("parallel.threads", self.threads)?;
        at_least("parallel.timeout_seconds", self.timeout_seconds, 1)?;
        at_most("parallel.timeout_seconds", self.timeout_seconds, 1_000_000)?;
        if self.backend == Backend::Mpi && self.reduce_dtype == ReduceDtype::Bf16 {
            let hint = "set it to \"f32\", or parallel.backend to \"nccl\"";
            return refuse("parallel.reduce_dtype", "= \"bf16\", but MPI cannot sum bf16 numbers", hint);
        }
        Ok(())
    }
}

/// Checks the longest sequence and the longest prompt, named as in the config file or on the command line.
fn lengths([(length_key, length), (prompt_key, prompt)]: [(&str, usize); 2]) -> Check {
    at_least(length_key, length, 8)?;
    at_most(length_key, length, MOST_TOKENS)?;
    at_least(prompt_key, prompt, 1)?;
    if prompt >= length {
        let message = format!("= {prompt} leaves no room for an answer; expected less than {length_key} = {length}");
        return refuse(prompt_key, &message, &format!("lower it, or raise {length_key}"));
    }
    Ok(())
}

fn threads(key: &str, count: usize) -> Check {
    at_most(key, count, 4096)
}

fn refuse(key: &str, message: &str, hint: &str) -> Check {
    Err(Complaint { key: key.into(), message: message.into(), hint: hint.into() })
}

/// A value out of its range.
fn out_of_range(key: &str, value: impl std::fmt::Display, expected: &str) -> Check {
    let hint = if key.starts_with("--") { "the command's --help describes its options" } else { SEE_REFERENCE };
    refuse(key, &format!("= {value}; expected {expected}"), hint)
}

fn at_least(key: &str, value: usize, least: usize) -> Check {
    if value >= least { Ok(()) } else { out_of_range(key, value, &format!("{least} or more")) }
}

fn at_most(key: &str, value: usize, most: usize) -> Check {
    if value <= most { Ok(()) } else { out_of_range(key, value, &format!("at most {most}")) }
}

/// Checks that a number is finite and that `holds` is true; `expected` describes the condition.
fn number(key: &str, value: f64, holds: bool, expected: &str) -> Check {
    if value.is_finite() && holds { Ok(()) } else { out_of_range(key, value, &format!("a finite number {expected}")) }
}

fn path(key: &str, path: &std::path::Path) -> Check {
    if let Some(Err(wrong)) = HubPath::parse(path) {
        return refuse(key, &wrong, "for example hf://owner/name for a model, hf://owner/name/train for a split");
    }
    if path.as_os_str().is_empty() {
        let hint = "paths are relative to the folder in which the program is started; \".\" is that folder";
        refuse(key, "is empty; expected a path", hint)
    } else {
        Ok(())
    }
}
