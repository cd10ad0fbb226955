//! One row of a source: values by their path, which of them were read, and errors that name them.
//!
//! A path is keys joined by dots; `[]` after a key stands for every entry of a list, or every value of an object, as in
//! `answers[].rank`. A source's `columns` replace a path's first key with another path. `null` counts as absent.
//! Not here: what makes a pair; that is `formats/`.

use crate::data::rows::odd;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// The hint for a row if there is no better one.
pub(super) const MEND: &str = "mend the row or leave it out";

/// Key of a layout -> path in the row that replaces it.
pub(super) type Columns = BTreeMap<String, String>;

/// A row and what was read of it.
pub(super) struct Row<'a> {
    pub(super) object: Map<String, Value>,
    /// The rows that were joined to this one, itself first: `rows[]` in paths.
    joined: Vec<Value>,
    columns: &'a Columns,
    /// Paths that were read.
    used: RefCell<BTreeSet<String>>,
    /// Paths that were read with everything below them.
    whole: RefCell<BTreeSet<String>>,
    /// Paths inside JSON texts that were not read, and paths of which a part was not used.
    left: RefCell<BTreeSet<String>>,
}

/// The values at one path: one; for an entry of a list also none or, after a second `[]`, several.
pub(super) struct Found<'r> {
    pub(super) values: Vec<&'r Value>,
    /// The row's own path, without an entry's number: `answers.rank`.
    pub(super) path: String,
    /// For messages: "`chosen`", "entry 2 of `answers.rank`".
    pub(super) name: String,
}

/// The values at a path, made one by one: a list may be as long as a row is large.
pub(super) type Entries<'r> = Box<dyn ExactSizeIterator<Item = Found<'r>> + 'r>;

impl<'r> Found<'r> {
    /// The one value.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn value(&self, expected: &str) -> Result<&'r Value> {
        match self.values.first() {
            Some(value) => Ok(value),
            None => Err(Error::input(format!("{} is missing, expected {expected}", self.name)).hint(MEND)),
        }
    }

    pub(super) fn wrong(&self, value: &Value, expected: &str) -> Error {
        wrong(&self.name, value, expected)
    }

    pub(super) fn text(&self, expected: &str) -> Result<&'r str> {
        let value = self.value(expected)?;
        value.as_str().ok_or_else(|| self.wrong(value, expected))
    }

    /// A finite number, or a text that is one.
    pub(super) fn number(&self, expected: &str) -> Result<f64> {
        let value = self.value(expected)?;
        as_number(value).ok_or_else(|| self.wrong(value, expected))
    }

    /// True or false, also as 1 or 0.
    pub(super) fn flag(&self) -> Result<bool> {
        const EXPECTED: &str = "true or false";
        let value = self.value(EXPECTED)?;
        match (value, as_number(value)) {
            (Value::Bool(flag), _) => Ok(*flag),
            (_, Some(number)) if number == 0.0 || number == 1.0 => Ok(number == 1.0),
            _ => Err(self.wrong(value, EXPECTED)),
        }
    }
}

impl<'a> Row<'a> {
    pub(super) fn new(row: Value, columns: &'a Columns) -> Result<Self> {
        match row {
            Value::Object(object) if odd::kind(&object).is_none() => Ok(Self {
                object,
                joined: Vec::new(),
                columns,
                used: RefCell::default(),
                whole: RefCell::default(),
                left: RefCell::default(),
            }),
            other => Err(Error::input(format!("expected an object, found {}", kind(&other)))
                .hint("a row is {\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}, for example")),
        }
    }

    /// This row with others joined to it.
    pub(super) fn join(mut self, others: impl Iterator<Item = Map<String, Value>>) -> Self {
        let first = std::iter::once(self.object.clone());
        self.joined = first.chain(others).map(Value::Object).collect();
        self
    }

    /// The row's path for a layout's path.
    fn resolve(&self, path: &str) -> String {
        let end = path.find(['.', '[']).unwrap_or(path.len());
        match self.columns.get(&path[..end]) {
            Some(column) => format!("{column}{}", &path[end..]),
            None => path.to_owned(),
        }
    }

