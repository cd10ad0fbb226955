//! `trainer/files.json`: size and hash of every file of a checkpoint, written last, so that damage can be detected.
//!
//! `--resume` checks all files before it continues ([`check`]). Commands that only read the model check the files they read
//! ([`FileCheck`]): the weights are hashed while they are loaded, so that the disk is read once.

use super::{STATE, TRAINER, read_json, to_json, write_text};
use crate::error::{Error, Result, file_error};
use crate::files;
use crate::model::weight_index::is_inside;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use xxhash_rust::xxh3::Xxh3;

const FILE: &str = "trainer/files.json";

/// The largest; a file takes a hundred bytes of it.
const MOST_BYTES: u64 = 16 << 20;

/// Files in `trainer/` that say how a model was trained; the others serve only `--resume`, and may be missing.
const READ_WITH_THE_MODEL: [&str; 2] = [STATE, super::CONFIG];

/// Bytes hashed at a time.
const CHUNK: usize = 1 << 20;

/// A file's size and hash.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    /// XXH3, 64 bits, in hexadecimal digits.
    xxh3: String,
}

/// Path inside the checkpoint -> size and hash.
type Manifest = BTreeMap<String, Entry>;

/// Lists all files in `checkpoint`, including those in its folders.
pub(crate) fn write(checkpoint: &Path) -> Result<()> {
    let mut manifest = Manifest::new();
    list(checkpoint, "", &mut manifest)?;
    write_text(&checkpoint.join(FILE), &to_json(&manifest)?)
}

fn list(folder: &Path, prefix: &str, manifest: &mut Manifest) -> Result<()> {
    let failed = |error: std::io::Error| file_error(folder, "list", &error);
    for item in fs::read_dir(folder).map_err(failed)? {
        let (path, name) = item.map(|item| (item.path(), item.file_name())).map_err(failed)?;
        let name = format!("{prefix}{}", name.to_string_lossy());
        match path.is_dir() {
            true => list(&path, &format!("{name}/"), manifest)?,
            false => drop(manifest.insert(name, entry(&path)?)),
        }
    }
    Ok(())
}

/// Reads the list, which may be somebody else's: it names files of the checkpoint only.
fn read(checkpoint: &Path) -> Result<Manifest> {
    let path = checkpoint.join(FILE);
    let manifest: Manifest = read_json(&path, MOST_BYTES)?;
    match manifest.keys().find(|name| !is_inside(name)) {
        Some(name) => Err(Error::input(format!("{}: {name:?} is not a file of this folder", path.display()))
            .hint("get the folder again, or name another")),
        None => Ok(manifest),
    }
}

/// Checks that every file is as it was written. Files added since do not matter.
///
/// # Errors
/// Says which file is missing or changed.
pub(crate) fn check(checkpoint: &Path) -> Result<()> {
    let manifest = read(checkpoint)?;
    // All sizes first: that is quick, and finds the damage of a full disk or an interrupted copy.
    manifest.iter().try_for_each(|(name, expected)| check_size(&checkpoint.join(name), expected))?;
    manifest.iter().try_for_each(|(name, expected)| check_hash(&checkpoint.join(name), expected))
}

/// What happens if files have changed since they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// An error.
    Refused,
    /// A warning: the user knows (`--allow-changed`).
    Allowed,
}

impl Changed {
    /// From the flag `--allow-changed`.
    pub(crate) fn allowed_if(flag: bool) -> Self {
        if flag { Self::Allowed } else { Self::Refused }
    }

    /// Turns an allowed change into a warning; adds a hint to one that is refused.
    pub(crate) fn judge(self, outcome: Result<()>) -> Result<()> {
        match (outcome, self) {
            (Err(error), Self::Allowed) => {
                tracing::warn!("{}: used anyway because of --allow-changed", error.message);
                Ok(())
            }
            (Err(error), Self::Refused) => Err(error.hint(
                "get the folder again or use another checkpoint; if the file was changed on purpose: --allow-changed",
            )),
            (outcome, _) => outcome,
        }
    }
}

