//! Files that have changed since this program wrote them are refused by every reader, unless `--allow-changed` is given.

use crate::tiny::{Workspace, with_config};
use serde_json::Value;
use std::fs;

/// Changes a file by `how` and returns its content from before.
fn damage(workspace: &Workspace, file: &str, how: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let whole = workspace.read(file);
    let mut content = whole.clone();
    how(&mut content);
    fs::write(workspace.path(file), content).unwrap();
    whole
}

/// A bit of the last number: of weights the value of one, of JSON white space.
fn flip(content: &mut Vec<u8>) {
    let end = content.split_off(content.len() - 2);
    content.extend([end[0] ^ 1, end[1]]);
}

fn cut(content: &mut Vec<u8>) {
    content.truncate(content.len() - 1);
}

/// Everything that reads a checkpoint, or goes on from it as a model.
fn readers() -> Vec<Vec<&'static str>> {
    let score = |command| vec![command, "--checkpoint", "run/step-6", "--data", "test.jsonl"];
    let from = ["model.path=run/step-6", "output.dir=second", "train.steps=1", "loss.objective=reward"];
    let prepare = ["model.path=run/step-6", "loss.policy=dpo"];
    vec![
        score("eval"),
        score("score"),
        vec!["export", "run/step-6", "exported"],
        with_config(&[], &from),
        with_config(&[], &[&from[..], &["--debug"]].concat()),
        with_config(&["prepare"], &prepare),
    ]
}

#[test]
fn whoever_reads_a_checkpoint_refuses_changed_files_by_name() {
    let workspace = Workspace::trained(1);
    for (file, how, told) in [
        ("model.safetensors", flip as fn(&mut Vec<u8>), "has changed since it was written"),
        ("model.safetensors", cut, "bytes, but"),
        ("tokenizer.json", flip, "has changed since it was written"),
        ("trainer/moments.safetensors", cut, "bytes, but"),
    ] {
        let file = format!("run/step-6/{file}");
        let whole = damage(&workspace, &file, how);
        for reader in readers() {
            let outcome = workspace.run(1, &reader);
            assert_eq!((outcome.code, outcome.errors().len()), (2, 1), "{reader:?}: {}", outcome.stderr);
            let said = outcome.errors()[0];
            assert!(said.contains(&file) && said.contains(told), "{reader:?}: {said}");
            assert!(
                outcome.stderr.contains("hint: ") && outcome.stderr.contains("--allow-changed"),
                "{}",
                outcome.stderr
            );
            assert!(!workspace.path("exported").exists() && outcome.stdout.is_empty() || reader.contains(&"--debug"));
            let left = fs::read_dir(workspace.path("")).unwrap().map(|entry| entry.unwrap().file_name());
            assert!(
                left.into_iter().all(|name| !name.to_string_lossy().starts_with(".unfinished")),
                "something is left"
            );
        }
        fs::write(workspace.path(&file), whole).unwrap();
    }
    // The control: without damage they all do their work.
    for reader in readers() {
        workspace.run(1, &reader).succeeded();
    }
}

#[test]
fn a_change_that_is_meant_is_allowed_with_a_warning() {
    let workspace = Workspace::trained(2);
    damage(&workspace, "run/step-6/model.safetensors", flip);
    for (ranks, reader) in [(1, 0), (2, 1), (1, 2), (2, 3)] {
        let reader = [&readers()[reader][..], &["--allow-changed"]].concat();
        let outcome = workspace.run(ranks, &reader).succeeded();
        let warned = outcome.stderr.matches("model.safetensors has changed since it was written").count();
        assert_eq!(warned, 1, "{reader:?}: {}", outcome.stderr);
    }
    // What --resume alone needs may be missing; a list that is gone is no reason to trust the rest.
    let workspace = Workspace::trained(1);
    fs::remove_file(workspace.path("run/step-6/trainer/moments.safetensors")).unwrap();
    workspace.run(1, &readers()[0]).succeeded();
    fs::remove_file(workspace.path("run/step-6/trainer/files.json")).unwrap();
    let outcome = workspace.run(1, &readers()[0]);
    assert!(outcome.code == 2 && outcome.stderr.contains("trainer/files.json"), "{}", outcome.stderr);
    // Without trainer/ it is a folder like any other.
    fs::remove_dir_all(workspace.path("run/step-6/trainer")).unwrap();
    workspace.run(1, &readers()[0]).succeeded();
}

