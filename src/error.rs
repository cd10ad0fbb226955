//! The one error type of the crate: what happened, and what to do next.
//!
//! Errors a user can cause are [`Kind::Input`] and end the program with exit code 2; everything else
//! is [`Kind::Runtime`] and ends it with exit code 1.

use std::fmt;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Who can mend an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The user: a wrong file, key or argument. Exit code 2.
    Input,
    /// The machine or the program: a full disk, a lost rank, a failed kernel. Exit code 1.
    Runtime,
}

/// What happened, where, what was expected; and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Who can mend it.
    pub kind: Kind,
    /// What happened, where, and what was expected: names the file, the line or the key.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Error {
    /// An error that the user can mend.
    pub fn input(message: impl Into<String>) -> Self {
        Self { kind: Kind::Input, message: message.into(), hint: None }
    }

    /// An error of the machine or the program.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self { kind: Kind::Runtime, message: message.into(), hint: None }
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says where it happened, in front of the message.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            Kind::Input => 2,
            Kind::Runtime => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // libtorch appends a C++ stack to its first line.
        let text = error.to_string();
        Self::runtime(format!("libtorch: {}", text.lines().next().unwrap_or_default()))
    }
}

/// Turns a failed file operation into an error that names the file.
pub fn file_error(path: &std::path::Path, doing: &str, error: &std::io::Error) -> Error {
    let made = |kind| Error { kind, message: format!("cannot {doing} {}: {error}", path.display()), hint: None };
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error.kind() {
        NotFound | PermissionDenied | IsADirectory | NotADirectory | ReadOnlyFilesystem => made(Kind::Input),
        _ => made(Kind::Runtime),
    }
}
