//! Checkpoints: written whole or not at all, found again, and checked before they are used.
//!
//! ```text
//! RUN/step-N/                a Hugging Face folder: config.json, model.safetensors (compute precision), tokenizer ...
//!                            with adapters PEFT's: adapter_config.json, adapter_model.safetensors, tokenizer ...
//!                            with either also haf_dist.json: template, lengths and precision of the training;
//!                            self-test.json: conversations with their rewards, to check other programs
//! RUN/step-N/trainer/        masters.safetensors, moments.safetensors, state.json, config.toml, files.json
//! RUN/step-N.partial/        left by a killed save; never read, removed by the next save
//! ```
//!
//! Only rank 0 calls these functions. Not here: the meaning of the tensors, and when to save.

mod adapter;
mod as_trained;
mod chat_template;
mod export;
mod fitted;
mod folder;
mod manifest;
mod self_test;

pub(crate) use adapter::AdapterOf;
pub use as_trained::AsTrained;
pub(crate) use chat_template::write as write_chat_template;
pub use chat_template::{ChatTemplates, Rendering, as_others_read, copy_named_templates};
pub(crate) use export::{Export, complete_config};
pub use export::{choose_pad_token, end_tokens, pad_token, special_tokens};
pub(crate) use fitted::FittedOn;
pub use fitted::{Fitted, Weights};
pub use folder::{check_disk, expected_bytes, newest, retain, set_aside, start_run};
pub(crate) use folder::{check_run, is_of_run, keep_model_files, link_best, of_run, step_path};
pub use manifest::{Changed, FileCheck};
pub(crate) use self_test::{Case, LeftOut, SELF_TEST, data_of};
pub use self_test::{Planned, SelfTest};

use crate::config::Config;
use crate::error::{Error, Result, file_error};
use crate::files::{self, sync};
use crate::safetensors_io::{self, Entry};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder inside a checkpoint that only this program reads.
pub(crate) const TRAINER: &str = "trainer";
/// The exported weights, inside a checkpoint of a whole model.
pub const MODEL: &str = "model.safetensors";
/// The f32 masters, inside a checkpoint.
pub(crate) const MASTERS: &str = "trainer/masters.safetensors";
/// AdamW's moments, inside a checkpoint: `exp_avg.NAME` and `exp_avg_sq.NAME`.
pub(crate) const MOMENTS: &str = "trainer/moments.safetensors";
/// The [`TrainState`], inside a checkpoint.
pub const STATE: &str = "trainer/state.json";
/// The resolved configuration, inside a checkpoint.
pub const CONFIG: &str = "trainer/config.toml";

/// Version of the layout of `trainer/`; other versions are refused.
const FORMAT: u32 = 1;
/// The largest state.json; it has a few hundred bytes.
const MOST_STATE: u64 = 1 << 20;

/// A run's state without its tensors. The position in the data follows from `step` alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Updates done.
    pub step: usize,
    /// Ranks that did them. With another number a resumed run is equal only up to rounding.
    pub world_size: usize,
    /// Threads per rank; the same holds as for `world_size`.
    pub threads: usize,
    /// Hash of what the order of pairs depends on; a resumed run must have the same.
    pub data_key: String,
    /// Hash of the starting model's files; a resumed run must have the same, and so must a reference.
    pub model_key: String,
    /// The best evaluation on the dev pairs so far.
    pub best: Option<Best>,
    /// Updates that were skipped because a gradient was not finite.
    pub updates_skipped: usize,
    /// The content of `metrics.jsonl` by then; absent in checkpoints of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsMark>,
}

/// Number and digest of the lines a run had written into `metrics.jsonl`, so that a resumed run notices missing ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsMark {
    /// Lines.
    pub lines: usize,
    /// Their digest, a chain over the lines without values that depend on the clock: the same for a run that was resumed.
    pub digest: String,
}

impl TrainState {
    /// Hash of all fields.
    pub(crate) fn fingerprint(&self) -> u128 {
        files::fingerprint_parts([format!("{self:?}").as_bytes()])
    }
}

/// An evaluation on the dev pairs, and the checkpoint it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The checkpoint's step.
    pub step: usize,
    /// Share of pairs ranked correctly; a tie counts as one half.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy: f64,
    /// Total loss.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
}

impl Best {
    /// Whether this one has the higher accuracy or, with the same accuracy, the lower loss. A NaN is worse than any
    /// number.
    pub fn beats(&self, other: &Self) -> bool {
        let rank = |value: f64| if value.is_nan() { f64::NEG_INFINITY } else { value };
        (rank(self.accuracy), rank(-self.loss)) > (rank(other.accuracy), rank(-other.loss))
    }
}

/// JSON has no NaN; serde_json writes null for it.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u32,
    #[serde(flatten)]
    state: TrainState,
}

