//! Warnings about runs that end well but are of no use, and a gradient that is not finite is traced to its origin.

use crate::tiny::Workspace;
use std::fs;

#[test]
fn probable_mistakes_are_warned_of() {
    let workspace = Workspace::new();
    let warnings = |set: &[&str], dir: &str| {
        let outcome =
            workspace.train(1, &[set, &[&format!("output.dir={dir}")[..], "train.steps=4"]].concat()).succeeded();
        // The workspace's data has its own.
        let lines = outcome.stderr.lines().filter(|line| line.contains("WARN") && !line.contains(" pairs have "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&[], "plain"), Vec::<String>::new());
    fs::create_dir(workspace.path("models")).unwrap();
    workspace.write("models/config.json", "{}");
    for (set, dir, told) in [
        (&["train.pairs_per_step=40"][..], "many", "train.pairs_per_step = 40 is more than the 11 training pairs"),
        (
            &["train.learning_rate=1e-11", "train.head_learning_rate=1e-3"],
            "slow",
            "train.learning_rate = 1e-11 is far below",
        ),
        (&["train.head_learning_rate=5.0", "loss.objective=reward"], "fast", "the reward loss has risen from"),
        // A head of zeros that never moves.
        (&["train.learning_rate=1e-60"], "ties", "the same reward: it has learnt nothing"),
        (&[], "models", "models holds a model (config.json)"),
    ] {
        let found = warnings(set, dir);
        assert!(found.iter().any(|line| line.contains(told)), "{told}: {found:#?}");
    }
}

#[test]
fn the_first_gradient_that_is_not_finite_is_named_with_rank_and_place() {
    for ranks in [1, 2] {
        let workspace = Workspace::new();
        let outcome = workspace.train(ranks, &["train.learning_rate=1e30", "train.warmup_steps=0", "train.steps=4"]);
        let told = outcome.stderr.lines().find(|line| line.contains("the first gradients that are not finite"));
        let told = told.unwrap_or_else(|| panic!("{}", outcome.stderr));
        assert!(told.contains("rank 0 in "), "{told}");
        assert_eq!(outcome.stderr.matches("the first gradients that are not finite").count(), 1, "{}", outcome.stderr);
    }
}
