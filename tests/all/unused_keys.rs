//! Promise: no key of a row is silently dropped: taking it out changes the row's pairs or is an error, unless the key was
//! reported as not used. It holds for every layout, however its rows are written, and for rows that are only scored.

use crate::property;
use haf_dist::config::{Format, Source};
use haf_dist::data::Pair;
use haf_dist::data::formats::layout::Layout;
use haf_dist::data::formats::{DropReason, LAYOUTS, Scorable, SourceRows, read, read_for_scoring};
use haf_dist::error::{Error, Result};
use property::cases;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn source_rows(source: &Source, rows: &[Value]) -> Result<SourceRows> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    read(&Source { path, ..source.clone() })
}

fn example(layout: &Layout) -> Vec<Value> {
    layout.example.lines().map(|row| serde_json::from_str(row).unwrap()).collect()
}

/// Rows of every layout with what may stand beside a pair, and with keys that nothing reads.
fn laden(which: usize, extras: &[bool]) -> (Format, Vec<Value>) {
    let layout = &LAYOUTS[which % LAYOUTS.len()];
    let beside = [
        ("system", json!("Be kind.")),
        ("history", json!([["Hi", "Hello"]])),
        ("input", json!("this")),
        ("tools", json!([{"type": "function", "function": {"name": "f", "parameters": {}}}])),
        ("documents", json!([{"title": "t", "text": "d"}])),
        ("chat_template_kwargs", json!({"enable_thinking": true})),
        ("margin", json!(0.5)),
        ("domain", json!("d")),
        ("note", json!({"by": "me", "at": [1, 2]})),
        ("label", json!(true)),
        ("image_count", json!(0)),
    ];
    let mut rows = example(layout);
    for row in &mut rows {
        for (_, (key, value)) in extras.iter().zip(beside.iter()).filter(|(extra, _)| **extra) {
            row[*key] = value.clone();
        }
        if extras[beside.len()] {
            lade(row);
        }
        if let Some(prompt) = row.get("prompt").and_then(Value::as_str).filter(|_| extras[beside.len() + 1]) {
            row["messages"] =
                json!([{"role": "user", "content": prompt}, {"role": "assistant", "content": "Neither."}]);
        }
    }
    (layout.format, rows)
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// As the layout's example.
    Plain,
    /// As a Parquet file's columns give them: every object of a list has the keys of all of them, null where it has none.
    Columns,
    /// Lists of messages, tools and the like as JSON texts.
    Texts,
    /// Answers that are texts as messages, contents as parts.
    Parts,
}

const SHAPES: [Shape; 4] = [Shape::Plain, Shape::Columns, Shape::Texts, Shape::Parts];

fn shaped(row: &Value, shape: Shape) -> Value {
    let mut row = row.clone();
    let Some(object) = row.as_object_mut() else { return row };
    match shape {
        Shape::Plain => {}
        Shape::Columns => object.values_mut().for_each(fill),
        Shape::Texts => {
            for value in object.values_mut() {
                let is_list = |key: &str| value[0].get(key).is_some();
                if ["role", "from", "function", "title"].into_iter().any(is_list)
                    || value.get("enable_thinking").is_some()
                {
                    *value = json!(value.to_string());
                }
            }
        }
        Shape::Parts => {
            for key in ["chosen", "rejected", "response_a", "response_b", "output_1", "output_2"] {
                let text = object.get(key).and_then(Value::as_str);
                // Transcripts and lists in texts stay what they are.
                if let Some(text) = text.filter(|text| !text.contains("Human:") && !text.starts_with('[')) {
                    let message = json!([{"role": "assistant", "content": text}]);
                    object.insert(key.into(), message);
                }
            }
            object.values_mut().for_each(part);
        }
    }
    row
}

/// Gives all objects of a list the same keys.
fn fill(value: &mut Value) {
    let Value::Array(list) = value else {
        return value.as_object_mut().into_iter().flatten().for_each(|(_, value)| fill(value));
    };
    let keys: Vec<String> =
        list.iter().filter_map(Value::as_object).flat_map(|object| object.keys().cloned()).collect();
    for value in list {
        if let Value::Object(object) = value {
            for key in keys.iter().map(String::as_str).chain(["image", "tool_calls"]) {
                object.entry(key).or_insert(Value::Null);
            }
        }
        fill(value);
    }
}

