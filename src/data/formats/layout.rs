//! The description of a layout of rows: the paths of prompt, answers, preference, margin, domain and ties, and how they are
//! written.
//!
//! Not here: the layouts (`layouts.rs`), and reading rows by them (`interpret.rs`).

use super::transcripts::{is_open_transcript, is_transcript};
use crate::config::Format;
use crate::data::row::Row;
use serde_json::Value;

/// Alternative paths, of which the first that leads to a value is used; `row.rs` defines paths.
pub(crate) type At = &'static [&'static str];

/// One layout of rows. The keys that may be beside any pair (a system prompt, earlier turns, tools, a margin, ...) are in
/// `beside.rs`, once for all layouts.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Its name in a config.
    pub format: Format,
    /// A description for users: whose rows these are.
    pub(crate) about: &'static str,
    /// The signs by which it is detected, all of which a row must have; empty: the layout must be named.
    pub signs: &'static [Sign],
    /// The prompt; empty: the answers are whole conversations.
    pub prompt: At,
    /// How a prompt that is a text is written.
    pub(crate) prompt_as: Written,
    /// The answers, in the order in which `preference` counts them. A path with `[]` gives several.
    pub(crate) answers: &'static [At],
    /// How an answer that is a text is written.
    pub(crate) answers_as: Written,
    /// Which answer is better.
    pub(crate) preference: Preference,
    /// Scores of the chosen and of the rejected answer, whose difference is the margin.
    pub(crate) margin: Option<[At; 2]>,
    /// A flag that says whether the answers are equally good.
    pub(crate) tie: At,
    /// Name under which the pair is reported, if the row has no `domain`.
    pub(crate) domain: At,
    /// The rows of one prompt follow one another, with an answer each: they are read as one row, `rows[]` in paths.
    pub(crate) joins_rows: bool,
    /// A row, or the rows of one prompt, one per line.
    pub example: &'static str,
}

impl Layout {
    /// The defaults for entries of the table.
    pub(super) const PLAIN: Self = Self {
        format: Format::Pairs,
        about: "",
        signs: &[],
        prompt: &["prompt"],
        prompt_as: Written::Plainly,
        answers: &[],
        answers_as: Written::Plainly,
        preference: Preference::Sides,
        margin: None,
        tie: &[],
        domain: &[],
        joins_rows: false,
        example: "",
    };
}

/// A sign by which a row's layout is detected.
#[derive(Debug, Clone, Copy)]
pub enum Sign {
    /// The row has one of these keys.
    Has(At),
    /// The row has none of these keys.
    Lacks(At),
    /// The key's value is a list of texts.
    Texts(&'static str),
    /// The key's value is a transcript.
    Transcript(&'static str),
    /// The key's value is a transcript that ends where the assistant's turn starts.
    OpenTranscript(&'static str),
}

/// How a text is written. Every layout also reads message lists, single messages, content parts, and message lists as JSON
/// within a text, each recognized by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// As it is.
    Plainly,
    /// With its speakers' names: hh-rlhf, Nectar, HelpSteer2.
    Transcript,
    /// A JSON list of one speaker's turns; the prompt's and the answer's turns alternate.
    JsonList,
}

/// Which answer is better.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Preference {
    /// The first of `answers` are the chosen ones, the second the rejected ones: every chosen with every rejected one.
    Sides,
    /// A value that names the winner: the first answer's names, the second's, and those of a tie.
    Winner(At, [At; 3]),
    /// A whole number, up to a largest one: below zero the first answer is better, above it the second; its size is the
    /// margin.
    Strength(At, f64),
    /// The number, 0 or 1, of the safer answer, and whether each is safe; exactly one must be.
    Safety(At, [At; 2]),
    /// A rank for each answer, the lower the better.
    Ranks(&'static [At]),
    /// A score for each answer, the higher the better; the mean, if a path leads to several numbers.
    Scores(&'static [At]),
    /// There is one answer.
    Alone,
}

impl Layout {
    /// Whether a row has all the signs.
    pub(super) fn fits(&self, row: &Row) -> bool {
        !self.signs.is_empty() && self.signs.iter().all(|sign| sign.is_in(row))
    }

    /// Every path it names, in the order of the table.
    pub(crate) fn paths(&self) -> Vec<&'static str> {
        let labels: Vec<At> = match self.preference {
            Preference::Sides | Preference::Alone => vec![],
            Preference::Winner(at, _) | Preference::Strength(at, _) => vec![at],
            Preference::Safety(at, [one, other]) => vec![at, one, other],
            Preference::Ranks(each) | Preference::Scores(each) => each.to_vec(),
        };
        let answers = self.answers.iter().copied();
        let rest = self.margin.into_iter().flatten().chain([self.tie, self.domain]);
        [self.prompt].into_iter().chain(answers).chain(labels).chain(rest).flatten().copied().collect()
    }
}

impl Sign {
    fn is_in(&self, row: &Row) -> bool {
        let any = |keys: At| keys.iter().any(|key| row.peek(key).is_some());
        let text = |key| row.peek(key).and_then(Value::as_str);
        match *self {
            Self::Has(keys) => any(keys),
            Self::Lacks(keys) => !any(keys),
            Self::Transcript(key) => text(key).is_some_and(is_transcript),
            Self::OpenTranscript(key) => text(key).is_some_and(is_open_transcript),
            Self::Texts(key) => {
                let list = row.peek(key).and_then(Value::as_array);
                list.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_string))
            }
        }
    }
}
