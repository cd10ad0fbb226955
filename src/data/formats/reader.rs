//! Reads files of rows: detects their layout, joins rows of one prompt, and counts what is left out and why.
//!
//! Not here: one row's pairs (`interpret.rs`), files that are only scored (`scorable.rs`).

use super::interpret::{LONGEST_LIST, Sides, too_many};
use super::layout::Layout;
use super::layouts::{ALONE, LAYOUTS, named};
use super::{DropReason, SourceRows, Verdict, beside, suggest};
use crate::config::{RowRange, Source, TOTAL};
use crate::data::row::{Columns, MEND, Row};
use crate::data::rows::Place;
use crate::data::{Message, Pair, Prompt, rows};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// A file is refused after so many rows without a known layout; fewer, before the layout is detected, are odd rows.
const MOST_UNKNOWN: usize = 1000;
/// Most kinds of odd rows that are counted separately, so that a damaged file does not fill the report.
const MOST_KINDS: usize = 12;
/// Most unused keys that are counted separately, for files whose keys are data.
const MOST_KEYS: usize = 100;
/// Longest reason in a report, in characters.
const LONGEST_REASON: usize = 90;

/// The outcome for a pair: taken, left out for a reason, or not made because its row is odd.
enum Outcome {
    Taken(Box<Pair>),
    Left(DropReason),
    Odd { place: String, error: Error },
}

/// The position of a row: its place for messages, its number in the file, and its index among all rows.
struct Standing {
    place: String,
    number: usize,
    index: usize,
}

/// Reads all pairs of a source.
///
/// # Errors
/// As [`stream`].
pub fn read(source: &Source) -> Result<SourceRows> {
    let mut pairs = Vec::new();
    let read = stream(source, &mut |pair| {
        pairs.push(pair);
        Ok(())
    })?;
    Ok(SourceRows { pairs, ..read })
}

/// Passes all pairs of a source to `take`, in the file's order, and returns everything else about it.
///
/// With [`Format::Auto`](crate::config::Format::Auto) the first row that fits a layout decides for the whole file. `null`
/// counts as an absent key. A row that does not match its layout is odd: it is left out and counted, and the first one's
/// error is kept.
///
/// # Errors
/// A missing, empty or damaged file, or broken JSON; a file of no known layout, or of odd rows only; `columns` that no
/// layout or no row has. Each names the file, and the line (or the array's element, or the Parquet file's row). An error of
/// `take`.
pub(crate) fn stream(source: &Source, take: &mut dyn FnMut(Pair) -> Result<()>) -> Result<SourceRows> {
    check_columns(&source.columns)?;
    let mut reader = Reader::of(source, wanted(source)?, take);
    rows::for_each(&source.path, source.max_row_bytes, |place, row| reader.row(place, row))?;
    reader.finish()
}

/// The rows to take. If the range is in percent, all rows are counted first.
fn wanted(source: &Source) -> Result<Range<usize>> {
    let mut rows = usize::MAX;
    if source.rows.needs_total() {
        rows = 0;
        rows::for_each(&source.path, source.max_row_bytes, |_, _| {
            rows += 1;
            Ok(())
        })?;
    }
    Ok(source.rows.of(rows))
}

/// The first pairs of a source, at most `most`, for inspection; odd rows are skipped without a message.
///
/// # Errors
/// As [`stream`], as far as the file was read.
pub(crate) fn first(source: &Source, most: usize) -> Result<Vec<Pair>> {
    let whole = Source { rows: RowRange::default(), strict: false, ..source.clone() };
    let mut pairs = Vec::new();
    let read = stream(&whole, &mut |pair| {
        pairs.push(pair);
        if pairs.len() < most { Ok(()) } else { Err(Error::input("enough")) }
    });
    if pairs.len() < most {
        read?;
    }
    Ok(pairs)
}