/// Makes parts of the contents of messages.
fn part(value: &mut Value) {
    match value {
        Value::Object(object) => {
            let has_role = object.contains_key("role");
            for (key, value) in object {
                match (&key[..], value.as_str()) {
                    ("content", Some(text)) if has_role => *value = json!([{"type": "text", "text": text}]),
                    _ => part(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(part),
        _ => {}
    }
}

/// Puts keys into every message and entry that chat templates read, and one that they do not.
fn lade(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(lade);
            if object.get("role").is_some_and(|role| role == "assistant") {
                object.insert("reasoning_content".into(), json!("hm"));
            }
            if ["role", "from", "answer", "response", "type"].iter().any(|key| object.contains_key(*key)) {
                object.insert("stamp".into(), json!(7));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(lade),
        _ => {}
    }
}

/// Every key of a row: its path without places in lists, and how to take it out.
fn keys(value: &Value, path: &str, steps: &[Step], found: &mut Vec<(String, Vec<Step>)>) {
    match value {
        Value::Object(object) => {
            // Null is as good as no key.
            for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let steps = [steps, &[Step::Key(key.clone())]].concat();
                found.push((path.clone(), steps.clone()));
                keys(value, &path, &steps, found);
            }
        }
        Value::Array(list) => {
            for (place, value) in list.iter().enumerate() {
                keys(value, path, &[steps, &[Step::Place(place)]].concat(), found);
            }
        }
        Value::String(text) => {
            let inner = serde_json::from_str(text).ok().filter(|value: &Value| value.is_array() || value.is_object());
            if let Some(inner) = inner {
                keys(&inner, path, &[steps, &[Step::InText]].concat(), found);
            }
        }
        _ => {}
    }
}

#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Place(usize),
    /// Into the JSON that a text holds.
    InText,
}

fn without(value: &mut Value, steps: &[Step]) {
    match (steps, value) {
        ([Step::Key(key)], Value::Object(object)) => drop(object.remove(key)),
        ([Step::Key(key), rest @ ..], value) => without(&mut value[key.as_str()], rest),
        ([Step::Place(place), rest @ ..], value) => without(&mut value[*place], rest),
        ([Step::InText, rest @ ..], Value::String(text)) => {
            let mut inner = serde_json::from_str(text).unwrap();
            without(&mut inner, rest);
            *text = inner.to_string();
        }
        _ => {}
    }
}

/// Whether a report of unused keys has a path, or a part of the row that it is in.
fn reported(unused: &BTreeMap<String, usize>, path: &str) -> bool {
    let covers = |name: &str| path == name || path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    unused.keys().any(|name| match name.split_once(".*.") {
        None => covers(name),
        Some((before, after)) => path.strip_prefix(before).is_some_and(|rest| rest.ends_with(&format!(".{after}"))),
    })
}

/// Keys whose value is as good as none: a rating that its answer's mean does not need to win.
fn exempt(format: Format, path: &str) -> bool {
    format == Format::Ultrafeedback && path.starts_with("completions.annotations.")
}

fn outcome(format: Format, rows: &[Value]) -> std::result::Result<(Vec<Pair>, BTreeMap<DropReason, usize>), Error> {
    source_rows(&Source { format, ..Source::new("") }, rows).map(|taken| (taken.pairs, taken.dropped))
}

/// Control: a key that nothing reads is silent, and would fail the property if it were not reported.
#[test]
fn a_key_that_nothing_reads_changes_nothing_and_is_reported() {
    let (format, mut rows) = laden(0, &[[false; 8].as_slice(), &[true, false, false, false, false]].concat());
    let before = source_rows(&Source { format, ..Source::new("") }, &rows).unwrap();
    assert!(reported(&before.unused, "note") && reported(&before.unused, "note.by"), "{:?}", before.unused);
    without(&mut rows[0], &[Step::Key("note".into())]);
    let after = source_rows(&Source { format, ..Source::new("") }, &rows).unwrap();
    assert_eq!((after.pairs, after.dropped, after.unused), (before.pairs, before.dropped, BTreeMap::new()));
    assert!(!reported(&before.unused, "prompt") && !reported(&before.unused, "notes"));
}

/// The shapes are no vain ones: rows of every layout are read in each, but for the few that have nothing of it.
#[test]
fn rows_of_every_layout_are_read_however_they_are_written() {
    for (which, layout) in LAYOUTS.iter().enumerate() {
        for shape in SHAPES {
            let (format, rows) = laden(which, &[false; 13]);
            let rows: Vec<Value> = rows.iter().map(|row| shaped(row, shape)).collect();
            let read = outcome(format, &rows);
            assert!(read.is_ok_and(|(pairs, _)| !pairs.is_empty()), "{:?} {shape:?}", layout.format);
        }
    }
}

fn scored(rows: &[Value]) -> Result<Scorable> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    read_for_scoring(&Source::new(path))
}

proptest! {
    #![proptest_config(cases(700))]

    /// The same for rows that are only scored: those of every layout, and single answers.
    #[test]
    fn no_key_of_a_scored_row_is_silently_dropped(
        which in 0..64_usize, extras in proptest::collection::vec(any::<bool>(), 13),
        shape in proptest::sample::select(&SHAPES[..]), key in any::<Index>(),
    ) {
        let alone = [
            json!({"prompt": "Name a gas.", "response": "Neon."}),
            json!({"messages": [{"role": "user", "content": "Name a gas."}, {"role": "assistant", "content": "Neon."}]}),
            json!({"prompt": [{"role": "user", "content": "Name a gas."}], "answer": {"role": "assistant", "content": "Tin."}}),
        ];
        let (format, rows) = laden(which, &extras);
        let mut row = rows[0].clone();
        if which % 3 == 0 {
            let beside = row.as_object().unwrap().iter().filter(|(key, _)| {
                ["system", "tools", "documents", "note", "label", "domain", "margin"].contains(&key.as_str())
            });
            let beside: Vec<_> = beside.map(|(key, value)| (key.clone(), value.clone())).collect();
            row = alone[which / 3 % alone.len()].clone();
            row.as_object_mut().unwrap().extend(beside);
        }
        let mut row = shaped(&row, shape);
        let Ok(before) = scored(std::slice::from_ref(&row)) else { return Ok(()) };
        let mut found = Vec::new();
        keys(&row, "", &[], &mut found);
        let (path, steps) = &found[key.index(found.len())];
        without(&mut row, steps);
        let silent = scored(&[row]).is_ok_and(|after| after.pairs == before.pairs);
        let allowed = reported(&before.unused, path) || exempt(format, path);
        prop_assert!(!silent || allowed, "{} says nothing; reported are {:?}", path, before.unused.keys());
    }
}

proptest! {
    #![proptest_config(cases(1500))]

    /// Taking a key out of a row changes its pairs or makes them an error, unless the key was reported as not used.
    #[test]
    fn no_key_is_silently_dropped(
        which in 0..64_usize, extras in proptest::collection::vec(any::<bool>(), 13),
        row in any::<Index>(), key in any::<Index>(), named in any::<bool>(),
        shape in proptest::sample::select(&SHAPES[..]),
    ) {
        let (format, rows) = laden(which, &extras);
        let mut rows: Vec<Value> = rows.iter().map(|row| shaped(row, shape)).collect();
        let told = LAYOUTS.iter().any(|layout| layout.format == format && !layout.signs.is_empty());
        let read_as = if named || !told { format } else { Format::Auto };
        // What is refused, or left out for a reason, is not silent.
        let Ok(before) = source_rows(&Source { format: read_as, ..Source::new("") }, &rows) else { return Ok(()) };
        prop_assume!(!before.pairs.is_empty());
        let row = row.index(rows.len());
        let mut found = Vec::new();
        keys(&rows[row], "", &[], &mut found);
        let (path, steps) = &found[key.index(found.len())];
        without(&mut rows[row], steps);
        let silent = outcome(read_as, &rows).is_ok_and(|after| after == (before.pairs, before.dropped));
        let allowed = reported(&before.unused, path) || exempt(format, path);
        prop_assert!(!silent || allowed, "{} of {:?} says nothing; reported are {:?}", path, format, before.unused.keys());
    }
}