/// The check of folders from which a model is being read. [Finish](Self::finish) it before the model is used.
#[must_use = "a check that is not finished has found nothing yet"]
#[derive(Debug)]
pub struct FileCheck {
    changed: Changed,
    weights: Option<JoinHandle<Result<()>>>,
}

impl FileCheck {
    /// Starts to check those of `folders` that are checkpoints of this program: the sizes of all files and the hashes of small
    /// ones at once, the weights' hashes on a thread of their own. Folders without `trainer/` have no hashes to check.
    ///
    /// # Errors
    /// A file that is missing or changed, unless `changed` allows it; a thread that does not start.
    pub fn begin<'a>(folders: impl IntoIterator<Item = &'a Path>, changed: Changed) -> Result<Self> {
        let mut weights = Vec::new();
        for folder in folders {
            let whole = folder.join(FILE).is_file() || folder.join(STATE).is_file();
            if whole {
                weights.extend(listed(folder, changed)?);
            }
        }
        if weights.is_empty() {
            return Ok(Self { changed, weights: None });
        }
        let work = move || weights.iter().try_for_each(|(path, expected)| check_hash(path, expected));
        let thread = std::thread::Builder::new().name("check of files".into()).spawn(work).map_err(|error| {
            Error::runtime(format!("cannot start the thread that checks the model's files: {error}"))
        })?;
        Ok(Self { changed, weights: Some(thread) })
    }

    /// Waits for the weights' hashes.
    ///
    /// # Errors
    /// A file that has changed, unless that is allowed.
    pub fn finish(self) -> Result<()> {
        let Some(thread) = self.weights else { return Ok(()) };
        let ended = || Err(Error::runtime("the thread that checks the model's files ended before its work was done"));
        self.changed.judge(thread.join().unwrap_or_else(|_| ended()))
    }
}

/// Checks everything in the checkpoint `folder` that is quick to check; returns its weights, which are not.
fn listed(folder: &Path, changed: Changed) -> Result<Vec<(PathBuf, Entry)>> {
    let manifest = match read(folder) {
        Ok(manifest) => manifest,
        Err(error) => return changed.judge(Err(error)).map(|()| Vec::new()),
    };
    let mut weights = Vec::new();
    for (name, expected) in manifest {
        let path = folder.join(&name);
        let for_resume_alone = name.starts_with(TRAINER) && !READ_WITH_THE_MODEL.contains(&name.as_str());
        if for_resume_alone && fs::symlink_metadata(&path).is_err() {
            continue;
        }
        changed.judge(check_size(&path, &expected))?;
        match (for_resume_alone, name.ends_with(".safetensors")) {
            (true, _) => {}
            (false, true) => weights.push((path, expected)),
            (false, false) => changed.judge(check_hash(&path, &expected))?,
        }
    }
    Ok(weights)
}

fn check_size(path: &Path, expected: &Entry) -> Result<()> {
    let bytes = fs::metadata(path).map_err(|error| file_error(path, "read", &error))?.len();
    if bytes != expected.bytes {
        let path = path.display();
        return Err(Error::input(format!("{path} has {bytes} bytes, but {} were written", expected.bytes)));
    }
    Ok(())
}

fn check_hash(path: &Path, expected: &Entry) -> Result<()> {
    if entry(path)? != *expected {
        return Err(Error::input(format!("{} has changed since it was written", path.display())));
    }
    Ok(())
}

fn entry(path: &Path) -> Result<Entry> {
    let failed = |error: std::io::Error| file_error(path, "read", &error);
    let mut file = files::open(path).map_err(failed)?;
    let (mut hash, mut bytes, mut chunk) = (Xxh3::new(), 0, vec![0; CHUNK]);
    loop {
        let length = file.read(&mut chunk).map_err(failed)?;
        if length == 0 {
            return Ok(Entry { bytes, xxh3: format!("{:016x}", hash.digest()) });
        }
        hash.update(&chunk[..length]);
        bytes += length as u64;
    }
}