    /// The value at a path without `[]`, not counted as read.
    pub(super) fn peek(&self, path: &str) -> Option<&Value> {
        below(&self.object, &self.resolve(path))
    }

    /// The value at the first of these paths without `[]` that leads to one.
    pub(super) fn get(&self, paths: &[&str]) -> Option<Found<'_>> {
        let path = paths.iter().find(|path| self.peek(path).is_some())?;
        let value = self.peek(path)?;
        let path = self.resolve(path);
        self.mark(&path);
        Some(Found { values: vec![value], name: format!("`{path}`"), path })
    }

    /// The values at the first of these paths that exists: one value, or one for each entry of a list.
    ///
    /// # Errors
    /// The path expects a list where the row has something else.
    pub(super) fn all(&self, paths: &[&str]) -> Result<Option<Entries<'_>>> {
        let start = |path: &&&str| match path.split("[]").next() {
            Some(ROWS) => !self.joined.is_empty(),
            start => self.peek(start.unwrap_or_default()).is_some(),
        };
        let alone = |found| Box::new(std::iter::once(found)) as Entries;
        let Some(path) = paths.iter().find(start) else { return Ok(None) };
        let Some((list, rest)) = path.split_once("[]") else { return Ok(self.get(&[path]).map(alone)) };
        let rest = rest.trim_start_matches('.');
        let (elements, rest, path) = if list == ROWS {
            let path = self.resolve(rest);
            (&self.joined, path.clone(), path)
        } else {
            let Some(Found { values, path: list, name }) = self.get(&[list]) else { return Ok(None) };
            let elements = match values[..] {
                [Value::Array(elements)] => elements,
                [other] => return Err(wrong(&name, other, "a list")),
                _ => return Ok(None),
            };
            let dot = if rest.is_empty() { "" } else { "." };
            (elements, rest.to_owned(), format!("{list}{dot}{}", rest.replace("[]", ".*")))
        };
        self.mark(&path);
        let entry = move |(index, element)| Found {
            values: gather(element, &rest),
            path: path.clone(),
            name: format!("entry {} of `{path}`", index + 1),
        };
        Ok(Some(Box::new(elements.iter().enumerate().map(entry))))
    }

    /// The error for a layout's path that does not exist.
    pub(super) fn missing(&self, paths: &[&str], expected: &str) -> Error {
        let names: Vec<String> = paths.iter().map(|path| format!("`{}`", self.resolve(path))).collect();
        let keys: Vec<_> = self.object.keys().map(String::as_str).collect();
        Error::input(format!("{} is missing, expected {expected}", names.join(" or "))).hint(format!(
            "the row has the keys {keys:?}; mend it, leave it out, name the file's `format`, or map the format's keys with \
             `columns`"
        ))
    }

    /// Whether the value at a layout's path was read.
    pub(super) fn is_read(&self, path: &str) -> bool {
        self.used.borrow().contains(&self.resolve(path))
    }

    /// Counts a path as read.
    pub(super) fn mark(&self, path: &str) {
        if !self.used.borrow().contains(path) {
            self.used.borrow_mut().insert(path.to_owned());
        }
    }

    /// Counts a path as read with all that is below it.
    pub(super) fn mark_whole(&self, path: &str) {
        self.whole.borrow_mut().insert(path.to_owned());
    }

    /// Records what was not read in `value`, which is the JSON of a text at `path`.
    pub(super) fn leave_in_text(&self, path: &str, value: &Value) {
        self.walk(path, value, &mut self.left.borrow_mut());
    }

    /// Records a path that was read, but of which a part is not used.
    pub(super) fn leave(&self, path: &str) {
        self.left.borrow_mut().insert(path.to_owned());
    }

    /// The paths with content that were not read; of a part that was not read at all, only its first key.
    pub(super) fn unused(&self) -> BTreeSet<String> {
        let mut unused = self.left.borrow().clone();
        for (key, value) in &self.object {
            self.walk(key, value, &mut unused);
        }
        unused
    }

    fn walk(&self, path: &str, value: &Value, unused: &mut BTreeSet<String>) {
        let used = self.used.borrow();
        if !has_content(value) || self.whole.borrow().contains(path) {
            return;
        }
        match value {
            // Entries that were read by index are counted one by one.
            Value::Array(list) if (0..list.len()).any(|place| reads(&used, &format!("{path}.{place}"))) => {
                let entries = list.iter().enumerate();
                entries.for_each(|(place, entry)| self.walk(&format!("{path}.{place}"), entry, unused));
            }
            Value::Array(list)
                if reads(&used, path) && list.iter().any(|entry| entry.is_object() || entry.is_array()) =>
            {
                list.iter().for_each(|entry| self.walk(path, entry, unused));
            }
            Value::Object(object) if reads(&used, path) => {
                let any = format!("{path}.*");
                let any = reads(&used, &any).then_some(any);
                for (key, value) in object {
                    self.walk(&any.clone().unwrap_or_else(|| format!("{path}.{key}")), value, unused);
                }
            }
            _ if used.contains(path) => {}
            _ => {
                unused.insert(path.to_owned());
            }
        }
    }
}

