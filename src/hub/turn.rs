//! Processes fetch a file one after the other, so that ranks of a node and other runs wait for a download instead of failing at
//! the lock of the hub's client, which gives up after some seconds.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};
use tracing::info;

/// Time between two looks at the lock.
const POLL: Duration = Duration::from_millis(200);
/// Time between two messages that say what is waited for.
const REPEAT: Duration = Duration::from_secs(60);

/// Waits for this process's turn to fetch `file` of a repository; it ends when the result is dropped. None if the file system
/// has no locks.
pub(super) fn take(cache: &Path, repository: &str, file: &str) -> Option<File> {
    let folder = cache.join(".locks").join(repository);
    let path = folder.join(format!("haf-dist--{}.lock", file.replace('/', "--")));
    std::fs::create_dir_all(&folder).ok()?;
    let lock = File::options().create(true).append(true).open(&path).ok()?;
    let mut said: Option<Instant> = None;
    loop {
        match lock.try_lock() {
            Ok(()) => return Some(lock),
            Err(TryLockError::Error(_)) => return None,
            Err(TryLockError::WouldBlock) => {}
        }
        if said.is_none_or(|said| said.elapsed() >= REPEAT) {
            info!("another process is fetching {file} of {repository}: waiting for it ({} is locked)", path.display());
            said = Some(Instant::now());
        }
        std::thread::sleep(POLL);
    }
}
