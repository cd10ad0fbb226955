//! Files and folders with a temporary name, `.unfinished-` and six letters, until they are complete. A process holds a lock on
//! each of its own, so that the next writer can recognize and remove the leftovers of killed ones.
//!
//! Not here: a run's own `step-N.partial` (`checkpoint/folder.rs`), which the lock on the run's folder guards.

use super::folder_of;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, readlinkat_raw, statat, unlinkat};
use std::ffi::{CStr, OsStr};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tempfile::{Builder, NamedTempFile, TempDir};

const PREFIX: &str = ".unfinished-";

/// How often a removal, and its start, are tried while other threads run on.
const REMOVALS: usize = 100;

/// Folders that may lie within one another, the list of open files included; what lies deeper stays.
const DEEPEST: usize = 6;

/// The space that a removal needs, made beforehand: a signal handler's stack has room for a few kilobytes alone.
struct Space {
    path: [u8; LONGEST_PATH],
    entries: [Entries; DEEPEST],
}

/// Space for some entries of a folder; the kernel's longest has 280 bytes.
type Entries = [MaybeUninit<u8>; 1024];

static SPACE: Mutex<Space> =
    Mutex::new(Space { path: [0; LONGEST_PATH], entries: [[MaybeUninit::uninit(); 1024]; DEEPEST] });

/// Held while an unfinished file or folder is made, from its creation until it is open: a removal would not find it in between.
static MAKING: Mutex<()> = Mutex::new(());

/// A link for each open file of this process, by its number.
const OPEN_FILES: &CStr = c"/proc/self/fd";

/// Bytes of the longest path that is looked at: the kernel's limit.
const LONGEST_PATH: usize = 4096;

/// Letters and digits after the prefix.
const LETTERS: usize = 6;

/// A temporary file in the folder of `path`, for a file that gets that name when it is complete. Dropping it removes it.
///
/// # Errors
/// The folder does not exist or cannot be written.
pub(crate) fn unfinished_file(path: &Path) -> io::Result<NamedTempFile> {
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        // tempfile's default mode is for secrets; these files are for everyone whom the umask permits.
        let file = builder().permissions(Permissions::from_mode(0o666)).tempfile_in(folder_of(path))?;
        if hold(file.as_file(), file.path())? {
            return Ok(file);
        }
    }
}

/// A folder that gets its name when it is complete. Dropping it removes it with its content.
#[derive(Debug)]
pub(crate) struct UnfinishedFolder {
    folder: TempDir,
    _lock: File,
}

/// A temporary folder beside `path`, for a folder that gets that name when it is complete.
///
/// # Errors
/// The parent folder does not exist or cannot be written.
pub(crate) fn unfinished_folder(path: &Path) -> io::Result<UnfinishedFolder> {
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let folder = builder().permissions(Permissions::from_mode(0o777)).tempdir_in(folder_of(path))?;
        let lock = File::open(folder.path())?;
        if hold(&lock, folder.path())? {
            return Ok(UnfinishedFolder { folder, _lock: lock });
        }
    }
}

impl UnfinishedFolder {
    /// Its temporary path.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Renames it to `path`, and syncs it to disk.
    ///
    /// # Errors
    /// `path` is a file or a folder with content, or the disk cannot be written; the folder is then removed.
    pub(crate) fn persist(self, path: &Path) -> io::Result<()> {
        File::open(self.path())?.sync_all()?;
        fs::rename(self.path(), path)?;
        let _ = self.folder.keep();
        File::open(folder_of(path))?.sync_all()
    }
}

fn builder() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX).rand_bytes(LETTERS);
    builder
}

/// Locks a file or folder just created at `path`. False if another process took it for a leftover and has removed it, or is
/// about to.
fn hold(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        // Some network file systems have no locks: nothing is cleared there either.
        Err(TryLockError::Error(_)) => return Ok(true),
    }
    let own = file.metadata()?;
    Ok(fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())))
}

/// [`clear_unfinished`] for the folder of `path`, for commands that write there without having made the folder ready.
pub(crate) fn clear_unfinished_beside(path: &Path) {
    clear_unfinished(folder_of(path));
}

/// Removes the unfinished files and folders of killed processes from `folder`. Those of running processes stay, and so do
/// those that cannot be removed: they do no harm.
pub(crate) fn clear_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        let Ok(kind) = kind else { continue };
        if !is_unfinished(&entry.file_name()) || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        // Locks of network file systems need a file that is open for writing; folders cannot be.
        let Ok(file) = OpenOptions::new().read(true).write(kind.is_file()).open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        let removed = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if removed.is_ok() {
            tracing::info!("removed {}, which a killed process had left", path.display());
        }
    }
}

