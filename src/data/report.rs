//! The data report before training: counts per source, and one table of them.
//!
//! Not here: reading, tokenizing or dropping (`formats/`, `tokenize/`, `prepared.rs`).

use crate::data::sequence::OwnedPair;
use crate::error::Error;
use crate::terminal::Table;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Counts over the pairs of one source, or of several together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Pairs in the files.
    pub read: usize,
    /// Pairs that can be trained on.
    pub kept: usize,
    /// Reason -> pairs left out for it.
    pub(crate) dropped: BTreeMap<String, usize>,
    /// Rows that made a pair.
    #[serde(default)]
    pub(crate) rows: usize,
    /// Path of a key with content that was not used -> number of these rows that have it.
    #[serde(default)]
    pub(crate) unused: BTreeMap<String, usize>,
    /// The error and place of the first odd row.
    #[serde(default)]
    pub(crate) first_odd: Option<String>,
    /// Pairs left out because their row is odd.
    #[serde(default)]
    pub(crate) odd: usize,
    /// Pairs whose prompt lost its start.
    pub prompts_cut: usize,
    /// Pairs with an answer that lost its end, and with it its EOS.
    pub answers_cut: usize,
    /// Special tokens that were found in the texts of prompts and answers.
    pub special_in_text: usize,
    /// Tokens of the common prefixes, P.
    pub(crate) prefix_tokens: usize,
    /// Tokens of the chosen sequences after the prefix, A.
    pub(crate) chosen_tokens: usize,
    /// Tokens of the rejected sequences after the prefix, B.
    pub(crate) rejected_tokens: usize,
    /// Tokens of all sequences without sharing: 2P + A + B (P + A for a single answer).
    pub(crate) unshared_tokens: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Pairs kept in which neither answer is better.
    pub(crate) half: usize,
    /// Pairs whose chosen answer has more tokens.
    pub(crate) chosen_longer: usize,
    /// Pairs whose rejected answer has more tokens.
    pub(crate) rejected_longer: usize,
    /// Domain -> pairs kept.
    pub(crate) domains: BTreeMap<String, usize>,
}

/// The answer that a guess by length alone should prefer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Longer {
    /// The longer one is right at least as often as not.
    Wins,
    /// The shorter one is right more often.
    Loses,
}

impl Counts {
    /// Counts a pair that is kept.
    pub(crate) fn keep(&mut self, pair: &OwnedPair, tied: bool, domain: &str) {
        let single = pair.rejected == 0;
        self.kept += 1;
        self.prompts_cut += usize::from(pair.prompt_cut);
        self.answers_cut += usize::from(pair.answer_cut);
        self.special_in_text += pair.special_in_text;
        self.prefix_tokens += pair.prefix;
        self.chosen_tokens += pair.chosen;
        self.rejected_tokens += pair.rejected;
        self.unshared_tokens += pair.prefix * if single { 1 } else { 2 } + pair.chosen + pair.rejected;
        self.longest = self.longest.max(pair.prefix + pair.chosen.max(pair.rejected));
        self.half += usize::from(tied);
        if !single && !tied {
            match pair.chosen.cmp(&pair.rejected) {
                Ordering::Greater => self.chosen_longer += 1,
                Ordering::Less => self.rejected_longer += 1,
                Ordering::Equal => {}
            }
        }
        *self.domains.entry(domain.to_owned()).or_default() += 1;
    }

    /// Counts pairs that are left out.
    pub(crate) fn drop(&mut self, reason: impl ToString, pairs: usize) {
        *self.dropped.entry(reason.to_string()).or_default() += pairs;
    }

    /// Tokens computed in one pass, P + A + B.
    pub fn tokens(&self) -> usize {
        self.prefix_tokens + self.chosen_tokens + self.rejected_tokens
    }

    /// Share of tokens that need not be computed because a prefix is shared: 1 - (P+A+B) / (2P+A+B).
    pub fn saved_by_prefix(&self) -> f64 {
        1.0 - self.tokens() as f64 / self.unshared_tokens.max(1) as f64
    }

    /// Accuracy of the better guess by length in tokens (ties count 1/2), and which guess that is. A reward model
    /// that does no better has perhaps learned nothing but length.
    pub fn length_guess(&self) -> (f64, Longer) {
        let (wins, loses) = (self.chosen_longer as f64, self.rejected_longer as f64);
        let lead = (wins - loses).abs() / (2 * self.kept.max(1)) as f64;
        (0.5 + lead, if wins >= loses { Longer::Wins } else { Longer::Loses })
    }

    fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.rows += other.rows;
        self.odd += other.odd;
        if self.first_odd.is_none() {
            self.first_odd.clone_from(&other.first_odd);
        }
        self.kept += other.kept;
        self.half += other.half;
        self.prompts_cut += other.prompts_cut;
        self.answers_cut += other.answers_cut;
        self.special_in_text += other.special_in_text;
        self.prefix_tokens += other.prefix_tokens;
        self.chosen_tokens += other.chosen_tokens;
        self.rejected_tokens += other.rejected_tokens;
        self.unshared_tokens += other.unshared_tokens;
        self.longest = self.longest.max(other.longest);
        self.chosen_longer += other.chosen_longer;
        self.rejected_longer += other.rejected_longer;
        let maps = [
            (&mut self.dropped, &other.dropped),
            (&mut self.unused, &other.unused),
            (&mut self.domains, &other.domains),
        ];
        for (into, from) in maps {
            for (name, pairs) in from {
                *into.entry(name.clone()).or_default() += pairs;
            }
        }
    }
}

