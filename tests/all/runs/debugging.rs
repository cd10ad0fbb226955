//! `--debug` shows what the model sees, checks the engine, and writes nothing.

use crate::tiny::{Workspace, with_config};

#[test]
fn debug_passes_every_check_marks_the_reward_token_and_writes_nothing() {
    let workspace = Workspace::new();
    let before = workspace.content();
    for set in [&[][..], &["loss.objective=reward"], &["loss.policy=simpo"], &["train.activation_checkpointing=true"]] {
        let outcome = workspace.run(1, &with_config(&["--debug"], set)).succeeded();
        let marks = |mark: &str| outcome.stdout.matches(&format!("| {mark}")).count();
        assert_eq!((marks("PASS"), marks("FAIL")), (5, 0), "{}", outcome.stdout);
        assert_eq!(outcome.stdout.matches(">></s><<").count(), 6, "{}", outcome.stdout);
        assert!(outcome.stdout.contains("<|user|>What is ?</s><|assistant|>"), "{}", outcome.stdout);
        assert_eq!(outcome.stdout.matches("step ").count(), 3, "{}", outcome.stdout);
    }
    assert!(workspace.content() == before, "a file was written");
    assert!(!workspace.path("cache").exists() && !workspace.path("run").exists());
}

#[test]
fn debug_refuses_what_a_run_refuses() {
    let workspace = Workspace::new();
    workspace.write("plain.jsonl", "{");
    let outcome = workspace.run(1, &with_config(&["--debug"], &[]));
    assert_eq!((outcome.code, outcome.errors().len()), (2, 1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("plain.jsonl:1"), "{}", outcome.stderr);
}
