//! A run's losses: the first is known, and they follow from the data alone, not from ranks, micro-batches or memory.

use crate::tiny::{Workspace, parse_lines};
use serde_json::Value;
use std::f64::consts::LN_2;

const STEP_KEYS: [&str; 11] = [
    "step",
    "loss",
    "reward_loss",
    "policy_loss",
    "accuracy",
    "margin",
    "grad_norm",
    "lr",
    "pairs_per_s",
    "tokens_per_s",
    "seconds",
];
const EVALUATION_KEYS: [&str; 14] = [
    "eval",
    "step",
    "domain",
    "pairs",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "policy_accuracy",
    "policy_accuracy_low",
    "policy_accuracy_high",
    "margin",
    "reward_loss",
    "policy_loss",
    "longer_accuracy",
];

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let distance = (found - expected).abs() / expected.abs();
        assert!(distance < 1e-5, "{what}: step {}: {found} is not {expected} ({distance:.1e})", step + 1);
    }
}

/// Losses of a run with these overrides, on one rank unless told otherwise.
fn losses(workspace: &Workspace, run: &str, ranks: usize, set: &[&str]) -> Vec<f64> {
    let dir = format!("output.dir={run}");
    workspace.train(ranks, &[set, &[&dir[..]]].concat()).succeeded();
    workspace.losses(run)
}

#[test]
fn plain_kernels_train_the_same_up_to_rounding() {
    let workspace = Workspace::new();
    let own = losses(&workspace, "own", 2, &[]);
    let plain = losses(&workspace, "plain", 2, &["parallel.kernels=plain"]);
    assert_eq!(own.len(), plain.len());
    assert!(own.iter().zip(&plain).all(|(own, plain)| (own / plain - 1.0).abs() < 1e-4), "{own:?} {plain:?}");
    // Control: something else has computed.
    assert_ne!(own, plain);
}

