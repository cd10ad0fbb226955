//! Translates another program's config into a draft: keys with the same meaning are taken over, with the line they came from;
//! keys without a counterpart are listed, with a reason. Nothing is dropped.
//!
//! Not here: keys that are converted: model and data (`sources.rs`), the run's course (`course.rs`), losses, adapters and
//! precision (`method.rs`).

use super::content::Item;
use super::draft::{Draft, quoted};
use super::foreign::{Foreign, Program, Trains};
use super::yaml;
use crate::config::others::{FAMILIES, Is, NOTHING, SAME, SO_HERE, UNKNOWN};
use serde_json::Value;

/// Another program's config while it is translated.
pub(crate) struct Translation {
    /// The file's name.
    pub(crate) file: String,
    /// The program it is for.
    pub(crate) program: Program,
    /// What it trains.
    pub(crate) trains: Trains,
    /// Number of processes that ran it.
    pub(crate) processes: usize,
    /// Names of the calls in a script.
    pub(crate) calls: Vec<String>,
    items: Vec<Item>,
    /// Names whose values could not be read.
    unread: Vec<String>,
    /// Settings that are not taken over, by line.
    left: Vec<(usize, String)>,
}

/// A value, and its place in the file.
pub(crate) struct Given<T> {
    /// The value.
    pub(crate) value: T,
    /// `line 3: learning_rate = 1e-5`.
    pub(crate) place: String,
    /// The line.
    pub(crate) line: usize,
}

impl Translation {
    /// Starts with everything that was read.
    pub(crate) fn new(foreign: Foreign, processes: usize) -> Self {
        let Foreign { file, program, trains, content, .. } = foreign;
        let left = content
            .unread
            .iter()
            .map(|unread| (unread.line, format!("line {}: {}: {}", unread.line, quoted(&unread.text), unread.why)));
        let left = left.collect();
        let unread = content.unread.iter().filter_map(|unread| unread.name.clone()).collect();
        Self { file, program, trains, processes, calls: content.calls, items: content.items, unread, left }
    }

    /// The name of the program.
    pub(crate) fn name(&self) -> &'static str {
        match self.program {
            Program::Trl => "TRL",
            Program::Transformers => "Transformers",
            Program::LlamaFactory => "LLaMA-Factory",
        }
    }

    /// Whether the file has a name with a value that could not be read.
    pub(crate) fn is_unread(&self, name: &str) -> bool {
        self.unread.iter().any(|unread| unread == name)
    }

    /// The reason for taking that program's default for a name.
    pub(crate) fn default_of(&self, name: &str) -> String {
        match self.is_unread(name) {
            true => {
                format!("{name} in {} is not readable, see the end: this is the default of {}.", self.file, self.name())
            }
            false => format!("Not in {}: the default of {}.", self.file, self.name()),
        }
    }

    /// Lists a setting that is not taken over, and why.
    pub(crate) fn leave(&mut self, item: &Item, why: &str) {
        self.left.push((item.line, format!("{}: {why}", item.place())));
    }

    /// The same for a value that was read already.
    pub(crate) fn leave_given<T>(&mut self, given: &Given<T>, why: &str) {
        self.left.push((given.line, format!("{}: {why}", given.place)));
    }

    /// The same for all values of names.
    pub(crate) fn leave_all(&mut self, names: &[&str], why: &str) {
        for name in names {
            while self.items.iter().any(|item| item.name == *name) {
                self.take(name).iter().for_each(|item| self.leave(item, why));
            }
        }
    }

    /// Lists a note that belongs to no line.
    pub(crate) fn leave_note(&mut self, note: impl Into<String>) {
        self.left.push((usize::MAX, note.into()));
    }

    /// Whether the file has a name with a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.name == name && !item.value.is_null())
    }

    /// A text, without marking it as used.
    pub(crate) fn peek_text(&self, name: &str) -> Option<&str> {
        self.items.iter().find(|item| item.name == name)?.value.as_str()
    }

    /// Whether the file has a name with the value null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.name == name && item.value.is_null())
    }

    /// Takes a name's item and so marks it as used; null is no value.
    pub(crate) fn take(&mut self, name: &str) -> Option<Item> {
        let at = self.items.iter().position(|item| item.name == name)?;
        let item = self.items.remove(at);
        if item.value.is_null() {
            self.leave(&item, "no value, so nothing is taken from it");
            return None;
        }
        Some(item)
    }

    fn typed<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<Given<T>> {
        let item = self.take(name)?;
        match read(&item.value) {
            Some(value) => Some(Given { value, place: item.place(), line: item.line }),
            None => {
                self.leave(&item, &format!("expected {expected}"));
                None
            }
        }
    }

    /// A number, also one written as a text.
    pub(crate) fn number(&mut self, name: &str) -> Option<Given<f64>> {
        self.typed(name, "a number", as_number)
    }

    /// A whole number, 0 or more.
    pub(crate) fn whole(&mut self, name: &str) -> Option<Given<usize>> {
        self.typed(name, "a whole number, 0 or more", |value| {
            as_number(value)
                .filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number))
                .map(|number| number as usize)
        })
    }

    /// A whole number, 1 or more.
    fn count(&mut self, name: &str) -> Option<Given<i64>> {
        self.typed(name, "a whole number, 1 or more", |value| {
            as_number(value)
                .filter(|number| number.fract() == 0.0 && (1.0..1e15).contains(number))
                .map(|number| number as i64)
        })
    }

    /// True or false.
    pub(crate) fn truth(&mut self, name: &str) -> Option<Given<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &str) -> Option<Given<String>> {
        self.typed(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// Texts: a list of them, or one with commas.
    pub(crate) fn texts(&mut self, name: &str) -> Option<Given<Vec<String>>> {
        self.typed(name, "a list of texts", |value| match value {
            Value::String(text) => {
                Some(text.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect())
            }
            Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// Takes over keys with the same meaning, and lists the rest.
    pub(crate) fn finish(mut self, draft: &mut Draft) {
        for (word, key, is) in SAME {
            match is {
                Is::Number => self.same(draft, key, |all| all.number(word)),
                Is::Count => self.same(draft, key, |all| all.count(word)),
                Is::Truth => self.same(draft, key, |all| all.truth(word)),
            }
        }
        for item in std::mem::take(&mut self.items) {
            let so = SO_HERE.iter().find(|(word, value, _)| *word == item.name && is_value(&item.value, value));
            let family = || FAMILIES.iter().find(|(start, _)| item.name.starts_with(start));
            let nothing = NOTHING.iter().find(|(word, _)| *word == item.name).or_else(family);
            let why = match (so, nothing) {
                _ if item.value.is_null() => "no value, so nothing is taken from it",
                (Some((.., why)), _) | (None, Some((_, why))) => why,
                (None, None) => UNKNOWN,
            };
            self.leave(&item, why);
        }
        self.left.sort_by_key(|(line, _)| *line);
        self.left.into_iter().for_each(|(_, line)| draft.leave(line));
    }

    fn same<T: Into<toml::Value>>(
        &mut self,
        draft: &mut Draft,
        key: &str,
        take: impl Fn(&mut Self) -> Option<Given<T>>,
    ) {
        if let Some(given) = take(self) {
            draft.set(key, given.value, given.place);
        }
    }
}

fn is_value(value: &Value, expected: &str) -> bool {
    // As JSON writes it: true, 0.
    let written = value.to_string();
    written == expected || (expected == "0" && as_number(value) == Some(0.0))
}

/// A finite number, also one written as a text, which those programs accept.
pub(crate) fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => yaml::number(text.trim())?.as_f64(),
        other => other.as_f64(),
    }
}