/// One file's counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceReport {
    /// The file's name, without its folder.
    pub(crate) name: String,
    /// Its counts.
    pub(crate) counts: Counts,
}

/// The counts of one split: its sources, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataReport {
    /// `train`, `dev`, `test`, or another name.
    pub(crate) split: String,
    /// One entry per source.
    pub(crate) sources: Vec<SourceReport>,
}

impl DataReport {
    /// All sources together.
    pub fn total(&self) -> Counts {
        self.sources.iter().fold(Counts::default(), |mut total, source| {
            total.add(&source.counts);
            total
        })
    }

    /// The error of the first odd row, for `data.strict`.
    pub(crate) fn first_odd(&self) -> Option<Error> {
        let odd = |source: &SourceReport| source.counts.first_odd.clone();
        let hint = "mend the row or leave it out; with data.strict = false it is left out and counted";
        self.sources.iter().find_map(odd).map(|what| Error::input(what).hint(hint))
    }

    /// One table: a column for the split, and one per source if there are several; below it the notes.
    pub(crate) fn render(&self) -> String {
        render(&[self])
    }
}

/// One table of several splits: a column per split, and one per source if a split has several. Below it the notes: the first
/// odd row of each source, and the keys that were not used.
pub fn render(reports: &[&DataReport]) -> String {
    let mut header = vec![String::new()];
    let mut columns: Vec<Counts> = Vec::new();
    for report in reports {
        header.push(report.split.clone());
        columns.push(report.total());
        if report.sources.len() > 1 {
            for source in &report.sources {
                header.push(format!("{}:\n{}", report.split, source.name));
                columns.push(source.counts.clone());
            }
        }
    }
    let numbers = 1..header.len();
    let mut table = Table::new(header).right(numbers);
    let mut row = |label: &str, cell: &dyn Fn(&Counts) -> String| {
        table.row(std::iter::once(label.to_owned()).chain(columns.iter().map(cell)));
    };
    let names = |of: fn(&Counts) -> &BTreeMap<String, usize>| -> BTreeSet<&String> {
        columns.iter().flat_map(|counts| of(counts).keys()).collect()
    };

    row("pairs read", &|counts| grouped(counts.read));
    for reason in names(|counts| &counts.dropped) {
        row(&format!("- {reason}"), &|counts| grouped(counts.dropped.get(reason).copied().unwrap_or(0)));
    }
    row("pairs kept", &|counts| grouped(counts.kept));
    if columns.iter().any(|counts| counts.half > 0) {
        row("  ties, as half labels", &|counts| grouped(counts.half));
    }
    if columns.iter().any(|counts| counts.domains.len() > 1) {
        for domain in names(|counts| &counts.domains) {
            row(&format!("  in {domain}"), &|counts| grouped(counts.domains.get(domain).copied().unwrap_or(0)));
        }
    }
    row("prompts truncated", &|counts| grouped(counts.prompts_cut));
    row("answers truncated (EOS lost)", &|counts| grouped(counts.answers_cut));
    row("special tokens in text", &|counts| grouped(counts.special_in_text));
    row("tokens", &|counts| grouped(counts.tokens()));
    row("  common prefix", &|counts| grouped(counts.prefix_tokens));
    row("  chosen", &|counts| grouped(counts.chosen_tokens));
    row("  rejected", &|counts| grouped(counts.rejected_tokens));
    row("longest sequence", &|counts| grouped(counts.longest));
    row("saved by the prefix", &|counts| format!("{:.1}%", 100.0 * counts.saved_by_prefix()));
    row("length-only guess", &|counts| {
        let (accuracy, longer) = counts.length_guess();
        match longer {
            _ if accuracy == 0.5 => "0.500".to_owned(),
            Longer::Wins => format!("longer {accuracy:.3}"),
            Longer::Loses => format!("shorter {accuracy:.3}"),
        }
    });
    let mut text = table.to_string();
    for report in reports {
        for source in &report.sources {
            source.notes(&report.split).iter().for_each(|note| text.extend(["\n", note]));
        }
    }
    text
}

impl SourceReport {
    /// The notes below the table.
    fn notes(&self, split: &str) -> Vec<String> {
        let Counts { rows, unused, first_odd, odd, .. } = &self.counts;
        let first_odd = first_odd.as_ref().map(|what| match odd {
            1 => format!("{split}: one odd row is left out: {what}"),
            _ => format!("{split}: {} odd rows are left out, the first of them: {what}", grouped(*odd)),
        });
        let unused = unused_keys(unused, *rows).map(|keys| format!("{split}: {}: {keys}", self.name));
        first_odd.into_iter().chain(unused).collect()
    }
}

/// "keys not used: source, model (all rows); note (3 of 40 rows)"; `None` if every key is used.
pub(crate) fn unused_keys(unused: &BTreeMap<String, usize>, rows: usize) -> Option<String> {
    let mut by_count: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    unused.iter().for_each(|(key, count)| by_count.entry(*count).or_default().push(key));
    let part = |(count, keys): (&usize, &Vec<&str>)| {
        let share =
            if *count == rows { String::from("all") } else { format!("{} of {}", grouped(*count), grouped(rows)) };
        format!("{} ({share} rows)", keys.join(", "))
    };
    let parts: Vec<String> = by_count.iter().rev().map(part).collect();
    (!parts.is_empty()).then(|| format!("keys not used: {}", parts.join("; ")))
}

/// `1 rank`, `2 ranks`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// 1234567 -> 1,234,567
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
