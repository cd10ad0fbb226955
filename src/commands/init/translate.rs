//! Another program's words -> keys of a draft: what means the same is taken over, with the line it came from; what has no
//! counterpart is listed, with a reason. Nothing is dropped.
//!
//! Not here: words that are converted: model and data (`sources.rs`), the run's course (`course.rs`), losses, adapters and
//! precision (`method.rs`).

use super::content::Item;
use super::draft::{Draft, quoted};
use super::foreign::{Foreign, Program, Trains};
use super::words::{FAMILIES, Is, NOTHING, SAME, SO_HERE, UNKNOWN};
use super::yaml;
use serde_json::Value;

/// Another program's config on its way into a draft.
pub struct Translation {
    /// The file's name.
    pub file: String,
    /// Whose it is.
    pub program: Program,
    /// What it trains.
    pub trains: Trains,
    /// Processes that it ran on.
    pub processes: usize,
    /// Calls that were found, for a script.
    pub calls: Vec<String>,
    items: Vec<Item>,
    /// Names whose values could not be read.
    unread: Vec<String>,
    /// By line: what is not taken over.
    left: Vec<(usize, String)>,
}

/// A value and where it is from.
pub struct Said<T> {
    /// The value.
    pub value: T,
    /// `line 3: learning_rate = 1e-5`.
    pub place: String,
    /// The line.
    pub line: usize,
}

impl Translation {
    /// Begins with all that was read.
    pub fn new(foreign: Foreign, processes: usize) -> Self {
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
    pub fn name(&self) -> &'static str {
        match self.program {
            Program::Trl => "TRL",
            Program::Transformers => "Transformers",
            Program::LlamaFactory => "LLaMA-Factory",
        }
    }

    /// Whether a name is there with a value that could not be read.
    pub fn is_unread(&self, name: &str) -> bool {
        self.unread.iter().any(|unread| unread == name)
    }

    /// Why a name has that program's default.
    pub fn default_of(&self, name: &str) -> String {
        match self.is_unread(name) {
            true => {
                format!("{name} in {} is not readable, see the end: this is the default of {}.", self.file, self.name())
            }
            false => format!("Not in {}: the default of {}.", self.file, self.name()),
        }
    }

    /// Lists something that is not taken over, and why.
    pub fn leave(&mut self, item: &Item, why: &str) {
        self.left.push((item.line, format!("{}: {why}", item.place())));
    }

    /// The same for a value that was taken.
    pub fn leave_said<T>(&mut self, said: &Said<T>, why: &str) {
        self.left.push((said.line, format!("{}: {why}", said.place)));
    }

    /// The same for all values of names.
    pub fn leave_all(&mut self, names: &[&str], why: &str) {
        for name in names {
            while self.items.iter().any(|item| item.name == *name) {
                self.take(name).iter().for_each(|item| self.leave(item, why));
            }
        }
    }

    /// Lists what no line says.
    pub fn leave_note(&mut self, note: impl Into<String>) {
        self.left.push((usize::MAX, note.into()));
    }

    /// Whether a name is there with a value.
    pub fn has(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.name == name && !item.value.is_null())
    }

    /// A text that is left where it is.
    pub fn peek_text(&self, name: &str) -> Option<&str> {
        self.items.iter().find(|item| item.name == name)?.value.as_str()
    }

    /// Whether a name is there, and its value is null.
    pub fn is_null(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.name == name && item.value.is_null())
    }

    /// A name's item, which counts as used; null is no value.
    pub fn take(&mut self, name: &str) -> Option<Item> {
        let at = self.items.iter().position(|item| item.name == name)?;
        let item = self.items.remove(at);
        if item.value.is_null() {
            self.leave(&item, "no value, so nothing is taken from it");
            return None;
        }
        Some(item)
    }

    fn typed<T>(&mut self, name: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<Said<T>> {
        let item = self.take(name)?;
        match read(&item.value) {
            Some(value) => Some(Said { value, place: item.place(), line: item.line }),
            None => {
                self.leave(&item, &format!("expected {expected}"));
                None
            }
        }
    }

    /// A number, also one that is written as a text.
    pub fn number(&mut self, name: &str) -> Option<Said<f64>> {
        self.typed(name, "a number", as_number)
    }

    /// A whole number, 0 or more.
    pub fn whole(&mut self, name: &str) -> Option<Said<usize>> {
        self.typed(name, "a whole number, 0 or more", |value| {
            as_number(value)
                .filter(|number| number.fract() == 0.0 && (0.0..1e15).contains(number))
                .map(|number| number as usize)
        })
    }

    /// A whole number, 1 or more.
    fn count(&mut self, name: &str) -> Option<Said<i64>> {
        self.typed(name, "a whole number, 1 or more", |value| {
            as_number(value)
                .filter(|number| number.fract() == 0.0 && (1.0..1e15).contains(number))
                .map(|number| number as i64)
        })
    }

    /// True or false.
    pub fn truth(&mut self, name: &str) -> Option<Said<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<Said<String>> {
        self.typed(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// Texts: a list of them, or one with commas.
    pub fn texts(&mut self, name: &str) -> Option<Said<Vec<String>>> {
        self.typed(name, "a list of texts", |value| match value {
            Value::String(text) => {
                Some(text.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect())
            }
            Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// Takes over what means the same, and lists the rest.
    pub fn finish(mut self, draft: &mut Draft) {
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
        take: impl Fn(&mut Self) -> Option<Said<T>>,
    ) {
        if let Some(said) = take(self) {
            draft.set(key, said.value, said.place);
        }
    }
}

fn is_value(value: &Value, expected: &str) -> bool {
    // As JSON writes it: true, 0.
    let written = value.to_string();
    written == expected || (expected == "0" && as_number(value) == Some(0.0))
}

/// A finite number, also one that is written as a text, as those programs take it.
pub fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => yaml::number(text.trim())?.as_f64(),
        other => other.as_f64(),
    }
}
