//! Reads files of rows that are only scored: none is left out.
//!
//! Not here: files that are trained or evaluated on (`reader.rs`).

use super::layouts::ALONE;
use super::reader::{check_columns, detect, no_row_has, unknown};
use crate::config::{Source, Ties};
use crate::data::row::{MEND, Row};
use crate::data::{Pair, rows};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The rows of a file to be scored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scorable {
    /// A pair, or a single answer, for every row.
    pub pairs: Vec<Pair>,
    /// Path of a key with content that was not used -> number of rows that have it.
    pub unused: BTreeMap<String, usize>,
}

/// Reads all rows of a file that is only scored: pairs of any layout, `prompt` with one `answer` (or `response`, or
/// `completion`), or `messages` that end with the answer. No row is left out, so that each row has its scores. Rows may
/// have different layouts. Only the source's path, columns and bound are used.
///
/// # Errors
/// As [`stream`](super::stream), at the first odd row; also a pair whose answers do not belong to one prompt, a tie, and a list of more than
/// one pair.
pub fn read_for_scoring(source: &Source) -> Result<Scorable> {
    let Source { path, columns, max_row_bytes, .. } = source;
    check_columns(columns)?;
    let mut scorable = Scorable::default();
    let mut columns_left: BTreeSet<&String> = columns.keys().collect();
    rows::for_each(path, *max_row_bytes, |place, row| {
        let read = || -> Result<Pair> {
            let row = Row::new(row, columns)?;
            columns_left.retain(|key| row.peek(key).is_none());
            let pair = to_score(&row, place.number)?;
            for path in row.unused() {
                *scorable.unused.entry(path).or_default() += 1;
            }
            Ok(pair)
        };
        let pair = read().map_err(|error| error.at(place))?;
        scorable.pairs.push(pair);
        Ok(())
    })?;
    match columns_left.first() {
        Some(key) => Err(no_row_has(path, key, columns)),
        None => Ok(scorable),
    }
}

fn to_score(row: &Row, line: usize) -> Result<Pair> {
    let refuse = |reason| Error::input(format!("this row cannot be scored: {reason}")).hint(MEND);
    // Rows that are joined to pairs are single answers here.
    let Some(layout) = detect(row).filter(|layout| !layout.joins_rows) else {
        let layout = ALONE.iter().find(|layout| layout.fits(row)).ok_or_else(|| unknown(row))?;
        let sides = row.alone(layout)?.map_err(refuse)?;
        return Ok(Pair { rejected: None, ..row.pair(layout, sides, 1.0, line)? });
    };
    let mut pairs = row.pairs(layout, 0, Ties::Drop)?;
    let number = pairs.len();
    let (Some(sides), 1) = (pairs.pop(), number) else {
        return Err(Error::input(format!("a list of {number} pairs, expected one"))
            .hint("a row gets one line of scores: give each answer a row with `prompt` and `answer`"));
    };
    row.pair(layout, sides.map_err(refuse)?, 1.0, line)
}
