//! Whole runs with adapters: resumed, evaluated, started from, exported and merged.

use crate::runs::hub;
use crate::tiny::{Workspace, parse_lines};
use haf_dist::safetensors_io::Mapped;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::Tensor;

const LORA: [&str; 3] = ["lora.rank=4", "lora.alpha=8", "lora.targets=['gate_proj', 'up_proj', 'down_proj']"];

fn with_lora<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&LORA[..], more].concat()
}

fn trained(ranks: usize) -> Workspace {
    let workspace = Workspace::new();
    workspace.train(ranks, &LORA).succeeded();
    workspace
}

fn names(workspace: &Workspace, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(workspace.path(folder)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Rewards and log-probs of a file's answers.
fn scores(workspace: &Workspace, checkpoint: &str, more: &[&str]) -> Vec<Value> {
    let command = ["score", "--checkpoint", checkpoint, "--data", "test.jsonl", "--dtype", "f32"];
    parse_lines(&workspace.run(1, &[&command[..], more].concat()).succeeded().stdout)
}

#[track_caller]
fn assert_close(left: &[Value], right: &[Value], keys: &[&str], bound: f64) {
    assert!(!left.is_empty() && left.len() == right.len());
    for (left, right) in left.iter().zip(right) {
        for key in keys {
            let [left, right] = [left, right].map(|row| row[*key].as_f64().unwrap_or_else(|| panic!("{key} in {row}")));
            assert!((left - right).abs() <= bound * right.abs().max(1.0), "{key}: {left} is not {right}");
        }
    }
}

const POLICY: [&str; 4] = ["reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected"];

#[test]
fn a_checkpoint_is_pefts_folder_without_the_base_and_resumes_bit_for_bit() {
    for ranks in [1, 2] {
        let (whole, resumed) = (trained(ranks), trained(ranks));
        let mut expected = vec!["adapter_config.json", "adapter_model.safetensors", "haf_dist.json", "self-test.json"];
        expected.extend(["tokenizer.json", "tokenizer_config.json", "trainer"]);
        assert_eq!(names(&whole, "run/step-6"), expected);
        let config: Value = serde_json::from_slice(&whole.read("run/step-6/adapter_config.json")).unwrap();
        for (key, value) in [
            ("peft_type", json!("LORA")),
            ("task_type", json!("SEQ_CLS")),
            ("r", json!(4)),
            ("lora_alpha", json!(8)),
            ("target_modules", json!(["gate_proj", "up_proj", "down_proj"])),
            ("modules_to_save", json!(["score"])),
            ("base_model_name_or_path", json!(whole.path("model").to_str().unwrap())),
        ] {
            assert_eq!(config[key], value, "{key}");
        }
        let file = Mapped::open(&whole.path("run/step-6/adapter_model.safetensors")).unwrap();
        assert_eq!(file.names().len(), 3 * 3 * 2 + 1, "of three blocks, and the head");
        let up = file.read("base_model.model.model.layers.2.mlp.up_proj.lora_B.weight").unwrap();
        let head = file.read("base_model.model.score.weight").unwrap();
        assert!([up, head].iter().all(|trained| trained.abs().max().double_value(&[]) > 0.0), "both were trained");

        fs::remove_dir_all(resumed.path("run/step-6")).unwrap();
        let outcome = resumed.train(ranks, &with_lora(&["--resume"])).succeeded();
        assert!(outcome.stderr.contains("resuming after step 3"), "{}", outcome.stderr);
        for file in [
            "adapter_model.safetensors",
            "trainer/masters.safetensors",
            "trainer/moments.safetensors",
            "trainer/state.json",
        ] {
            let name = format!("run/step-6/{file}");
            assert!(resumed.read(&name) == whole.read(&name), "{ranks} ranks: {file} differs");
        }
        assert_eq!(resumed.losses("run"), whole.losses("run"));
        for other in [&["lora.alpha=9"][..], &["lora.rank=5"], &["lora.use_rslora=true"]] {
            let refused = resumed.train(ranks, &with_lora(&[other, &["--resume"]].concat()));
            assert!(refused.code == 2 && refused.stderr.contains("other adapters: lora."), "{}", refused.stderr);
        }
    }
}

#[test]
fn the_reference_is_the_base_with_one_cache_for_both_ways_of_training() {
    let workspace = Workspace::trained(1);
    let full = workspace.losses("run");
    let outcome = workspace.train(1, &with_lora(&["output.dir=lora"])).succeeded();
    assert!(outcome.stderr.contains("pairs from the cache"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("computing"), "{}", outcome.stderr);
    // Both losses start at ln 2; then the adapters go a way of their own.
    let lora = workspace.losses("lora");
    assert!((lora[0] - 1.2 * 2f64.ln()).abs() < 1e-5 && (full[0] - lora[0]).abs() < 1e-5, "{lora:?}");
    assert!(lora[5] != full[5]);
}

#[test]
fn a_run_can_start_from_an_adapter_and_still_compares_with_the_base() {
    let workspace = trained(1);
    let start = ["model.path='run/step-6'", "output.dir=more", "train.steps=2", "train.learning_rate=1e-9"];
    let outcome = workspace.train(1, &with_lora(&start)).succeeded();
    assert!(outcome.stderr.contains("has a reward head: training continues from it"), "{}", outcome.stderr);
    // The policy is not its own reference any more: neither loss is ln 2.
    let first = &workspace.steps("more")[0];
    let policy = first["policy_loss"].as_f64().unwrap();
    assert!((policy - 2f64.ln()).abs() > 1e-4, "{policy}");
    let keys = [&POLICY[..], &["implicit_chosen", "implicit_rejected"]].concat();
    assert_close(&scores(&workspace, "more/step-2", &[]), &scores(&workspace, "run/step-6", &[]), &keys, 1e-5);

    for (set, told) in [
        (&["model.path='run/step-6'", "output.dir=none"][..], "there is no [lora]"),
        (&with_lora(&["model.path='run/step-6'", "output.dir=none", "lora.rank=8"]), "differs from the settings"),
        (&with_lora(&["lora.targets=['fc1']", "output.dir=none"]), "no projection \"fc1\""),
    ] {
        let refused = workspace.train(1, set);
        assert_eq!((refused.code, refused.errors().len()), (2, 1), "{}", refused.stderr);
        assert!(refused.stderr.contains(told) && refused.stderr.contains("hint:"), "{}", refused.stderr);
        assert!(!workspace.path("none").exists());
    }
}

#[test]
fn a_merged_export_keeps_the_head_and_scores_as_the_adapter_does() {
    let workspace = trained(1);
    workspace.run(1, &["export", "--merge", "run/step-6", "merged"]).succeeded();
    let model = ["config.json", "haf_dist.json", "model.safetensors", "self-test.json"];
    assert_eq!(names(&workspace, "merged"), [&model[..], &["tokenizer.json", "tokenizer_config.json"]].concat());
    assert_close(&scores(&workspace, "merged", &[]), &scores(&workspace, "run/step-6", &[]), &POLICY, 1e-5);

    let read = |folder: &str, file: &str, name: &str| -> Tensor {
        Mapped::open(&workspace.path(folder).join(file)).unwrap().read(name).unwrap()
    };
    let head = read("run/step-6", "adapter_model.safetensors", "base_model.model.score.weight");
    assert!(read("merged", "model.safetensors", "score.weight").equal(&head), "the head, bit for bit");
    assert!(head.abs().max().double_value(&[]) > 0.0);
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert!(read("merged", "model.safetensors", name).equal(&read("model", "model.safetensors", name)), "no target");
    let name = "model.layers.0.mlp.up_proj.weight";
    assert!(!read("merged", "model.safetensors", name).equal(&read("model", "model.safetensors", name)));
    let config: Value = serde_json::from_slice(&workspace.read("merged/config.json")).unwrap();
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    // The token that a full run pads with: see export.rs.
    assert_eq!(config["pad_token_id"], json!(7));
    let metrics = |checkpoint: &str| {
        let command = ["eval", "--checkpoint", checkpoint, "--data", "test.jsonl", "--json"];
        parse_lines(&workspace.run(1, &command).succeeded().stdout)[0]["accuracy"].clone()
    };
    assert_eq!(metrics("merged"), metrics("run/step-6"));
}

#[test]
fn export_copies_what_others_read_and_overwrites_nothing() {
    let workspace = Workspace::trained(1);
    workspace.run(1, &["export", "run/step-6", "out"]).succeeded();
    let mut expected = names(&workspace, "run/step-6");
    expected.retain(|name| name != "trainer");
    assert_eq!(names(&workspace, "out"), expected);
    assert!(workspace.read("out/model.safetensors") == workspace.read("run/step-6/model.safetensors"));
    let before = workspace.content();
    for (arguments, told) in [
        (&["export", "run/step-6", "out"][..], "out exists already"),
        (&["export", "--merge", "run/step-6", "new"], "nothing to merge"),
        (&["export", "data", "new"], "there is no folder data"),
        (&["export", "run/step-6/trainer", "new"], "not a checkpoint"),
    ] {
        let refused = workspace.run(1, arguments);
        assert_eq!((refused.code, refused.errors().len()), (2, 1), "{}", refused.stderr);
        assert!(refused.stderr.contains(told) && refused.stderr.contains("hint:"), "{}", refused.stderr);
    }
    assert!(workspace.content() == before, "a refused export wrote something");
}

#[test]
fn a_base_that_moved_is_asked_for_and_can_be_named() {
    let workspace = trained(1);
    let before = scores(&workspace, "run/step-6", &[]);
    fs::rename(workspace.path("model"), workspace.path("elsewhere")).unwrap();
    let command = ["score", "--checkpoint", "run/step-6", "--data", "test.jsonl"];
    let refused = workspace.run(1, &command);
    assert!(refused.code == 2 && refused.stderr.contains("--base FOLDER"), "{}", refused.stderr);
    let keys = &POLICY[..2];
    assert_close(&scores(&workspace, "run/step-6", &["--base", "elsewhere"]), &before, keys, 0.0);
    let refused = workspace.run(1, &["export", "--merge", "run/step-6", "merged"]);
    assert!(refused.code == 2 && !Path::new(&workspace.path("merged")).exists(), "{}", refused.stderr);
    assert!(!workspace.path("merged.partial").exists(), "nothing is left");
    workspace.run(1, &["export", "--merge", "--base", "elsewhere", "run/step-6", "merged"]).succeeded();
    assert_close(&scores(&workspace, "merged", &[]), &before, keys, 1e-5);
}

#[test]
fn a_base_on_the_hub_keeps_its_name_and_is_found_again_by_it() {
    let workspace = hub::with_cache();
    let from_hub = ["model.path=hf://owner/tiny", "data.train.0.path=hf://owner/pairs/train"];
    workspace.train(1, &with_lora(&from_hub)).succeeded();
    let config: Value = serde_json::from_slice(&workspace.read("run/step-6/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], json!("owner/tiny"));
    assert_eq!(config["revision"], json!(hub::COMMIT));
    let named = scores(&workspace, "run/step-6", &["--base", "hf://owner/tiny"]);
    assert_close(&scores(&workspace, "run/step-6", &[]), &named, &POLICY, 0.0);
    workspace.run(1, &["export", "--merge", "run/step-6", "merged"]).succeeded();
    assert_close(&scores(&workspace, "merged", &[]), &named, &POLICY, 1e-5);
}

#[test]
fn debug_checks_adapters_with_gradients_that_are_not_zero() {
    let workspace = Workspace::new();
    for set in [&[][..], &["loss.objective=reward"]] {
        let arguments = crate::tiny::with_config(&["--debug"], &with_lora(set));
        let outcome = workspace.run(1, &arguments).succeeded();
        let marks = |mark: &str| outcome.stdout.matches(&format!("| {mark}")).count();
        assert_eq!((marks("PASS"), marks("FAIL")), (5, 0), "{}", outcome.stdout);
        assert!(outcome.stdout.contains("adapters"), "{}", outcome.stdout);
    }
}
