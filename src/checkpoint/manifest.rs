//! `trainer/files.json`: size and hash of every file of a checkpoint, written last; what makes "whole" checkable.

use super::chat_template::NAMED;
use super::{TRAINER, read_json, to_json, write_text};
use crate::error::{Error, Result, file_error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const FILE: &str = "trainer/files.json";

/// How much of a file is hashed at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// What a file must look like.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    /// XXH3, 64 bits, in hexadecimal digits.
    xxh3: String,
}

/// Path inside the checkpoint -> what it must look like.
type Manifest = BTreeMap<String, Entry>;

/// Lists all that `checkpoint` holds.
pub fn write(checkpoint: &Path) -> Result<()> {
    let mut manifest = Manifest::new();
    for (folder, prefix) in [
        (checkpoint.to_path_buf(), String::new()),
        (checkpoint.join(NAMED), format!("{NAMED}/")),
        (checkpoint.join(TRAINER), format!("{TRAINER}/")),
    ] {
        if !folder.is_dir() {
            continue;
        }
        let failed = |error: std::io::Error| file_error(&folder, "list", &error);
        for item in fs::read_dir(&folder).map_err(failed)? {
            let path = item.map_err(failed)?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                manifest.insert(format!("{prefix}{}", name.to_string_lossy()), entry(&path)?);
            }
        }
    }
    write_text(&checkpoint.join(FILE), &to_json(&manifest)?)
}

/// Checks that every file is as it was written. Files added since do not matter.
///
/// # Errors
/// Says which file is missing or changed.
pub fn check(checkpoint: &Path) -> Result<()> {
    let manifest: Manifest = read_json(&checkpoint.join(FILE))?;
    let path = |name: &str| -> PathBuf { checkpoint.join(name) };
    // All the sizes first: that is quick, and finds what a full disk or a cut copy has done.
    for (name, expected) in &manifest {
        let path = path(name);
        let bytes = fs::metadata(&path).map_err(|error| file_error(&path, "read", &error))?.len();
        if bytes != expected.bytes {
            let path = path.display();
            return Err(Error::input(format!("{path} has {bytes} bytes, but {} were written", expected.bytes)));
        }
    }
    for (name, expected) in &manifest {
        if entry(&path(name))? != *expected {
            return Err(Error::input(format!("{} has changed since it was written", path(name).display())));
        }
    }
    Ok(())
}

fn entry(path: &Path) -> Result<Entry> {
    let failed = |error: std::io::Error| file_error(path, "read", &error);
    let mut file = File::open(path).map_err(failed)?;
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
