//! File operations for long runs: only regular files are read, and files are written completely or not at all; fingerprints.
//!
//! Not here: what the bytes mean; memory maps (`files/map.rs`); temporary names of incomplete files (`files/unfinished.rs`).

mod cache;
mod handed_over;
mod map;
mod standard_input;
mod unfinished;

pub(crate) use cache::{MOST_BYTES, bound, user_cache};
pub(crate) use handed_over::offer as offer_standard_input;
pub(crate) use map::{Map, map};
pub(crate) use standard_input::{
    DASH, LENT_INPUT, NOT_LENT, STANDARD_INPUT, borrow_standard_input, lend_standard_input, read_standard_input,
};
pub use unfinished::remove_own_unfinished;
pub(crate) use unfinished::{
    UnfinishedFolder, clear_unfinished, clear_unfinished_beside, unfinished_file, unfinished_folder,
};

use crate::error::{Error, Result, file_error};
use nix::libc::{EISDIR, O_NONBLOCK};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Checks that no file is named twice, by whatever paths. `role` begins the message.
///
/// # Errors
/// An input error that names the file.
pub(crate) fn each_once<'p>(paths: impl IntoIterator<Item = &'p Path>, role: &str) -> Result<()> {
    let mut seen = BTreeSet::new();
    for path in paths {
        if !seen.insert(identity(path)) {
            return Err(Error::input(format!("{role}: {} is named twice", path.display()))
                .hint("its rows would count twice: name each file once"));
        }
    }
    Ok(())
}

/// The file that a path names, whatever links lead to it. Files of a repository in the hub's cache that have the same content
/// are links to one: they are told apart by their names in it.
fn identity(path: &Path) -> PathBuf {
    // A file that does not exist is an error when it is read.
    let Ok(whole) = path.canonicalize() else { return path.to_path_buf() };
    let named = || {
        let snapshots = whole.parent().filter(|folder| folder.ends_with("blobs"))?.with_file_name("snapshots");
        let place = path.parent()?.canonicalize().ok()?.join(path.file_name()?);
        // The first step is the revision.
        let within = place.strip_prefix(&snapshots).ok()?.components().skip(1);
        Some(within.fold(snapshots, |folder, step| folder.join(step)))
    };
    named().unwrap_or(whole)
}

/// Creates a folder with its parents, removes the leftovers of killed writers, and checks that files can be created in it.
///
/// # Errors
/// An input error that names the folder and what was wrong.
pub(crate) fn make_writable_folder(folder: &Path) -> Result<()> {
    let made = make_folder(folder).and_then(|()| tempfile::tempfile_in(folder));
    made.map_err(|error| Error::input(format!("cannot write into the folder {}: {error}", folder.display())))?;
    clear_unfinished(folder);
    Ok(())
}

/// Creates a folder with its parents, and syncs them to disk.
///
/// # Errors
/// One of them cannot be created.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    let there = folder.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).count();
    std::fs::create_dir_all(folder)?;
    folder.ancestors().take(there).try_for_each(|made| File::open(folder_of(made))?.sync_all())
}

/// The folder, or the nearest one above it that exists: the one whose disk it is or will be on.
pub(crate) fn nearest_existing(folder: &Path) -> &Path {
    let existing = folder.ancestors().find(|folder| folder.exists());
    existing.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a regular file for reading, or standard input if it was read before. (std's `File::open` would wait for the writer
/// of a FIFO.)
///
/// # Errors
/// The path does not open, or names a folder, a FIFO, a socket or a device ([`io::ErrorKind::NotSeekable`]).
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if let Some(opened) = standard_input::opened(path) {
        return opened;
    }
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(match kind.is_dir() {
        true => io::Error::from_raw_os_error(EISDIR),
        false => io::Error::new(io::ErrorKind::NotSeekable, "it is a FIFO, a socket or a device"),
    })
}

/// The content of a regular file.
///
/// # Errors
/// As [`open`], or a failed read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// The content of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`read()`], or a larger file ([`io::ErrorKind::FileTooLarge`]).
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, mut content) = (open_within(path, most)?, Vec::new());
    // It may be growing.
    file.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most { Err(too_large(most)) } else { Ok(content) }
}

