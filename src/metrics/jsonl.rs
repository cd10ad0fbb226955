//! `metrics.jsonl`: one JSON object per line, each written at once and on the disk before the next checkpoint. No written line is
//! lost, and lines removed by others are noticed.

use super::{Conflict, EvaluationMetrics, Sink, StepMetrics};
use crate::checkpoint::MetricsMark;
use crate::error::{Error, Result, file_error};
use crate::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The file, inside a run's folder.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// The split that is evaluated at the end of a run.
const TEST: &str = "test";

/// Keys that depend on the clock.
const CLOCK: [&str; 3] = ["pairs_per_s", "tokens_per_s", "seconds"];

/// The sink that writes `metrics.jsonl`.
#[derive(Debug)]
pub struct Jsonl {
    path: PathBuf,
    file: File,
    written: Chain,
}

/// The number of lines so far, and their digest.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Chain {
    lines: usize,
    digest: u64,
}

impl Chain {
    fn add(&mut self, line: &[u8]) {
        // Every line is an object: this program wrote it, or `belongs` has parsed it.
        let mut object: Map<String, Value> = serde_json::from_slice(line).unwrap_or_default();
        CLOCK.iter().for_each(|key| drop(object.shift_remove(*key)));
        let text = Value::Object(object).to_string();
        *self = Self { lines: self.lines + 1, digest: xxh3_64_with_seed(text.as_bytes(), self.digest) };
    }

    fn of(lines: &[&[u8]]) -> Self {
        let mut chain = Self::default();
        lines.iter().for_each(|line| chain.add(line));
        chain
    }

    fn mark(self) -> MetricsMark {
        MetricsMark { lines: self.lines, digest: format!("{:016x}", self.digest) }
    }

    fn read(mark: &MetricsMark) -> Option<Self> {
        Some(Self { lines: mark.lines, digest: u64::from_str_radix(&mark.digest, 16).ok()? })
    }
}

impl Jsonl {
    /// Starts `metrics.jsonl` in a new run's folder.
    ///
    /// # Errors
    /// [`Error::input`] if there is one already; a failed write.
    pub fn create(run: &Path) -> Result<Self> {
        let path = run.join(METRICS);
        match OpenOptions::new().read(true).append(true).create_new(true).open(&path) {
            Ok(file) => {
                files::sync(run)?;
                Ok(Self { path, file, written: Chain::default() })
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::input(format!("{} exists already", path.display()))
                    .hint("add --resume to continue that run, or name another [output] dir"))
            }
            Err(error) => Err(file_error(&path, "create", &error)),
        }
    }

    /// Continues the `metrics.jsonl` of a run that is resumed after `step` updates. Warns if it lacks lines that the run
    /// had written by then, according to the `mark` in its checkpoint.
    ///
    /// Lines from after that checkpoint (later steps and the closing test evaluation), which the resumed run writes anew,
    /// and cut or damaged lines move to `metrics-after-step-N.jsonl` (`-2`, `-3` ... if that is taken). With `step` 0,
    /// nothing was saved and all lines move.
    ///
    /// # Errors
    /// A failed read or write.
    pub fn resume(run: &Path, step: usize, mark: Option<&MetricsMark>) -> Result<Self> {
        let path = run.join(METRICS);
        let text = read_or_nothing(&path)?;
        let (kept, moved) = split(&text, step);
        let found = Chain::of(&kept);
        if let Some(warning) = difference(&kept, step, mark) {
            tracing::warn!("{}: {warning}", path.display());
        }
        if !moved.is_empty() {
            let target = write_first_free(run, step, &moved)?;
            tracing::info!("{} lines of {} from after step {step} moved to {}", moved.len(), METRICS, target.display());
        }
        // The moved lines are on the disk by now; a kill before the new file has its name leaves them in both files.
        let file = replace(&path, &joined(&kept))?;
        // The digest continues from the checkpoint's, so later ones equal those of a run that lost no line.
        Ok(Self { path, file, written: mark.and_then(Chain::read).unwrap_or(found) })
    }

    /// Warns if a run's `metrics.jsonl` lacks lines that the run had written by `step`. Changes nothing.
    ///
    /// # Errors
    /// A failed read.
    pub fn check(run: &Path, step: usize, mark: Option<&MetricsMark>) -> Result<()> {
        let path = run.join(METRICS);
        let text = read_or_nothing(&path)?;
        if let Some(warning) = difference(&split(&text, step).0, step, mark) {
            tracing::warn!("{}: {warning}", path.display());
        }
        Ok(())
    }

    fn write(&mut self, object: &impl Serialize) -> Result<()> {
        let failed = |error: io::Error| file_error(&self.path, "write", &error);
        let mut line = serde_json::to_vec(object).map_err(|error| failed(error.into()))?;
        self.written.add(&line);
        line.push(b'\n');
        // One write a line, with no buffer in between: a kill cuts at most the line being written.
        self.file.write_all(&line).map_err(failed)
    }

    /// Restores the file if somebody has removed it or has put another one in its place; that one is renamed.
    fn put_back(&mut self) -> Result<()> {
        let failed = |error: io::Error| file_error(&self.path, "read", &error);
        let own = self.file.metadata().map_err(failed)?;
        let place = match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (own.dev(), own.ino()) => return Ok(()),
            Ok(_) => {
                let set_aside = |path: &Path| match fs::symlink_metadata(path) {
                    Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                    Err(_) => fs::rename(&self.path, path),
                };
                let (aside, ()) = first_free(&self.path.with_file_name("metrics-replaced"), set_aside)?;
                format!("was replaced during the run: the other file is now {}", aside.display())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => "was removed during the run".to_owned(),
            Err(error) => return Err(failed(error)),
        };
        // The content exists as long as the file is open.
        let mut content = Vec::new();
        self.file.rewind().and_then(|()| self.file.read_to_end(&mut content)).map_err(failed)?;
        self.file = replace(&self.path, &content)?;
        tracing::warn!("{} {place}; it is written again, with every line so far", self.path.display());
        Ok(())
    }
}