/// Whether a path was read, or one below it.
fn reads(used: &BTreeSet<String>, path: &str) -> bool {
    let below = format!("{path}.");
    used.contains(path) || used.range(below.clone()..).next().is_some_and(|other| other.starts_with(&below))
}

/// The start of a path into each of the joined rows.
const ROWS: &str = "rows";

/// The value in an object at a path of keys, and of indices from 0 into lists. A key with dots in its name is tried first.
fn below<'v>(object: &'v Map<String, Value>, path: &str) -> Option<&'v Value> {
    let found = object.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        inside(object.get(first)?, rest)
    });
    found.filter(|value| !value.is_null())
}

fn inside<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    match value {
        Value::Object(object) => below(object, path),
        Value::Array(list) => {
            let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
            let element = list.get(first.parse::<usize>().ok()?)?;
            rest.map_or(Some(element), |rest| inside(element, rest))
        }
        _ => None,
    }
}

/// The values below one value at a path that may have `[]`.
fn gather<'v>(value: &'v Value, path: &str) -> Vec<&'v Value> {
    if path.is_empty() {
        return if value.is_null() { Vec::new() } else { vec![value] };
    }
    let (before, rest) = match path.split_once("[]") {
        Some((before, rest)) => (before, Some(rest.trim_start_matches('.'))),
        None => (path, None),
    };
    let Some(found) = inside(value, before) else { return Vec::new() };
    match (rest, found) {
        (None, found) => vec![found],
        (Some(rest), Value::Array(list)) => list.iter().flat_map(|value| gather(value, rest)).collect(),
        (Some(rest), Value::Object(object)) => object.values().flat_map(|value| gather(value, rest)).collect(),
        _ => Vec::new(),
    }
}

/// A finite number, also one written as a text.
pub(super) fn as_number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|number| number.is_finite())
}

/// Whether a value is neither null nor empty; empty lists and objects may be texts.
pub(super) fn has_content(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !["", "[]", "{}", "null"].contains(&text.trim()),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => object.values().any(|value| !value.is_null()),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

pub(super) fn wrong(name: &str, value: &Value, expected: &str) -> Error {
    Error::input(format!("{name} is {}, expected {expected}", kind(value))).hint(MEND)
}

/// Refuses an odd value in a value that is passed to a template.
pub(super) fn without_odd(name: &str, value: &Value) -> Result<()> {
    match odd::within(value) {
        Some(kind) => {
            Err(Error::input(format!("in {name} a value is {kind}, which a template cannot write")).hint(MEND))
        }
        None => Ok(()),
    }
}

/// The type of a value, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(object) => odd::kind(object).unwrap_or("an object"),
    }
}
