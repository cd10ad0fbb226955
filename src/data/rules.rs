//! What an encoder is asked to do with texts, and how it found that turns end.
//!
//! Not here: doing it (`tokenize/`).

use crate::config::{DataConfig, RewardAt, TemplateKind, Truncation};

/// What decides, beside tokenizer and template, what tokens a pair becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How a prompt and an answer become text.
    pub template: TemplateKind,
    /// Longest sequence, in tokens.
    pub max_length: usize,
    /// A prompt is not cut below this many tokens.
    pub max_prompt_length: usize,
    /// What happens to a longer sequence.
    pub truncation: Truncation,
    /// Where the reward is read.
    pub reward_at: RewardAt,
    /// Token that the end of a rendering is read before, with [`RewardAt::End`]: the `pad_token_id` of a folder that another
    /// program wrote, since Transformers reads the rightmost token that is not this one.
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

/// How the turn of an answer ends in a rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnEnd {
    /// The text of the EOS.
    pub eos: String,
    /// What the template writes after the EOS; after the answer where it writes none.
    pub after: String,
    /// Whether the template writes the EOS.
    pub written: bool,
}
