//! The settings of an encoder, and how a template ends a turn.
//!
//! Not here: the encoder (`tokenize/`).

use crate::config::{DataConfig, RewardAt, TemplateKind, Truncation};

/// The settings that determine a pair's tokens, together with tokenizer and template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How a prompt and an answer become text.
    pub template: TemplateKind,
    /// Longest sequence, in tokens.
    pub max_length: usize,
    /// A prompt is not cut below this many tokens.
    pub max_prompt_length: usize,
    /// Treatment of a longer sequence.
    pub truncation: Truncation,
    /// Where the reward is read.
    pub reward_at: RewardAt,
    /// Token that is skipped at the end of a rendering, with [`RewardAt::End`]: the `pad_token_id` of a folder that another
    /// program wrote, since Transformers reads the reward at the rightmost token that is not this one.
    pub skipped_at_end: Option<u32>,
}

impl Rules {
    /// Rules for sequences that are rewarded at their EOS. Lengths are in tokens.
    pub fn new(template: TemplateKind, max_length: usize, max_prompt_length: usize, truncation: Truncation) -> Self {
        let (reward_at, skipped_at_end) = (RewardAt::Eos, None);
        Self { template, max_length, max_prompt_length, truncation, reward_at, skipped_at_end }
    }
}

impl From<&DataConfig> for Rules {
    fn from(data: &DataConfig) -> Self {
        let rules = Self::new(data.template, data.max_length, data.max_prompt_length, data.truncation);
        Self { reward_at: data.reward_at, ..rules }
    }
}
