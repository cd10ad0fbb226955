//! Fits tables to the terminal: a row that is too long is split between columns into two lines or more, not wherever the
//! terminal would break it.
//!
//! It works on text, so that the same lines are fitted here and written whole to files. Not here: the content of tables.

use console::measure_text_width;
use std::ops::Range;

/// Columns by which the second line of a row is indented.
const INDENT: usize = 2;

/// Narrower terminals get whole lines: nothing could be read in them either way.
const NARROWEST: usize = 24;

/// The text with its tables (Markdown: lines between bars, a line of dashes below the header) fitted to `width` columns.
/// Other lines stay as they are, and so does a table that fits.
pub(crate) fn fitted(text: &str, width: usize) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut fitted: Vec<String> = Vec::with_capacity(lines.len());
    for block in lines.chunk_by(|one, other| is_row(one) == is_row(other)) {
        let too_wide = is_row(block[0]) && block.iter().any(|line| measure_text_width(line) > width);
        match Table::parse(block).filter(|_| too_wide && width >= NARROWEST) {
            Some(table) => fitted.extend(table.within(width)),
            None => fitted.extend(block.iter().map(|line| (*line).to_owned())),
        }
    }
    fitted.join("\n")
}

fn is_row(line: &str) -> bool {
    line.len() > 1 && line.starts_with('|') && line.ends_with('|')
}

/// A table, cut into cells.
struct Table {
    /// Lines of the header.
    header: usize,
    /// Texts of each line, in columns.
    lines: Vec<Vec<String>>,
    columns: Vec<Column>,
}

#[derive(Clone, Copy)]
struct Column {
    /// Width of its widest text, in columns of the terminal.
    width: usize,
    /// Whether texts are aligned to the right.
    right: bool,
}

impl Table {
    fn parse(lines: &[&str]) -> Option<Self> {
        let dashes = |line: &&str| line.contains('-') && line.chars().all(|letter| "|-".contains(letter));
        let header = lines.iter().position(dashes)?;
        // The dashes show where columns end; a cell may contain a bar.
        let widths: Vec<usize> = lines[header].trim_matches('|').split('|').map(str::len).collect();
        let rows = lines.iter().enumerate().filter(|(number, _)| *number != header);
        let lines = rows.map(|(_, line)| cells(line, &widths)).collect::<Option<Vec<_>>>()?;
        let column = |(number, width): (usize, &usize)| {
            let mut cells = lines.iter().map(|line| &line[number]).filter(|cell| !cell.trim().is_empty());
            let right = cells.all(|cell| cell.ends_with(' ') && !cell.ends_with("  "));
            Column { width: width.saturating_sub(2), right }
        };
        let columns: Vec<Column> = widths.iter().enumerate().map(column).collect();
        let text = |(cell, column): (&String, &Column)| match column.right {
            true => cell.trim().to_owned(),
            // Indentation is kept.
            false => cell.strip_prefix(' ').unwrap_or(cell).trim_end().to_owned(),
        };
        let lines = lines.iter().map(|line| line.iter().zip(&columns).map(text).collect()).collect();
        Some(Self { header, lines, columns })
    }

    fn within(mut self, width: usize) -> Vec<String> {
        // A column that is too wide for a line of its own is wrapped between words.
        let most = width - INDENT - 4;
        self.columns.iter_mut().for_each(|column| column.width = most.min(column.width));
        let narrow = Self { columns: self.narrowed(), header: self.header, lines: self.lines.clone() };
        let (mut table, mut groups) = (&self, self.groups(width));
        let other = narrow.groups(width);
        if other.len() < groups.len() {
            (table, groups) = (&narrow, other);
        }
        let widest = groups.iter().map(|group| table.width(group)).max().unwrap_or(width);
        let mut fitted = Vec::new();
        for (number, line) in table.lines.iter().enumerate() {
            groups.iter().for_each(|group| fitted.extend(table.line(line, group, widest)));
            if number + 1 == table.header {
                fitted.push(format!("|{}|", "-".repeat(widest - 2)));
            }
        }
        fitted
    }

