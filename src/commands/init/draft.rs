//! A draft of a config: keys with values and reasons, a list of settings that were not taken over, and its text.
//!
//! Not here: choosing keys and values (`own.rs`, `translate.rs`).

use toml::Value;

/// The tables, in the order of the file.
const TABLES: [&str; 8] = ["model", "data", "loss", "train", "lora", "eval", "checkpoint", "output"];

/// Longest line of a comment, in characters.
const WIDTH: usize = 110;

/// Longest piece of foreign text in a comment, in characters.
const LONGEST_QUOTE: usize = 90;

/// A draft of a config.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// Lines at the top of the file.
    heading: Vec<String>,
    entries: Vec<Entry>,
    /// A line for each setting that was not taken over.
    left: Vec<String>,
}

/// A key with a value, and why.
#[derive(Debug)]
struct Entry {
    table: &'static str,
    key: String,
    value: Value,
    why: Vec<String>,
}

impl Draft {
    /// Adds a line at the top of the file.
    pub(crate) fn say(&mut self, line: impl Into<String>) {
        self.heading.push(line.into());
    }

    /// Sets a key such as `train.steps`, and replaces an earlier value.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>, why: impl Into<String>) {
        self.set_with(key, value, vec![why.into()]);
    }

    /// The same with several reasons.
    pub(crate) fn set_with(&mut self, key: &str, value: impl Into<Value>, why: Vec<String>) {
        let (table, key) = key.split_once('.').unwrap_or(("", key));
        let Some(table) = TABLES.iter().find(|known| **known == table) else { return };
        self.entries.retain(|entry| (entry.table, &entry.key[..]) != (*table, key));
        self.entries.push(Entry { table, key: key.to_owned(), value: value.into(), why });
    }

    /// The value of a key that was set.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let (table, key) = key.split_once('.')?;
        self.entries.iter().find(|entry| entry.table == table && entry.key == key).map(|entry| &entry.value)
    }

    /// Lists a setting that was not taken over.
    pub(crate) fn leave(&mut self, line: impl Into<String>) {
        self.left.push(line.into());
    }

    /// Adds one more reason to a key that was set.
    pub(crate) fn add_reason(&mut self, key: &str, why: impl Into<String>) {
        let (table, key) = key.split_once('.').unwrap_or(("", key));
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.table == table && entry.key == key) {
            entry.why.push(why.into());
        }
    }

    /// The file's text; `from` is the file with the settings that were not taken over.
    pub(crate) fn render(&self, from: Option<&str>) -> String {
        let mut text = String::new();
        self.heading.iter().for_each(|line| comment(&mut text, line));
        for table in TABLES {
            let mut entries = self.entries.iter().filter(|entry| entry.table == table).peekable();
            if entries.peek().is_none() {
                continue;
            }
            text += &format!("{}[{table}]\n", if text.is_empty() { "" } else { "\n" });
            for Entry { key, value, why, .. } in entries {
                why.iter().for_each(|line| comment(&mut text, line));
                text += &format!("{key} = {}\n", written(value));
            }
        }
        if let Some(from) = from {
            text.push('\n');
            match self.left.is_empty() {
                true => comment(&mut text, &format!("Everything in {from} was taken over.")),
                false => comment(&mut text, &format!("Not taken over from {from}:")),
            }
            self.left.iter().for_each(|line| comment(&mut text, &format!("- {line}")));
        }
        text
    }
}

/// A value as TOML; small numbers with an exponent, as people write learning rates.
fn written(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => format!("{number:e}"),
        Value::Array(list) if list.iter().any(Value::is_table) && list.len() > 1 => {
            let lines: Vec<String> = list.iter().map(|one| format!("    {one},\n")).collect();
            format!("[\n{}]", lines.concat())
        }
        other => other.to_string(),
    }
}

/// Adds a comment, with lines broken at spaces.
fn comment(text: &mut String, line: &str) {
    let indent = if line.starts_with("- ") { "#   " } else { "# " };
    let mut row = String::from("#");
    for word in harmless(line).split_whitespace() {
        if row.len() > 1 && row.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(row.trim_end());
            text.push('\n');
            row = indent.trim_end().to_owned();
            row.push_str(&" ".repeat(indent.len() - row.len() - 1));
        }
        row.push(' ');
        row.push_str(word);
    }
    text.push_str(&row);
    text.push('\n');
}

/// Text of a foreign file made safe for a comment: without control characters.
fn harmless(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// A piece of foreign text in one line, cut to a short length.
pub(crate) fn quoted(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_foreign_file_says_cannot_leave_its_comment() {
        let mut draft = Draft::default();
        draft.set("train.steps", 3, "one\nsteps = 9\r\u{0}\u{7f}");
        draft.leave("x\n[model]\npath = 1");
        draft.leave("word ".repeat(100));
        let text = draft.render(Some("a\nb"));
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed, toml::from_str("[train]\nsteps = 3").unwrap());
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn a_key_has_one_value_and_numbers_read_as_people_write_them() {
        let mut draft = Draft::default();
        draft.set("train.learning_rate", 1.0, "first");
        draft.set("train.learning_rate", 2.5e-6, "second");
        assert_eq!(draft.render(None), "[train]\n# second\nlearning_rate = 2.5e-6\n");
    }
}
