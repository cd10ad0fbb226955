//! `[[data.train]]`, `[[data.dev]]`, `[[data.test]]`: where pairs come from and how their rows are read.
//!
//! Not here: reading them, which is `data/formats/`.

use super::{RowRange, Ties, defaults};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One file of pairs, or one split on the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// JSONL, a JSON array (both plain, gzip or zstd) or Parquet; or `hf://owner/name[@revision][/file or config/split]`.
    pub path: PathBuf,
    /// Layout of its rows.
    #[serde(default)]
    pub format: Format,
    /// Which of its rows are taken. Rows are counted as they are in the file, before any is dropped.
    #[serde(default)]
    pub rows: RowRange,
    /// Take only pairs whose prompt is a single user's message (and maybe a system message).
    #[serde(default)]
    pub single_turn: bool,
    /// Factor from a row's margin, preference strength or score difference to units of reward; 0: no margins.
    #[serde(default = "defaults::margin_scale")]
    pub margin_scale: f64,
    /// Most pairs from one ranked list, spread evenly over all its pairs; 0: all of them.
    #[serde(default)]
    pub pairs_per_prompt: usize,
    /// An epoch takes round(weight x pairs) pairs of this source. Sources of dev and test are always taken once.
    #[serde(default = "defaults::weight")]
    pub weight: f64,
    /// Name under which its pairs are reported, not [`TOTAL`](super::TOTAL); a row's own `domain` wins. Default: the file's stem,
    /// or the name on the hub, filled in when a config is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Longest row, in bytes: `data.max_row_bytes`, copied when a config is loaded.
    #[serde(skip, default = "defaults::max_row_bytes")]
    pub max_row_bytes: usize,
    /// Key of the format -> the rows' key for it; keys of nested objects are joined by dots.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// [`DataConfig::strict`](super::DataConfig::strict), copied when a config is loaded.
    #[serde(skip)]
    pub strict: bool,
    /// [`DataConfig::ties`](super::DataConfig::ties) for training sources, copied when a config is loaded.
    #[serde(skip)]
    pub ties: Ties,
}

/// Layout of a source's rows; the table in `data/formats/layouts.rs` describes each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Detected from the keys of the first row that fits one; `scored` and `safer` must be named.
    #[default]
    Auto,
    /// `prompt`, `chosen`, `rejected`: texts or messages; the prompt may be in the answers.
    Pairs,
    /// As pairs, with `score_chosen` and `score_rejected`: their difference is the margin.
    Scored,
    /// hh-rlhf's transcripts.
    Hh,
    /// rm-static: a transcript that two answers continue.
    RmStatic,
    /// PKU-SafeRLHF/BeaverTails, chosen by `better_response_id`.
    Helpful,
    /// PKU-SafeRLHF/BeaverTails, exactly one answer safe, chosen by `safer_response_id`.
    Safer,
    /// Chatbot Arena, with or without content parts.
    Arena,
    /// Arena's 55,000 rows: JSON lists in texts.
    #[serde(rename = "arena-55k")]
    #[value(name = "arena-55k")]
    Arena55k,
    /// Two responses and the winner's name.
    Compared,
    /// Two responses with a score each.
    Rated,
    /// Alpaca human preferences.
    Alpaca,
    /// LLaMA-Factory's ranking rows: `instruction`, `chosen`, `rejected`.
    Instruction,
    /// `instruction` and a list `output`, the best first.
    Outputs,
    /// `conversations` of `from` and `value`.
    Sharegpt,
    /// `system`, `question`, `chosen`, `rejected`.
    Orca,
    /// `chosen_messages` and `rejected_messages`.
    LlamafactoryV1,
    /// `messages` and `rejected_response` or `rejected_messages`.
    MsSwift,
    /// `context` and ranked `completions`.
    NemoRl,
    /// HelpSteer2 and 3: a preference from -3 to 3.
    Helpsteer,
    /// HelpSteer2's attributes, in rows of one answer.
    Helpsteer2Attributes,
    /// Nectar: `prompt` and ranked `answers`; or `responses` and their `ranks`.
    Ranked,
    /// UltraFeedback as published: `instruction` and rated `completions`.
    Ultrafeedback,
    /// `conv_A`, `conv_B` and their ratings.
    UnifiedFeedback,
    /// RewardBench 2, RM-Bench: lists of chosen and of rejected answers.
    Rewardbench2,
}

impl Format {
    /// Whether a row may make several pairs.
    pub fn makes_several(self) -> bool {
        use Format::*;
        let several = [Auto, Outputs, NemoRl, Helpsteer2Attributes, Ranked, Ultrafeedback, Rewardbench2];
        several.contains(&self)
    }
}

impl Source {
    /// A file of pairs with every other key at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Auto,
            rows: RowRange::default(),
            single_turn: false,
            margin_scale: defaults::margin_scale(),
            pairs_per_prompt: 0,
            weight: defaults::weight(),
            domain: None,
            max_row_bytes: defaults::max_row_bytes(),
            columns: BTreeMap::new(),
            strict: false,
            ties: Ties::Drop,
        }
    }
}
