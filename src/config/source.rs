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
    /// JSONL, a JSON array (both as they are, gzipped or with zstd) or Parquet; or `hf://owner/name[@revision][/file or config/split]`.
    pub path: PathBuf,
    /// Shape of its rows.
    #[serde(default)]
    pub format: Format,
    /// Which of its rows are taken. Rows are counted as the file has them, before any is dropped.
    #[serde(default)]
    pub rows: RowRange,
    /// Take only pairs whose prompt is one user's message (and maybe a system message).
    #[serde(default)]
    pub single_turn: bool,
    /// Units of reward that a unit of the rows' margin, preference strength or difference of scores counts; 0: none.
    #[serde(default = "defaults::margin_scale")]
    pub margin_scale: f64,
    /// Most pairs made of one ranked list, spread evenly over all its pairs; 0: all of them.
    #[serde(default)]
    pub pairs_per_prompt: usize,
    /// An epoch takes round(weight x pairs) of this source. Sources of dev and test are always taken once.
    #[serde(default = "defaults::weight")]
    pub weight: f64,
    /// Name under which its pairs are reported, not [`TOTAL`](super::TOTAL); a row's own `domain` wins. Default: the file's stem,
    /// or the name on the hub, which is filled in when a config is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Most bytes of a row: `data.max_row_bytes`, which is filled in when a config is loaded.
    #[serde(skip, default = "defaults::max_row_bytes")]
    pub max_row_bytes: usize,
    /// Key of the format -> where the rows have it: a key, or keys of objects joined by dots.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// [`DataConfig::strict`](super::DataConfig::strict), which is filled in when a config is loaded.
    #[serde(skip)]
    pub strict: bool,
    /// [`DataConfig::ties`](super::DataConfig::ties) for training sources, which is filled in when a config is loaded.
    #[serde(skip)]
    pub ties: Ties,
}

/// Layout of a source's rows. What each is, `data/formats/layouts.rs` says in a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Told by the keys of the first row that shows one; all but `scored` and `safer` can be told.
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
    /// `instruction`, `chosen`, `rejected`, as LLaMA-Factory ranks.
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