    /// The columns as wide as their rows need: a longer header is wrapped between words.
    fn narrowed(&self) -> Vec<Column> {
        let column = |(number, column): (usize, &Column)| {
            let (header, rows) = self.lines.split_at(self.header);
            let words = header.iter().flat_map(|line| line[number].split_whitespace());
            let texts = words.chain(rows.iter().map(|line| line[number].as_str()));
            let width = texts.map(measure_text_width).max().unwrap_or(0).min(column.width);
            Column { width, ..*column }
        };
        self.columns.iter().enumerate().map(column).collect()
    }

    /// The ranges of columns that share a line: as few lines as `width` allows, and each as short as possible.
    fn groups(&self, width: usize) -> Vec<Range<usize>> {
        let filled = |most: usize| {
            let (mut groups, mut start) = (Vec::new(), 0);
            for end in 1..=self.columns.len() {
                if end == self.columns.len() || self.width(&(start..end + 1)) > most {
                    groups.push(start..end);
                    start = end;
                }
            }
            groups
        };
        let fewest = filled(width).len();
        let fits = |most: &usize| {
            let groups = filled(*most);
            groups.len() == fewest && groups.iter().all(|group| self.width(group) <= *most)
        };
        filled((1..width).find(fits).unwrap_or(width))
    }

    fn width(&self, columns: &Range<usize>) -> usize {
        let cells: usize = self.columns[columns.clone()].iter().map(|column| column.width + 3).sum();
        1 + indent(columns) + cells
    }

    /// The given columns of a row, in one line, or in several if a cell is wrapped.
    fn line(&self, texts: &[String], columns: &Range<usize>, widest: usize) -> Vec<String> {
        let wrapped: Vec<Vec<String>> =
            columns.clone().map(|column| wrap(&texts[column], self.columns[column].width)).collect();
        let deepest = wrapped.iter().map(Vec::len).max().unwrap_or(0);
        let line = |depth: usize| {
            let cells = wrapped.iter().zip(&self.columns[columns.clone()]).map(|(texts, column)| {
                let text = texts.get(depth).map_or("", String::as_str);
                let space = " ".repeat(column.width.saturating_sub(measure_text_width(text)));
                if column.right { format!(" {space}{text} ") } else { format!(" {text}{space} ") }
            });
            let cells = cells.collect::<Vec<_>>().join("|");
            format!("|{}{cells}{}|", " ".repeat(indent(columns)), " ".repeat(widest - self.width(columns)))
        };
        (0..deepest).map(line).collect()
    }
}

fn indent(columns: &Range<usize>) -> usize {
    if columns.start == 0 { 0 } else { INDENT }
}

/// The cells of a line whose columns have these widths; `None` if its bars are elsewhere.
fn cells(line: &str, widths: &[usize]) -> Option<Vec<String>> {
    let mut letters = line.strip_prefix('|')?.chars().peekable();
    let cell = |width: &usize| {
        let (mut cell, mut taken) = (String::new(), 0);
        while taken < *width {
            let letter = letters.next()?;
            cell.push(letter);
            taken = measure_text_width(&cell);
        }
        // Combining characters, which have no width of their own.
        while letters.peek().is_some_and(|letter| *letter != '|') {
            cell.push(letters.next()?);
        }
        (measure_text_width(&cell) == *width && letters.next() == Some('|')).then_some(cell)
    };
    let cells = widths.iter().map(cell).collect::<Option<Vec<_>>>()?;
    letters.next().is_none().then_some(cells)
}

