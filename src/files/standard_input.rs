//! Standard input as a file: read once, then opened as often as needed.
//!
//! Not here: which rank reads it (`commands/hub.rs`).

use super::{handed_over, open};
use crate::error::{Error, Result, file_error};
use rustix::fs::FileType;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::NamedTempFile;

/// Its path for [`open`] and in messages.
pub(crate) const STANDARD_INPUT: &str = "standard input";

/// Its name on the command line and in a config.
pub(crate) const DASH: &str = "-";

/// The environment variable with the name under which the launcher offers its standard input to rank 0, or after
/// [`NOT_LENT`] the reason why it does not.
pub(crate) const LENT_INPUT: &str = "HAF_DIST_STANDARD_INPUT";

/// Begins the reason why the launcher does not offer its standard input.
pub(crate) const NOT_LENT: &str = "not offered: ";

/// Its content, in a file without a name.
static KEPT: OnceLock<File> = OnceLock::new();

/// Reads all of standard input. From then on, this process can open [`STANDARD_INPUT`].
///
/// # Errors
/// It was read before or cannot be read, mpirun would pass it on with mistakes, or there is no room for it in the folder for
/// temporary files.
pub(crate) fn read_standard_input() -> Result<()> {
    let folder = std::env::temp_dir();
    let failed = |error: io::Error| file_error(&folder, "keep standard input in", &error);
    let mut source: Box<dyn io::Read> = match std::env::var(LENT_INPUT) {
        Ok(lent) => {
            let taken = match lent.strip_prefix(NOT_LENT) {
                Some(reason) => Err(reason.to_owned()),
                None => handed_over::take(&lent).map_err(|error| error.to_string()),
            };
            Box::new(taken.map_err(|reason| {
                Error::input(format!("ranks cannot read standard input (`-`): {reason}"))
                    .hint("redirect a file into it (< rows.jsonl), or name the file")
            })?)
        }
        Err(_) => {
            let stdin = io::stdin();
            // A script between mpirun and this process may have redirected a file.
            let is_file = rustix::fs::fstat(&stdin).is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_file());
            if !is_file {
                arrives_whole(|name| std::env::var_os(name).is_some())?;
            }
            Box::new(stdin.lock())
        }
    };
    let mut file = tempfile::tempfile().map_err(failed)?;
    io::copy(&mut source, &mut file).and_then(|_| file.flush()).map_err(failed)?;
    keep(file)
}

/// Open MPI 5.0's mpirun never passes the end of its standard input on, and repeats pieces of a long one
/// (github.com/openpmix/prrte/issues/2579).
fn arrives_whole(is_set: impl Fn(&str) -> bool) -> Result<()> {
    if is_set("PRTE_LAUNCHED") {
        return Err(Error::input("Open MPI 5's mpirun does not pass standard input on whole")
            .hint("leave mpirun out: haf-dist ... --ranks N; or save the rows to a file and name it"));
    }
    Ok(())
}

/// A copy of what [`read_standard_input`] has read, in a file with a name, for other processes on this machine.
///
/// # Errors
/// Standard input was not read, or there is no room for the copy.
pub(crate) fn lend_standard_input() -> Result<NamedTempFile> {
    let folder = std::env::temp_dir();
    let lend = || -> io::Result<NamedTempFile> {
        let mut copy = NamedTempFile::new()?;
        io::copy(&mut open(Path::new(STANDARD_INPUT))?, &mut copy)?;
        copy.flush()?;
        Ok(copy)
    };
    lend().map_err(|error| file_error(&folder, "keep standard input in", &error))
}

/// Takes a copy that another process on this machine has made with [`lend_standard_input`].
///
/// # Errors
/// The copy does not exist on this machine.
pub(crate) fn borrow_standard_input(copy: &Path) -> Result<()> {
    let file = open(copy).map_err(|error| {
        Error::input(format!("standard input was read on rank 0's machine and cannot be read from here: {error}"))
            .hint("save it to a file that all machines can read, and name that file")
    })?;
    keep(file)
}

fn keep(mut file: File) -> Result<()> {
    file.rewind().map_err(|error| Error::runtime(format!("cannot read the copy of standard input: {error}")))?;
    let twice = "`-` stands for standard input, which can be read only once";
    KEPT.set(file).map_err(|_| Error::input(twice).hint("name files instead"))
}

/// Opens a path that stands for standard input; `None` for any other.
pub(super) fn opened(path: &Path) -> Option<io::Result<File>> {
    if path.as_os_str() == DASH {
        return Some(Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "`-` is standard input, which only train, prepare, eval and score read; write ./- for a file of that name",
        )));
    }
    // Opened anew, so that each reader has its own position.
    let kept = KEPT.get().filter(|_| path.as_os_str() == STANDARD_INPUT)?;
    Some(File::open(format!("/proc/self/fd/{}", kept.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_refused_from_an_mpirun_that_garbles_it() {
        let error = arrives_whole(|name| name == "PRTE_LAUNCHED").unwrap_err();
        assert!(error.hint.is_some_and(|hint| hint.contains("--ranks N")));
        // Open MPI 4's.
        assert!(arrives_whole(|name| name == "OMPI_COMM_WORLD_RANK").is_ok());
    }
}
