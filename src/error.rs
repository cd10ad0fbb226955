//! The one error type of the crate: what happened, and what to do next.
//!
//! Errors a user can cause are [`Kind::Input`] and end the program with exit code 2; everything else is [`Kind::Runtime`] and
//! ends it with exit code 1, except a run that a signal stopped: [`Kind::Stopped`].

use crate::{memory, panics};
use nix::errno::Errno;
use std::path::Path;
use std::{fmt, io};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Who can fix an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The user: a wrong file, key or argument. Exit code 2.
    Input,
    /// The machine or the program: a full disk, a lost rank, a failed kernel. Exit code 1.
    Runtime,
    /// Not a failure: a signal stopped the run after it saved a checkpoint. Exit code 143, as after SIGTERM.
    Stopped,
}

/// What happened, where, what was expected; and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Who can fix it.
    pub kind: Kind,
    /// What happened, where, and what was expected: names the file, the line or the key.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Error {
    /// An error that the user can fix.
    pub fn input(message: impl Into<String>) -> Self {
        Self { kind: Kind::Input, message: message.into(), hint: None }
    }

    /// A failure of the machine or the program.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self { kind: Kind::Runtime, message: message.into(), hint: None }
    }

    /// A run that a signal stopped.
    pub(crate) fn stopped(message: impl Into<String>) -> Self {
        Self { kind: Kind::Stopped, message: message.into(), hint: None }
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// One error for several `reasons`, each with its own hint; a single reason is returned as it is.
    pub(crate) fn all(summary: impl fmt::Display, hint: impl Into<String>, mut reasons: Vec<Self>) -> Self {
        if reasons.len() == 1 {
            return reasons.remove(0);
        }
        let listed: Vec<String> = reasons.iter().map(|reason| format!("- {reason}")).collect();
        Self::input(format!("{summary}, for {} reasons\n{}", reasons.len(), listed.join("\n"))).hint(hint)
    }

    /// Puts the place where it happened in front of the message.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            Kind::Input => 2,
            Kind::Runtime => 1,
            Kind::Stopped => 143,
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
        match error {
            tch::TchError::Torch(text) => Self::of_libtorch(&text),
            other => Self::of_libtorch(&other.to_string()),
        }
    }
}

impl Error {
    /// The error for a message that libtorch threw. Out of memory gets a hint, and so does an operation without a deterministic
    /// implementation.
    pub(crate) fn of_libtorch(text: &str) -> Self {
        match memory::lack_in(text) {
            Some(lack) => Self::runtime(format!("out of memory: {lack}")).hint(memory::hint()),
            // libtorch appends its call stack.
            None if text.contains("deterministic") => {
                Self::runtime(format!("libtorch: {}", text.lines().next().unwrap_or_default()))
                    .hint("parallel.deterministic = false computes in any order")
            }
            // oneDNN says no more than that where it gets no memory.
            None if text.contains("could not create a primitive") => {
                Self::runtime("libtorch: could not create a primitive, which most often is for want of memory")
                    .hint(memory::hint())
            }
            None => Self::runtime(format!("libtorch: {}", text.lines().next().unwrap_or_default())),
        }
    }
}

/// Runs `call` and turns a panic of libtorch's bindings into an error. After an error, nothing that `call` was changing may be
/// used.
///
/// # Errors
/// Those of `call`, and libtorch's.
pub(crate) fn libtorch<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::contain_libtorch(call).unwrap_or_else(|thrown| Err(Error::of_libtorch(&thrown)))
}

/// The hint for a path that does not exist: the absolute path that was tried.
fn looked_for(path: &Path) -> String {
    match std::path::absolute(path) {
        Ok(whole) if path.is_relative() => format!("looked for {}: is the path right?", whole.display()),
        _ => "is the path right?".to_owned(),
    }
}

/// Checks that a folder is there, before something in it is missed.
///
/// # Errors
/// An input error with the absolute path that was tried.
pub(crate) fn expect_folder(folder: &Path) -> Result<()> {
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::input(format!("{} is a file; expected a folder", folder.display()))
            .hint("name the folder that it is in")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::input(format!("there is no folder {}", folder.display())).hint(looked_for(folder)))
        }
        Err(error) => Err(file_error(folder, "open", &error)),
    }
}

/// The hint for a file that cannot be written because its folder does not exist.
fn no_folder_for(path: &Path) -> Option<String> {
    let folder = std::path::absolute(path).ok()?.parent()?.to_path_buf();
    (!folder.exists()).then(|| format!("the folder {} does not exist: create it first", folder.display()))
}

