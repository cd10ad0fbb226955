//! Files as a long run needs them: written whole or not at all, mapped, and fingerprinted.
//!
//! Not here: what the bytes mean. One of the few files with `unsafe`: the memory map.

use crate::error::{Error, Result, file_error};
use memmap2::Mmap;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::Xxh3;

/// Makes a folder, with its parents, and proves that files can be made in it.
///
/// # Errors
/// An input error that names the folder and what was wrong.
pub fn make_writable_folder(folder: &Path) -> Result<()> {
    let made = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    made.map(drop).map_err(|error| Error::input(format!("cannot write into the folder {}: {error}", folder.display())))
}

/// Writes a file so that its path holds either what it held before or all of `bytes`, even after a power cut:
/// a temporary file in the same folder, fsync, rename, fsync of the folder.
///
/// Two processes may write the same path at once: the later one wins, and no reader sees a mixture.
///
/// # Errors
/// The folder or the disk does not take it; `path` is then as it was.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut temporary = unfinished_file(path)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        File::open(folder_of(path))?.sync_all()
    };
    write().map_err(|error| file_error(path, "write", &error))
}

/// A temporary file in the folder of `path`, for a file that gets that name when it is whole. Dropping it removes it.
///
/// # Errors
/// The folder is not there or takes no files.
pub fn unfinished_file(path: &Path) -> io::Result<NamedTempFile> {
    // tempfile's default mode is for secrets; these files are for everyone whom the umask lets in.
    tempfile::Builder::new()
        .prefix(".unfinished-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Maps a file for reading; its pages are read when they are touched.
///
/// # Errors
/// The file cannot be opened or mapped.
pub fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a map is sound while nobody shortens or rewrites the file in place. This crate replaces files by
    // renaming (`write_atomic`), which leaves the mapped inode alone; another program that edits a cache or a
    // model's weights in place during a run is outside the contract.
    unsafe { Mmap::map(&file) }
}

/// The content of a file of at most `most` bytes.
///
/// # Errors
/// The file cannot be read, is none (a pipe could be waited for without end), or is larger.
pub fn read_within(path: &Path, most: u64) -> Result<Vec<u8>> {
    let failed = |error: io::Error| file_error(path, "read", &error);
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(Error::input(format!("{} is not a file", path.display())).hint("a file was expected here"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(Error::input(format!("{} has more than the {most} bytes that are read of it", path.display()))
            .hint("is it the right file?"));
    }
    Ok(bytes)
}

/// The xxh3-128 hash of a file's content, in one streaming pass.
///
/// # Errors
/// The file cannot be read.
pub fn fingerprint_file(path: &Path) -> Result<u128> {
    let hash = || -> io::Result<u128> {
        let mut file = File::open(path)?;
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
    let mut hasher = Xxh3::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest128()
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
}
