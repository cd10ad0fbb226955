//! Promise: `hf://` paths in a run are the files in the hub's cache, on every rank; what is not there ends the job with
//! one error. No test asks the network: the cache is filled by hand, and the hub is not to be asked.

use crate::tiny::Workspace;
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
fn what_is_not_in_the_cache_ends_the_job_with_one_error_that_names_the_key() {
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