struct Reader<'s> {
    source: &'s Source,
    /// `None` until it is detected.
    layout: Option<&'static Layout>,
    wanted: Range<usize>,
    take: &'s mut dyn FnMut(Pair) -> Result<()>,
    /// Pairs taken.
    pairs: usize,
    /// The counts so far, without the pairs.
    read: SourceRows,
    /// Kinds of odd rows that are counted separately.
    kinds: BTreeSet<String>,
    /// The domain of pairs whose row names none.
    domain: String,
    /// Rows of one prompt that are still to be joined.
    waiting: Vec<(Standing, Row<'s>)>,
    /// Further rows of that prompt, which are only counted: with so many, none makes a pair.
    beyond: usize,
    rows: usize,
    /// Keys of `columns` whose path no row has had yet.
    columns_left: BTreeSet<String>,
}

impl<'s> Reader<'s> {
    fn of(source: &'s Source, wanted: Range<usize>, take: &'s mut dyn FnMut(Pair) -> Result<()>) -> Self {
        Self {
            source,
            layout: named(source.format),
            wanted,
            take,
            pairs: 0,
            read: SourceRows::default(),
            kinds: BTreeSet::new(),
            domain: source.domain.clone().unwrap_or_else(|| stem(&source.path)),
            waiting: Vec::new(),
            beyond: 0,
            rows: 0,
            columns_left: source.columns.keys().cloned().collect(),
        }
    }

    fn row(&mut self, place: &Place, row: Value) -> Result<()> {
        let standing = Standing { place: place.to_string(), number: place.number, index: self.rows };
        self.rows += 1;
        let row = match Row::new(row, &self.source.columns) {
            Ok(row) => row,
            Err(error) => return self.odd(&standing, error),
        };
        self.columns_left.retain(|key| row.peek(key).is_none());
        self.layout = self.layout.or_else(|| detect(&row));
        match self.layout {
            None => {
                let error = unknown(&row);
                if standing.index + 1 == MOST_UNKNOWN {
                    return Err(error.at(&standing.place));
                }
                self.odd(&standing, error)
            }
            Some(layout) if layout.joins_rows => {
                if self.waiting.first().is_some_and(|(_, first)| !one_question(layout, first, &row)) {
                    self.join(layout)?;
                }
                match self.waiting.len() < LONGEST_LIST {
                    true => self.waiting.push((standing, row)),
                    false => self.beyond += 1,
                }
                Ok(())
            }
            Some(layout) => self.read(layout, &standing, &row),
        }
    }

