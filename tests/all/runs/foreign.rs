//! `score`, `export` and training take heads as other programs write them, the head's bias included.

use crate::tiny::{Workspace, parse_lines};
use haf_dist::safetensors_io::{Mapped, write_model};
use serde_json::{Value, json};
use std::fs;
use tch::Tensor;

const BIAS: f64 = 0.625;

/// Moves the head out of a checkpoint's weights into a file of its own, as TRL and LLaMA-Factory have it, with a bias.
fn move_head(workspace: &Workspace, folder: &str, weights: &str, head: &str) {
    let path = workspace.path(folder).join(weights);
    let file = Mapped::open(&path).unwrap();
    let tensors: Vec<(String, Tensor)> =
        file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect();
    let (mut of_head, rest): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| name == head);
    assert_eq!(of_head.len(), 1);
    of_head[0].0 = "v_head.summary.weight".into();
    of_head.push(("v_head.summary.bias".into(), Tensor::from_slice(&[BIAS as f32])));
    drop(file);
    fs::remove_file(&path).unwrap();
    write_model(&path, &rest).unwrap();
    write_model(&workspace.path(folder).join("value_head.safetensors"), &of_head).unwrap();
    // Who wrote it so listed no other content.
    let list = format!("{folder}/trainer/files.json");
    let mut listed: Value = serde_json::from_slice(&workspace.read(&list)).unwrap();
    listed.as_object_mut().unwrap().remove(weights).unwrap();
    workspace.write(&list, &listed.to_string());
}

/// Rewards of the test file's answers, chosen and rejected, and what was said.
fn rewards(workspace: &Workspace, checkpoint: &str) -> (Vec<f64>, String) {
    let command = ["score", "--checkpoint", checkpoint, "--data", "test.jsonl", "--dtype", "f32"];
    let outcome = workspace.run(1, &command).succeeded();
    let rows = parse_lines(&outcome.stdout);
    let of_row = |row: &Value| ["reward_chosen", "reward_rejected"].map(|key| row[key].as_f64().unwrap());
    (rows.iter().flat_map(of_row).collect(), outcome.stderr)
}

#[track_caller]
fn assert_shifted(left: &[f64], right: &[f64], by: f64) {
    assert!(!left.is_empty() && left.len() == right.len());
    for (left, right) in left.iter().zip(right) {
        assert!((left - right - by).abs() < 1e-5, "{left} is not {right} + {by}");
    }
}

#[test]
fn a_head_beside_the_model_is_scored_with_its_bias_and_trained_on_without() {
    let workspace = Workspace::trained(1);
    let (plain, _) = rewards(&workspace, "run/step-6");
    // A head that config.json names and no file has is said not to be there.
    workspace.run(1, &["export", "run/step-6", "other"]).succeeded();
    let mut config: Value = serde_json::from_slice(&workspace.read("other/config.json")).unwrap();
    config["value_head_prefix"] = json!("nowhere");
    workspace.write("other/config.json", &config.to_string());
    let (other, said) = rewards(&workspace, "other");
    assert_eq!(other, plain);
    assert!(said.contains("the reward head is nowhere, which is missing: score.weight is read"), "{said}");

    move_head(&workspace, "run/step-6", "model.safetensors", "score.weight");
    let (shifted, said) = rewards(&workspace, "run/step-6");
    assert_shifted(&shifted, &plain, BIAS);
    assert!(said.contains("value_head.safetensors: the reward head is v_head.summary.weight"), "{said}");

    let start = ["model.path='run/step-6'", "output.dir=more", "train.steps=1", "train.learning_rate=1e-9"];
    let outcome = workspace.train(1, &start).succeeded();
    assert!(outcome.stderr.contains("has a bias, 0.625, which is left out"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("has a reward head: training continues from it"), "{}", outcome.stderr);
    assert_shifted(&rewards(&workspace, "more/step-1").0, &plain, 0.0);
    // Another head is another start: its file counts.
    let head = workspace.path("run/step-6/value_head.safetensors");
    let zero = Mapped::open(&head).unwrap().read("v_head.summary.weight").unwrap().zeros_like();
    fs::remove_file(&head).unwrap();
    write_model(&head, &[("v_head.summary.weight".into(), zero)]).unwrap();
    let refused = workspace.train(1, &[&start[..2], &["train.steps=2", "--resume"]].concat());
    assert!(refused.code == 2 && refused.stderr.contains("start"), "{}", refused.stderr);
}

#[test]
fn a_merged_export_writes_the_head_as_servers_read_it_and_keeps_its_bias_beside() {
    let workspace = Workspace::new();
    let lora = ["lora.rank=4", "lora.alpha=8", "lora.targets=['q_proj', 'up_proj']"];
    workspace.train(1, &lora).succeeded();
    let (plain, _) = rewards(&workspace, "run/step-6");
    move_head(&workspace, "run/step-6", "adapter_model.safetensors", "base_model.model.score.weight");
    let outcome = workspace.run(1, &["export", "--merge", "run/step-6", "merged"]).succeeded();
    assert!(
        outcome.stderr.contains("has a bias, 0.625") && outcome.stderr.contains("reward_bias"),
        "{}",
        outcome.stderr
    );
    let config: Value = serde_json::from_slice(&workspace.read("merged/config.json")).unwrap();
    assert_eq!(config["reward_bias"], json!(BIAS));
    let names = Mapped::open(&workspace.path("merged/model.safetensors")).unwrap().names();
    let heads: Vec<&String> = names.iter().filter(|name| name.contains("score") || name.contains("head")).collect();
    assert_eq!(heads, ["score.weight"]);
    for folder in ["run/step-6", "merged"] {
        assert_shifted(&rewards(&workspace, folder).0, &plain, BIAS);
    }
    // What is trained from it has none, in its config.json either.
    workspace.train(1, &["model.path=merged", "output.dir=more", "train.steps=1"]).succeeded();
    let config: Value = serde_json::from_slice(&workspace.read("more/step-1/config.json")).unwrap();
    assert!(config.get("reward_bias").is_none());
}

#[test]
fn a_merge_takes_the_base_under_other_names() {
    let workspace = Workspace::new();
    workspace.train(1, &["lora.rank=4", "lora.alpha=8", "lora.targets=['q_proj']"]).succeeded();
    workspace.run(1, &["export", "--merge", "run/step-6", "merged"]).succeeded();
    let path = workspace.path("model/model.safetensors");
    let file = Mapped::open(&path).unwrap();
    let renamed: Vec<(String, Tensor)> =
        file.names().into_iter().map(|name| (format!("module.{name}"), file.read(&name).unwrap())).collect();
    drop(file);
    fs::remove_file(&path).unwrap();
    write_model(&path, &renamed).unwrap();
    workspace.run(1, &["export", "--merge", "run/step-6", "again"]).succeeded();
    assert!(workspace.read("again/model.safetensors") == workspace.read("merged/model.safetensors"));
}
