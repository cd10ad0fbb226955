//! The user's own cache folder, for commands without a config, and its size limit.
//!
//! Not here: what is cached (`data/`), and a run's own `data.cache_dir`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Size limit of the user's cache, in bytes; the least recently used files are removed first.
pub(crate) const MOST_BYTES: u64 = 10_000_000_000;

/// `$XDG_CACHE_HOME/haf-dist`, else `~/.cache/haf-dist` (XDG Base Directory Specification), else in the folder for temporary
/// files.
pub(crate) fn user_cache() -> PathBuf {
    let set = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    // The specification says to ignore relative paths.
    let home = set.filter(|path| path.is_absolute()).or_else(|| Some(std::env::home_dir()?.join(".cache")));
    home.unwrap_or_else(std::env::temp_dir).join("haf-dist")
}

/// Removes the least recently used files of `folder` until the rest has at most `most` bytes. A file that cannot be removed
/// stays: a cache is no reason to fail. Subfolders and links are left alone.
pub(crate) fn bound(folder: &Path, most: u64) {
    let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            let used = metadata.accessed().or_else(|_| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let written = metadata.modified().unwrap_or(used);
            files.push((used.max(written), metadata.len(), entry.path()));
        }
    }
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, length, _)| length).sum();
    for (_, length, path) in files {
        if bytes <= most {
            break;
        }
        if fs::remove_file(&path).is_ok() {
            tracing::info!("removed {} from the cache, which is full", path.display());
            bytes -= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_go_until_the_rest_fits() {
        let folder = tempfile::tempdir().unwrap();
        for (number, name) in ["first", "second", "third"].iter().enumerate() {
            let path = folder.path().join(name);
            fs::write(&path, [0; 10]).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + number as u64);
            let times = fs::FileTimes::new().set_accessed(time).set_modified(time);
            fs::File::open(&path).unwrap().set_times(times).unwrap();
        }
        bound(folder.path(), 30);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        bound(folder.path(), 20);
        assert!(!folder.path().join("first").exists() && folder.path().join("second").exists());
        bound(folder.path(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        bound(&folder.path().join("absent"), 0);
    }
}
