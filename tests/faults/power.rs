//! Power cuts: at the k-th operation the process dies, and everything that was not flushed to the disk is lost.

use crate::run::{Fault, Outcome, recovered, recovers, sample, train, undisturbed};
use crate::tiny::Workspace;

const OPERATIONS: &str = "open,write,fsync,rename";

/// Cuts the power at the operation of that number.
fn cut(at: usize, lie: &str) -> (Workspace, String) {
    let workspace = Workspace::new();
    let fault = Fault { mode: "cut", at, lie, ..Fault::count(OPERATIONS) };
    let ended = train(&workspace, 1, &[], Some(fault));
    assert_eq!((ended.code, ended.noted.len()), (-1, 1), "operation {at} was not reached: {}", ended.printed);
    let what = format!("power cut at operation {at}, {}", ended.noted[0]);
    (workspace, what)
}

#[test]
fn a_run_whose_power_is_cut_resumes_to_the_same_bytes() {
    let counted = train(&Workspace::new(), 1, &[], Some(Fault::count(OPERATIONS)));
    let samples = sample(counted.noted.len(), "power");
    for &at in &samples {
        let (workspace, what) = cut(at, "");
        recovers(&workspace, 1, &what);
    }
    println!("power cuts: {} of {}", samples.len(), counted.noted.len());
}

/// The first operation after a checkpoint has its name: everything it counts on must be on the disk.
fn after_the_checkpoint() -> usize {
    let counted = train(&Workspace::new(), 1, &[], Some(Fault::count(OPERATIONS)));
    let place = |from: usize, operation: &str, path: &str| {
        let is = |line: &String| line.starts_with(operation) && line.ends_with(path);
        from + counted.noted[from..].iter().position(is).expect("a checkpoint is saved")
    };
    let named = place(0, "rename", "/run/step-3");
    // Operations are numbered from 1.
    place(named, "fsync", "/run") + 2
}

#[test]
fn control_without_the_flush_of_metrics_lines_are_lost() {
    let at = after_the_checkpoint();
    let expected = undisturbed(1);
    let (workspace, what) = cut(at, "");
    assert!(workspace.path("run/step-3").is_dir(), "{what}: the checkpoint is there");
    recovers(&workspace, 1, &what);
    let (workspace, what) = cut(at, "metrics.jsonl");
    let outcome = recovered(&workspace, 1, &[], &what);
    assert!(outcome.metrics.len() < expected.metrics.len(), "the lost flush is not noticed");
    // The checkpoint does not depend on it.
    Outcome { metrics: expected.metrics.clone(), ..outcome }.expect(expected, &what);
}

#[test]
fn control_without_the_flush_of_a_checkpoints_file_the_cut_is_felt() {
    let (workspace, what) = cut(after_the_checkpoint(), "masters.safetensors");
    let resumed = train(&workspace, 1, &["--resume"], None);
    let said = "skipping run/step-3, which is damaged";
    assert!(resumed.code == 0 && resumed.printed.contains(said), "{what}: {}", resumed.printed);
}
