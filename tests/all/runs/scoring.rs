//! `eval` and `score` report for a checkpoint what the run reported, and take any sequence classifier of a known family.

use crate::runs::refused::{Case, check};
use crate::tiny::{Workspace, parse_lines};
use serde_json::{Value, json};
use std::fs;

const COMMON: [&str; 6] = ["--dtype", "f32", "--threads", "1", "--data", "test.jsonl"];

/// The lengths that the workspace's runs cut to.
const LENGTHS: [&str; 4] = ["--max-length", "28", "--max-prompt-length", "16"];

fn arguments<'a>(command: &'a str, checkpoint: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command, "--checkpoint", checkpoint][..], &COMMON, more].concat()
}

/// The test rows at the end of a run's metrics.
fn closing_rows(workspace: &Workspace) -> Vec<Value> {
    let mut rows = workspace.json_lines("run/metrics.jsonl");
    rows.retain(|row| row.get("eval").is_some_and(|eval| eval == "test"));
    rows
}

/// A checkpoint's folder as others would make it: without what only this program writes.
fn strip(workspace: &Workspace, from: &str, to: &str) {
    fs::create_dir(workspace.path(to)).unwrap();
    for entry in fs::read_dir(workspace.path(from)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("haf_dist.json") {
            fs::copy(&path, workspace.path(to).join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn eval_repeats_the_closing_evaluation_to_the_last_digit() {
    let workspace = Workspace::trained(2);
    let closing = closing_rows(&workspace);
    // The run's own packing, so that every sum has the run's order; and its lengths, to which it cut.
    let eval = |ranks: usize, checkpoint: &str, more: &[&str]| {
        workspace.run(ranks, &arguments("eval", checkpoint, &[&LENGTHS[..], more].concat())).succeeded()
    };
    let outcome = eval(2, "run/step-6", &["--json", "--tokens-per-micro-batch", "90"]);
    let mut rows = parse_lines(&outcome.stdout);
    // Behind them stand reports of calibration and length.
    rows.retain(|row| row.get("eval").is_some());
    for row in &mut rows {
        assert_eq!(row["eval"], "eval");
        row["eval"] = json!("test");
    }
    assert_eq!(rows, closing);
    // Packed otherwise, by other ranks: up to rounding.
    let other = parse_lines(&eval(1, "run/step-6", &["--json"]).stdout);
    for key in ["accuracy", "policy_accuracy", "margin", "reward_loss", "policy_loss"] {
        let [one, other] = [&closing[0], &other[0]].map(|row| row[key].as_f64().unwrap());
        assert!((one - other).abs() < 1e-6, "{key}: {one}, {other}");
    }
    let table = eval(1, "run/step-6", &[]).stdout;
    for key in ["accuracy", "policy_accuracy", "margin", "reward_loss", "policy_loss"] {
        let shown = format!("{:.4}", closing[0][key].as_f64().unwrap());
        assert!(table.contains(&shown), "{key} = {shown} is not in\n{table}");
    }
    // The control: an earlier checkpoint has other numbers.
    let earlier = &parse_lines(&eval(1, "run/step-3", &["--json"]).stdout)[0];
    assert_eq!(earlier["step"], 3);
    assert_ne!(earlier["margin"], closing[0]["margin"]);
    // Without lengths nothing is cut, and the report says so.
    let whole = workspace.run(1, &arguments("eval", "run/step-6", &["--json"])).succeeded();
    assert_ne!(parse_lines(&whole.stdout)[0]["margin"], closing[0]["margin"]);
    let cut = |text: &str| text.lines().any(|line| line.starts_with("| prompts truncated") && line.ends_with(" 0 |"));
    assert!(cut(&whole.stderr) && !cut(&outcome.stderr), "{}", whole.stderr);
}

#[test]
fn score_writes_a_line_a_row_and_the_same_rewards_for_pairs_and_single_rows() {
    let workspace = Workspace::new();
    // Long enough for every row: both answers of a pair lose as much of their prompt as the longer one needs.
    workspace.train(1, &["data.max_length=40"]).succeeded();
    let mut text = String::from_utf8(workspace.read("test.jsonl")).unwrap();
    let pairs = parse_lines(&text);
    let margin = closing_rows(&workspace)[0]["margin"].as_f64().unwrap();
    let empty = json!({"prompt": "What?", "chosen": "yes", "rejected": " "});
    text.push_str(&format!("{empty}\n"));
    workspace.write("test.jsonl", &text);
    let mut of_pairs =
        parse_lines(&workspace.run(1, &arguments("score", "run/step-6", &["--output", "-"])).succeeded().stdout);
    let dropped = of_pairs.pop().unwrap();
    assert_eq!(dropped, json!({"line": pairs.len() + 1, "dropped": "empty answer"}));

    let single = |answer: &str| -> Vec<Value> {
        let row = |pair: &Value| json!({"prompt": pair["prompt"], "answer": pair[answer]}).to_string() + "\n";
        workspace.write("test.jsonl", &pairs.iter().map(row).collect::<String>());
        let output = format!("{answer}.jsonl");
        let outcome = workspace.run(2, &arguments("score", "run/step-6", &["--output", &output])).succeeded();
        assert_eq!(outcome.stdout, "");
        workspace.json_lines(&output)
    };
    let of_answers = ["chosen", "rejected"].map(|answer| (answer, single(answer)));
    assert_eq!(of_pairs.len(), pairs.len());
    let mut sum = 0.0;
    for (index, of_pair) in of_pairs.iter().enumerate() {
        for (answer, rows) in &of_answers {
            assert_eq!((rows.len(), &rows[index]["line"]), (pairs.len(), &json!(index + 1)));
            for key in ["reward", "logp", "implicit"] {
                let [one, other] = [&of_pair[format!("{key}_{answer}")], &rows[index][key]];
                let [one, other] = [one, other].map(|value| value.as_f64().expect("a number"));
                assert!((one - other).abs() < 1e-5 * (1.0 + one.abs()), "{key} of {answer} {index}: {one}, {other}");
            }
        }
        sum += of_pair["reward_chosen"].as_f64().unwrap() - of_pair["reward_rejected"].as_f64().unwrap();
    }
    assert!((sum / pairs.len() as f64 - margin).abs() < 1e-6, "the mean margin is the run's");
}

#[test]
fn a_folder_of_another_program_has_rewards_but_no_policy() {
    let workspace = Workspace::trained(1);
    strip(&workspace, "run/step-6", "foreign");
    let json = [&LENGTHS[..], &["--json"]].concat();
    let rows = parse_lines(&workspace.run(2, &arguments("eval", "foreign", &json)).succeeded().stdout);
    for (row, closing) in rows.iter().zip(closing_rows(&workspace)) {
        for key in ["domain", "pairs", "accuracy", "accuracy_low", "accuracy_high"] {
            assert_eq!(row[key], closing[key], "{key}");
        }
        let [margin, of_run] = [row, &closing].map(|row| row["margin"].as_f64().unwrap());
        assert!((margin - of_run).abs() < 1e-6, "{margin}, {of_run}");
        assert!(row["policy_accuracy"].is_null() && row["policy_loss"].is_null(), "{row}");
    }
    let scores = |folder| parse_lines(&workspace.run(1, &arguments("score", folder, &LENGTHS)).succeeded().stdout);
    let (foreign, own) = (scores("foreign"), scores("run/step-6"));
    assert_eq!((foreign.len(), own.len()), (7, 7));
    for (foreign, own) in foreign.iter().zip(&own) {
        assert_eq!(foreign["reward_chosen"], own["reward_chosen"]);
        assert!(foreign.get("implicit_chosen").is_none() && own["implicit_chosen"].is_f64(), "{foreign}");
    }
}

#[test]
fn a_line_says_that_its_answer_was_cut_and_one_warning_counts_them() {
    let workspace = Workspace::trained(1);
    let row = |answer: &str| json!({"prompt": "What is x?", "answer": answer}).to_string() + "\n";
    // 13 tokens of prompt and turn, the answer, its EOS.
    let answers = ["yes", "a cat and a dog", "no", "the dog and the cat"];
    workspace.write("test.jsonl", &answers.map(row).concat());
    let run = |length: &str| {
        let outcome = workspace.run(1, &arguments("score", "run/step-6", &["--max-length", length])).succeeded();
        let cut = parse_lines(&outcome.stdout).iter().map(|line| line.get("cut").cloned()).collect::<Vec<_>>();
        (cut, outcome.stderr.lines().filter(|line| line.contains("WARN")).map(String::from).collect::<Vec<_>>())
    };
    let (cut, warned) = run("20");
    let answer = || Some(json!("answer"));
    assert_eq!(cut, [None, answer(), None, answer()]);
    assert!(
        warned.len() == 1 && warned[0].contains("2 of 4 rows") && warned[0].contains("--max-length 20"),
        "{warned:?}"
    );
    // The control: room for all, the longest answer's EOS included; and one token less.
    let room = 13 + answers[3].len() + 1;
    assert_eq!(run(&room.to_string()), (vec![None; 4], Vec::new()));
    assert_eq!(run(&(room - 1).to_string()).1.len(), 1);
}

#[test]
fn a_head_that_was_never_trained_is_warned_of() {
    let workspace = Workspace::new();
    for (objective, expected) in [("policy", 1), ("reward", 0)] {
        let (dir, loss) = (format!("output.dir={objective}"), format!("loss.objective={objective}"));
        workspace.train(1, &[&dir[..], &loss]).succeeded();
        let exported = format!("exported-{objective}");
        let checkpoint = format!("{objective}/step-6");
        workspace.run(1, &["export", &checkpoint, &exported]).succeeded();
        for folder in [&checkpoint, &exported] {
            let outcome = workspace.run(2, &arguments("score", folder, &[])).succeeded();
            let warnings: Vec<_> =
                outcome.stderr.lines().filter(|line| line.contains("the reward head is zero")).collect();
            assert_eq!(warnings.len(), expected, "{folder}: {}", outcome.stderr);
            let implicit = warnings.iter().any(|line| line.contains("`implicit`"));
            assert_eq!(implicit, folder.ends_with("step-6") && expected == 1, "{warnings:?}");
        }
    }
}

#[test]
fn options_meet_the_rules_of_the_keys_that_they_replace() {
    let workspace = Workspace::trained(1);
    for (options, says) in [
        (&["--max-length", "4"][..], "`--max-length` = 4; expected 8 or more\n  hint: the command's --help"),
        (
            &["--max-length", "12", "--max-prompt-length", "12"],
            "`--max-prompt-length` = 12 leaves no room for an answer; expected less than --max-length = 12",
        ),
        (&["--threads", "5000"], "`--threads` = 5000; expected at most 4096"),
    ] {
        for command in ["eval", "score"] {
            let arguments = [&[command, "--checkpoint", "run/step-6", "--data", "test.jsonl"], options].concat();
            check(&workspace, &[1], &Case { name: command, arguments, says: &[says] });
        }
    }
    // Of the config's own words.
    let outcome = workspace.train(1, &["data.max_length=4", "data.max_prompt_length=2", "output.dir=new"]);
    assert!(outcome.stderr.contains("`data.max_length` = 4; expected 8 or more"), "{}", outcome.stderr);
}

#[test]
fn a_file_is_evaluated_once() {
    let workspace = Workspace::trained(1);
    let eval = |more: &[&'static str]| [&["eval", "--checkpoint", "run/step-6"], more].concat();
    for (arguments, says) in [
        (eval(&["--data", "test.jsonl", "--data", "dev.jsonl", "--data", "model/../test.jsonl"]), "--data: "),
        (eval(&["--suite", "rewardbench", "test.jsonl", "./test.jsonl"]), "rewardbench: "),
    ] {
        check(
            &workspace,
            &[1, 2],
            &Case { name: "one file twice", arguments, says: &[says, "test.jsonl is named twice"] },
        );
    }
}

#[test]
fn a_runs_folder_stands_for_its_best_checkpoint() {
    let workspace = Workspace::trained(1);
    let state: Value = serde_json::from_slice(&workspace.read("run/step-6/trainer/state.json")).unwrap();
    let best = format!("run/step-{}", state["best"]["step"]);
    let eval = |checkpoint: &str| {
        workspace.run(1, &["eval", "--checkpoint", checkpoint, "--data", "test.jsonl", "--json"]).succeeded()
    };
    let of_run = eval("run");
    assert_eq!(of_run.stdout, eval(&best).stdout);
    assert!(of_run.stderr.contains(&format!("run is a run: taking {best}")), "{}", of_run.stderr);
    // A run whose best is gone stands for its newest; one without checkpoints is no model.
    if best != "run/step-6" {
        fs::remove_dir_all(workspace.path(&best)).unwrap();
        assert_eq!(eval("run").stdout, eval("run/step-6").stdout);
    }
    workspace.run(1, &["export", "run", "out"]).succeeded();
    fs::create_dir(workspace.path("empty")).unwrap();
    let outcome = workspace.run(1, &["eval", "--checkpoint", "empty", "--data", "test.jsonl"]);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
}

#[test]
fn what_a_killed_command_left_goes_with_the_next_that_writes_there() {
    let workspace = Workspace::trained(1);
    for (number, arguments) in [
        arguments("score", "run/step-6", &["--output", "scores.jsonl"]),
        arguments("score", "run/step-6", &["--trace", "trace.json"]),
        vec!["verify", "run/step-6", "--python", "verify.py"],
    ]
    .iter()
    .enumerate()
    {
        let left = format!(".unfinished-abc12{number}");
        workspace.write(&left, "of a killed process");
        workspace.run(1, arguments).succeeded();
        assert!(!workspace.path(&left).exists(), "{arguments:?}");
    }
}
