//! Which rows of a file a source takes: `"5%:"`, `":1000"`, `"90%:95%"`.
//!
//! Not here: reading rows.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A half-open range of rows; a missing end is the file's start or end. Default: all rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RowRange {
    from: Option<Edge>,
    to: Option<Edge>,
}

/// Where a range starts or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    /// Number of rows before it.
    Row(usize),
    /// Percentage of the file's rows before it, rounded to the nearest row.
    Percent(usize),
}

impl RowRange {
    /// Whether it depends on the number of rows in the file.
    pub(crate) fn needs_total(self) -> bool {
        [self.from, self.to].iter().any(|edge| matches!(edge, Some(Edge::Percent(_))))
    }

    /// The same range as numbers, in a file of `rows` rows.
    pub fn of(self, rows: usize) -> Range<usize> {
        let number = |edge| match edge {
            Edge::Row(row) => row.min(rows),
            Edge::Percent(percent) => (rows * percent + 50) / 100,
        };
        self.from.map_or(0, number)..self.to.map_or(rows, number)
    }
}

impl FromStr for RowRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("the row range {text:?} is not like \"5%:\", \":1000\" or \"90%:95%\"");
        let edge = |text: &str| match text.trim() {
            "" => Ok(None),
            text => match text.strip_suffix('%') {
                Some(percent) => percent.parse().ok().filter(|percent| *percent <= 100).map(Edge::Percent),
                None => text.parse().ok().map(Edge::Row),
            }
            .map(Some)
            .ok_or_else(wrong),
        };
        let (from, to) = text.split_once(':').ok_or_else(wrong)?;
        let range = Self { from: edge(from)?, to: edge(to)? };
        let backwards = match (range.from, range.to) {
            (Some(Edge::Row(from)), Some(Edge::Row(to))) => from >= to,
            (Some(Edge::Percent(from)), Some(Edge::Percent(to))) => from >= to,
            (Some(Edge::Percent(100)), _) | (_, Some(Edge::Percent(0) | Edge::Row(0))) => true,
            _ => false,
        };
        if backwards { Err(format!("the row range {text:?} selects no rows")) } else { Ok(range) }
    }
}

impl TryFrom<String> for RowRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RowRange> for String {
    fn from(range: RowRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for RowRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge = |edge| match edge {
            None => String::new(),
            Some(Edge::Row(row)) => row.to_string(),
            Some(Edge::Percent(percent)) => format!("{percent}%"),
        };
        write!(f, "{}:{}", edge(self.from), edge(self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranges_that_meet_share_no_row_and_leave_none_out() {
        for rows in [0, 1, 7, 19, 20, 21, 1000] {
            for (one, other) in [(":5%", "5%:"), (":3", "3:"), (":95%", "95%:100%"), ("0:7", "7:")] {
                let [one, other] = [one, other].map(|text| text.parse::<RowRange>().unwrap().of(rows));
                assert_eq!((one.start, one.end, other.end), (0, other.start, rows), "{one:?} {other:?}");
            }
        }
        assert_eq!("5%:".parse::<RowRange>().unwrap().of(33000), 1650..33000);
    }

    #[test]
    fn a_range_reads_as_it_is_written_and_a_wrong_one_is_refused() {
        for text in ["5%:", ":5%", "10:20", "10:90%", ":"] {
            assert_eq!(text.parse::<RowRange>().unwrap().to_string(), text);
        }
        for text in ["", "5%", "5:5", "20%:10%", "101%:", "-1:", "a:b", "1:2:3", ":0", "100%:", "1.5%:"] {
            assert!(text.parse::<RowRange>().is_err(), "{text}");
        }
    }
}
