//! `[[data.train]]`, `[[data.dev]]`, `[[data.test]]`: where pairs come from and how their rows are read.
//!
//! Not here: reading them, which is `data/formats/`.

use super::{RowRange, defaults};
use serde::{Deserialize, Serialize};
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
}

/// Shape of a source's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Told by the keys of the first row.
    #[default]
    Auto,
    /// `prompt`, `chosen`, `rejected`: strings or chat message lists; the prompt may be implicit.
    Pairs,
    /// As pairs, with `score_chosen` and `score_rejected` (UltraFeedback): their difference is the margin.
    Scored,
    /// `chosen`, `rejected`: hh-rlhf transcripts.
    Hh,
    /// PKU-SafeRLHF/BeaverTails, chosen by `better_response_id`.
    Helpful,
    /// PKU-SafeRLHF/BeaverTails, exactly one answer safe, chosen by `safer_response_id`.
    Safer,
    /// Chatbot Arena: `conversation_a`, `conversation_b`, `winner`; ties are dropped.
    Arena,
    /// Alpaca human preferences: `instruction`, `input`, `output_1`, `output_2`, `preference`.
    Alpaca,
    /// HelpSteer2 and 3: two responses and a preference from -3 to 3, whose strength is the margin.
    Helpsteer,
    /// Nectar: `prompt` and ranked `answers`, all pairs of them; or `responses` and their `ranks`.
    Ranked,
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
        }
    }
}
