//! Lines that say of one thing after the other whether it is as it should be: what `doctor` and `check` print.
//!
//! Not here: what is looked at (`doctor.rs`, `check.rs`).

use crate::error::{Error, Result};
use crate::terminal;
use serde::Serialize;

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    #[serde(rename = "OK")]
    Ok,
    /// Not there.
    Missing,
    /// There, and not as it should be.
    Wrong,
}

/// One thing, and how it is.
#[derive(Debug, PartialEq, Serialize)]
pub struct Finding {
    what: String,
    /// How it is.
    pub state: State,
    /// What is there.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    /// A thing that is as it should be.
    pub fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Ok, found: found.into(), hint: None }
    }

    /// A thing that is not there.
    pub fn missing(what: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Missing, found: found.into(), hint: Some(hint.into()) }
    }

    /// A thing that is not as it should be.
    pub fn wrong(what: impl Into<String>, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), state: State::Wrong, found: found.into(), hint: Some(hint.into()) }
    }

    /// A thing that an error was found in.
    pub fn error(what: impl Into<String>, error: Error) -> Self {
        Self { what: what.into(), state: State::Wrong, found: error.message, hint: error.hint }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let state = match self.state {
            State::Ok => "OK",
            State::Missing => "missing",
            State::Wrong => "wrong",
        };
        // What has several lines stays below itself.
        let found = self.found.replace('\n', &format!("\n{:22}", ""));
        let hint = self.hint.iter().map(|hint| format!("{:22}hint: {hint}", ""));
        std::iter::once(format!("{state:<8}{:<14}{found}", self.what)).chain(hint.collect::<Vec<_>>())
    }
}

/// Prints all findings; an error where one is not OK.
///
/// # Errors
/// `faulty`, once all is printed, of how many are not OK; a stdout that takes no more.
pub fn print(findings: &[Finding], json: bool, faulty: impl FnOnce(usize) -> Error) -> Result<()> {
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
