//! Promise: a suite's figure is reported with the number of its prompts that occur in the training data, and another checkpoint is
//! compared with it item by item by an exact test.

use crate::tiny::{Workspace, parse_lines};
use haf_dist::evaluate::suites::contamination::Wanted;
use haf_dist::evaluate::suites::paired::{adjust, paired};
use haf_dist::evaluate::suites::{Item, Suite};
use serde_json::{Value, json};
use std::fs;

const LONG: &str = "Please tell me, in one or two sentences, why the sky over the sea is so very blue today.";

#[test]
fn prompts_are_found_whole_except_for_white_space_and_by_thirteen_words() {
    let found = |texts: &[&str]| {
        let prompts = [LONG, "Why?", "Name  a tree."].map(|prompt| (Suite::RmBench, prompt));
        let mut wanted =
            Wanted::new(prompts.into_iter().chain([(Suite::Judgebench, "Why?"), (Suite::RmBench, "Why?")]));
        texts.iter().for_each(|text| wanted.pass(text));
        let all = wanted.found();
        let of = |suite: Suite| all.iter().find(|found| found.suite == suite).unwrap().clone();
        let (rm, judge) = (of(Suite::RmBench), of(Suite::Judgebench));
        assert_eq!((rm.prompts, rm.short, judge.prompts), (3, 2, 1));
        (rm.whole, rm.thirteen_words, judge.whole)
    };
    assert_eq!(found(&[]), (0, 0, 0));
    assert_eq!(found(&["Name a\n tree.", "Why ?"]), (1, 0, 0), "white space does not count, other letters do");
    assert_eq!(found(&["\n\nHuman: Why?\n\nAssistant: Because."]), (1, 0, 1), "a turn of a transcript");
    // Thirteen words of it, in other case and signs; twelve are not enough.
    let thirteen = "tell me in one or two sentences why the sky over the sea";
    assert_eq!(found(&[&format!("So: {}!", thirteen.to_uppercase())]), (0, 1, 0));
    assert_eq!(found(&[thirteen.strip_suffix(" sea").unwrap()]), (0, 0, 0), "the control");
    assert_eq!(found(&[LONG]), (1, 1, 0));
}

fn items(prompts: &[usize]) -> Vec<Item> {
    let folder = tempfile::tempdir().unwrap();
    let row = |(number, prompt): (usize, &usize)| json!({"prompt": format!("prompt {prompt}"), "chosen": format!("good {number}"), "rejected": "bad", "subset": "hep-go"});
    let path = folder.path().join("rows.json");
    std::fs::write(&path, json!(prompts.iter().enumerate().map(row).collect::<Vec<_>>()).to_string()).unwrap();
    Suite::Rewardbench.read(&[path], 1 << 20).unwrap()
}

#[test]
fn a_paired_test_is_mcnemars_by_prompt() {
    let scores = |right: &[bool]| -> Vec<Vec<f64>> {
        right.iter().map(|&right| vec![f64::from(u8::from(right)), 0.5]).collect()
    };
    let better = [true; 8].into_iter().chain([false; 4]).collect::<Vec<_>>();
    let worse = [[true; 2], [false; 2], [false; 2], [false; 2], [false; 2], [false; 2]].concat();
    let scores = [&scores(&better)[..], &scores(&worse)];
    let alone: Vec<usize> = (0..12).collect();
    let row = paired(Suite::Rewardbench, "reward", &items(&alone), scores);
    // Six items turn to the better and none to the worse: 2 / 2^6.
    assert!((row.p - 2.0 / 64.0).abs() < 1e-12 && (row.difference - 0.5).abs() < 1e-12, "{row:?}");
    assert!(row.low.unwrap() > 0.0 && row.high.unwrap() < 1.0);
    // Of three prompts that those stand in, they are three pieces of evidence.
    let together: Vec<usize> = (0..12).map(|item| item / 2).collect();
    let clustered = paired(Suite::Rewardbench, "reward", &items(&together), scores);
    assert!((clustered.p - 2.0 / 8.0).abs() < 1e-12 && clustered.prompts == 6, "{clustered:?}");
    let mut rows = [row, clustered];
    adjust(&mut rows);
    assert!((rows[0].p_holm - 4.0 / 64.0).abs() < 1e-12, "{rows:?}");
    let same = paired(Suite::Rewardbench, "reward", &items(&alone), [scores[0], scores[0]]);
    assert!(same.p == 1.0 && same.difference == 0.0 && same.low.unwrap() < 0.0);
}

