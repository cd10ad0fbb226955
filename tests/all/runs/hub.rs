//! Promise: `hf://` paths in a run are the files in the hub's cache, on every rank; a missing file ends the job with one error.
//! No test uses the network: the cache is filled by hand, and the hub is never asked.

use crate::tiny::{Workspace, parse_lines};
use serde_json::json;
use std::fs;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A workspace whose model and first source lie in the hub's cache.
pub fn with_cache() -> Workspace {
    let workspace = Workspace::new();
    for (repository, file) in [("models--owner--tiny", "model"), ("datasets--owner--pairs", "plain.jsonl")] {
        let folder = workspace.path("hub").join(repository);
        for part in ["refs", "snapshots"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        let snapshot = folder.join("snapshots").join(COMMIT);
        match file {
            "model" => fs::rename(workspace.path("model"), snapshot).unwrap(),
            _ => {
                fs::create_dir_all(snapshot.join("data")).unwrap();
                fs::rename(workspace.path(file), snapshot.join("data/train-00000-of-00001.jsonl")).unwrap();
            }
        }
    }
    workspace
}

const FROM_HUB: [&str; 3] =
    ["model.path=hf://owner/tiny", "data.train.0.path=hf://owner/pairs/train", "data.train.0.domain=plain"];

#[test]
fn a_run_from_the_hubs_cache_is_the_run_from_the_files() {
    let (files, hub) = (Workspace::trained(2), with_cache());
    hub.train(2, &FROM_HUB).succeeded();
    assert_eq!(hub.losses("run"), files.losses("run"));
    // The run's own config names the commit.
    let config = fs::read_to_string(hub.path("run/step-6/trainer/config.toml")).unwrap();
    assert!(config.contains(&format!("snapshots/{COMMIT}")), "{config}");
}

#[test]
fn a_file_missing_from_the_cache_ends_the_job_with_one_error_that_names_the_key() {
    let workspace = with_cache();
    for (set, expected) in [
        ("model.path=hf://owner/other", "model.path: the model owner/other at main is not in the cache"),
        (
            "data.train.0.path=hf://owner/pairs/dev",
            "data.train.0.path: hf://owner/pairs@main: there is no file or split",
        ),
    ] {
        let outcome = workspace.train(2, &[&FROM_HUB[..], &[set]].concat());
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        assert_eq!(outcome.errors().len(), 1, "{}", outcome.stderr);
        assert!(outcome.errors()[0].contains(expected) && outcome.stderr.contains("hint: "), "{}", outcome.stderr);
    }
    assert!(!workspace.path("run").exists());
}

#[test]
fn init_looks_at_a_model_in_the_hubs_cache_and_what_it_writes_trains() {
    let workspace = with_cache();
    let named = ["--model", "hf://owner/tiny", "--train", "hf://owner/pairs/train", "other.jsonl"];
    workspace.run(1, &[&["init"], &named[..], &["--out", "new.toml"]].concat()).succeeded();
    let text = String::from_utf8(workspace.read("new.toml")).unwrap();
    assert!(text.contains("path = \"hf://owner/tiny\"") && text.contains("A Llama model of "), "{text}");
    assert!(text.contains("path = \"hf://owner/pairs/train\""), "{text}");
    let set = ["model.dtype=f32", "parallel.threads=1", "data.cache_dir=cache"];
    workspace.run(1, &[&["train", "new.toml"], &set[..]].concat()).succeeded();
    assert_eq!(workspace.losses("runs/new").len(), 1, "11 pairs are one step of 16");
    // What is not there cannot be looked at, which the config says.
    let other = ["init", "--model", "hf://owner/other", "--train", "other.jsonl", "--out", "other.toml"];
    workspace.run(1, &other).succeeded();
    let text = String::from_utf8(workspace.read("other.toml")).unwrap();
    assert!(text.replace("\n# ", " ").contains("It could not be looked at"), "{text}");
}

#[test]
fn variants_of_a_model_in_the_hubs_cache_are_trained_and_compared() {
    let workspace = with_cache();
    let compare =
        ["compare", "--train", "run.toml", "--objectives", "reward,policy", "--seeds", "1", "--out", "compared"];
    let set: Vec<&str> = FROM_HUB.iter().flat_map(|set| ["--set", set]).collect();
    let outcome = workspace.run(1, &[&compare[..], &set].concat()).succeeded();
    assert!(outcome.stdout.contains("| reward") && outcome.stdout.contains("| policy"), "{}", outcome.stdout);
}

/// Promise: benchmarks, the checkpoint that is held against, and training data may lie in the hub's cache: the same numbers.
#[test]
fn a_suite_a_second_checkpoint_and_training_data_come_from_the_hubs_cache() {
    let workspace = Workspace::trained(1);
    let suite = |number: usize| {
        let prompt = format!("What is {}?", "x".repeat(number));
        json!({"prompt": prompt, "chosen": "yes 1", "rejected": "the dog.", "subset": "hep-go"}).to_string() + "\n"
    };
    workspace.write("suite.jsonl", &(0..6).map(suite).collect::<String>());
    let cached = |repository: &str| {
        let folder = workspace.path("hub").join(repository);
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), COMMIT).unwrap();
        let snapshot = folder.join("snapshots").join(COMMIT);
        fs::create_dir_all(snapshot.join("data")).unwrap();
        snapshot
    };
    let copy = |from: &str, to: std::path::PathBuf| fs::copy(workspace.path(from), to).unwrap();
    copy("suite.jsonl", cached("datasets--owner--bench").join("data/test-00000-of-00001.jsonl"));
    copy("plain.jsonl", cached("datasets--owner--pairs").join("data/train-00000-of-00001.jsonl"));
    let model = cached("models--owner--reward");
    fs::remove_dir(model.join("data")).unwrap();
    for file in fs::read_dir(workspace.path("run/step-3")).unwrap().map(|file| file.unwrap().path()) {
        if file.is_file() {
            fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
        }
    }
    let eval = |ranks: usize, suite: &str, against: &str, train: &str| {
        let eval = ["eval", "--checkpoint", "run/step-6", "--json", "--suite", "rewardbench", suite];
        let more = ["--against", against, "--train-data", train];
        let lines = parse_lines(&workspace.run(ranks, &[&eval[..], &more].concat()).succeeded().stdout);
        lines.into_iter().filter(|line| line["scored_by"] == "reward").collect::<Vec<_>>()
    };
    let files = eval(1, "suite.jsonl", "run/step-3", "plain.jsonl");
    assert!(files.len() > 2 && files.iter().any(|line| line["difference"].is_f64()), "{files:?}");
    for ranks in [1, 2] {
        let hub = eval(ranks, "hf://owner/bench/test", "hf://owner/reward", "hf://owner/pairs/train");
        assert_eq!(hub.len(), files.len());
        for (hub, file) in hub.iter().zip(&files) {
            for key in ["suite", "subset", "score", "low", "ours", "theirs", "p"] {
                assert_eq!(hub[key], file[key], "{key}: {hub} {file}");
            }
            assert_eq!(hub["contamination"]["whole"], file["contamination"]["whole"], "{hub} {file}");
            // What was read is named with its commit.
            let named = if hub.get("suite").is_some() { hub["files"][0].clone() } else { hub["against"].clone() };
            assert!(named.as_str().unwrap().contains(COMMIT), "{hub}");
        }
    }
    let missing = ["eval", "--checkpoint", "run/step-6", "--suite", "rewardbench", "hf://owner/bench/dev"];
    let outcome = workspace.run(2, &missing);
    let says = "--suite rewardbench: hf://owner/bench@main: there is no file or split";
    assert!(
        outcome.code == 2 && outcome.errors().len() == 1 && outcome.errors()[0].contains(says),
        "{}",
        outcome.stderr
    );
}