/// Turns a failed file operation into an error that names the file: an input error if the path or the file is wrong, else a
/// runtime error.
pub(crate) fn file_error(path: &Path, doing: &str, error: &io::Error) -> Error {
    use io::ErrorKind::*;
    let message = format!("cannot {doing} {}: {error}", path.display());
    let hint = match error.kind() {
        NotFound if doing.starts_with("write") || doing.starts_with("create") => {
            let hint = no_folder_for(path).unwrap_or_else(|| looked_for(path));
            return Error::input(message).hint(hint);
        }
        NotFound | InvalidFilename | InvalidInput => return Error::input(message).hint(looked_for(path)),
        NotADirectory => "a part of the path is a file, where a folder was expected",
        IsADirectory => "a file was expected: name the file in it",
        AlreadyExists => "nothing is overwritten: name another path, or move the existing one away",
        PermissionDenied | ReadOnlyFilesystem => "change its permissions, or name another path",
        InvalidData => "is it the right file, and is it complete?",
        // The system's own means the limit of a process.
        FileTooLarge if error.raw_os_error().is_none() => "is it the right file?",
        NotSeekable => "a regular file was expected: write its content to one, and name that",
        StorageFull | QuotaExceeded => return Error::runtime(message).hint("make room, or write to another disk"),
        _ => {
            let failed = Error::runtime(message);
            return match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EMFILE) => failed.hint("this process may open no more files: raise `ulimit -n`"),
                Some(Errno::ENFILE) => failed.hint("the machine has too many files open: end other programs"),
                Some(Errno::EFBIG) => failed.hint("this process may write no larger files: raise `ulimit -f`"),
                Some(Errno::EIO) => failed.hint("the disk is failing: see the system's log (dmesg)"),
                _ => failed,
            };
        }
    };
    Error::input(message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_throws_is_an_error_in_its_first_line_whichever_way_it_comes() {
        use tch::{Device, Kind, Tensor};
        let text = "\"addmm_impl_cpu_\" not implemented for 'Half'";
        let thrown = tch::TchError::Torch(format!("{text}\nException raised from here"));
        assert_eq!(Error::from(thrown).message, format!("libtorch: {text}"));
        let wrong = || Tensor::zeros([2], (Kind::Float, Device::Cpu)).view([3]);
        let error = libtorch(|| Ok(wrong())).unwrap_err();
        assert_eq!(error.message, "libtorch: shape '[3]' is invalid for input of size 2");
        // A quotation mark within the words stays.
        let quoted = libtorch(|| -> Result<()> { panic!("{:?}", tch::TchError::Torch(text.into())) }).unwrap_err();
        assert_eq!(quoted.message, format!("libtorch: {text}"));
    }

    /// The error for a file that cannot be read.
    fn read(path: &Path) -> Error {
        file_error(path, "read", &std::fs::read_to_string(path).unwrap_err())
    }

    #[test]
    fn a_wrong_path_or_file_is_the_users_to_mend_and_a_full_disk_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("binary");
        std::fs::write(&binary, [0xff]).unwrap();
        for path in [
            folder.path().join("missing"),
            folder.path().to_path_buf(),
            binary.join("below-a-file"),
            folder.path().join("x".repeat(300)),
            folder.path().join("nul\0"),
            binary.clone(),
        ] {
            let error = read(&path);
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.hint.is_some() && error.message.contains(&path.display().to_string()), "{error}");
        }
        let below = folder.path().join("none/new");
        let nowhere = file_error(&below, "write", &std::fs::write(&below, "").unwrap_err()).to_string();
        assert!(nowhere.contains(&format!("{} does not exist", folder.path().join("none").display())), "{nowhere}");
        assert_eq!(expect_folder(folder.path()), Ok(()));
        assert!(expect_folder(&binary).unwrap_err().message.contains("is a file; expected a folder"));
        let relative = expect_folder(Path::new("no/such")).unwrap_err().to_string();
        let whole = std::path::absolute("no/such").unwrap();
        assert!(relative.contains(&format!("looked for {}", whole.display())), "{relative}");
        let there = std::fs::File::create_new(&binary).unwrap_err();
        assert_eq!(file_error(&binary, "create", &there).exit_code(), 2);
        let full = file_error(&binary, "write", &io::ErrorKind::StorageFull.into());
        assert_eq!((full.exit_code(), full.hint.is_some()), (1, true));
        assert_eq!(file_error(&binary, "read", &io::ErrorKind::Interrupted.into()).exit_code(), 1);
    }
}