#[test]
fn the_metrics_have_the_names_of_the_interface_and_start_at_the_known_loss() {
    let workspace = Workspace::trained(1);
    let lines = workspace.json_lines("run/metrics.jsonl");
    let steps = workspace.steps("run");
    assert_eq!(lines[0], steps[0]);
    assert!((steps[0]["loss"].as_f64().unwrap() - 0.831777).abs() < 1e-5, "{}", steps[0]);
    for part in ["reward_loss", "policy_loss"] {
        assert!((steps[0][part].as_f64().unwrap() - LN_2).abs() < 1e-5, "{}", steps[0]);
    }
    assert_eq!(steps[0]["accuracy"], 0.5, "a zero head ties every pair");
    let numbers: Vec<_> = steps.iter().map(|step| step["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    assert!(steps.iter().all(|step| keys(step) == STEP_KEYS), "{steps:?}");

    let evaluations: Vec<_> = lines.iter().filter(|line| line.get("eval").is_some()).collect();
    assert!(evaluations.iter().all(|line| keys(line) == EVALUATION_KEYS), "{evaluations:?}");
    let places: Vec<_> =
        evaluations.iter().map(|line| (line["eval"].as_str().unwrap(), line["step"].as_u64().unwrap())).collect();
    // Every second step, with each of the checkpoints, and at the end; in total and by domain.
    let dev = [2, 3, 4, 6].map(|step| ("dev", step));
    let expected: Vec<_> = dev.into_iter().chain([("test", 6)]).flat_map(|place| [place, place]).collect();
    assert_eq!(places, expected);
    assert_eq!((&evaluations[0]["domain"], &evaluations[1]["domain"]), (&"all".into(), &"dev".into()));
    assert_eq!(evaluations.last().unwrap()["pairs"], 7);
}

#[test]
fn one_two_and_three_ranks_train_the_same_also_when_a_batch_has_fewer_pairs_than_ranks() {
    let workspace = Workspace::new();
    let alone = losses(&workspace, "alone", 1, &[]);
    let moved = alone.iter().map(|loss| (loss - alone[0]).abs()).fold(0.0, f64::max);
    assert!(moved > 1e-2, "nothing is learned: {alone:?}");
    for ranks in [2, 3] {
        let run = format!("of-{ranks}");
        assert_close(&run, &losses(&workspace, &run, ranks, &[]), &alone);
        let [expected, found] = ["alone", &run].map(|run| workspace.json_lines(&format!("{run}/metrics.jsonl")));
        for (expected, found) in expected.iter().zip(&found).filter(|(line, _)| line.get("eval").is_some()) {
            for key in ["step", "domain", "pairs", "accuracy", "policy_accuracy"] {
                assert_eq!(expected[key], found[key], "{key} of {found}");
            }
        }
    }
    // The control: another order of the pairs is told from rounding.
    assert!((losses(&workspace, "other", 1, &["data.seed=1"])[1] / alone[1] - 1.0).abs() > 1e-4);
}

#[test]
fn micro_batches_and_activation_checkpointing_change_no_loss() {
    let workspace = Workspace::new();
    let expected = losses(&workspace, "plain", 1, &[]);
    for (run, set) in [
        ("one-pair-at-a-time", "train.tokens_per_micro_batch=1"),
        ("whole-batches", "train.tokens_per_micro_batch=100000"),
        ("checkpointed", "train.activation_checkpointing=true"),
    ] {
        assert_close(run, &losses(&workspace, run, 1, &[set]), &expected);
    }
}

#[test]
fn every_objective_and_policy_loss_trains() {
    let workspace = Workspace::new();
    // HaF-RM's losses of the first step: the head is zero, and the policy is its own reference.
    let known = [("dpo", Some(1.2 * LN_2)), ("hinge", Some(LN_2 + 0.2)), ("ipo", Some(LN_2 + 0.2 * 25.0))];
    for (policy, first) in known.into_iter().chain([("simpo", None), ("sft", None)]) {
        let choice = format!("loss.policy='{policy}'");
        let found = losses(&workspace, policy, 1, &[&choice, "train.steps=2"]);
        if let Some(first) = first {
            assert_close(policy, &found[..1], &[first]);
        }
        assert!(found.len() == 2 && found[0] != found[1], "{policy}: {found:?}");
    }
    for (objective, dead, alive) in [("reward", "policy_loss", "reward_loss"), ("policy", "reward_loss", "policy_loss")]
    {
        let choice = format!("loss.objective='{objective}'");
        losses(&workspace, objective, 2, &[&choice, "train.steps=2"]);
        for line in workspace.json_lines(&format!("{objective}/metrics.jsonl")) {
            assert!(line[dead].is_null() && line[alive].is_f64(), "{line}");
        }
    }
}

#[test]
fn alternating_starts_with_the_policy_and_gives_the_idle_loss_no_weight() {
    let workspace = Workspace::new();
    losses(&workspace, "run", 2, &["loss.alternate_every=2"]);
    for step in workspace.steps("run") {
        let [loss, reward, policy] = ["loss", "reward_loss", "policy_loss"].map(|key| step[key].as_f64().unwrap());
        let expected = if matches!(step["step"].as_u64(), Some(1 | 2 | 5 | 6)) { 0.2 * policy } else { reward };
        assert!((loss - expected).abs() < 1e-12, "{step}");
    }
    let head_moved = |step: usize| workspace.steps("run")[step - 1]["margin"].as_f64().unwrap() != 0.0;
    assert!(!head_moved(3) && head_moved(4), "the zero head learns nothing before its first turn");
}

/// Promise: `-q` leaves everything out but warnings, and the last answer ends a run without test pairs too.
#[test]
fn quiet_runs_print_no_tables_on_stderr_and_end_with_an_answer() {
    let workspace = Workspace::new();
    let run = workspace.train(1, &["--quiet", "train.steps=1", "data.test=[]"]).succeeded();
    let eval = ["eval", "--checkpoint", "run", "--data", "test.jsonl", "--threads", "1"];
    let quiet = workspace.run(1, &[&eval[..], &["-q"]].concat()).succeeded();
    for outcome in [&run, &quiet] {
        assert!(!outcome.stderr.contains("pairs kept"), "{}", outcome.stderr);
    }
    let control = workspace.run(1, &eval).succeeded();
    assert!(control.stderr.contains("pairs kept"), "{}", control.stderr);
    assert!(run.stdout.contains(" dev pairs correctly") && run.stdout.contains("no test pairs"), "{}", run.stdout);
    let loud = workspace.train(1, &["train.steps=1", "output.dir=loud"]).succeeded();
    assert!(loud.stderr.contains(" parameters, ") && loud.stderr.contains(", 1 rank with "), "{}", loud.stderr);
    assert!(run.stdout.contains("next        haf-dist eval --checkpoint run --data dev.jsonl"), "{}", run.stdout);
    // As JSON, for scripts.
    let json = workspace.train(1, &["--quiet", "--json", "output.dir=json"]).succeeded();
    let [end] = &parse_lines(&json.stdout)[..] else { panic!("{}", json.stdout) };
    assert_eq!((&end["run"], &end["step"], &end["already_finished"]), (&"json".into(), &6.into(), &false.into()));
    assert_eq!(end["checkpoint"], "json/step-6");
    let of_test = |line: &Value| line["eval"] == "test";
    let lines: Vec<Value> = workspace.json_lines("json/metrics.jsonl").into_iter().filter(of_test).collect();
    assert_eq!(end["test"].as_array(), Some(&lines));
    assert!(end["verdict"].as_str().is_some_and(|text| text.contains("test pairs correctly")), "{end}");
    assert!(end["best"]["accuracy"].is_f64() && end["next"].as_str().unwrap().starts_with("haf-dist "), "{end}");
    let again = workspace.train(1, &["--quiet", "--json", "--resume", "output.dir=json"]).succeeded();
    assert_eq!(parse_lines(&again.stdout)[0]["already_finished"], true);
    // Rows of a file are not the file.
    let part = workspace.train(1, &["train.steps=1", "data.test.0.rows=:5", "output.dir=part", "--quiet"]).succeeded();
    assert!(part.stdout.contains("eval --checkpoint part --data PAIRS --worst 20"), "{}", part.stdout);
}
