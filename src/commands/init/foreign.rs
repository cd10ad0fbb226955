//! Reads another program's config, from YAML or from a Python script, and finds out which program it is for and what it trains.
//!
//! Not here: the two languages (`yaml.rs`, `python/`), and the meaning of the names (`translate.rs`).

use super::content::{Content, Item, Unread};
use super::draft::quoted;
use super::{python, yaml};
use crate::error::{Error, Result};
use crate::files;
use std::path::Path;

/// The largest file that is read; configs and scripts have about a hundredth of that.
const MOST_BYTES: u64 = 1 << 20;

/// Most names with a value: TRL's configs know some 250.
const MOST_ITEMS: usize = 10_000;

/// Keys of DPOConfig that RewardConfig does not have.
const DPO_KEYS: [&str; 11] = [
    "beta",
    "loss_type",
    "label_smoothing",
    "loss_weights",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "f_divergence_type",
    "ld_alpha",
    "sync_ref_model",
    "use_weighting",
    "max_completion_length",
];

/// Keys that only TRL's other trainers have.
const OTHER_KEYS: [(&str, &str); 5] = [
    ("num_generations", "GRPOConfig and RLOOConfig"),
    ("desirable_weight", "KTOConfig"),
    ("completion_only_loss", "SFTConfig"),
    ("assistant_only_loss", "SFTConfig"),
    ("dataset_text_field", "SFTConfig"),
];

/// The program that a config is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// TRL.
    Trl,
    /// Transformers, with only its own arguments.
    Transformers,
    /// LLaMA-Factory.
    LlamaFactory,
}

/// The kind of model that it trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trains {
    /// A reward model.
    Reward,
    /// A policy, with a preference loss.
    Policy,
}

/// Another program's config.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// The file's name.
    pub(crate) file: String,
    /// The program it is for.
    pub(crate) program: Program,
    /// What it trains.
    pub(crate) trains: Trains,
    /// The evidence for that, as a clause.
    pub(crate) evidence: String,
    /// Its names and values.
    pub(crate) content: Content,
}

/// Reads a file.
///
/// # Errors
/// A missing, large or broken file, one that sets up no training, or another kind of training.
pub(crate) fn read(path: &Path) -> Result<Foreign> {
    let bytes = files::read_within(path, MOST_BYTES)?;
    let shown = path.display();
    let text = String::from_utf8(bytes).map_err(|_| {
        Error::input(format!("{shown}: not a text in UTF-8")).hint("expected a YAML config or a Python script")
    })?;
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    // As editors on Windows write it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n");
    let content = match ending {
        "yaml" | "yml" | "json" => yaml::read(&text),
        "py" => python::read(&text),
        _ => {
            return Err(Error::input(format!("{shown}: expected a file that ends with .yaml, .yml, .json or .py"))
                .hint("--from reads configs of TRL and LLaMA-Factory, and scripts that use TRL"));
        }
    };
    let named = |error: Error| {
        let hint = error.hint.clone().unwrap_or_else(|| "is it the config or the script of a training?".to_owned());
        error.at(format_args!("{shown}")).hint(hint)
    };
    let content = content.map_err(named)?;
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    kind(content, file).map_err(named)
}

/// Finds out which program a config is for and what it trains.
fn kind(mut content: Content, file: String) -> Result<Foreign> {
    let trains = |call: &String| call.ends_with("Config") || call.ends_with("Trainer") || call == "TrainingArguments";
    if content.items.is_empty() && !content.calls.iter().any(trains) {
        return Err(Error::input("it sets up no training")
            .hint("expected keys such as model_name_or_path, or a call such as RewardConfig(...)"));
    }
    if content.items.len() > MOST_ITEMS {
        return Err(Error::input(format!("more than {MOST_ITEMS} keys: no config has so many")));
    }
    keep_last(&mut content);
    let factory = ["stage", "finetuning_type", "cutoff_len"].iter().any(|name| content.item(name).is_some());
    let (program, trains, evidence) = if factory {
        (Program::LlamaFactory, of_stage(&content)?, "its stage says so".to_owned())
    } else {
        of_transformers(&content)?
    };
    Ok(Foreign { file, program, trains, evidence, content })
}

/// Keeps the last of several values of a name, as those programs do, but all calls of load_dataset.
fn keep_last(content: &mut Content) {
    let mut items: Vec<Item> = Vec::new();
    for item in std::mem::take(&mut content.items) {
        if item.name != "load_dataset"
            && let Some(at) = items.iter().position(|earlier| earlier.name == item.name)
        {
            let earlier = items.remove(at);
            let text = format!("{} = {}", earlier.name, earlier.shown());
            content.unread.push(Unread { line: earlier.line, text, why: "a later line sets it again", name: None });
        }
        items.push(item);
    }
    content.items = items;
}

/// What LLaMA-Factory trains.
fn of_stage(content: &Content) -> Result<Trains> {
    let stage = content.item("stage").and_then(|item| Some((item.value.as_str()?, item.line)));
    match stage {
        Some(("rm", _)) => Ok(Trains::Reward),
        Some(("dpo", _)) => Ok(Trains::Policy),
        stage => {
            let stage = stage.map_or("no stage".to_owned(), |(stage, line)| format!("stage: {stage} (line {line})"));
            Err(Error::input(format!("{} is not a training on preferences", quoted(&stage)))
                .hint("expected stage: rm or stage: dpo"))
        }
    }
}

/// What TRL or Transformers train, and the evidence for that.
fn of_transformers(content: &Content) -> Result<(Program, Trains, String)> {
    let called =
        |names: &[&'static str]| names.iter().find(|name| content.calls.iter().any(|call| call == *name)).copied();
    let has = |name: &str| content.item(name).is_some();
    let other = |what: String| {
        Err(Error::input(format!("{what}, which is not a training on preferences that haf-dist knows"))
            .hint("expected a config or a script of TRL's reward or DPO trainer"))
    };
    if let Some(name) = called(&["RewardConfig", "RewardTrainer"]) {
        return Ok((Program::Trl, Trains::Reward, format!("it calls {name}")));
    }
    if let Some(name) = called(&["DPOConfig", "DPOTrainer"]) {
        return Ok((Program::Trl, Trains::Policy, format!("it calls {name}")));
    }
    if let Some(name) = called(&python::OTHER_TRAININGS) {
        return other(format!("it calls {name}"));
    }
    if let Some((key, of)) = OTHER_KEYS.iter().find(|(name, _)| has(name)) {
        return other(format!("{key} is a key of {of}"));
    }
    if has("center_rewards_coefficient") {
        return Ok((Program::Trl, Trains::Reward, "it has center_rewards_coefficient".to_owned()));
    }
    if let Some(key) = DPO_KEYS.iter().find(|name| has(name)) {
        return Ok((Program::Trl, Trains::Policy, format!("it has {key}, a key of DPOConfig")));
    }
    if called(&["TrainingArguments"]).is_some() {
        let why = "it calls TrainingArguments, and nothing in it is about DPO";
        return Ok((Program::Transformers, Trains::Reward, why.to_owned()));
    }
    Ok((Program::Trl, Trains::Reward, "it has no key that only DPOConfig has".to_owned()))
}