    /// Reads the waiting rows as one.
    fn join(&mut self, layout: &Layout) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        let Some((standing, first)) = waiting.next() else { return Ok(()) };
        let beyond = std::mem::take(&mut self.beyond);
        if beyond > 0 {
            return self.odd(&standing, too_many(LONGEST_LIST + beyond));
        }
        let row = first.join(waiting.map(|(_, row)| row.object));
        self.read(layout, &standing, &row)
    }

    fn read(&mut self, layout: &Layout, standing: &Standing, row: &Row) -> Result<()> {
        let pairs = match row.pairs(layout, self.source.pairs_per_prompt, self.source.ties) {
            Ok(pairs) => pairs,
            Err(error) => return self.odd(standing, error),
        };
        let mut whole = false;
        for sides in pairs {
            let outcome = match sides.map(|sides| row.pair(layout, sides, self.source.margin_scale, standing.number)) {
                Ok(Ok(pair)) => {
                    whole = true;
                    usable(pair, self.source).map_or_else(Outcome::Left, |pair| Outcome::Taken(Box::new(pair)))
                }
                Ok(Err(error)) => Outcome::Odd { place: standing.place.clone(), error },
                Err(reason) => Outcome::Left(reason),
            };
            self.count(standing.index, outcome)?;
        }
        // A row that is left out early was not read completely.
        if !whole {
            return Ok(());
        }
        self.read.rows += 1;
        let unused = &mut self.read.unused;
        for path in row.unused() {
            let known = unused.contains_key(&path) || unused.len() < MOST_KEYS;
            *unused.entry(if known { path } else { String::from("others") }).or_default() += 1;
        }
        Ok(())
    }

    fn odd(&mut self, standing: &Standing, error: Error) -> Result<()> {
        self.count(standing.index, Outcome::Odd { place: standing.place.clone(), error })
    }

    /// Takes a pair, or counts why not.
    fn count(&mut self, row: usize, outcome: Outcome) -> Result<()> {
        self.read.read += 1;
        let reason = match outcome {
            _ if !self.wanted.contains(&row) => DropReason::OutsideRows,
            Outcome::Taken(mut pair) => {
                pair.domain.get_or_insert_with(|| self.domain.clone());
                self.pairs += 1;
                return (self.take)(*pair);
            }
            Outcome::Left(reason) => reason,
            Outcome::Odd { place, error } => {
                let kind = kind_of(&error);
                self.read.first_odd.get_or_insert_with(|| error.at(place));
                let separate = self.kinds.contains(&kind) || self.kinds.len() < MOST_KINDS;
                let kind = if separate { kind } else { String::from("others") };
                self.kinds.insert(kind.clone());
                DropReason::Odd(kind)
            }
        };
        *self.read.dropped.entry(reason).or_default() += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<SourceRows> {
        if let Some(layout) = self.layout {
            self.join(layout)?;
            self.read.format = Some(layout.format);
        }
        if let Some(key) = self.columns_left.first() {
            return Err(no_row_has(&self.source.path, key, &self.source.columns));
        }
        let only_odd = self.pairs == 0 && self.read.dropped.keys().all(|reason| matches!(reason, DropReason::Odd(_)));
        match self.read.first_odd {
            Some(error) if only_odd || self.source.strict => Err(error),
            _ => Ok(self.read),
        }
    }
}

/// The kind of an odd row: its error's message, cut to a line of the report.
fn kind_of(error: &Error) -> String {
    match error.message.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}...", &error.message[..end]),
        None => error.message.clone(),
    }
}

/// The layout that fits a row. Layouts that keys do not reveal (`safer`, `scored`) must be named.
pub(super) fn detect(row: &Row) -> Option<&'static Layout> {
    LAYOUTS.iter().find(|layout| layout.fits(row))
}

pub(super) fn unknown(row: &Row) -> Error {
    let keys: Vec<_> = row.object.keys().map(String::as_str).collect();
    let hint = "`haf-dist formats` lists the known ones";
    Error::input(format!("a row of no known layout: its keys are {keys:?}")).hint(match suggest::columns(row) {
        Some(columns) => format!("{hint}; other keys are mapped in the source (or with --column), perhaps {columns}"),
        None => format!("{hint}; a source's `columns` (or --column) map the keys of other rows"),
    })
}

