//! Processes fetch a repository's files one after the other, so that ranks of a node and other runs wait for a download instead
//! of failing at the lock of the hub's client, which gives up after some seconds.

use std::fs::{File, TryLockError};
use std::path::Path;
use tracing::info;

/// Waits for this process's turn; it ends when the file is dropped. None if the file system has no locks.
pub(super) fn take(cache: &Path, repository: &str) -> Option<File> {
    let folder = cache.join(".locks").join(repository);
    std::fs::create_dir_all(&folder).ok()?;
    let file = File::options().create(true).append(true).open(folder.join("haf-dist.lock")).ok()?;
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => {
            info!("another process is fetching {repository}: waiting for it");
            file.lock().is_ok().then_some(file)
        }
        Err(TryLockError::Error(_)) => None,
    }
}
