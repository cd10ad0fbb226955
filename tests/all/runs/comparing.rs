//! A finished run tells what each test pair came to, and `compare` makes of several runs what their tables said of each.

use crate::tiny::Workspace;
use serde_json::Value;

/// The test row of a run's metrics.
fn tested(workspace: &Workspace, run: &str) -> Value {
    let lines = workspace.json_lines(&format!("{run}/metrics.jsonl"));
    lines.into_iter().find(|line| line.get("eval").is_some_and(|eval| eval == "test")).expect("a test evaluation")
}

#[test]
fn compare_says_of_each_run_what_the_run_said() {
    let workspace = Workspace::new();
    for objective in ["hybrid", "reward", "policy"] {
        let (loss, dir) = (format!("loss.objective={objective}"), format!("output.dir={objective}"));
        workspace.train(1, &[&loss[..], &dir, "data.seed=3"]).succeeded();
    }
    let outcome = workspace.run(1, &["compare", "--json", "hybrid", "reward", "policy"]).succeeded();
    let lines = crate::tiny::parse_lines(&outcome.stdout);
    for (objective, ranked_by, key) in [
        ("hybrid", "reward", "accuracy"),
        ("hybrid", "policy", "policy_accuracy"),
        ("reward", "reward", "accuracy"),
        ("policy", "policy", "policy_accuracy"),
    ] {
        let is = |line: &&Value| line["objective"] == objective && line["ranked_by"] == ranked_by && line["seed"] == 3;
        let line = lines.iter().find(is).unwrap_or_else(|| panic!("{objective} {ranked_by} is not in {lines:#?}"));
        let run = tested(&workspace, objective);
        assert_eq!(line["accuracy"], run[key]);
        if key == "accuracy" {
            assert_eq!((&line["low"], &line["high"]), (&run["accuracy_low"], &run["accuracy_high"]));
        }
    }
    assert_eq!(lines.iter().filter(|line| line["compare"] == "difference").count(), 4);
    // The policy run has no reward head to rank with, the reward run no policy.
    assert!(workspace.json_lines("policy/test-pairs.jsonl")[1..].iter().all(|line| line["margin"].is_null()));
    assert!(workspace.json_lines("reward/test-pairs.jsonl")[1..].iter().all(|line| line["implicit_margin"].is_null()));
}

#[test]
fn a_run_that_died_before_its_test_writes_the_same_outcomes_once_resumed() {
    let workspace = Workspace::trained(1);
    let whole = workspace.read("run/test-pairs.jsonl");
    std::fs::remove_file(workspace.path("run/test-pairs.jsonl")).unwrap();
    workspace.train(1, &["--resume"]).succeeded();
    assert_eq!(workspace.read("run/test-pairs.jsonl"), whole);
}

#[test]
fn what_cannot_be_compared_is_one_error_with_a_hint() {
    let workspace = Workspace::trained(1);
    for (runs, expected) in [
        (&["run"][..], "one run alone"),
        (&["run", "run"], "a second run with loss.objective = hybrid"),
        (&["run", "model"], "cannot read model/test-pairs.jsonl"),
    ] {
        let outcome = workspace.run(1, &[&["compare"], runs].concat());
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(expected) && outcome.stderr.contains("hint: "), "{}", outcome.stderr);
    }
    let mut text = String::from_utf8(workspace.read("run/test-pairs.jsonl")).unwrap();
    text.truncate(text.len() - 9);
    std::fs::create_dir(workspace.path("cut")).unwrap();
    workspace.write("cut/test-pairs.jsonl", &text);
    let outcome = workspace.run(1, &["compare", "run", "cut"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("cut/test-pairs.jsonl has changed"), "{}", outcome.stderr);
    let outcome = workspace.run(1, &["compare", "--allow-changed", "run", "cut"]);
    assert!(outcome.code == 2 && outcome.stderr.contains("cut/test-pairs.jsonl:8: "), "{}", outcome.stderr);
}
