//! Standard input in a file's place: read once, then opened as often as a file is.
//!
//! Not here: which rank reads it (`commands/hub.rs`).

use super::open;
use crate::error::{Error, Result, file_error};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::NamedTempFile;

/// The path under which [`open`](super::open) finds it, and which messages name.
pub const STANDARD_INPUT: &str = "standard input";

/// What a user writes for it.
pub const DASH: &str = "-";

/// What was read of it: a file without a name.
static KEPT: OnceLock<File> = OnceLock::new();

/// Reads all of standard input. From then on, [`STANDARD_INPUT`] is a path of this process.
///
/// # Errors
/// It was read before, or fails, or there is no room for it in the folder for temporary files.
pub fn read_standard_input() -> Result<()> {
    let folder = std::env::temp_dir();
    let failed = |error: io::Error| file_error(&folder, "keep standard input in", &error);
    let mut file = tempfile::tempfile().map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut file).and_then(|_| file.flush()).map_err(failed)?;
    keep(file)
}

/// A copy of what [`read_standard_input`] has read, under a name, for other processes of this machine.
///
/// # Errors
/// As there.
pub fn lend_standard_input() -> Result<NamedTempFile> {
    let folder = std::env::temp_dir();
    let lend = || -> io::Result<NamedTempFile> {
        let mut copy = NamedTempFile::new()?;
        io::copy(&mut open(Path::new(STANDARD_INPUT))?, &mut copy)?;
        copy.flush()?;
        Ok(copy)
    };
    lend().map_err(|error| file_error(&folder, "keep standard input in", &error))
}

/// Takes what another process of this machine has read: [`lend_standard_input`].
///
/// # Errors
/// It is not seen from here.
pub fn borrow_standard_input(copy: &Path) -> Result<()> {
    let file = open(copy).map_err(|error| {
        Error::input(format!("standard input was read on rank 0's machine, and is not seen from here: {error}"))
            .hint("save it to a file that all machines see, and name that")
    })?;
    keep(file)
}

fn keep(mut file: File) -> Result<()> {
    file.rewind().map_err(|error| Error::runtime(format!("standard input, as it was kept: {error}")))?;
    KEPT.set(file).map_err(|_| Error::input("`-` stands for standard input, which can be read once").hint("name files"))
}

/// What is opened for a path that stands for standard input; `None` for any other.
pub(super) fn opened(path: &Path) -> Option<io::Result<File>> {
    if path.as_os_str() == DASH {
        return Some(Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "`-` is standard input, which train, prepare, eval and score read, and nothing else; a file of that name is ./-",
        )));
    }
    // Opened anew: each reader has a position of its own.
    let kept = KEPT.get().filter(|_| path.as_os_str() == STANDARD_INPUT)?;
    Some(File::open(format!("/proc/self/fd/{}", kept.as_raw_fd())))
}
