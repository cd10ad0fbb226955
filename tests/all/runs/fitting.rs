//! Promise: no table that the program prints is wider than allowed. Not here: how a row is laid out (`terminal/fitted.rs`).

use crate::tiny::{Outcome, Workspace, with_config};

const COLUMNS: usize = 80;

/// The longest line of a table that was printed, to either stream.
fn widest(outcome: &Outcome) -> usize {
    let lines = outcome.stdout.lines().chain(outcome.stderr.lines());
    lines.filter(|line| line.starts_with('|')).map(|line| line.chars().count()).max().expect("a table was printed")
}

#[test]
fn no_table_is_wider_than_it_may_be() {
    let workspace = Workspace::new();
    let eval = ["eval", "--checkpoint", "run", "--data", "test.jsonl", "--data", "dev.jsonl"];
    let verify = ["verify", "run"];
    let plan = ["plan", "--shape", "8b", "--gpus", "8"];
    for arguments in [&with_config(&[], &[])[..], &eval, &verify, &plan] {
        let mut command = workspace.command(1, arguments);
        command.env("HAF_COLUMNS", COLUMNS.to_string());
        let outcome = workspace.finish(command);
        assert!(widest(&outcome) <= COLUMNS, "{arguments:?}\n{}{}", outcome.stdout, outcome.stderr);
    }
    // Control: in files and pipes lines are whole, and longer than that.
    assert!(widest(&workspace.run(1, &eval).succeeded()) > COLUMNS);
}