/// A text in lines of at most `width` columns, wrapped at spaces if there are any.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if measure_text_width(text) <= width {
        return vec![text.to_owned()];
    }
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && measure_text_width(&line) + 1 + measure_text_width(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for letter in word.chars() {
            line.push(letter);
            if measure_text_width(&line) > width {
                line.pop();
                lines.push(std::mem::replace(&mut line, String::from(letter)));
            }
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const EVALUATION: &str = "\
test pairs
| split | step | domain | pairs |          accuracy (95%) |   policy accuracy (95%) | longer answer | margin | reward loss |
|-------|------|--------|-------|-------------------------|-------------------------|---------------|--------|-------------|
| test  |   56 | a|\u{65e5}\u{672c} |   999 | 0.6046 (0.571 to 0.640) | 0.5896 (0.554 to 0.622) |        0.4975 | 0.1278 |      0.6657 |
| test  |   56 | all    |   998 | 0.6046 (0.571 to 0.640) | 0.5896 (0.554 to 0.622) |        0.5975 | 0.1378 |      0.7657 |
checkpoint  runs/first/step-56, which is a path that no terminal of eighty columns has room for, in one line";

    const CHECKS: &str = "\
| check             |      | what was seen                               |
|-------------------|------|---------------------------------------------|
|   every gradient  | PASS | the largest difference of all is 0.00000001 |";

    #[test]
    fn a_row_that_is_too_wide_takes_two_lines() {
        let expected = "\
test pairs
| split | step | domain | pairs |          accuracy (95%)          |
|     policy accuracy (95%) | longer answer | margin | reward loss |
|------------------------------------------------------------------|
| test  |   56 | a|\u{65e5}\u{672c} |   999 | 0.6046 (0.571 to 0.640)          |
|   0.5896 (0.554 to 0.622) |        0.4975 | 0.1278 |      0.6657 |
| test  |   56 | all    |   998 | 0.6046 (0.571 to 0.640)          |
|   0.5896 (0.554 to 0.622) |        0.5975 | 0.1378 |      0.7657 |
checkpoint  runs/first/step-56, which is a path that no terminal of eighty columns has room for, in one line";
        assert_eq!(fitted(EVALUATION, 80), expected);
        let expected = "\
| check             |              |
|   what was seen                  |
|----------------------------------|
|   every gradient  | PASS         |
|   the largest difference of all  |
|   is 0.00000001                  |";
        assert_eq!(fitted(CHECKS, 36), expected);
    }

    /// A header is wrapped before a row is.
    #[test]
    fn a_header_longer_than_its_figures_is_broken_first() {
        let table = "\
| ranks | communication ms | exposed ms |
|-------|------------------|------------|
|     1 |              0.0 |        0.0 |";
        let expected = "\
| ranks | communication | exposed |
|       |            ms |      ms |
|---------------------------------|
|     1 |           0.0 |     0.0 |";
        assert_eq!(fitted(table, 36), expected);
    }

    #[test]
    fn no_table_is_wider_than_the_terminal_and_no_letter_is_lost() {
        let letters = |text: &str| {
            let mut counts = BTreeMap::new();
            let shown = text.chars().filter(|letter| !" |-\n".contains(*letter));
            shown.for_each(|letter| *counts.entry(letter).or_insert(0) += 1);
            counts
        };
        for table in [EVALUATION, CHECKS] {
            for width in (NARROWEST..160).step_by(4) {
                let fitted = fitted(table, width);
                let rows = fitted.lines().filter(|line| is_row(line));
                rows.for_each(|row| assert!(measure_text_width(row) <= width, "{width}: {row}"));
                assert_eq!(letters(&fitted), letters(table), "{width}");
            }
            assert_eq!(fitted(table, 160), table);
            assert_eq!(fitted(table, NARROWEST - 1), table);
        }
        // Control: these do not fit by themselves.
        assert!(EVALUATION.lines().any(|line| is_row(line) && measure_text_width(line) > 80));
    }

    #[test]
    fn lines_that_only_look_like_a_table_stay_as_they_are() {
        for text in
            ["|a long line without a header that ends with a bar|", "| a | b |\n|---|---|\n| a longer cell | b |"]
        {
            assert_eq!(fitted(text, NARROWEST), text);
        }
    }
}
