//! Turns a source's rows into [`Pair`]s: a table gives the paths of each layout's parts, and one interpreter reads them all.
//!
//! Not here: files (`rows/`), paths into a row (`row.rs`), and how a pair becomes text (`template/`) and tokens
//! (`tokenize/`). A new layout is an entry in `layouts.rs` and a name in `config/source.rs`.

mod beside;
mod interpret;
pub mod layout;
mod layouts;
mod preference;
mod reader;
mod scorable;
mod suggest;
mod transcripts;
mod turns;

pub(crate) use beside::keys as keys_beside;
pub use layouts::LAYOUTS;
pub use reader::read;
pub(crate) use reader::{first, stream};
pub use scorable::{Scorable, read_for_scoring};

use crate::config::Format;
use crate::data::Pair;
use crate::error::Error;
use std::collections::BTreeMap;
use std::fmt;

/// The pairs of a source, and counts of its rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceRows {
    /// The pairs taken, in the file's order; each has a domain.
    pub pairs: Vec<Pair>,
    /// Pairs read, taken or not: one per row, or all that a list makes. `pairs` and `dropped` add up to it.
    pub read: usize,
    /// Pairs not taken, and why.
    pub dropped: BTreeMap<DropReason, usize>,
    /// Rows that made a pair.
    pub rows: usize,
    /// Path of a key with content that was not used -> number of these rows that have it.
    pub unused: BTreeMap<String, usize>,
    /// The error of the first odd row that would have been taken.
    pub first_odd: Option<Error>,
    /// The layout that the source names, or that was detected.
    pub(crate) format: Option<Format>,
}

/// Why a pair is not used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Both answers are the same text, or the same tokens after truncation.
    IdenticalAnswers,
    /// An answer is white space only.
    EmptyAnswer,
    /// There is nothing before the answer that could predict its first token.
    EmptyPrompt,
    /// The two transcripts or conversations answer different prompts.
    DifferentPrompts,
    /// A transcript ends with the human's turn.
    LastTurnNotAssistant,
    /// Both answers are safe, or neither.
    NotExactlyOneSafe,
    /// The safer answer is the one flagged unsafe.
    ContradictorySafety,
    /// Neither answer is better.
    Tie,
    /// The chosen answer has the lower score.
    ContradictoryScores,
    /// The prompt has several turns, with `single_turn = true`.
    SeveralTurns,
    /// A list of no or one answer.
    FewerThanTwoAnswers,
    /// Beyond the source's `pairs_per_prompt`.
    OverPairsPerPrompt,
    /// Outside the source's `rows`.
    OutsideRows,
    /// Over `max_length` tokens, with `truncation = "drop"`.
    TooLong,
    /// The row does not match its layout: what is wrong with it.
    Odd(String),
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::IdenticalAnswers => "identical answers",
            Self::EmptyAnswer => "empty answer",
            Self::EmptyPrompt => "empty prompt",
            Self::DifferentPrompts => "different prompts",
            Self::LastTurnNotAssistant => "last turn not the assistant's",
            Self::NotExactlyOneSafe => "not exactly one answer safe",
            Self::ContradictorySafety => "safety labels contradict each other",
            Self::Tie => "ties",
            Self::ContradictoryScores => "scores contradict the choice",
            Self::SeveralTurns => "several turns (single_turn)",
            Self::FewerThanTwoAnswers => "fewer than two answers",
            Self::OverPairsPerPrompt => "over pairs_per_prompt",
            Self::OutsideRows => "outside the source's rows",
            Self::TooLong => "too long",
            Self::Odd(what) => return write!(f, "odd row: {what}"),
        })
    }
}

type Verdict<T> = std::result::Result<T, DropReason>;
