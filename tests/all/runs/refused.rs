//! What every refusal must be: one error with the words that help, a hint, exit code 2, within seconds, and nothing changed.

use crate::tiny::Workspace;
use std::time::Duration;

/// A refusal is no computation: most take a second, this leaves room for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A command that must be refused.
pub struct Case<'a> {
    /// How it is called in failures.
    pub name: &'a str,
    pub arguments: Vec<&'a str>,
    /// What the error must say.
    pub says: &'a [&'a str],
}

/// Runs the case on each number of ranks; the messages on stderr come back.
#[track_caller]
pub fn check(workspace: &Workspace, ranks: &[usize], case: &Case) {
    for &ranks in ranks {
        let before = workspace.content();
        let outcome = workspace.run(ranks, &case.arguments);
        let place = format!("{} on {ranks} ranks: {}{}", case.name, outcome.stdout, outcome.stderr);
        assert_eq!(outcome.code, 2, "{place}");
        assert_eq!(outcome.errors().len(), 1, "{place}");
        for text in case.says {
            assert!(outcome.stderr.contains(text), "no {text:?} in {place}");
        }
        assert_eq!(outcome.stderr.matches("hint:").count(), 1, "{place}");
        assert!(outcome.took < LIMIT, "{:?} for {place}", outcome.took);
        let (names, after) = (before.keys().collect::<Vec<_>>(), workspace.content());
        assert_eq!(after.keys().collect::<Vec<_>>(), names, "{place}");
        assert!(after == before, "a file has changed: {place}");
    }
}
