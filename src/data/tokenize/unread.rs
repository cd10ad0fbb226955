//! Counts the inputs of rows for a chat template that never names them.
//!
//! Not here: keys that are not read at all (`data/row.rs`).

use super::Encoder;
use crate::data::Pair;
use std::collections::BTreeMap;

/// Inputs of rows for a chat template that never names them, with the rows that have them.
#[derive(Debug, Default)]
pub(crate) struct Unread(BTreeMap<String, RowsWith>);

/// The rows with an unread input.
#[derive(Debug, Default)]
struct RowsWith {
    last_line: usize,
    count: usize,
}

impl Unread {
    /// Each input with its number of rows.
    pub(crate) fn rows(self) -> impl Iterator<Item = (String, usize)> {
        self.0.into_iter().map(|(key, rows)| (key, rows.count))
    }
}

impl Encoder {
    /// Counts the inputs in a pair's row that this chat template never names. Pairs of a row follow one another.
    pub(crate) fn count_unread(&self, pair: &Pair, unread: &mut Unread) {
        for key in pair.for_template().filter(|key| !self.template.names(key)) {
            // A row of several pairs counts once.
            let rows = unread.0.entry(format!("{key} (not in the chat template)")).or_default();
            rows.count += usize::from(rows.last_line != pair.line || rows.count == 0);
            rows.last_line = pair.line;
        }
    }
}
