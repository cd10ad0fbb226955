//! A model's folder remembers how texts were read in training, wherever it is copied; the command line overrides it.

use crate::runs::refused::{Case, check};
use crate::tiny::{Workspace, parse_lines};
use serde_json::{Value, json};
use std::fs;

/// Settings that no default has; rewards alone, so that a copy has all that the checkpoint's lines have.
const RUN: [&str; 3] = ["data.template=hh", "data.max_length=32", "loss.objective=reward"];

fn score(workspace: &Workspace, checkpoint: &str, more: &[&str]) -> String {
    let command = ["score", "--data", "test.jsonl", "--checkpoint", checkpoint];
    workspace.run(1, &[&command[..], more].concat()).succeeded().stdout
}

fn eval(workspace: &Workspace, checkpoint: &str) -> Vec<Value> {
    let command = ["eval", "--json", "--data", "test.jsonl", "--checkpoint", checkpoint];
    let mut rows = parse_lines(&workspace.run(1, &command).succeeded().stdout);
    // A copy does not say after how many steps it was made.
    rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("step")));
    rows
}

/// A copy of a folder's files, but for the named one.
fn copy(workspace: &Workspace, from: &str, to: &str, without: &str) {
    fs::create_dir(workspace.path(to)).unwrap();
    for entry in fs::read_dir(workspace.path(from)).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_file() && name != without {
            fs::copy(&path, workspace.path(to).join(name)).unwrap();
        }
    }
}

#[test]
fn a_copy_or_an_export_scores_and_evaluates_as_the_checkpoint_line_by_line() {
    let workspace = Workspace::new();
    workspace.train(1, &RUN).succeeded();
    workspace.run(1, &["export", "run/step-6", "exported"]).succeeded();
    copy(&workspace, "run/step-6", "copied", "");
    copy(&workspace, "run/step-6", "forgetful", "haf_dist.json");
    let (scores, rows) = (score(&workspace, "run/step-6", &[]), eval(&workspace, "run/step-6"));
    for folder in ["exported", "copied"] {
        assert_eq!(score(&workspace, folder, &[]), scores, "{folder}");
        assert_eq!(eval(&workspace, folder), rows, "{folder}");
    }
    // So does a folder that has only what other programs read: its chat template writes what was trained.
    // But not its precision: where the processor computes in bf16, that is what it gets.
    let forgetful = |more: &[&str]| score(&workspace, "forgetful", &[&["--dtype", "f32"], more].concat());
    assert_eq!(forgetful(&[]), scores);
    // The control: with another template the rewards are others.
    assert_ne!(forgetful(&["--template", "plain"]), scores);
    // What is typed wins over both memories, and over each key alone.
    let typed = ["--template", "chat", "--max-length", "40"];
    let of_checkpoint = score(&workspace, "run/step-6", &typed);
    assert_eq!(score(&workspace, "exported", &typed), of_checkpoint);
    assert_ne!(of_checkpoint, scores);
    assert_eq!(forgetful(&["--template", "hh"]), scores);
}

#[test]
fn a_checkpoint_of_an_earlier_version_is_exported_with_what_its_config_says() {
    let workspace = Workspace::new();
    workspace.train(1, &RUN).succeeded();
    let written = workspace.read("run/step-6/haf_dist.json");
    fs::remove_file(workspace.path("run/step-6/haf_dist.json")).unwrap();
    // Its config.json said less of the reward.
    let config = workspace.read("run/step-6/config.json");
    let mut earlier: Value = serde_json::from_slice(&config).unwrap();
    earlier.as_object_mut().unwrap().remove("problem_type").unwrap();
    earlier["id2label"] = json!({"0": "LABEL_0"});
    earlier["label2id"] = json!({"LABEL_0": 0});
    workspace.write("run/step-6/config.json", &earlier.to_string());
    // Neither is listed as it is now.
    let mut listed: Value = serde_json::from_slice(&workspace.read("run/step-6/trainer/files.json")).unwrap();
    for name in ["haf_dist.json", "config.json"] {
        listed.as_object_mut().unwrap().remove(name).unwrap();
    }
    workspace.write("run/step-6/trainer/files.json", &listed.to_string());
    workspace.run(1, &["export", "run/step-6", "exported"]).succeeded();
    let [exported, mut written] = [workspace.read("exported/haf_dist.json"), written]
        .map(|file| -> Value { serde_json::from_slice(&file).unwrap() });
    // What was fitted on the dev pairs no config says.
    assert!(written.as_object_mut().unwrap().remove("fitted").is_some());
    assert_eq!(exported, written);
    let [exported, config] = [workspace.read("exported/config.json"), config]
        .map(|file| -> Value { serde_json::from_slice(&file).unwrap() });
    assert_eq!(exported, config);
    assert_ne!(earlier, config, "control");
}

#[test]
fn a_memory_that_cannot_be_meant_is_refused_by_name() {
    let workspace = Workspace::new();
    workspace.train(1, &[&RUN[..], &["train.steps=1"]].concat()).succeeded();
    copy(&workspace, "run/step-1", "copied", "");
    let whole: Value = serde_json::from_slice(&workspace.read("copied/haf_dist.json")).unwrap();
    let mut said = whole.clone();
    assert!(said.as_object_mut().unwrap().remove("fitted").unwrap()["pairs"].is_u64());
    let keys = ["template", "max_length", "max_prompt_length", "truncation", "reward_at", "dtype", "chat_template"];
    assert_eq!(
        said,
        json!({"template": "hh", "max_length": 32, "max_prompt_length": 16, "truncation": "cut", "reward_at": "eos",
               "dtype": "f32", "chat_template": "written"})
    );
    assert!(said.as_object().unwrap().keys().eq(keys));
    for (key, value, says) in [
        ("seed", json!(1), "unknown field `seed`"),
        ("template", json!("hhh"), "unknown variant `hhh`"),
        ("reward_at", json!("start"), "unknown variant `start`"),
        ("max_length", json!("32"), "invalid type: string \"32\""),
        ("max_length", json!(7), "`max_length` = 7; expected 8 or more"),
        ("max_prompt_length", json!(32), "`max_prompt_length` = 32 leaves no room for an answer"),
    ] {
        let mut broken = whole.clone();
        broken[key] = value;
        workspace.write("copied/haf_dist.json", &broken.to_string());
        let score = vec!["score", "--data", "test.jsonl", "--checkpoint", "copied"];
        for arguments in [score, vec!["export", "copied", "new"]] {
            check(&workspace, &[1], &Case { name: key, arguments, says: &["copied/haf_dist.json", says] });
        }
    }
}
