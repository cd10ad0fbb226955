//! `--trace`: a file per rank that trace viewers read, whole or cut short, and nothing overwritten.

use crate::runs::refused::{Case, check};
use crate::tiny::{Workspace, with_config};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Rounding of the file's times, in microseconds.
const ROUNDING: f64 = 0.01;

/// The events of a trace, with or without its closing bracket.
fn events(text: &str) -> Vec<Value> {
    let whole = text.trim_end().trim_end_matches(']').to_string() + "]";
    serde_json::from_str(&whole).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn read(workspace: &Workspace, name: &str) -> Vec<Value> {
    let text = String::from_utf8(workspace.read(name)).unwrap();
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "the closing bracket is there after a normal end");
    events(&text)
}

fn spans<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["ph"] == "X" && event["name"] == name).collect()
}

/// Begin, end and thread of a span.
fn place(span: &Value) -> (f64, f64, u64) {
    let begin = span["ts"].as_f64().unwrap();
    (begin, begin + span["dur"].as_f64().unwrap(), span["tid"].as_u64().unwrap())
}

/// Whether `inner` lies in one of `outer`, on the same thread.
fn within(inner: &Value, outer: &[&Value]) -> bool {
    let (begin, end, thread) = place(inner);
    outer
        .iter()
        .map(|span| place(span))
        .any(|(from, to, on)| on == thread && from <= begin + ROUNDING && end <= to + ROUNDING)
}

fn segments(events: &[Value], name: &str) -> BTreeSet<u64> {
    spans(events, name).iter().map(|span| span["args"]["segment"].as_u64().unwrap()).collect()
}

#[test]
fn a_trace_shows_every_step_with_its_segments_inside() {
    let workspace = Workspace::new();
    let outcome = workspace.train(1, &["--trace=trace.json"]).succeeded();
    let events = read(&workspace, "trace.json");
    let steps = spans(&events, "step");
    let numbers: Vec<_> = steps.iter().map(|step| step["args"]["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    let micro_batches = spans(&events, "micro-batch");
    assert!(micro_batches.len() > steps.len() && micro_batches.iter().all(|span| within(span, &steps)));
    // Embedding, three blocks and the final norm; the heads go together.
    let all = BTreeSet::from([0, 1, 2, 3, 4]);
    assert_eq!((segments(&events, "forward"), segments(&events, "backward")), (all.clone(), all));
    // Every batch is packed on another thread, and waited for once.
    let (packs, waits) = (spans(&events, "pack"), spans(&events, "wait for batch"));
    assert!(packs.len() == micro_batches.len() && !packs.iter().any(|span| within(span, &steps)));
    assert!(waits.len() == micro_batches.len() && waits.iter().all(|span| within(span, &steps)));
    for name in ["heads", "backward"] {
        assert!(spans(&events, name).iter().all(|span| within(span, &micro_batches)), "{name}");
    }
    for name in ["wait for reductions", "gradient norm", "update"] {
        let found = spans(&events, name);
        assert!(found.len() == 6 && found.iter().all(|span| within(span, &steps)), "{name}: {found:?}");
    }
    // The control: an evaluation is no part of a step.
    let evaluations = spans(&events, "evaluate");
    assert!(evaluations.len() == 5 && !evaluations.iter().any(|span| within(span, &steps)));
    assert_eq!(spans(&events, "save").len(), 2);
    assert!(spans(&events, "reference pass").iter().any(|span| span["args"]["split"] == "train"));
    assert!(!outcome.stderr.contains("micro-batch"), "spans are for the file alone: {}", outcome.stderr);
}

#[test]
fn each_of_two_ranks_writes_its_own_reductions() {
    let workspace = Workspace::new();
    workspace.train(2, &["--trace=trace.json"]).succeeded();
    assert!(!workspace.path("trace.json").exists());
    for rank in [0, 1] {
        let events = read(&workspace, &format!("trace.rank-{rank}.json"));
        assert!(events.iter().all(|event| event["pid"] == rank));
        let names: Vec<&str> = events
            .iter()
            .filter(|event| event["ph"] == "M")
            .filter_map(|event| event["args"]["name"].as_str())
            .collect();
        assert!(names.contains(&format!("rank {rank}").as_str()) && names.contains(&"communication"), "{names:?}");
        let reductions = spans(&events, "all-reduce");
        let bytes: BTreeSet<u64> = reductions.iter().map(|span| span["args"]["bytes"].as_u64().unwrap()).collect();
        // Six steps reduce all gradients (this model's buckets are so small that they go together) and the metrics.
        let largest = bytes.last().copied().unwrap_or(0);
        let of_gradients = reductions.iter().filter(|span| span["args"]["bytes"] == largest).count();
        assert!(of_gradients == 6 && largest > 10_000 && bytes.len() > 3, "{bytes:?}");
        assert!(!within(reductions[0], &spans(&events, "step")), "another thread reduces");
    }
}

#[test]
fn a_trace_that_is_there_is_refused_also_when_it_is_another_ranks() {
    let workspace = Workspace::new();
    workspace.write("trace.json", "mine");
    workspace.write("both.rank-1.json", "mine");
    let says = ["trace.json", "exists already"];
    let case = |arguments| Case { name: "existing trace", arguments, says: &says };
    check(&workspace, &[1], &case(with_config(&[], &["--trace=trace.json"])));
    check(&workspace, &[1], &case(with_config(&["prepare"], &["--trace=trace.json"])));
    let says = ["both.rank-1.json", "exists already"];
    let arguments = with_config(&[], &["--trace=both.json"]);
    check(&workspace, &[2], &Case { name: "existing trace of rank 1", arguments, says: &says });
    let arguments = with_config(&[], &["--trace=missing/trace.json"]);
    check(
        &workspace,
        &[1, 2],
        &Case { name: "no such folder", arguments, says: &["missing/trace", "missing does not exist"] },
    );
}

#[test]
fn a_run_that_is_refused_leaves_no_trace() {
    let workspace = Workspace::new();
    let arguments = with_config(&[], &["--trace=trace.json", "train.pairs_per_step=0"]);
    check(&workspace, &[1, 2], &Case { name: "bad key", arguments, says: &["pairs_per_step"] });
}

#[test]
fn an_error_leaves_a_whole_trace_and_a_kill_one_without_its_bracket() {
    let workspace = Workspace::new();
    // A learning rate that breaks the model: the run gives up after skipping.
    let outcome = workspace.train(1, &["--trace=broken.json", "train.learning_rate=1e30", "train.steps=60"]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(spans(&read(&workspace, "broken.json"), "step").len() >= 20);

    let set = ["--trace=killed.json", "train.steps=1000000", "eval.every=0", "checkpoint.every=0", "output.dir=killed"];
    let mut job = workspace.start(1, "killed", &with_config(&[], &set));
    let started = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(workspace.path("killed.json")).unwrap_or_default();
        if text.contains("\"update\"") {
            break text;
        }
        assert!(job.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60), "no step in {text}");
        std::thread::sleep(Duration::from_millis(5));
    };
    job.kill().unwrap();
    job.wait().unwrap();
    for kind in ["out", "err"] {
        std::fs::remove_file(workspace.log("killed", kind)).unwrap();
    }
    assert!(serde_json::from_str::<Value>(&text).is_err(), "it was still being written");
    // A file read while it is written may end inside its last event.
    let (whole, _) = text.rsplit_once(",\n").unwrap();
    assert!(!spans(&events(whole), "update").is_empty());
}