/// [`open`], unless the file is larger: then nothing of it is read.
fn open_within(path: &Path, most: u64) -> io::Result<File> {
    let file = open(path)?;
    if file.metadata()?.len() > most { Err(too_large(most)) } else { Ok(file) }
}

fn too_large(most: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than the limit of {most} bytes"))
}

/// The text of a regular file.
///
/// # Errors
/// As [`read()`], or bytes that are not UTF-8.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Copies a regular file to a new one, and syncs it to disk.
///
/// # Errors
/// Names `source` if that does not open, else both; an existing `target` is not overwritten.
pub(crate) fn copy(source: &Path, target: &Path) -> Result<()> {
    copy_within(source, target, u64::MAX)
}

/// As [`copy`], for a file of at most `most` bytes.
///
/// # Errors
/// As [`copy`], or a larger file, of which nothing is copied.
pub(crate) fn copy_within(source: &Path, target: &Path, most: u64) -> Result<()> {
    let mut from = open_within(source, most).map_err(|error| file_error(source, "read", &error))?;
    let mut copy = || -> io::Result<()> {
        let mut to = File::create_new(target)?;
        io::copy(&mut from, &mut to)?;
        to.sync_all()
    };
    copy().map_err(|error| file_error(target, &format!("copy {} to", source.display()), &error))
}

/// Syncs a file's content, or a folder's entries, to disk.
///
/// # Errors
/// Names the path.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| file_error(path, "flush", &error))
}

/// Writes a file so that its path has either its previous content or all of `bytes`, even after a power failure:
/// a temporary file in the same folder, fsync, rename, fsync of the folder.
///
/// Two processes may write the same path at once: the later one wins, and no reader sees a mixture.
///
/// # Errors
/// The folder or the disk cannot be written; `path` is then unchanged.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with the bytes that `content` writes.
///
/// # Errors
/// As [`write_atomic`], and those of `content`.
pub(crate) fn write_atomic_with(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut temporary = unfinished_file(path)?;
        content(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        std::fs::rename(temporary.path(), path)?;
        temporary.into_temp_path().keep()?;
        File::open(folder_of(path))?.sync_all()
    };
    write().map_err(|error| file_error(path, "write", &error))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// As [`read_at_most`], with an error that names the file.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger.
pub(crate) fn read_within(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_at_most(path, most).map_err(|error| file_error(path, "read", &error))
}

/// The xxh3-128 hash of a file's content, in one streaming pass.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn fingerprint_file(path: &Path) -> Result<u128> {
    let hash = || -> io::Result<u128> {
        let mut file = open(path)?;
        let mut hasher = Xxh3::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.digest128()),
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    hash().map_err(|error| file_error(path, "read", &error))
}

/// The xxh3-128 hash of a list of parts: `["ab", "c"]` and `["a", "bc"]` differ.
pub fn fingerprint_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u128 {
    let mut hash = Fingerprint::default();
    parts.into_iter().for_each(|part| hash.add(part));
    hash.done()
}

/// [`fingerprint_parts`] for parts that are added one by one, or piece by piece.
#[derive(Default)]
pub(crate) struct Fingerprint(Xxh3);

