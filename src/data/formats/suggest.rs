//! Suggests a mapping for a row of no known layout, guessed from the names of its keys.
//!
//! Not here: using it. The user decides, so that a wrong guess does no harm.

use crate::data::row::Row;
use crate::data::rows::odd;
use crate::error::Error;
use serde_json::{Map, Value};

const PROMPT: [&str; 11] =
    ["prompt", "question", "query", "instruction", "input", "post", "history", "context", "problem", "task", "source"];
const BETTER: [&str; 10] =
    ["chosen", "best", "better", "preferred", "accepted", "winner", "good", "positive", "pos", "win"];
const WORSE: [&str; 10] =
    ["rejected", "worst", "worse", "dispreferred", "declined", "loser", "bad", "negative", "neg", "lose"];
/// The chosen answer beside a rejected one, if nothing else names it.
const ANSWER: [&str; 5] = ["response", "answer", "completion", "output", "reply"];
/// Endings of two keys that belong together.
const ENDS: [[&str; 2]; 5] = [["_a", "_b"], ["_A", "_B"], ["_0", "_1"], ["_1", "_2"], ["1", "2"]];
const LABEL: [&str; 8] = ["winner", "label", "labels", "preference", "preferred", "choice", "verdict", "annotator"];

impl Row<'_> {
    /// The error for a missing prompt or answer, with a suggested mapping.
    pub(super) fn lacking(&self, paths: &[&str]) -> Error {
        let error = self.missing(paths, "a string or a message list");
        match (&error.hint, columns(self)) {
            (Some(hint), Some(columns)) => {
                let hint = format!("{hint}, perhaps {columns}");
                error.hint(hint)
            }
            _ => error,
        }
    }
}

/// `columns = { ... }` for a source; `None` if the keys give no clue.
pub(super) fn columns(row: &Row) -> Option<String> {
    let mut keys = Vec::new();
    collect(&row.object, "", &mut keys);
    let texts: Vec<&str> = keys.iter().filter(|(_, text)| *text).map(|(key, _)| key.as_str()).collect();
    let named = |words: &[&str], taken: &[&str]| {
        let free = || texts.iter().copied().filter(|key| !taken.contains(key));
        words.iter().find_map(|word| free().find(|key| has_word(key, word)))
    };
    let quoted = |mapping: &[(&str, &str)]| {
        let columns: Vec<String> = mapping.iter().map(|(key, path)| format!("{key} = \"{path}\"")).collect();
        format!("columns = {{ {} }}", columns.join(", "))
    };
    let rejected = named(&WORSE, &[]);
    let chosen = named(&BETTER, &[]).or_else(|| named(&ANSWER, &[rejected?]));
    if let (Some(chosen), Some(rejected)) = (chosen, rejected) {
        let prompt = named(&PROMPT, &[chosen, rejected]).or_else(|| named(&[""], &[chosen, rejected]))?;
        return Some(quoted(&[("prompt", prompt), ("chosen", chosen), ("rejected", rejected)]));
    }
    let pair = |text: bool| {
        ENDS.iter().find_map(|[one, other]| {
            keys.iter().filter(|(_, is_text)| *is_text == text).find_map(|(key, _)| {
                let second = format!("{}{other}", key.strip_suffix(one)?);
                let second = keys.iter().find(|(key, is_text)| *is_text == text && *key == second)?;
                Some((key.as_str(), second.0.as_str()))
            })
        })
    };
    let (a, b) = pair(true)?;
    let prompt = named(&PROMPT, &[a, b]).or_else(|| named(&[""], &[a, b]))?;
    let mut mapping = vec![("prompt", prompt), ("response_a", a), ("response_b", b)];
    match (pair(false), keys.iter().find(|(key, _)| LABEL.iter().any(|word| has_word(key, word)))) {
        (Some((one, other)), _) => mapping.extend([("score_a", one), ("score_b", other)]),
        (None, Some((label, _))) => mapping.push(("winner", label)),
        (None, None) => return None,
    }
    Some(quoted(&mapping))
}

/// Keys with a value (those of nested objects after a dot), and whether the value is a text or a list.
fn collect(object: &Map<String, Value>, before: &str, keys: &mut Vec<(String, bool)>) {
    for (key, value) in object {
        let path = format!("{before}{key}");
        match value {
            Value::Object(inner) if before.is_empty() && odd::kind(inner).is_none() => {
                collect(inner, &format!("{path}."), keys)
            }
            Value::String(_) | Value::Array(_) => keys.push((path, true)),
            Value::Number(_) | Value::Bool(_) => keys.push((path, false)),
            Value::Object(_) | Value::Null => {}
        }
    }
}

/// Whether a word is one of a key's words; the empty word is in every key.
fn has_word(key: &str, word: &str) -> bool {
    let words = key.split(|c: char| !c.is_alphanumeric());
    word.is_empty() || words.map(str::to_lowercase).any(|part| part == word)
}