/// The content of a checkpoint.
pub struct Snapshot<'a> {
    /// Updates done: the N of `step-N`.
    pub step: usize,
    /// The folder that config.json and the tokenizer's files are copied from.
    pub model_dir: &'a Path,
    /// The adapters to save; None for a whole model.
    pub adapter: Option<AdapterOf<'a>>,
    /// The exported weights under the source's names, in compute precision (`lm_head.weight` only when untied), and
    /// `score.weight`, [1, D], in f32. With adapters, only theirs and `score.weight`, in f32.
    pub weights: Vec<Entry<'a>>,
    /// f32 masters of the trained parameters.
    pub masters: Vec<Entry<'a>>,
    /// AdamW's moments of the trained parameters: `exp_avg.NAME` and `exp_avg_sq.NAME`, f32.
    pub moments: Vec<Entry<'a>>,
    /// Name of the Transformers class, such as `LlamaForSequenceClassification`.
    pub architecture: &'a str,
    /// A token that occurs in no sequence and is not an end of sequence; see [`choose_pad_token`].
    pub pad_token_id: u32,
    /// The chat templates of the exported folder.
    pub templates: &'a ChatTemplates,
    /// Fixed conversations with the rewards of these weights; None if these could not be computed.
    pub self_test: Option<SelfTest>,
    /// Values fitted on the dev pairs; None without dev pairs.
    pub fitted: Option<Fitted>,
    /// The run's state.
    pub state: &'a TrainState,
    /// The resolved configuration.
    pub config: &'a Config,
}

/// Writes `run/step-N/` and returns its path.
///
/// Everything goes into `step-N.partial/` first and is flushed to the disk, file by file and folder by folder, before
/// one rename gives it its name: a kill at any moment leaves either no `step-N` or a whole one. Leftovers of earlier
/// kills are removed first.
///
/// # Errors
/// An existing `step-N` (nothing is overwritten), a source folder that cannot be read, a failed write. After an error,
/// everything written so far is removed.
pub fn save(run: &Path, snapshot: &Snapshot) -> Result<PathBuf> {
    let target = folder::step_path(run, snapshot.step);
    if fs::symlink_metadata(&target).is_ok() {
        return Err(Error::runtime(format!("{} exists already; a checkpoint is never overwritten", target.display()))
            .hint("move it away, or write to another [output] dir"));
    }
    folder::remove_partial(run)?;
    let partial = folder::partial_path(run, snapshot.step);
    let written = write_all(&partial, snapshot).and_then(|()| {
        fs::rename(&partial, &target).map_err(|error| file_error(&target, "rename the finished checkpoint to", &error))
    });
    if let Err(error) = written {
        // The error that stopped the save matters more than one met while cleaning up; the next save tries again.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    sync(run)?;
    Ok(target)
}

fn write_all(partial: &Path, snapshot: &Snapshot) -> Result<()> {
    let trainer = partial.join(TRAINER);
    fs::create_dir_all(&trainer).map_err(|error| file_error(&trainer, "create", &error))?;
    match &snapshot.adapter {
        Some(of) => adapter::write(partial, snapshot, of)?,
        None => {
            snapshot.export()?.write(partial)?;
            safetensors_io::write_model_entries(&partial.join(MODEL), &snapshot.weights)?;
        }
    }
    snapshot.templates.write(partial)?;
    let chat_template = Some(snapshot.templates.rendering());
    AsTrained { chat_template, fitted: snapshot.fitted.clone(), ..AsTrained::of(snapshot.config) }.write(partial)?;
    if let Some(self_test) = &snapshot.self_test {
        self_test.write(partial)?;
    }
    safetensors_io::write(&partial.join(MASTERS), &snapshot.masters, &BTreeMap::new())?;
    safetensors_io::write(&partial.join(MOMENTS), &snapshot.moments, &BTreeMap::new())?;
    let state = StateFile { format: FORMAT, state: snapshot.state.clone() };
    write_text(&partial.join(STATE), &to_json(&state)?)?;
    write_text(&partial.join(CONFIG), &snapshot.config.resolved_toml()?)?;
    manifest::write(partial)?;
    sync(&trainer)?;
    sync(partial)
}

fn to_json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|error| Error::runtime(format!("cannot be written as JSON: {error}")))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| file_error(path, "write", &error))?;
    sync(path)
}

/// Reads JSON of at most `most` bytes, with an error that names the file.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path, most: u64) -> Result<T> {
    let text = files::read_within(path, most)?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::input(format!("{}: {error}", path.display())).hint("get the folder again, or name another")
    })
}

/// Reads the run's state from the checkpoint at `dir`.
///
/// # Errors
/// [`Error::input`] for a folder that this program did not write, or that another version of it wrote.
pub fn load_state(dir: &Path) -> Result<TrainState> {
    let path = dir.join(STATE);
    let file: StateFile = read_json(&path, MOST_STATE)?;
    if file.format != FORMAT {
        return Err(Error::input(format!("{}: format {} (this program reads {FORMAT})", path.display(), file.format))
            .hint("use the version of haf-dist that wrote it"));
    }
    Ok(file.state)
}
