//! The run's folder: starting a run in it, finding and deleting its checkpoints, and whether the disk has room for them.

use super::chat_template::copy_named_templates;
use super::export::COMPANIONS;
use super::{STATE, load_state, manifest};
use crate::data::tokenizer_files;
use crate::error::{Error, Result, file_error};
use crate::files::{self, UnfinishedFolder};
use crate::model::adapter::WEIGHTS;
use crate::model::peft::PeftConfig;
use crate::safetensors_io::Mapped;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tch::Kind;

/// The link to the best checkpoint, inside a run's folder.
const BEST: &str = "best";

/// The file locked by the process that writes into a run's folder.
const LOCK: &str = ".lock";

/// Files that show that a folder holds a model.
const MODEL_FILES: [&str; 3] = ["config.json", "model.safetensors", "adapter_config.json"];

/// Path of the checkpoint of `step`.
pub(crate) fn step_path(run: &Path, step: usize) -> PathBuf {
    run.join(format!("step-{step}"))
}

/// Its path while it is written or removed.
pub(crate) fn partial_path(run: &Path, step: usize) -> PathBuf {
    run.join(format!("step-{step}.partial"))
}

/// A folder with a checkpoint's name.
enum Entry {
    Step(usize),
    Partial(PathBuf),
}

/// The steps of the checkpoints in `run`, ascending, and the partial ones. Links and files do not count.
fn entries(run: &Path) -> Result<(Vec<usize>, Vec<PathBuf>)> {
    let failed = |error: std::io::Error| file_error(run, "list", &error);
    let (mut steps, mut partial) = (vec![], vec![]);
    for item in fs::read_dir(run).map_err(failed)? {
        let item = item.map_err(failed)?;
        if !item.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        match classify(&item.file_name().to_string_lossy(), item.path()) {
            Some(Entry::Step(step)) => steps.push(step),
            Some(Entry::Partial(path)) => partial.push(path),
            None => {}
        }
    }
    steps.sort_unstable();
    partial.sort();
    Ok((steps, partial))
}

fn classify(name: &str, path: PathBuf) -> Option<Entry> {
    let rest = name.strip_prefix("step-")?;
    let digits = rest.strip_suffix(".partial").unwrap_or(rest);
    let step: usize = digits.parse().ok()?;
    // Only the names this program gives: `step-7`, not `step-007` or `step-+7`.
    if step.to_string() != digits {
        return None;
    }
    Some(if digits == rest { Entry::Step(step) } else { Entry::Partial(path) })
}

/// Checks that `dir` holds a run if and only if one is to be resumed. Changes nothing.
///
/// # Errors
/// [`Error::input`] for a folder that holds a run (`metrics.jsonl` or `step-*`) without `resume`, for `resume` if
/// there is none, or for a path that is not a folder.
pub(crate) fn check_run(dir: &Path, resume: bool) -> Result<()> {
    let place = dir.display();
    // For a folder that does not exist yet, the nearest existing one above it.
    if let Some(file) = dir.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
        let file = file.display();
        return Err(Error::input(format!("[output] dir: {file} is not a folder")).hint("name another folder"));
    }
    let found = if dir.exists() { sign_of_a_run(dir)? } else { None };
    match (found, resume) {
        (Some(found), false) => Err(Error::input(format!("[output] dir: {place} already holds a run ({found})"))
            .hint("add --resume to continue it, or name another [output] dir")),
        (None, true) => Err(Error::input(format!("--resume: {place} holds no run to continue"))
            .hint("check [output] dir, or leave --resume out to start a new run")),
        (Some(_), true) | (None, false) => Ok(()),
    }
}

/// While this lives, no other process may run in the folder. The system releases the claim however the process ends.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}

/// Makes `dir` ready for a run: creates it for a new run, claims it for this process, and removes the remains of killed saves.
///
/// # Errors
/// Those of [`check_run`]; another process that has the folder claimed; a failed change.
pub fn start_run(dir: &Path, resume: bool) -> Result<Claim> {
    check_run(dir, resume)?;
    if !resume {
        files::make_folder(dir).map_err(|error| file_error(dir, "create", &error))?;
    }
    let claim = claim(dir)?;
    if let Some(model) = MODEL_FILES.into_iter().find(|name| dir.join(name).exists()) {
        let place = dir.display();
        tracing::warn!("[output] dir: {place} holds a model ({model}): the run's files will be mixed with the model's");
    }
    // Another process may have started its run since the first look.
    check_run(dir, resume)?;
    remove_partial(dir)?;
    files::clear_unfinished(dir);
    Ok(claim)
}

/// Locks `dir/.lock`. The file is never deleted: otherwise a third process could lock a new file of the same name.
fn claim(dir: &Path) -> Result<Claim> {
    let path = dir.join(LOCK);
    let failed = |error: std::io::Error| file_error(&path, "open", &error);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::input(format!("[output] dir: another run is writing into {}", dir.display()))
                .hint("wait for it or stop it, or name another [output] dir"));
        }
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) => {
            tracing::warn!("cannot lock {}: {error}; make sure that no second run writes there", path.display());
        }
    }
    Ok(Claim { _file: file })
}