impl Sink for Jsonl {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.write(metrics)
    }

    fn evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        self.write(metrics)
    }

    fn conflict(&mut self, conflict: &Conflict) -> Result<()> {
        self.write(conflict)
    }

    fn settle(&mut self) -> Result<Option<MetricsMark>> {
        self.put_back()?;
        self.file.sync_data().map_err(|error| file_error(&self.path, "flush", &error))?;
        Ok(Some(self.written.mark()))
    }
}

fn read_or_nothing(path: &Path) -> Result<Vec<u8>> {
    match files::read(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(file_error(path, "read", &error)),
    }
}

/// The lines from before the checkpoint of `step`, and the other lines.
fn split(text: &[u8], step: usize) -> (Vec<&[u8]>, Vec<&[u8]>) {
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.partition(|line| belongs(line, step))
}

/// How the lines found differ from those that were written before the checkpoint of `step`; `None` if they do not, or if the
/// checkpoint has no mark.
fn difference(kept: &[&[u8]], step: usize, mark: Option<&MetricsMark>) -> Option<String> {
    let mark = mark?;
    if Chain::of(kept).mark() == *mark {
        return None;
    }
    #[derive(Deserialize)]
    struct Step {
        step: usize,
        loss: Option<Value>,
    }
    let lines = kept.iter().filter_map(|line| serde_json::from_slice::<Step>(line).ok());
    let steps: BTreeSet<usize> = lines.filter(|line| line.loss.is_some()).map(|line| line.step).collect();
    let missing: Vec<usize> = (1..=step).filter(|step| !steps.contains(step)).collect();
    let problem = match (kept.len(), missing.as_slice()) {
        (0, _) => "it is gone, or empty".to_owned(),
        (_, []) if kept.len() == mark.lines => "it was changed or replaced".to_owned(),
        (found, []) => format!("it has {found} of {} lines from up to step {step}", mark.lines),
        (_, [one]) => format!("the line of step {one} is missing"),
        (_, [first, .., last]) => format!("lines of {} steps between {first} and {last} are missing", missing.len()),
    };
    Some(format!(
        "{problem}: it differs from what the run had written up to step {step}; training continues all the same"
    ))
}

/// Whether a line was written before the checkpoint of `step`. A cut or damaged line does not count.
fn belongs(line: &[u8], step: usize) -> bool {
    #[derive(Deserialize)]
    struct Line {
        step: usize,
        eval: Option<String>,
    }
    // The dev evaluation comes before the checkpoint of its step, the test evaluation after it.
    let before = |line: Line| line.step < step || (line.step == step && line.eval.as_deref() != Some(TEST));
    step > 0 && serde_json::from_slice(line).is_ok_and(before)
}

fn write_first_free(run: &Path, step: usize, lines: &[&[u8]]) -> Result<PathBuf> {
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    let (path, mut file) = first_free(&run.join(format!("metrics-after-step-{step}")), create)?;
    let written = file.write_all(&joined(lines)).and_then(|()| file.sync_all());
    written.map_err(|error| file_error(&path, "write", &error))?;
    Ok(path)
}

/// Makes the first of `STEM.jsonl`, `STEM-2.jsonl` ... that does not exist yet.
fn first_free<T>(stem: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(PathBuf, T)> {
    let mut copy = 1;
    loop {
        let suffix = if copy == 1 { String::new() } else { format!("-{copy}") };
        let mut path = stem.as_os_str().to_owned();
        path.push(format!("{suffix}.jsonl"));
        let path = PathBuf::from(path);
        match make(&path) {
            Ok(made) => return Ok((path, made)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => copy += 1,
            Err(error) => return Err(file_error(&path, "create", &error)),
        }
    }
}

/// Writes a file with that content to `path`, whole or not at all; returns it open for appending.
fn replace(path: &Path, content: &[u8]) -> Result<File> {
    files::write_atomic(path, content)?;
    let open = OpenOptions::new().read(true).append(true).open(path);
    open.map_err(|error| file_error(path, "open", &error))
}

fn joined(lines: &[&[u8]]) -> Vec<u8> {
    let mut text = lines.join(&b"\n"[..]);
    if !lines.is_empty() {
        text.push(b'\n');
    }
    text
}
