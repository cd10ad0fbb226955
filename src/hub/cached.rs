//! A repository in the hub's cache: `refs/REVISION` names a commit, `snapshots/COMMIT` has its files.
//!
//! Not here: filling it (`client.rs`).

use super::Snapshot;
use crate::error::{Result, file_error};
use crate::files::write_atomic;
use std::io::ErrorKind;
use std::path::Path;

/// The commit that a revision named when it was fetched, and its cached files; `None` if there are none.
pub(super) fn list(repository: &Path, revision: &str) -> Result<Option<(String, Vec<String>)>> {
    let reference = repository.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        // The revision may be a commit itself.
        Err(error) if error.kind() == ErrorKind::NotFound => revision.to_owned(),
        Err(error) => return Err(file_error(&reference, "read", &error)),
    };
    let folder = repository.join("snapshots").join(&commit);
    if commit.is_empty() || !folder.is_dir() {
        return Ok(None);
    }
    let mut files = Vec::new();
    walk(&folder, "", &mut files)?;
    files.sort();
    Ok((!files.is_empty()).then_some((commit, files)))
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| file_error(folder, "read", &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| file_error(folder, "read", &error))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Files are links to blobs; a link whose blob is gone does not count.
        if path.is_dir() {
            walk(&path, &format!("{name}/"), files)?;
        } else if path.exists() {
            files.push(name);
        }
    }
    Ok(())
}

/// Records the commit of a revision, for later use without the hub.
pub(super) fn note_revision(repository: &Path, snapshot: &Snapshot) -> Result<()> {
    let folder = repository.join("refs");
    std::fs::create_dir_all(&folder).map_err(|error| file_error(&folder, "create", &error))?;
    write_atomic(&folder.join(&snapshot.revision), snapshot.commit.as_bytes())
}
