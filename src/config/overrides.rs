//! `--set table.key=value`: replaces one key of the file from the command line.
//!
//! Not here: whether the result makes sense; the merged config is checked like any other.

use super::{keys, words};
use crate::error::{Error, Result};
use toml::{Table, Value};

const EXAMPLE: &str = "for example --set loss.alpha=0.5";

/// One `--set` whose key exists.
pub(super) struct Override {
    /// As it was typed.
    pub(super) text: String,
    /// `["data", "train", "0", "path"]`
    pub(super) path: Vec<String>,
    value: Value,
}

impl Override {
    /// Parses `table.key=value`. For a key that takes text, the value is used as typed (or between TOML quotes); for other
    /// keys it is TOML, and a bare word is a string.
    pub(super) fn parse(text: &str, tree: &Value, file: &Value) -> Result<Self> {
        let wrong = |message: String| Error::input(format!("--set {text}: {message}"));
        let Some((key, value)) = text.split_once('=') else {
            return Err(wrong("there is no `=`; expected table.key=value".into()).hint(EXAMPLE));
        };
        let (key, value) = (key.trim(), value.trim());
        let typed: Vec<String> = key.split('.').map(|name| name.trim().to_string()).collect();
        if key.is_empty() {
            return Err(wrong("there is no key; a setting has the form KEY=VALUE".into()).hint(EXAMPLE));
        }
        // Beside what the file sets in that table.
        let beside = |key: &String| {
            let mut table = file.get(&typed[0]).and_then(Value::as_table).cloned().unwrap_or_default();
            value.parse().ok().and_then(|value| table.insert(key.clone(), value));
            words::hint_for_refused(key, Some(&table))
        };
        if let Some(hint) = typed.last().and_then(beside) {
            return Err(wrong(format!("`{key}` is a key of other trainers")).hint(hint));
        }
        let path = words::ours(&typed);
        let Some(known) = keys::find(tree, &path) else {
            return Err(wrong(keys::unknown_key(&path, tree)).hint(keys::unknown_key_hint(&path, tree)));
        };
        if value.is_empty() {
            return Err(wrong("there is nothing after the `=`; expected a value".into()).hint(EXAMPLE));
        }
        let quoted = value.starts_with(['"', '\'']);
        let value = if known.is_str() && !quoted {
            Value::String(value.into())
        } else {
            match value.parse::<Value>() {
                Ok(value) => value,
                // A broken array, table or string is a mistake, not a bare word.
                Err(error) if quoted || value.starts_with(['[', '{']) => {
                    return Err(wrong(format!("the value is not TOML: {}", error.message()))
                        .hint("put single quotes around the whole argument, so that the shell does not change it"));
                }
                Err(_) => Value::String(value.into()),
            }
        };
        let value = words::value_of(&path, value).map_err(|refusal| wrong(refusal.message).hint(refusal.hint))?;
        Ok(Self { text: text.into(), path, value })
    }
}

/// Applies the overrides to the file's table; later ones win.
///
/// `train.epochs` and `train.steps` are two ways to set the length of a run, so setting one removes the file's value of the
/// other.
pub(super) fn apply(overrides: &[Override], file: &mut Value) -> Result<()> {
    let sets = |name: &str| overrides.iter().any(|set| set.path == ["train", name]);
    for (set, other) in [("epochs", "steps"), ("steps", "epochs")] {
        if sets(set)
            && !sets(other)
            && let Some(train) = file.get_mut("train").and_then(Value::as_table_mut)
        {
            train.remove(other);
        }
    }
    overrides.iter().try_for_each(|set| put(file, &set.path, set))
}

fn put(node: &mut Value, path: &[String], set: &Override) -> Result<()> {
    let Some((key, rest)) = path.split_first() else {
        *node = set.value.clone();
        return Ok(());
    };
    match node {
        Value::Table(table) => {
            let empty = match rest.first() {
                Some(next) if next.parse::<usize>().is_ok() => Value::Array(Vec::new()),
                _ => Value::Table(Table::new()),
            };
            put(table.entry(key.clone()).or_insert(empty), rest, set)
        }
        Value::Array(rows) => {
            let index: usize = key.parse().unwrap_or(usize::MAX);
            if index == rows.len() {
                rows.push(Value::Table(Table::new()));
            }
            let count = rows.len();
            match rows.get_mut(index) {
                Some(row) => put(row, rest, set),
                None => {
                    let has = match count {
                        0 => "is empty".to_owned(),
                        1 => "has 1 entry (number 0)".to_owned(),
                        _ => format!("has {count} entries (numbers 0 to {})", count - 1),
                    };
                    Err(Error::input(format!("--set {}: the list {has}", set.text))
                        .hint(format!("use number {count} to add another")))
                }
            }
        }
        // The file has a value of the wrong type here; `Config::parse` reports it with its line.
        _ => Ok(()),
    }
}
