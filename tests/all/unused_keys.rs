//! Promise: no key of a row is dropped in silence: taking it out changes the row's pairs or is an error, unless the key was
//! reported as not used.

use crate::property;
use haf_dist::config::{Format, Source};
use haf_dist::data::Pair;
use haf_dist::data::formats::layout::Layout;
use haf_dist::data::formats::{DropReason, LAYOUTS, SourceRows, read};
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
    }
    (layout.format, rows)
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
            for (key, value) in object {
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
        _ => {}
    }
}

#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Place(usize),
}

fn without(value: &mut Value, steps: &[Step]) {
    match (steps, value) {
        ([Step::Key(key)], Value::Object(object)) => drop(object.remove(key)),
        ([Step::Key(key), rest @ ..], value) => without(&mut value[key.as_str()], rest),
        ([Step::Place(place), rest @ ..], value) => without(&mut value[*place], rest),
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
    let (format, mut rows) = laden(0, &[[false; 8].as_slice(), &[true, false, false, false]].concat());
    let before = source_rows(&Source { format, ..Source::new("") }, &rows).unwrap();
    assert!(reported(&before.unused, "note") && reported(&before.unused, "note.by"), "{:?}", before.unused);
    without(&mut rows[0], &[Step::Key("note".into())]);
    let after = source_rows(&Source { format, ..Source::new("") }, &rows).unwrap();
    assert_eq!((after.pairs, after.dropped, after.unused), (before.pairs, before.dropped, BTreeMap::new()));
    assert!(!reported(&before.unused, "prompt") && !reported(&before.unused, "notes"));
}

proptest! {
    #![proptest_config(cases(1500))]

    /// Taking a key out of a row changes its pairs or makes them an error, unless the key was reported as not used.
    #[test]
    fn no_key_is_dropped_in_silence(
        which in 0..64_usize, extras in proptest::collection::vec(any::<bool>(), 12),
        row in any::<Index>(), key in any::<Index>(), named in any::<bool>(),
    ) {
        let (format, mut rows) = laden(which, &extras);
        let told = LAYOUTS.iter().any(|layout| layout.format == format && !layout.told_by.is_empty());
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