/// Copies config.json and the tokenizer's files of `model_dir` into a folder within `run` that is deleted with the returned
/// value. So every checkpoint has them as they were when the run started, even if the model's folder changes.
///
/// # Errors
/// A failed read or write.
pub(crate) fn keep_model_files(run: &Path, model_dir: &Path) -> Result<UnfinishedFolder> {
    let kept =
        files::unfinished_folder(&run.join("model")).map_err(|error| file_error(run, "make a folder in", &error))?;
    for name in COMPANIONS.iter().chain(&["config.json"]) {
        let source = model_dir.join(name);
        if source.is_file() {
            files::copy_within(&source, &kept.path().join(name), tokenizer_files::MOST_BYTES)?;
        }
    }
    copy_named_templates(model_dir, kept.path())?;
    Ok(kept)
}

fn sign_of_a_run(dir: &Path) -> Result<Option<String>> {
    let failed = |error: std::io::Error| file_error(dir, "list", &error);
    let mut found: Vec<String> = vec![];
    for item in fs::read_dir(dir).map_err(failed)? {
        let name = item.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name == "metrics.jsonl" || name.starts_with("step-") {
            found.push(name);
        }
    }
    // The same answer in whatever order the file system lists.
    Ok(found.into_iter().min())
}

/// Removes the remains of killed saves and removals.
pub(crate) fn remove_partial(run: &Path) -> Result<()> {
    for path in entries(run)?.1 {
        tracing::info!("removing {}, left by an interrupted save", path.display());
        fs::remove_dir_all(&path).map_err(|error| file_error(&path, "remove", &error))?;
    }
    Ok(())
}

/// The checkpoint that a run's folder stands for: the best on its dev pairs, else the newest that can be read; `None` if
/// `folder` is not a run's, or itself a model's. Does not check that its files are whole.
///
/// # Errors
/// A folder that cannot be listed.
pub(crate) fn of_run(folder: &Path) -> Result<Option<PathBuf>> {
    if !folder.is_dir() || folder.join("config.json").exists() || PeftConfig::is_in(folder) {
        return Ok(None);
    }
    let (steps, _) = entries(folder)?;
    let newest = steps.into_iter().rev().map(|step| step_path(folder, step)).find_map(|path| {
        let state = load_state(&path).ok()?;
        Some((path, state.best))
    });
    Ok(newest.map(|(newest, best)| {
        let best = best.map(|best| step_path(folder, best.step));
        best.filter(|path| path.is_dir()).unwrap_or(newest)
    }))
}

/// Whether a checkpoint lies where its run wrote it: in the folder `dir`, its config's `output.dir`, which shows that a run of
/// this program was here. One that was copied or downloaded alone does not.
pub(crate) fn is_of_run(checkpoint: &Path, dir: &Path) -> bool {
    // Also through the link to the best.
    let (Ok(checkpoint), Ok(dir)) = (checkpoint.canonicalize(), dir.canonicalize()) else { return false };
    checkpoint.parent() == Some(&dir) && dir.join(LOCK).is_file()
}

/// The newest whole checkpoint of a run; `None` if there is none.
///
/// Whole means: every file has the size and the hash it was written with, and the tensor files and the state can be
/// read. Warns of each checkpoint that is skipped, with the reason. Reads the checkpoint once from end to end.
///
/// # Errors
/// A folder that cannot be listed.
pub fn newest(run: &Path) -> Result<Option<PathBuf>> {
    let (steps, partial) = entries(run)?;
    for path in partial {
        tracing::warn!("skipping {}: its save was interrupted", path.display());
    }
    for step in steps.into_iter().rev() {
        let path = step_path(run, step);
        match check(&path, step) {
            Ok(()) => return Ok(Some(path)),
            Err(error) => tracing::warn!("skipping {}, which is damaged: {}", path.display(), error.message),
        }
    }
    Ok(None)
}

fn check(path: &Path, step: usize) -> Result<()> {
    let state = load_state(path)?;
    if state.step != step {
        return Err(Error::input(format!("its state is from step {}", state.step)));
    }
    manifest::check(path)?;
    let exported = if PeftConfig::is_in(path) { WEIGHTS } else { super::MODEL };
    for file in [exported, super::MASTERS, super::MOMENTS] {
        Mapped::open(&path.join(file))?;
    }
    Ok(())
}

