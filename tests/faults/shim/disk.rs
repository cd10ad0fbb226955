//! What a disk is certain to hold: files up to where they were flushed, entries of folders that were flushed. A strict reading
//! of POSIX; most file systems keep more.
//!
//! Removals count as kept at once. Files are assumed to grow only at their end, as those of haf-dist do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The disk under the process.
pub static DISK: Disk = Disk { state: Mutex::new(State { flushed: BTreeMap::new(), pending: Vec::new(), kept: 0 }) };

/// See [`DISK`].
pub struct Disk {
    state: Mutex<State>,
}

struct State {
    /// File -> bytes of it that the disk has.
    flushed: BTreeMap<PathBuf, u64>,
    /// Changes of folders that the disk may not have, in their order.
    pending: Vec<Change>,
    /// Replaced files that are still kept, so far.
    kept: usize,
}

enum Change {
    Created(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
}

fn moved(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.to_path_buf(),
        Ok(rest) => to.join(rest),
        Err(_) => path.to_path_buf(),
    }
}

impl State {
    fn follow(&mut self, from: &Path, to: &Path) {
        let flushed = std::mem::take(&mut self.flushed);
        self.flushed = flushed.into_iter().map(|(path, length)| (moved(&path, from, to), length)).collect();
        for change in &mut self.pending {
            if let Change::Created(path) = change {
                *path = moved(path, from, to);
            }
        }
    }
}

impl Disk {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// A file was opened to be written.
    pub fn opened(&self, path: &Path, existed: bool, creates: bool, truncates: bool) {
        self.with(|state| {
            if !existed && creates {
                state.pending.push(Change::Created(path.to_path_buf()));
                state.flushed.insert(path.to_path_buf(), 0);
            } else if truncates {
                state.flushed.insert(path.to_path_buf(), 0);
            } else if !state.flushed.contains_key(path) {
                let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
                state.flushed.insert(path.to_path_buf(), length);
            }
        });
    }

    /// A folder was made.
    pub fn created(&self, path: PathBuf) {
        self.with(|state| state.pending.push(Change::Created(path)));
    }

    /// A file's content or a folder's entries have reached the disk, unless the disk is told to lie about this name.
    pub fn flushed(&self, path: &Path) {
        let lies = std::env::var_os("FAULT_LIE");
        if lies.is_some_and(|name| path.file_name() == Some(&name)) {
            return;
        }
        self.with(|state| match fs::metadata(path) {
            Ok(found) if found.is_dir() => state.pending.retain(|change| match change {
                Change::Created(made) => made.parent() != Some(path),
                Change::Renamed { to, .. } => to.parent() != Some(path),
            }),
            Ok(found) => drop(state.flushed.insert(path.to_path_buf(), found.len())),
            Err(_) => {}
        });
    }

    /// Keeps what a rename is about to replace.
    pub fn keep(&self, path: &Path) -> Option<PathBuf> {
        let folder = PathBuf::from(std::env::var_os("FAULT_KEPT")?);
        if !path.is_file() {
            return None;
        }
        self.with(|state| {
            state.kept += 1;
            let kept = folder.join(state.kept.to_string());
            fs::hard_link(path, &kept).ok().map(|()| kept)
        })
    }

    /// A rename was done.
    pub fn renamed(&self, from: PathBuf, to: PathBuf, replaced: Option<PathBuf>) {
        self.with(|state| {
            state.follow(&from, &to);
            state.pending.push(Change::Renamed { from, to, replaced });
        });
    }

    /// Undoes what the disk was not told to keep.
    pub fn cut(&self) {
        self.with(|state| {
            for change in std::mem::take(&mut state.pending).into_iter().rev() {
                match change {
                    Change::Created(path) => {
                        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
                    }
                    Change::Renamed { from, to, replaced } => {
                        if fs::rename(&to, &from).is_ok() {
                            state.follow(&to, &from);
                        }
                        if let Some(kept) = replaced {
                            let _ = fs::rename(kept, &to);
                        }
                    }
                }
            }
            for (path, length) in &state.flushed {
                if fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > *length) {
                    let _ = fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(*length));
                }
            }
        });
    }
}
