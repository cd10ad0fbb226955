//! The cache saves work and never changes a number.

use crate::tiny::Workspace;
use std::fs;
use std::path::PathBuf;

fn cached(workspace: &Workspace, kind: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(kind)).collect();
    files.sort();
    files
}

#[test]
fn prepare_fills_the_cache_that_training_then_uses_and_makes_no_run() {
    let fresh = Workspace::trained(1);
    for ranks in [1, 2] {
        let workspace = Workspace::new();
        let before = workspace.content();
        workspace.prepare(ranks, &[]).succeeded();
        assert!(workspace.content() == before, "more than the cache was written");
        assert_eq!((cached(&workspace, "pairs-").len(), cached(&workspace, "reference-").len()), (3, 3));
        let outcome = workspace.train(1, &[]).succeeded();
        for split in ["train", "dev", "test"] {
            let line = outcome.stderr.lines().find(|line| line.contains(&format!("reference log-probs of {split}:")));
            assert!(line.is_some_and(|line| line.contains("from the cache")), "{split}: {}", outcome.stderr);
        }
        assert!(!outcome.stderr.contains("computing"), "{}", outcome.stderr);
        if ranks == 1 {
            assert_eq!(workspace.losses("run"), fresh.losses("run"));
        }
    }
}

#[test]
fn a_damaged_cache_is_named_rebuilt_and_changes_no_loss() {
    let workspace = Workspace::trained(1);
    let losses = workspace.losses("run");
    for (number, path) in [cached(&workspace, "pairs-"), cached(&workspace, "reference-")].concat().iter().enumerate() {
        let mut damaged = fs::read(path).unwrap();
        let last = damaged.len() - 1;
        if number.is_multiple_of(2) {
            damaged[last] ^= 1
        } else {
            damaged.truncate(last)
        };
        fs::write(path, damaged).unwrap();
        let run = format!("run-{number}");
        let outcome = workspace.train(1, &[&format!("output.dir={run}")]).succeeded();
        let name = path.file_name().unwrap().to_string_lossy();
        let warned = outcome.stderr.lines().any(|line| line.contains("WARN") && line.contains(&*name));
        assert!(warned, "{name}: {}", outcome.stderr);
        assert_eq!(workspace.losses(&run), losses, "{name}");
    }
    let outcome = workspace.train(1, &["output.dir=last"]).succeeded();
    let warned = outcome.stderr.lines().any(|line| line.contains("WARN") && line.contains("cache"));
    assert!(!warned && !outcome.stderr.contains("computing"), "{}", outcome.stderr);
}

#[test]
fn another_model_or_precision_takes_no_cached_reference() {
    let workspace = Workspace::trained(1);
    let computing = |set: &[&str]| {
        let outcome = workspace.train(1, &[set, &["train.steps=1"]].concat()).succeeded();
        outcome.stderr.matches("with the starting model").count()
    };
    assert_eq!(computing(&["output.dir=same"]), 0);
    assert_eq!(computing(&["output.dir=bf16", "model.dtype=bf16"]), 3);
    assert_eq!(computing(&["output.dir=next", "model.path=run/step-6"]), 3);
}
