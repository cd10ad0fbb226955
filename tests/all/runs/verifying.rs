//! A saved model gives, wherever its folder is copied, the rewards that it was saved with; differences are named.

use crate::runs::refused::{Case, check};
use crate::tiny::{Outcome, Workspace, parse_lines};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The workspace's template with another token behind each turn's EOS, as ChatML has a line break there.
const TEMPLATE: &str = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '</s><|spare|>' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE});
    workspace.write("model/tokenizer_config.json", &config.to_string());
    workspace
}

fn verify(workspace: &Workspace, folder: &str) -> Outcome {
    workspace.run(1, &["verify", folder])
}

fn json(workspace: &Workspace, file: &str) -> Value {
    serde_json::from_slice(&workspace.read(file)).unwrap()
}

#[test]
fn a_checkpoint_and_its_export_are_as_they_were_saved() {
    let workspace = workspace();
    for (ranks, run, set) in
        [(1, "run", "data.reward_at=eos"), (2, "two", "data.reward_at=both"), (1, "end", "data.reward_at=end")]
    {
        let dir = format!("output.dir={run}");
        workspace.train(ranks, &[&dir, set]).succeeded();
        let (step, exported) = (format!("{run}/step-6"), format!("exported-{run}"));
        workspace.run(1, &["export", &step, &exported]).succeeded();
        assert_eq!(
            workspace.read(&format!("{exported}/self-test.json")),
            workspace.read(&format!("{step}/self-test.json"))
        );
        for folder in [step, exported] {
            let table = verify(&workspace, &folder).succeeded().stdout;
            let rows = table.lines().filter(|line| line.ends_with("OK |")).count();
            let left_out = table.lines().filter(|line| line.starts_with("left out: ")).count();
            assert!(rows >= 4 && rows + left_out == 10 && !table.contains("NOT"), "{table}");
            let lines = parse_lines(&workspace.run(1, &["verify", &folder, "--json"]).succeeded().stdout);
            let as_saved = |line: &&Value| line["same_tokens"] == true && line["differs"].is_null();
            assert_eq!((lines.len(), lines.iter().filter(as_saved).count()), (rows, rows));
        }
    }
    let saved = json(&workspace, "run/step-6/self-test.json");
    let first = &saved["conversations"][0];
    assert_eq!(first["text"], "<|user|>Name a fruit.</s><|spare|><|assistant|>A pear.</s>");
    assert_eq!(first["tokens"].as_array().unwrap().last(), Some(&json!(2)));
    assert!(first["reward"].as_f64().unwrap().abs() > 1e-3, "the head is trained: {first}");
    assert_eq!(json(&workspace, "run/step-6/haf_dist.json")["chat_template"], "ends_at_eos");
    assert_eq!(json(&workspace, "end/step-6/haf_dist.json")["chat_template"], "unchanged");
    let text = json(&workspace, "end/step-6/self-test.json")["conversations"][0]["text"].clone();
    assert!(text.as_str().unwrap().ends_with("</s><|spare|>"));
}

