//! Counts a suite's prompts that occur in training data: whole, or with thirteen words in a row.
//!
//! The prompts make two small tables, and the training text streams past them, so its size does not matter. Whole: a text in a
//! row, or a turn of a transcript in it, equals the prompt except for white space. Thirteen words: words are runs of letters
//! and digits, in any case, as in GPT-3's check (arXiv 2005.14165, appendix C); a prompt with fewer words can only occur
//! whole.
//!
//! Not here: finding the training files.

use super::Suite;
use crate::data;
use crate::error::Result;
use crate::metrics::table;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// So many equal words in a row are not a coincidence.
const WORDS: usize = 13;

/// Separators of the turns in a transcript (hh-rlhf).
const TURNS: [&str; 2] = ["\n\nHuman:", "\n\nAssistant:"];

/// A suite's prompts that occur in training data, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contamination {
    /// The suite.
    #[serde(skip)]
    pub suite: Suite,
    /// The files of training data.
    pub(crate) files: Vec<String>,
    /// The suite's distinct prompts.
    pub prompts: usize,
    /// Prompts that occur whole.
    pub whole: usize,
    /// Prompts that share thirteen words in a row with the training text.
    pub thirteen_words: usize,
    /// Prompts with fewer words, which can only occur whole.
    pub short: usize,
    /// Rows of training data read.
    pub(crate) rows: usize,
}

/// The prompts to look for, and which of them were seen.
pub struct Wanted {
    /// Hash of a whole prompt -> its index.
    whole: HashMap<u128, usize>,
    /// Hash of thirteen words -> indices of the prompts that have them.
    in_a_row: HashMap<u128, Vec<usize>>,
    prompts: Vec<Seen>,
    files: Vec<String>,
    rows: usize,
}

struct Seen {
    suites: Vec<Suite>,
    /// Whether it has fewer than thirteen words.
    short: bool,
    /// Whether it was seen whole.
    whole: bool,
    /// Whether thirteen of its words were seen in a row.
    words: bool,
}

impl Wanted {
    /// The prompts of some suites.
    pub fn new<'p>(prompts: impl IntoIterator<Item = (Suite, &'p str)>) -> Self {
        let mut wanted =
            Self { whole: HashMap::new(), in_a_row: HashMap::new(), prompts: Vec::new(), files: Vec::new(), rows: 0 };
        for (suite, text) in prompts {
            let next = wanted.prompts.len();
            let number = *wanted.whole.entry(whole(text)).or_insert(next);
            if number < next {
                let suites = &mut wanted.prompts[number].suites;
                if !suites.contains(&suite) {
                    suites.push(suite);
                }
                continue;
            }
            let mut short = true;
            for_each_run(text, |run| {
                short = false;
                let prompts = wanted.in_a_row.entry(run).or_default();
                if prompts.last() != Some(&number) {
                    prompts.push(number);
                }
            });
            wanted.prompts.push(Seen { suites: vec![suite], short, whole: false, words: false });
        }
        wanted
    }

    /// Reads a file of training data, whatever its layout: every text in a row counts.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(&mut self, file: &Path, max_row_bytes: usize) -> Result<()> {
        self.files.push(file.display().to_string());
        data::objects(file, max_row_bytes, |row| {
            self.rows += 1;
            row.values().for_each(|value| self.look(value));
            Ok(())
        })
    }

    fn look(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.pass(text),
            Value::Array(list) => list.iter().for_each(|value| self.look(value)),
            Value::Object(object) => object.values().for_each(|value| self.look(value)),
            _ => {}
        }
    }

    /// Looks for the prompts in a text of the training data.
    pub fn pass(&mut self, text: &str) {
        let mut turns = vec![text];
        for border in TURNS {
            turns = turns.into_iter().flat_map(|turn| turn.split(border)).collect();
        }
        for part in turns.iter().copied().chain([text]) {
            if let Some(&number) = self.whole.get(&whole(part)) {
                self.prompts[number].whole = true;
            }
        }
        let (in_a_row, prompts) = (&self.in_a_row, &mut self.prompts);
        for_each_run(text, |run| {
            in_a_row.get(&run).into_iter().flatten().for_each(|&number| prompts[number].words = true);
        });
    }

    /// The result for each suite.
    pub fn found(&self) -> Vec<Contamination> {
        let mut by_suite: BTreeMap<Suite, Contamination> = BTreeMap::new();
        for seen in &self.prompts {
            for &suite in &seen.suites {
                let none = Contamination {
                    suite,
                    files: self.files.clone(),
                    prompts: 0,
                    whole: 0,
                    thirteen_words: 0,
                    short: 0,
                    rows: self.rows,
                };
                let found = by_suite.entry(suite).or_insert(none);
                found.prompts += 1;
                found.whole += usize::from(seen.whole);
                found.thirteen_words += usize::from(seen.words);
                found.short += usize::from(seen.short);
            }
        }
        by_suite.into_values().collect()
    }
}

/// Hash of a text, ignoring differences in white space.
fn whole(text: &str) -> u128 {
    xxh3_128(text.split_whitespace().collect::<Vec<_>>().join(" ").as_bytes())
}

/// Calls `take` with the hash of every thirteen words in a row.
fn for_each_run(text: &str, mut take: impl FnMut(u128)) {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(WORDS).for_each(|run| take(xxh3_128(run.join(" ").as_bytes())));
}

/// A plain table.
pub(crate) fn contamination_table(found: &[Contamination]) -> String {
    let share = |count: usize, of: usize| format!("{count} ({:.1}%)", 100.0 * count as f64 / of.max(1) as f64);
    let row = |found: &Contamination| {
        vec![
            found.suite.name().to_owned(),
            found.prompts.to_string(),
            share(found.whole, found.prompts),
            share(found.thirteen_words, found.prompts),
            found.short.to_string(),
        ]
    };
    table(&["suite", "prompts", "whole", "13 words in a row", "shorter than that"], 1, found.iter().map(row))
}