/// Renames checkpoints beyond `step` to `step-N.damaged`, so that a run resumed from `step` can write its own. Returns
/// their steps.
///
/// For the start of a resumed run: checkpoints newer than the newest whole one are damaged. Deletes nothing.
///
/// # Errors
/// A failed rename.
pub fn set_aside(run: &Path, step: usize) -> Result<Vec<usize>> {
    let beyond: Vec<usize> = entries(run)?.0.into_iter().filter(|&found| found > step).collect();
    for &found in &beyond {
        let from = step_path(run, found);
        let names = (1..).map(|copy| if copy == 1 { String::new() } else { format!("-{copy}") });
        let mut targets = names.map(|suffix| run.join(format!("step-{found}.damaged{suffix}")));
        if let Some(target) = targets.find(|target| fs::symlink_metadata(target).is_err()) {
            fs::rename(&from, &target).map_err(|error| file_error(&from, "rename", &error))?;
            tracing::warn!("the damaged {} is now {}; it can be deleted", from.display(), target.display());
        }
    }
    Ok(beyond)
}

/// Deletes all checkpoints except the newest `keep` (at least one) and the one of step `best`. Returns the deleted steps.
///
/// Counts and deletes only folders that this program wrote: `step-N` with `trainer/state.json` inside. Renames a folder before
/// it deletes its files, so that a kill in between leaves no half checkpoint.
///
/// # Errors
/// A failed rename or removal.
pub fn retain(run: &Path, keep: usize, best: Option<usize>) -> Result<Vec<usize>> {
    let mut steps = entries(run)?.0;
    steps.retain(|&step| step_path(run, step).join(STATE).is_file());
    steps.truncate(steps.len().saturating_sub(keep.max(1)));
    steps.retain(|&step| Some(step) != best);
    for &step in &steps {
        let (path, partial) = (step_path(run, step), partial_path(run, step));
        let removed = fs::rename(&path, &partial).and_then(|()| fs::remove_dir_all(&partial));
        removed.map_err(|error| file_error(&path, "remove", &error))?;
    }
    Ok(steps)
}

/// Makes `run/best` a link to the checkpoint of step `best`; does nothing if there is none, or if something else has that name.
/// Call it before [`retain`], which never deletes the best, so that the link is valid at any moment.
///
/// # Errors
/// A failed rename.
pub(crate) fn link_best(run: &Path, best: Option<usize>) -> Result<()> {
    let (link, partial) = (run.join(BEST), run.join(format!("{BEST}.partial")));
    let Some(step) = best.filter(|&step| step_path(run, step).is_dir()) else { return Ok(()) };
    if fs::symlink_metadata(&link).is_ok_and(|there| !there.is_symlink()) {
        tracing::warn!("{} is not a link and stays as it is; the best checkpoint is step-{step}", link.display());
        return Ok(());
    }
    // Relative, so that the run's folder can be moved.
    let _ = fs::remove_file(&partial);
    if let Err(error) = symlink(format!("step-{step}"), &partial) {
        tracing::warn!(
            "no link to the best checkpoint, which is step-{step}: this disk does not support links ({error})"
        );
        return Ok(());
    }
    fs::rename(&partial, &link).map_err(|error| {
        let _ = fs::remove_file(&partial);
        file_error(&link, "link the best checkpoint as", &error)
    })
}

/// Size of one checkpoint in bytes, without a few kilobytes of headers: `exported` numbers of a kind, `trained` numbers as f32
/// master and two f32 moments, and the files copied along from `model_dir`.
pub fn expected_bytes(model_dir: &Path, exported: (usize, Kind), trained: usize) -> u64 {
    let size = |name: &str| fs::metadata(model_dir.join(name)).map_or(0, |metadata| metadata.len());
    let companions: u64 = COMPANIONS.iter().map(|name| size(name)).sum();
    let tensors = exported.0 * exported.1.elt_size_in_bytes() + 3 * trained * Kind::Float.elt_size_in_bytes();
    companions + tensors as u64
}

/// Checks before the run that the disk under `run` has room for `checkpoints` of this size at a time, minus those it holds
/// already. Returns the sizes in words.
///
/// # Errors
/// [`Error::input`] if the disk has too little room.
pub fn check_disk(run: &Path, bytes_per_checkpoint: u64, checkpoints: usize) -> Result<String> {
    let held = if run.is_dir() { entries(run)?.0.len() } else { 0 };
    let needed = bytes_per_checkpoint.saturating_mul(checkpoints.saturating_sub(held).max(1) as u64);
    let free = free_bytes(run)?;
    let (each, free_text) = (size_text(bytes_per_checkpoint), size_text(free));
    if needed > free {
        return Err(Error::input(format!(
            "[output] dir: the disk of {} has {free_text} free, but {} are needed: up to {checkpoints} checkpoints of \
             {each} at a time, of which {held} exist",
            run.display(),
            size_text(needed)
        ))
        .hint("free some space, name an [output] dir on another disk, or keep fewer ([checkpoint] every, keep)"));
    }
    Ok(format!("a checkpoint takes {each}; up to {checkpoints} at a time, {free_text} free"))
}

/// Free space on the disk of `path`.
fn free_bytes(path: &Path) -> Result<u64> {
    let existing = files::nearest_existing(path);
    let disk = nix::sys::statvfs::statvfs(existing).map_err(|error| file_error(existing, "measure", &error.into()))?;
    Ok(disk.blocks_available() * disk.fragment_size())
}

/// A number of bytes in kB, MB or GB.
fn size_text(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