#[test]
fn differences_are_named_with_exit_code_1() {
    let workspace = workspace();
    workspace.train(1, &["train.steps=2"]).succeeded();
    let changed = |name: &str, change: &dyn Fn(&str)| {
        workspace.run(1, &["export", "run/step-2", name]).succeeded();
        change(name);
        let outcome = verify(&workspace, name);
        assert_eq!(outcome.code, 1, "{name}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.contains(&format!("NOT: {name}")), "{}", outcome.stdout);
        assert!(
            outcome.stderr.contains(&format!("{name} of ")) && outcome.stderr.contains("hint:"),
            "{}",
            outcome.stderr
        );
    };
    let edit = |file: String, edit: &dyn Fn(&mut Value)| {
        let mut content = json(&workspace, &file);
        edit(&mut content);
        workspace.write(&file, &content.to_string());
    };
    // The original template put back: it goes on behind the EOS.
    changed("rendering", &|name| workspace.write(&format!("{name}/chat_template.jinja"), TEMPLATE));
    changed("tokens", &|name| edit(format!("{name}/haf_dist.json"), &|file| file["template"] = json!("hh")));
    changed("position", &|name| edit(format!("{name}/config.json"), &|file| file["pad_token_id"] = json!(2)));
    changed("activation", &|name| {
        edit(format!("{name}/config.json"), &|file| drop(file.as_object_mut().unwrap().remove("problem_type")));
    });
    changed("reward", &|name| {
        edit(format!("{name}/self-test.json"), &|file| file["conversations"][0]["reward"] = json!(9.5));
    });
}

#[test]
fn an_adapter_and_what_is_merged_from_it_are_as_they_were_saved() {
    let workspace = workspace();
    let lora = ["lora.rank=4", "lora.alpha=8", "lora.targets=['gate_proj', 'up_proj', 'down_proj']"];
    workspace.train(1, &lora).succeeded();
    verify(&workspace, "run/step-6").succeeded();
    workspace.run(1, &["export", "--merge", "run/step-6", "merged"]).succeeded();
    verify(&workspace, "merged").succeeded();
    assert_eq!(workspace.read("merged/chat_template.jinja"), workspace.read("run/step-6/chat_template.jinja"));
    assert_eq!(workspace.read("merged/additional_chat_templates/original.jinja"), TEMPLATE.as_bytes());
    let (config, saved) = (json(&workspace, "merged/config.json"), json(&workspace, "run/step-6/self-test.json"));
    assert_eq!((&config["problem_type"], &config["id2label"]), (&json!("regression"), &json!({"0": "reward"})));
    for key in ["mean", "std"] {
        let [config, saved] = [&config[key], &saved["dev_rewards"][key]].map(|value| value.as_f64().unwrap() as f32);
        assert_eq!(config, saved, "{key}");
    }
}

#[test]
fn the_config_has_mean_and_deviation_of_the_rewards_on_dev_and_only_of_these() {
    let workspace = Workspace::new();
    // What another program left there, and training makes untrue.
    let mut source = json(&workspace, "model/config.json");
    (source["mean"], source["std"]) = (json!(3.5), json!(2.5));
    workspace.write("model/config.json", &source.to_string());
    workspace.train(1, &["train.steps=2", "eval.every=2"]).succeeded();
    let scores = workspace.run(1, &["score", "--checkpoint", "run/step-2", "--data", "dev.jsonl"]).succeeded().stdout;
    let scores = parse_lines(&scores);
    let rewards: Vec<f64> = (scores.iter())
        .flat_map(|line| ["reward_chosen", "reward_rejected"].map(|key| line[key].as_f64().unwrap()))
        .collect();
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let std = (squares / (rewards.len() - 1) as f64).sqrt();
    let config = json(&workspace, "run/step-2/config.json");
    for (key, expected) in [("mean", mean), ("std", std)] {
        let written = config[key].as_f64().unwrap();
        assert!((written - expected).abs() < 1e-5, "{key}: {written}, expected {expected}");
    }
    workspace.train(1, &["train.steps=2", "data.dev=[]", "output.dir=without"]).succeeded();
    let config = json(&workspace, "without/step-2/config.json");
    assert!(config.get("mean").is_none() && config.get("std").is_none());
}

#[test]
fn saving_and_its_self_test_change_no_bit_of_training() {
    let workspace = workspace();
    for (every, run) in [("checkpoint.every=1", "often"), ("checkpoint.every=6", "once")] {
        workspace.train(2, &[every, "checkpoint.keep=1", &format!("output.dir={run}")]).succeeded();
    }
    for file in ["trainer/masters.safetensors", "trainer/moments.safetensors", "self-test.json"] {
        let of = |run: &str| workspace.read(&format!("{run}/step-6/{file}"));
        assert!(of("often") == of("once"), "{file}");
    }
}

#[test]
fn the_script_is_written_once_and_a_folder_without_a_self_test_is_refused() {
    let workspace = workspace();
    workspace.train(1, &["train.steps=1"]).succeeded();
    let written = workspace.run(1, &["verify", "run/step-1", "--python", "verify.py"]).succeeded();
    assert_eq!(written.stdout.trim(), "python verify.py run/step-1");
    assert!(workspace.read("verify.py").starts_with(b"#!/usr/bin/env python3\n"));
    let again = vec!["verify", "run/step-1", "--python", "verify.py"];
    check(&workspace, &[1, 2], &Case { name: "again", arguments: again, says: &["verify.py exists already"] });
    fs::remove_file(workspace.path("run/step-1/self-test.json")).unwrap();
    let says = ["run/step-1 has no self-test.json"];
    check(&workspace, &[1, 2], &Case { name: "gone", arguments: vec!["verify", "run/step-1"], says: &says });
}

#[test]
fn a_self_test_that_no_run_writes_is_refused_and_so_are_two_that_differ() {
    let workspace = workspace();
    workspace.train(1, &["train.steps=1"]).succeeded();
    let other = Workspace::new();
    workspace.run(1, &["export", "run/step-1", "exported"]).succeeded();
    for folder in ["run/step-1", "exported"] {
        let file = format!("{folder}/self-test.json");
        let whole = json(&workspace, &file);
        for (tokens, says) in [
            (json!([4_000_000_000_u32, 2]), "has the token 4000000000, but the model has 97 tokens"),
            (json!(vec![3; 200_000]), "has 200000 tokens, expected at most 28"),
        ] {
            let mut content = whole.clone();
            content["conversations"][0]["tokens"] = tokens;
            workspace.write(&file, &content.to_string());
            let says = [&file[..], says];
            check(&workspace, &[1, 2], &Case { name: folder, arguments: vec!["verify", folder], says: &says });
        }
        workspace.write(&file, &whole.to_string());
    }
    // The second rank's has another reward.
    copy_folder(&workspace.path("exported"), &other.path("exported"));
    let mut content = json(&other, "exported/self-test.json");
    content["conversations"][0]["reward"] = json!(9.5);
    other.write("exported/self-test.json", &content.to_string());
    let verify = ["verify", "exported"];
    let outcome = workspace.finish(workspace.unlike(&verify, &other, &verify));
    assert_eq!((outcome.code, outcome.errors().len()), (2, 1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("ranks differ: the hash of self-test.json is"), "{}", outcome.stderr);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}
