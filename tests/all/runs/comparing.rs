//! A finished run writes the result of each test pair, and `compare` reports for several runs what their own tables report.

use crate::tiny::Workspace;
use serde_json::Value;

/// The test row of a run's metrics.
fn tested(workspace: &Workspace, run: &str) -> Value {
    let lines = workspace.json_lines(&format!("{run}/metrics.jsonl"));
    lines.into_iter().find(|line| line.get("eval").is_some_and(|eval| eval == "test")).expect("a test evaluation")
}

#[test]
fn compare_reports_for_each_run_what_the_run_reported() {
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
        let ends = ["low", "high"].map(|end| &run[format!("{key}_{end}")]);
        assert!(ends.iter().all(|end| end.is_f64()) && [&line["low"], &line["high"]] == ends, "{line} {run}");
    }
    // The fourth of the three objectives is of the implicit rewards, the fifth of the hybrid's two heads combined.
    assert_eq!(lines.iter().filter(|line| line["compare"] == "difference").count(), 5);
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
fn runs_that_cannot_be_compared_are_one_error_with_a_hint() {
    let workspace = Workspace::trained(1);
    for (runs, expected) in [
        (&["run"][..], "only one run"),
        (&["run", "run"], "a second run of hybrid with data.seed = 0"),
        (&["run", "nope"], "there is no folder nope"),
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

/// The lines of a comparison that are of a kind.
fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["compare"] == kind).collect()
}

#[test]
fn compare_trains_missing_runs_chooses_rates_on_dev_and_continues_where_it_stopped() {
    let workspace = Workspace::new();
    let command = [
        "compare",
        "--train",
        "run.toml",
        "--objectives",
        "hybrid,policy",
        "--seeds",
        "1",
        "--learning-rates",
        "1e-3,1e-30",
        "--out",
        "study",
        "--json",
        "--drop-checkpoints",
    ];
    let planned = workspace.run(1, &[&command[..], &["--dry-run"]].concat()).succeeded();
    let expected = "data.seed=1 'output.dir=\"study/hybrid-rate-1e-3-seed-1\"'";
    assert!(planned.stdout.contains(expected) && planned.stdout.lines().count() == 4, "{}", planned.stdout);
    assert!(!workspace.path("study").exists(), "a dry run makes nothing");

    let outcome = workspace.run(1, &command).succeeded();
    let lines = crate::tiny::parse_lines(&outcome.stdout);
    let rates = of_kind(&lines, "learning rate");
    assert_eq!(rates.len(), 4);
    for variant in ["hybrid", "policy"] {
        let of_variant: Vec<&&Value> = rates.iter().filter(|row| row["variant"] == variant).collect();
        let accuracy = |row: &Value| row["dev_accuracy"].as_f64().unwrap();
        let best = of_variant.iter().map(|row| accuracy(row)).fold(0.0, f64::max);
        let chosen: Vec<_> = of_variant.iter().filter(|row| row["chosen"] == true).collect();
        assert!(chosen.len() == 1 && accuracy(chosen[0]) == best, "{of_variant:#?}");
        let run = format!("study/{variant}-rate-{}-seed-1", chosen[0]["learning_rate"].as_str().unwrap());
        let key = if variant == "policy" { "policy_accuracy" } else { "accuracy" };
        let dev = workspace.json_lines(&format!("{run}/metrics.jsonl"));
        let dev = dev.iter().rfind(|line| line["eval"] == "dev" && line["domain"] == "all").unwrap();
        assert_eq!(dev[key].as_f64(), Some(best));
    }
    assert_eq!(of_kind(&lines, "variant").len(), 2);
    let has_combined = |line: &&&Value| line["ranked_by"] == "combined" && line["seed"] == 1;
    assert_eq!(of_kind(&lines, "accuracy").iter().filter(has_combined).count(), 1);
    assert!(!workspace.path("study/hybrid-rate-1e-3-seed-1/step-4").exists(), "checkpoints were to be dropped");

    // Again: nothing is trained, and the tables get other names. What a killed comparison left is removed.
    workspace.write("study/.unfinished-abc123", "left");
    let again = workspace.run(1, &command).succeeded();
    assert!(!workspace.path("study/.unfinished-abc123").exists());
    assert_eq!(again.stdout, outcome.stdout);
    assert!(
        again.stderr.contains("4 runs in study, 4 of them finished") && !again.stderr.contains("[run "),
        "{}",
        again.stderr
    );
    assert!(workspace.path("study/comparison-2.md").is_file());
    // Other settings in the same folder would be compared with these.
    let other = workspace.run(1, &[&command[..], &["--set", "train.warmup_steps=1"]].concat());
    assert!(other.code == 2 && other.stderr.contains("another config or other --set options"), "{}", other.stderr);
    // A finished run of other settings in a folder of the right name, as two keys with the same value can make it.
    let pairs = "study/hybrid-rate-1e-3-seed-1/test-pairs.jsonl";
    let text = String::from_utf8(workspace.read(pairs)).unwrap();
    workspace.write(pairs, &text.replacen("\"alpha\":0.2", "\"alpha\":0.5", 1));
    let other = workspace.run(1, &command);
    assert!(other.code == 2 && other.stderr.contains("loss.alpha: 0.5 -> 0.2"), "{}", other.stderr);
    workspace.write(pairs, &text);
}

#[test]
fn compare_ends_with_what_a_run_ends_with_and_refuses_what_is_its_own() {
    let workspace = Workspace::new();
    for (options, expected) in [
        (&["--set", "data.seed=3"][..], "the comparison sets data.seed itself"),
        (&["--learning-rates", "1e-3,fast"], "fast is not a learning rate"),
        (&["--learning-rates", "1e-3,2."], "train.learning_rate"),
        (&["--set", "data.test=[]"], "names no test pairs"),
        (&["--learning-rates", "1e-3", "--set", "data.dev=[]"], "names no dev pairs"),
        (&["--objectives", "reward,reward"], "two variants are called reward"),
    ] {
        let outcome = workspace.run(1, &[&["compare", "--train", "run.toml"], options].concat());
        assert!(outcome.code == 2 && outcome.stderr.contains(expected), "{options:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("hint: "), "{}", outcome.stderr);
    }
    assert!(!workspace.path("runs").exists(), "nothing was begun");
    let lost =
        ["compare", "--train", "run.toml", "--out", "lost", "--objectives", "reward", "--set", "model.path=nowhere"];
    let outcome = workspace.run(1, &lost);
    assert!(
        outcome.code == 1 && outcome.stderr.contains("lost/reward-seed-1 failed with exit code 2"),
        "{}",
        outcome.stderr
    );
}