#[test]
fn eval_compares_checkpoints_and_searches_the_runs_training_data() {
    let workspace = Workspace::trained(1);
    // The first prompts are those that the run was trained on.
    let row = |number: usize| {
        let prompt = format!("What is {}?", "x".repeat(number));
        json!({"prompt": prompt, "chosen": "yes 1", "rejected": "the dog.", "subset": "hep-go"}).to_string() + "\n"
    };
    workspace.write("suite.jsonl", &(0..8).map(row).collect::<String>());
    let eval = |ranks: usize, more: &[&str]| {
        let suite = ["eval", "--checkpoint", "run/step-6", "--suite", "rewardbench", "suite.jsonl"];
        workspace.run(ranks, &[&suite[..], more].concat()).succeeded()
    };
    let lines = |ranks: usize, more: &[&str], key: &str| -> Vec<Value> {
        let lines = parse_lines(&eval(ranks, &[more, &["--json"]].concat()).stdout);
        lines.into_iter().filter(|line| line.get(key).is_some()).collect()
    };
    // In every line of the suite: of all figures by all heads.
    let contamination = |ranks: usize, more: &[&str]| {
        let lines = lines(ranks, more, "suite");
        assert!(lines.len() > 3 && lines.iter().all(|line| line["contamination"] == lines[0]["contamination"]));
        lines[0]["contamination"].clone()
    };
    for ranks in [1, 2] {
        let found = contamination(ranks, &[]);
        assert_eq!((&found["prompts"], &found["short"]), (&json!(8), &json!(8)), "{found}");
        // Rows 0 to 4 and 20 to 25 have 0 to 2 and 1 to 3 letters.
        assert_eq!((&found["whole"], &found["rows"]), (&json!(4), &json!(11)), "{found}");
        assert_eq!(found["files"], json!(["plain.jsonl", "other.jsonl"]), "{found}");
    }
    let of_dev = contamination(1, &["--train-data", "dev.jsonl"]);
    assert!(of_dev["whole"] != 4 && of_dev["files"] == json!(["dev.jsonl"]), "the control: {of_dev}");
    let rows = lines(2, &["--against", "run/step-3"], "paired");
    let names: Vec<&str> = rows.iter().map(|row| row["scored_by"].as_str().unwrap()).collect();
    assert_eq!(names, ["reward", "implicit", "combined"]);
    for row in &rows {
        let of = |key: &str| row[key].as_f64().unwrap();
        assert!((of("ours") - of("theirs") - of("difference")).abs() < 1e-12 && of("p") <= 1.0, "{row}");
        assert_eq!((&row["checkpoint"], &row["against"]), (&json!("run/step-6"), &json!("run/step-3")));
    }
    let same = lines(1, &["--against", "run/step-6"], "paired");
    assert!(same.iter().all(|row| row["difference"] == 0.0 && row["p"] == 1.0), "{same:?}");
    let text = eval(1, &["--against", "run/step-3"]).stdout;
    assert!(text.contains("13 words in a row") && text.contains("Holm's p"), "{text}");
    // Row 40, a dev pair, asks what xx is: one of the eight prompts, each with two answers. So do two more of the dev pairs.
    let told = eval(1, &[]).stderr;
    assert!(told.contains("of 16 answers of rewardbench have a dev prompt of the run"), "{told}");
    // What is not known is said: training files that are gone, and checkpoints whose heads differ.
    fs::rename(workspace.path("other.jsonl"), workspace.path("gone.jsonl")).unwrap();
    let told = eval(1, &[]);
    assert!(told.stderr.contains("other.jsonl, part of the run's training data, does not exist"), "{}", told.stderr);
    assert!(!told.stdout.contains("13 words in a row"), "{}", told.stdout);
    assert!(contamination(1, &[]).is_null());
    fs::rename(workspace.path("gone.jsonl"), workspace.path("other.jsonl")).unwrap();
    for objective in ["reward", "policy"] {
        let dir = format!("output.dir='{objective}'");
        workspace.train(1, &[&format!("loss.objective={objective}"), &dir, "train.epochs=1"]).succeeded();
    }
    let newest = |run: &str| format!("{run}/step-{}", workspace.steps(run).len());
    let eval = |checkpoint: &str| {
        let (ours, theirs) = (newest(checkpoint), newest("policy"));
        let suite = ["--suite", "rewardbench", "suite.jsonl", "--against", &theirs];
        workspace.run(1, &[&["eval", "--checkpoint", &ours][..], &suite].concat()).succeeded()
    };
    let says = "no head in common";
    assert!(eval("reward").stderr.contains(says) && !eval("policy").stderr.contains(says));
}