impl Fingerprint {
    /// Adds a whole part.
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.begin(part.len());
        self.more(part);
    }

    /// Starts a part of `length` bytes, which must follow through [`more`](Self::more).
    pub(crate) fn begin(&mut self, length: usize) {
        self.0.update(&(length as u64).to_le_bytes());
    }

    /// Adds a piece of the part that was started.
    pub(crate) fn more(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The hash of all parts.
    pub(crate) fn done(self) -> u128 {
        self.0.digest128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_the_file_and_leaves_a_mapped_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomic(&path, b"first").unwrap();
        let mapped = map(&path).unwrap();
        write_atomic(&path, b"2nd").unwrap();
        assert_eq!(&mapped[..], b"first");
        assert_eq!(std::fs::read(&path).unwrap(), b"2nd");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [path.as_path(), Path::new("/dev/zero")] {
            assert_eq!(read(path).unwrap_err().kind(), io::ErrorKind::NotSeekable);
            assert_eq!(read_to_string(path).unwrap_err().kind(), io::ErrorKind::NotSeekable);
            assert_eq!(map(path).unwrap_err().kind(), io::ErrorKind::NotSeekable);
            assert_eq!(fingerprint_file(path).unwrap_err().exit_code(), 2);
        }
        assert_eq!(read(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn a_copy_names_the_side_that_failed_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        assert!(copy(&source, &target).unwrap_err().message.contains("read"), "the source is not there");
        std::fs::write(&source, "content").unwrap();
        copy(&source, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"content");
        let there = copy(&source, &target).unwrap_err();
        assert!(there.message.contains("target") && there.exit_code() == 2, "{there}");
        let large = copy_within(&source, &folder.path().join("other"), 6).unwrap_err();
        assert!(large.message.contains("source") && large.message.contains("larger than the limit of 6"), "{large}");
        assert!(!folder.path().join("other").exists(), "nothing of it is copied");
        let full = copy(&source, Path::new("/dev/full/x")).unwrap_err();
        assert!(full.message.contains("to /dev/full/x"), "{full}");
    }

    #[test]
    fn no_more_is_read_than_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"1234").unwrap();
        assert_eq!(read_within(&path, 4).unwrap(), b"1234");
        for (path, most) in [(&path, 3), (&folder.path().to_path_buf(), 3), (&folder.path().join("none"), 3)] {
            let error = read_within(path, most).unwrap_err();
            assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn a_failed_write_names_the_file() {
        let error = write_atomic(Path::new("/dev/null/file"), b"").unwrap_err();
        assert!(error.message.contains("/dev/null/file"), "{error}");
    }

    #[test]
    fn fingerprints_follow_content_and_borders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // Longer than one buffer, so that the streaming matters.
        let mut content = vec![7u8; (1 << 18) + 3];
        std::fs::write(&path, &content).unwrap();
        let first = fingerprint_file(&path).unwrap();
        assert_eq!(first, xxhash_rust::xxh3::xxh3_128(&content));
        *content.last_mut().unwrap() = 8;
        std::fs::write(&path, &content).unwrap();
        assert_ne!(first, fingerprint_file(&path).unwrap());

        assert_ne!(fingerprint_parts([&b"ab"[..], b"c"]), fingerprint_parts([&b"a"[..], b"bc"]));
    }

    #[test]
    fn a_file_is_named_once_by_whatever_links_and_files_of_equal_content_on_the_hub_are_two() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for made in ["hub/blobs", "hub/snapshots/one", "hub/snapshots/two", "data/blobs"] {
            std::fs::create_dir_all(path(made)).unwrap();
        }
        for file in ["hub/blobs/content", "data/blobs/a.jsonl"] {
            std::fs::write(path(file), "rows").unwrap();
        }
        let links = ["hub/snapshots/one/a.parquet", "hub/snapshots/one/b.parquet", "hub/snapshots/two/a.parquet"];
        links.iter().for_each(|link| std::os::unix::fs::symlink(path("hub/blobs/content"), path(link)).unwrap());
        std::os::unix::fs::symlink(path("data/blobs/a.jsonl"), path("link")).unwrap();
        let once = |names: [&str; 2]| {
            let paths = names.map(path);
            each_once(paths.iter().map(PathBuf::as_path), "--data").is_ok()
        };
        assert!(once(["hub/snapshots/one/a.parquet", "hub/snapshots/one/b.parquet"]), "equal content");
        assert!(!once(["hub/snapshots/one/a.parquet", "hub/snapshots/two/a.parquet"]), "two revisions of one file");
        assert!(!once(["data/blobs/a.jsonl", "link"]), "a folder of that name is no cache");
    }
}
