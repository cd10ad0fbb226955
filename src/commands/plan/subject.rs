//! The subject of a plan: a run's config, or a model with a config's defaults.
//!
//! Not here: the lengths of pairs (`lengths.rs`).

use crate::cli::{Model, Planning};
use crate::commands::{hub, setup};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::adapter::Origin;
use crate::model::architecture::Architecture;
use crate::plan::shapes;
use std::path::{Path, PathBuf};

/// The subject of a plan.
pub(crate) struct Subject {
    /// The config, or one with defaults.
    pub(crate) config: Config,
    /// The model.
    pub(crate) architecture: Architecture,
    /// The folder with the tokenizer, if there is a config and so data.
    pub(crate) tokenizer: Option<PathBuf>,
}

/// The config for a plan without one; never used for training.
const NO_CONFIG: &str = "[model]\npath = \"model\"\n[data]\ntrain = [{ path = \"train.jsonl\" }]\n[train]\nsteps = 1\n\
                         [output]\ndir = \"run\"\n";

/// Reads the config, and only the config.json of the model.
///
/// # Errors
/// A bad config or config.json, a shape that is not known, a hub that cannot be reached.
pub(crate) fn subject(planning: &Planning) -> Result<Subject> {
    if !planning.run.is_given() && planning.model().is_none() {
        return Err(Error::input("nothing to plan for: expected a config, --model or --shape")
            .hint("haf-dist plan my.toml --gpus 8, or haf-dist plan --shape 8b --gpus 8"));
    }
    let (config, set) = match planning.run.is_given() {
        true => planning.run.clone().resolve().map(|(path, set)| (Some(path), set))?,
        false => (None, planning.run.overrides()?),
    };
    let mut set = set;
    if let Some(tokens) = planning.tokens {
        set.push(format!("train.tokens_per_micro_batch={tokens}"));
    }
    let config = match config {
        Some(path) => Config::load(&path, &set)?,
        None => Config::parse("the defaults", NO_CONFIG, &set)?,
    };
    let of_folder = |folder: &Path| Architecture::open(&hub::fetch_config_alone(folder)?);
    let (architecture, tokenizer) = match planning.model() {
        Some(Model::Shape(name)) => (shapes::architecture(name)?, None),
        Some(Model::Folder(folder)) => (of_folder(folder)?, None),
        // Of a config's model on the hub, fetch only config.json.
        None => match hub::is_on_hub(&config.model.path) {
            true => (of_folder(&config.model.path)?, None),
            false => {
                let origin: Origin = setup::origin(&config)?;
                (Architecture::open(&origin.base)?, Some(origin.tokenizer().to_path_buf()))
            }
        },
    };
    Ok(Subject { config, architecture, tokenizer })
}
