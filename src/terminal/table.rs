//! A plain table in Markdown: lines between bars, a line of dashes below the header.
//!
//! Not here: making it fit a terminal (`fitted.rs`).

use console::measure_text_width;
use std::fmt;

/// A table whose columns are aligned to the left unless [`right`](Self::right) says otherwise. A cell may have several lines.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// The header, then the rows.
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with this header and no rows.
    pub(crate) fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self { rows: vec![header.into_iter().map(Into::into).collect()], right: Vec::new() }
    }

    /// The same with these columns aligned to the right, as numbers are.
    pub(crate) fn right(mut self, columns: impl IntoIterator<Item = usize>) -> Self {
        self.right.extend(columns);
        self
    }

    /// Adds a row; cells that it lacks are empty.
    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let widest = |text: String| text.lines().map(measure_text_width).max().unwrap_or(0);
        let width = |column| self.rows.iter().map(|row| widest(cell(row, column))).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns()).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let depth = row.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1);
            for line in 0..depth {
                f.write_str(if number + line == 0 { "|" } else { "\n|" })?;
                for (column, width) in widths.iter().enumerate() {
                    let cell = cell(row, column);
                    let text = cell.lines().nth(line).unwrap_or_default();
                    let space = " ".repeat(width - measure_text_width(text));
                    match self.right.contains(&column) {
                        true => write!(f, " {space}{text} |")?,
                        false => write!(f, " {text}{space} |")?,
                    }
                }
            }
            if number == 0 {
                f.write_str("\n|")?;
                widths.iter().try_for_each(|width| write!(f, "{}|", "-".repeat(width + 2)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_line() {
        let mut table = Table::new(["", "train", "train:\na.jsonl"]).right([1, 2]);
        table.row(["pairs read", "1,000", "2"]);
        table.row(["  \u{65e5}\u{672c}"]);
        let expected = "\
|            | train |  train: |
|            |       | a.jsonl |
|------------|-------|---------|
| pairs read | 1,000 |       2 |
|   \u{65e5}\u{672c}     |       |         |";
        assert_eq!(table.to_string(), expected);
    }
}
