//! The lines that `doctor` and `check` print: one for each thing, with its state.
//!
//! Not here: the checks (`doctor.rs`, `check.rs`).

use crate::error::{Error, Result};
use crate::terminal;
use serde::Serialize;

/// The state of a thing that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// In order.
    #[serde(rename = "OK")]
    Ok,
    /// Does not exist.
    Missing,
    /// Exists, with a fault.
    Wrong,
}

/// A thing that was checked, and its state.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    what: String,
    /// Its state.
    pub(crate) state: State,
    /// Details.
    pub(crate) found: String,
    /// What to do about a fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    /// A thing in order.
    pub(crate) fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Ok, found: found.into(), hint: None }
    }

    /// A thing that does not exist.
    pub(crate) fn missing(what: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Missing, found: found.into(), hint: Some(hint.into()) }
    }

    /// A thing with a fault.
    pub(crate) fn wrong(what: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Wrong, found: found.into(), hint: Some(hint.into()) }
    }

    /// A thing with an error.
    pub(crate) fn error(what: impl Into<String>, error: Error) -> Self {
        Self { what: what.into(), state: State::Wrong, found: error.message, hint: error.hint }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let state = match self.state {
            State::Ok => "OK",
            State::Missing => "missing",
            State::Wrong => "wrong",
        };
        // Indents further lines below the first.
        let found = self.found.replace('\n', &format!("\n{:22}", ""));
        let hint = self.hint.iter().map(|hint| format!("{:22}hint: {hint}", ""));
        std::iter::once(format!("{state:<8}{:<14}{found}", self.what)).chain(hint.collect::<Vec<_>>())
    }
}

/// Prints all findings.
///
/// # Errors
/// After that, `faulty` of the number of findings that are not OK, if there are any; a failed write to stdout.
pub(crate) fn print(findings: &[Finding], json: bool, faulty: impl FnOnce(usize) -> Error) -> Result<()> {
    if json {
        terminal::out(serde_json::to_string(findings).unwrap_or_default())?;
    } else {
        terminal::lines(findings.iter().flat_map(Finding::lines))?;
    }
    match findings.iter().filter(|finding| finding.state != State::Ok).count() {
        0 => Ok(()),
        faults => Err(faulty(faults)),
    }
}