#[test]
fn leftovers_of_killed_processes_are_cleared_by_the_next_writer() {
    let workspace = Workspace::new();
    fs::create_dir_all(workspace.path("run")).unwrap();
    fs::create_dir_all(workspace.path("cache")).unwrap();
    for left in ["run/.unfinished-abcdef", "cache/.unfinished-ABC123", ".unfinished-export"] {
        workspace.write(left, "half of it");
    }
    fs::create_dir(workspace.path(".unfinished-folder")).unwrap();
    workspace.write(".unfinished-folder/config.json", "{");
    workspace.train(1, &[]).succeeded();
    workspace.run(1, &["export", "run/step-6", "exported"]).succeeded();
    let left: Vec<_> =
        workspace.content().into_keys().filter(|path| path.to_string_lossy().contains("unfinished")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!workspace.path("cache/.unfinished-ABC123").exists());
}

#[test]
fn resuming_notices_metrics_that_are_missing_changed_or_gone() {
    let workspace = Workspace::trained(1);
    let (text, whole) = (String::from_utf8(workspace.read("run/metrics.jsonl")).unwrap(), workspace.steps("run"));
    let lines: Vec<&str> = text.lines().collect();
    let without = |text: &str| {
        lines.iter().filter(|line| !line.contains(text)).fold(String::new(), |all, line| all + line + "\n")
    };
    for (content, told) in [
        (without("{\"step\":2,"), "the line of step 2 is missing"),
        (text.replacen("\"lr\":", "\"lr\":1", 1), "it was changed or replaced"),
        (String::new(), "it is gone, or empty"),
    ] {
        workspace.write("run/metrics.jsonl", &content);
        fs::remove_dir_all(workspace.path("run/step-6")).unwrap();
        let outcome = workspace.train(1, &["--resume"]).succeeded();
        let warned = outcome.stderr.lines().find(|line| line.contains("WARN") && line.contains("metrics.jsonl"));
        assert!(warned.is_some_and(|line| line.contains(told)), "{told}: {}", outcome.stderr);
        workspace.write("run/metrics.jsonl", &text);
        assert_eq!(workspace.steps("run").len(), whole.len());
    }
    // The control: what is whole is resumed without a word about it.
    fs::remove_dir_all(workspace.path("run/step-6")).unwrap();
    let outcome = workspace.train(1, &["--resume"]).succeeded();
    assert!(!outcome.stderr.contains("does not hold"), "{}", outcome.stderr);
}

#[test]
fn the_models_files_are_taken_as_they_are_at_the_start() {
    let workspace = Workspace::new();
    let arguments = with_config(&[], &["train.steps=100000", "train.schedule=constant", "checkpoint.every=10"]);
    let job = workspace.start(1, "start", &arguments);
    crate::runs::stopping::until(&workspace, "run/step-10");
    let read = |step: usize, name: &str| -> Value {
        let mut content: Value = serde_json::from_slice(&workspace.read(&format!("run/step-{step}/{name}"))).unwrap();
        // Of the dev rewards, which training changes.
        ["mean", "std"].iter().for_each(|key| drop(content.as_object_mut().unwrap().remove(*key)));
        content
    };
    let both = |step| ["config.json", "tokenizer.json"].map(|name| read(step, name));
    let before = both(10);
    workspace.write("model/config.json", "{}");
    fs::remove_file(workspace.path("model/tokenizer.json")).unwrap();
    let next = crate::runs::resuming::newest_step(&workspace) + 20;
    crate::runs::stopping::until(&workspace, &format!("run/step-{next}"));
    crate::runs::stopping::stop(&workspace, job, "-TERM", "start");
    assert!(both(crate::runs::resuming::newest_step(&workspace)) == before);
    assert!(before.iter().all(|content| content.as_object().unwrap().len() > 2));
}
