//! What the dev pairs say of a checkpoint's two heads: temperatures, and how to add the heads up. It stands in `haf_dist.json`,
//! with what names the pairs it was fitted on, so that it is not judged on them.
//!
//! Not here: the fit (`evaluate/fitting.rs`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Hex digits that name a prompt.
const DIGITS: usize = 8;

/// Fitted on the dev pairs of a run, at a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitted {
    /// Number of dev pairs.
    pub pairs: usize,
    /// The T for which sigmoid(margin / T) fits best, of the reward head; absent where no T does, or the head is not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_temperature: Option<f64>,
    /// The same of the implicit reward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implicit_temperature: Option<f64>,
    /// The heads' sum; absent where there are not both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combined: Option<Weights>,
    /// The lower 32 bits of the hash of each dev prompt, as hex digits, one after the other, ascending.
    prompts: String,
}

/// combined = reward * (reward head) + implicit * (implicit reward): a difference of two answers' is the log odds that the
/// first is the better one. In other words lambda = implicit / reward, and a temperature of 1 / reward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Of the reward head.
    pub reward: f64,
    /// Of the implicit reward.
    pub implicit: f64,
}

impl Weights {
    /// The heads' sum.
    pub fn combine(self, reward: f64, implicit: f64) -> f64 {
        self.reward * reward + self.implicit * implicit
    }
}

impl Fitted {
    /// Without what is not fitted yet, on pairs with prompts of these hashes.
    pub fn on(prompts: &[u64]) -> Self {
        let names: BTreeSet<u32> = prompts.iter().map(|hash| *hash as u32).collect();
        let prompts_hex = names.iter().map(|name| format!("{name:0DIGITS$x}")).collect();
        Self {
            pairs: prompts.len(),
            reward_temperature: None,
            implicit_temperature: None,
            combined: None,
            prompts: prompts_hex,
        }
    }

    /// The names of the prompts it was fitted on.
    pub fn prompts(&self) -> FittedOn {
        let names = self.prompts.as_bytes().chunks(DIGITS);
        let parse = |name: &[u8]| u32::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok();
        FittedOn(names.filter_map(parse).collect())
    }
}

/// Prompts that something was fitted on. Another prompt counts as one of n with a chance of n / 2^32.
#[derive(Debug, Clone, Default)]
pub struct FittedOn(BTreeSet<u32>);

impl FittedOn {
    /// Whether a prompt with this hash is one of them.
    pub fn has(&self, prompt_hash: u64) -> bool {
        self.0.contains(&(prompt_hash as u32))
    }
}