/// Refuses `columns` whose key no layout has.
pub(super) fn check_columns(columns: &Columns) -> Result<()> {
    let known: BTreeSet<&str> = LAYOUTS
        .iter()
        .chain(ALONE)
        .flat_map(Layout::paths)
        .map(|path| path.trim_start_matches("rows[].").split(['.', '[']).next().unwrap_or_default())
        .chain(beside::keys())
        .collect();
    match columns.keys().find(|key| !known.contains(key.as_str())) {
        Some(key) => {
            let known: Vec<&str> = known.into_iter().collect();
            Err(Error::input(format!("`columns`: no format has a key `{key}`"))
                .hint(format!("the left side is a key of a format: one of {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

pub(super) fn no_row_has(path: &Path, key: &str, columns: &Columns) -> Error {
    let column = columns.get(key).map_or("", String::as_str);
    let path = path.display();
    Error::input(format!("{path}: no row has `{column}`, to which `columns` map `{key}`"))
        .hint("the right side is a path in the rows: keys joined by dots")
}

/// Whether two rows have the same prompt, including the keys beside a pair.
fn one_question(layout: &Layout, one: &Row, other: &Row) -> bool {
    let mut keys = layout.prompt.iter().copied().chain(beside::keys());
    keys.all(|key| one.peek(key) == other.peek(key))
}

/// Leaves out pairs that teach nothing, and those that the source excludes.
fn usable(pair: Pair, source: &Source) -> Verdict<Pair> {
    if source.single_turn && !is_single_turn(&pair.prompt) {
        return Err(DropReason::SeveralTurns);
    }
    let Some(rejected) = &pair.rejected else { return Ok(pair) };
    let is_empty = |answer: &Message| answer.text().trim().is_empty() && answer.more.is_empty();
    if is_empty(&pair.chosen) || is_empty(rejected) {
        return Err(DropReason::EmptyAnswer);
    }
    if pair.chosen == *rejected {
        return Err(DropReason::IdenticalAnswers);
    }
    Ok(pair)
}

/// Whether a prompt is one user's message, apart from system messages.
fn is_single_turn(prompt: &Prompt) -> bool {
    match prompt {
        Prompt::Text(_) => true,
        Prompt::Messages(messages) => {
            let mut turns = messages.iter().filter(|message| message.role != "system");
            turns.next().is_some_and(|turn| turn.role == "user") && turns.next().is_none()
        }
    }
}

/// A file's name without the endings of its type: `hh` for `hh.jsonl.gz`; the whole name if that would be the total's.
fn stem(path: &Path) -> String {
    let whole = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut name = whole.clone();
    for extension in [".gz", ".zst", ".jsonl", ".json", ".parquet"] {
        if let Some(rest) = name.strip_suffix(extension)
            && !rest.is_empty()
        {
            name.truncate(rest.len());
        }
    }
    if name == TOTAL { whole } else { name }
}

impl Row<'_> {
    /// Completes a pair with its row's margin (unless its layout gave one), its domain and its place.
    pub(super) fn pair(&self, layout: &Layout, sides: Sides, margin_scale: f64, line: usize) -> Result<Pair> {
        const EXPECTED: &str = "a finite number";
        let margin = match sides.margin {
            None if sides.tied => None,
            None => self.get(&["margin"]).map(|found| found.number(EXPECTED)).transpose()?,
            margin => margin,
        };
        let margin = margin.filter(|_| margin_scale != 0.0).map(|margin| (margin * margin_scale) as f32);
        if let Some(margin) = margin.filter(|margin| !margin.is_finite()) {
            return Err(Error::input(format!("the margin is {margin}, expected {EXPECTED}")).hint(MEND));
        }
        let domain = self.get(&["domain"]).or_else(|| self.get(layout.domain));
        let domain = domain.map(|found| found.text("a string").map(str::to_owned)).transpose()?;
        if domain.as_deref() == Some(TOTAL) {
            return Err(Error::input(format!(
                "the domain is {TOTAL:?}, which is the name of the total over all domains"
            ))
            .hint("give the row's domain another name"));
        }
        let Sides { prompt, inputs, chosen, rejected, tied, .. } = sides;
        Ok(Pair { prompt, inputs, chosen, rejected: Some(rejected), margin, tied, domain, line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_prompt_beyond_the_most_are_counted_and_not_kept() {
        let (source, mut take) = (Source::new("rows.jsonl"), |_| Ok(()));
        let mut reader = Reader::of(&source, 0..usize::MAX, &mut take);
        let rows = (0..LONGEST_LIST + 1000).map(|number| ("p", number)).chain([("q", 1), ("q", 2)]);
        for (line, (prompt, score)) in rows.enumerate() {
            let row = serde_json::json!({"prompt": prompt, "response": format!("{line}"), "helpfulness": score});
            reader.row(&Place::line(&source.path, line + 1), row).unwrap();
            assert!(reader.waiting.len() <= LONGEST_LIST);
        }
        let read = reader.finish().unwrap();
        let odd = "the row has 1064 answers, expected at most 64";
        assert_eq!((read.rows, read.dropped), (1, [(DropReason::Odd(odd.into()), 1)].into()));
        assert_eq!(read.first_odd.unwrap().message, format!("rows.jsonl:1: {odd}"));
    }
}
