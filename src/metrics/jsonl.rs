//! `metrics.jsonl`: one JSON object a line, flushed a line at a time; nothing that was once written is lost.

use super::{EvaluationMetrics, Sink, StepMetrics};
use crate::error::{Error, Result, file_error};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

const FILE: &str = "metrics.jsonl";

/// The split that is evaluated once a run is over.
const TEST: &str = "test";

/// The sink that writes `metrics.jsonl`.
#[derive(Debug)]
pub struct Jsonl {
    path: PathBuf,
    file: File,
}

impl Jsonl {
    /// Starts `metrics.jsonl` in a new run's folder.
    ///
    /// # Errors
    /// [`Error::input`] where there is one already; a failed write.
    pub fn create(run: &Path) -> Result<Self> {
        let path = run.join(FILE);
        match File::create_new(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::input(format!("{} exists already", path.display()))
                    .hint("add --resume to continue that run, or name another [output] dir"))
            }
            Err(error) => Err(file_error(&path, "create", &error)),
        }
    }

    /// Continues the `metrics.jsonl` of a run that is resumed after `step` updates.
    ///
    /// Lines that were written after the checkpoint of that step, which the resumed run will write anew (later steps,
    /// and the closing test evaluation), and lines that are cut or damaged move to `metrics-after-step-N.jsonl` (`-2`,
    /// `-3` ... if that is taken); with `step` 0, nothing was saved and all lines move.
    ///
    /// # Errors
    /// A failed read or write.
    pub fn resume(run: &Path, step: usize) -> Result<Self> {
        let path = run.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(file_error(&path, "read", &error)),
        };
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let (kept, moved): (Vec<&[u8]>, Vec<&[u8]>) = lines.partition(|line| belongs(line, step));
        if !moved.is_empty() {
            let target = write_first_free(run, step, &moved)?;
            tracing::info!("{} lines of {} from after step {step} moved to {}", moved.len(), FILE, target.display());
        }
        // The lines moved are on the disk by now; a kill before the rename leaves them in both files.
        let fresh = run.join(format!("{FILE}.partial"));
        let failed = |error: std::io::Error| file_error(&fresh, "write", &error);
        let mut file = File::create(&fresh).map_err(failed)?;
        write_lines(&mut file, &kept).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(|error| file_error(&path, "replace", &error))?;
        Ok(Self { path, file })
    }

    fn write(&mut self, object: &impl Serialize) -> Result<()> {
        let failed = |error: std::io::Error| file_error(&self.path, "write", &error);
        let mut line = serde_json::to_vec(object).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        // One write a line, with no buffer in between: a kill cuts at most the line being written.
        self.file.write_all(&line).map_err(failed)
    }
}

impl Sink for Jsonl {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.write(metrics)
    }

    fn evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        self.write(metrics)
    }
}

/// Whether a line was written before the checkpoint of `step`. A cut or damaged line tells nothing.
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
    let mut copy = 1;
    loop {
        let suffix = if copy == 1 { String::new() } else { format!("-{copy}") };
        let path = run.join(format!("metrics-after-step-{step}{suffix}.jsonl"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                write_lines(&mut file, lines).map_err(|error| file_error(&path, "write", &error))?;
                return Ok(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => copy += 1,
            Err(error) => return Err(file_error(&path, "create", &error)),
        }
    }
}

fn write_lines(file: &mut File, lines: &[&[u8]]) -> std::io::Result<()> {
    let mut text = lines.join(&b"\n"[..]);
    if !lines.is_empty() {
        text.push(b'\n');
    }
    file.write_all(&text)?;
    file.sync_all()
}