/// Removes what this process has not finished, for an end that drops nothing. Each is held open until it is whole. From then on
/// this process makes nothing unfinished: other threads that try wait for its end.
///
/// Neither allocates nor waits for long: it is called where there is no memory, and from signal handlers.
pub fn remove_own_unfinished() {
    // Another thread is at it.
    let Ok(mut space) = SPACE.try_lock() else { return };
    for _ in 0..REMOVALS {
        if let Ok(making) = MAKING.try_lock() {
            std::mem::forget(making);
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let Space { path, entries: [entries, below @ ..] } = &mut *space;
    let Ok(descriptors) = open_folder(CWD, OPEN_FILES) else { return };
    let mut entries = RawDir::new(&descriptors, entries);
    while let Some(Ok(entry)) = entries.next() {
        remove_if_unfinished(&descriptors, entry.file_name(), path, below);
    }
}

/// Removes the open file or folder that has the number `descriptor` in `descriptors`, the folder [`OPEN_FILES`], if its name
/// says that it is unfinished.
fn remove_if_unfinished(
    descriptors: impl AsFd,
    descriptor: &CStr,
    path: &mut [u8; LONGEST_PATH],
    entries: &mut [Entries],
) {
    // One byte stays for the 0 at the end.
    let Ok(length) = readlinkat_raw(descriptors, descriptor, &mut path[..LONGEST_PATH - 1]) else { return };
    path[length] = 0;
    let name = path[..length].rsplit(|byte| *byte == b'/').next();
    let Ok(path) = CStr::from_bytes_until_nul(&path[..]) else { return };
    if !name.is_some_and(|name| is_unfinished(OsStr::from_bytes(name))) {
        return;
    }
    // Other threads may still write into it. What stays in the end is cleared by the next that writes there.
    for _ in 0..REMOVALS {
        if remove(CWD, path, entries) || statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Removes a file, or a folder with its content. False if something of it stays.
fn remove(parent: BorrowedFd, name: &CStr, entries: &mut [Entries]) -> bool {
    if unlinkat(parent, name, AtFlags::empty()).is_ok() {
        return true;
    }
    let (Ok(folder), Some((own, below))) = (open_folder(parent, name), entries.split_first_mut()) else { return false };
    let mut entries = RawDir::new(&folder, own);
    while let Some(Ok(entry)) = entries.next() {
        if ![c".", c".."].contains(&entry.file_name()) {
            remove(folder.as_fd(), entry.file_name(), below);
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok()
}

fn open_folder(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn is_unfinished(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    rest.is_some_and(|rest| rest.len() == LETTERS && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_the_dead_have_left_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let (file, made) = (unfinished_file(&path.join("a")).unwrap(), unfinished_folder(&path.join("b")).unwrap());
        // A killed process removes nothing and holds no lock.
        fs::write(path.join(".unfinished-abc123"), "left").unwrap();
        fs::create_dir_all(path.join(".unfinished-ABC123/below")).unwrap();
        for other in [".unfinished-abc12", ".unfinished-abc1234", ".unfinished-abc12.", "unfinished-abc123"] {
            fs::write(path.join(other), "somebody's").unwrap();
        }
        clear_unfinished(path);
        let mut left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.retain(|name| path.join(name) != file.path() && path.join(name) != made.path());
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(file.path().is_file() && made.path().is_dir(), "what a living process writes stays");
        made.persist(&path.join("b")).unwrap();
        assert!(path.join("b").is_dir());
        drop(file);
        assert_eq!(fs::read_dir(path).unwrap().count(), 5);
    }

    #[test]
    fn an_end_without_drops_removes_files_and_folders_with_all_that_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let (file, made) = (unfinished_file(&path.join("a")).unwrap(), unfinished_folder(&path.join("b")).unwrap());
        fs::create_dir_all(made.path().join("deep/below")).unwrap();
        // More entries than one read of the folder gives.
        for number in 0..200 {
            fs::write(made.path().join(format!("deep/below/{number:0>100}")), "content").unwrap();
        }
        let elsewhere = path.join("kept");
        fs::write(&elsewhere, "somebody's").unwrap();
        std::os::unix::fs::symlink(&elsewhere, made.path().join("link")).unwrap();
        let open = File::open(&elsewhere).unwrap();
        let descriptors = open_folder(CWD, OPEN_FILES).unwrap();
        for file in [file.as_file(), &made._lock, &open] {
            let number = CString::new(file.as_raw_fd().to_string()).unwrap();
            let (mut path, mut entries) = ([1; LONGEST_PATH], [[MaybeUninit::uninit(); 1024]; DEEPEST - 1]);
            remove_if_unfinished(&descriptors, &number, &mut path, &mut entries);
        }
        assert!(!file.path().exists() && !made.path().exists());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "somebody's");
    }
}
