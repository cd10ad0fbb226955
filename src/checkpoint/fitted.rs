//! Values fitted on the dev pairs for a checkpoint's two heads: temperatures, and weights of the heads' sum. They are stored in
//! `haf_dist.json` with hashes of the dev prompts, so that they are not evaluated on the pairs they were fitted on.
//!
//! Not here: the fit (`evaluate/fitting.rs`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Hex digits of a prompt's hash.
const DIGITS: usize = 8;

/// Fitted on the dev pairs of a run, at a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fitted {
    /// Number of dev pairs.
    pub(crate) pairs: usize,
    /// The T for which sigmoid(margin / T) fits best, for the reward head; absent if no T fits, or the head is not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reward_temperature: Option<f64>,
    /// The same for the implicit reward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) implicit_temperature: Option<f64>,
    /// The heads' weighted sum; absent unless there are both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) combined: Option<Weights>,
    /// The lower 32 bits of the hash of each dev prompt, as hex digits, one after the other, ascending.
    prompts: String,
}

/// combined = reward * (reward head) + implicit * (implicit reward). The difference between two answers is the log odds that the
/// first is better. Equivalently, lambda = implicit / reward and a temperature of 1 / reward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Weight of the reward head.
    pub reward: f64,
    /// Weight of the implicit reward.
    pub implicit: f64,
}

impl Weights {
    /// The heads' weighted sum.
    pub(crate) fn combine(self, reward: f64, implicit: f64) -> f64 {
        self.reward * reward + self.implicit * implicit
    }
}

impl Fitted {
    /// Nothing fitted yet, on pairs with these prompt hashes.
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

    /// The prompts it was fitted on.
    pub fn prompts(&self) -> FittedOn {
        let names = self.prompts.as_bytes().chunks(DIGITS);
        let parse = |name: &[u8]| u32::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok();
        FittedOn(names.filter_map(parse).collect())
    }
}

/// The prompts that something was fitted on. Another prompt is mistaken for one of n with probability n / 2^32.
#[derive(Debug, Clone, Default)]
pub struct FittedOn(BTreeSet<u32>);

impl FittedOn {
    /// Whether a prompt with this hash is one of them.
    pub(crate) fn has(&self, prompt_hash: u64) -> bool {
        self.0.contains(&(prompt_hash as u32))
    }
}
