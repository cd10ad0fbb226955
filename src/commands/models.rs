//! `haf-dist models`: lists the known families, or tells whether a folder would load, with every reason why not.
//!
//! Reads a folder's config.json, tokenizer and safetensors headers with the code that loads a model, but no weights. Not here:
//! the families (`model/architecture/families/`).

use crate::data::tokenizer_files;
use crate::error::{Error, Result};
use crate::model::architecture::{Architecture, FAMILIES, Family};
use crate::model::layout::{Part, without_head};
use crate::model::peft::PeftConfig;
use crate::model::weight_files::{WeightFiles, weight_paths};
use crate::safetensors_io::Mapped;
use crate::terminal;
use serde_json::{Value, json};
use std::path::Path;

/// Everything about a folder that can be read.
#[derive(Default)]
struct Found {
    architecture: Option<Architecture>,
    files: Option<WeightFiles>,
    /// Count of numbers in its safetensors files.
    held: Option<usize>,
    /// The largest token id of its tokenizer.
    last_token: Option<u32>,
    /// All reasons why it would not load.
    reasons: Vec<Error>,
}

/// A line about a folder: its subject, a number or a text, and a remark for people.
type Row = (&'static str, Value, String);

/// Prints the families, or facts about a folder.
///
/// # Errors
/// A folder that would not load: one error with every reason, after what could be read.
pub(crate) fn run(folder: Option<&Path>, json: bool) -> Result<()> {
    let Some(folder) = folder else {
        if json {
            let line = |family: &Family| json!({"model_type": family.model_type, "covers": family.covers});
            return terminal::lines(FAMILIES.iter().map(line));
        }
        let width = FAMILIES.iter().map(|family| family.model_type.len()).max().unwrap_or(0);
        let families = FAMILIES.iter().map(|family| format!("{:width$}  {}", family.model_type, family.covers));
        return terminal::lines(["By model_type in config.json:".to_string()].into_iter().chain(families));
    };
    let found = look(folder);
    let rows = rows(&found);
    if json {
        let facts = rows.into_iter().map(|(what, value, _)| (what.replace([' ', '-'], "_"), value));
        let reasons: Vec<Value> =
            found.reasons.iter().map(|reason| json!({"message": reason.message, "hint": reason.hint})).collect();
        let would_load = ("would_load".to_string(), json!(reasons.is_empty()));
        let all = [would_load].into_iter().chain(facts).chain([("reasons".to_string(), json!(reasons))]);
        terminal::out(Value::Object(all.collect()))?;
    } else {
        terminal::lines(rows.into_iter().map(|(what, value, remark)| match value {
            Value::String(text) => format!("{what:<19}  {text}{remark}"),
            number => format!("{what:<19}  {number}{remark}"),
        }))?;
    }
    match found.reasons {
        reasons if reasons.is_empty() => Ok(()),
        reasons => Err(refusal(folder, reasons)),
    }
}

/// Why a folder would not load; None if it would.
pub(crate) fn refused(folder: &Path) -> Option<Error> {
    let reasons = look(folder).reasons;
    (!reasons.is_empty()).then(|| refusal(folder, reasons))
}

fn refusal(folder: &Path, reasons: Vec<Error>) -> Error {
    let hint = "haf-dist models lists the known families; once one reason is fixed, others may appear";
    Error::all(format!("{} would not load", folder.display()), hint, reasons)
}

/// Everything about a folder that can be read, and every reason why it would not load.
fn look(folder: &Path) -> Found {
    let mut found = Found::default();
    if !folder.join("config.json").exists() && PeftConfig::is_in(folder) {
        let error = Error::input(format!("{} is an adapter: it has the family of its base", folder.display()));
        let hint = "name the folder of the base (base_model_name_or_path in adapter_config.json)";
        found.reasons.push(error.hint(hint));
        return found;
    }
    match Architecture::open_all(folder) {
        Ok(architecture) => found.architecture = Some(architecture),
        Err(reasons) => found.reasons = reasons,
    }
    if let Err(error) = look_at_weights(folder, &mut found) {
        found.reasons.push(error);
    }
    match tokenizer_files::open(folder) {
        Ok(opened) => found.last_token = opened.tokenizer.get_vocab(true).into_values().max(),
        Err(error) => found.reasons.push(error),
    }
    found
}

/// Checks the weight files by their headers; without an architecture only that they exist and are complete.
fn look_at_weights(folder: &Path, found: &mut Found) -> Result<()> {
    let mut broken = Vec::new();
    let mut held = 0;
    for path in weight_paths(folder)? {
        match numbers(&path) {
            Ok(numbers) => held += numbers,
            Err(error) => broken.push(error),
        }
    }
    if !broken.is_empty() {
        found.reasons.extend(broken);
        return Ok(());
    }
    found.held = Some(held);
    let Some(architecture) = &found.architecture else { return Ok(()) };
    let files = WeightFiles::of_model(folder, architecture)?;
    let (model, parts) = as_read(&files, architecture);
    let problems = files.problems(folder, &model, &parts);
    found.files = Some(files);
    found.reasons.extend(problems?);
    Ok(())
}

/// Count of numbers in a safetensors file.
fn numbers(path: &Path) -> Result<usize> {
    let file = Mapped::open(path)?;
    let mut count = 0;
    for name in file.names() {
        count += file.shape(&name)?.iter().product::<i64>() as usize;
    }
    Ok(count)
}

/// The model as it would be read, and the parts that its files must have: a reward model may lack the language-model head.
fn as_read(files: &WeightFiles, architecture: &Architecture) -> (Architecture, Vec<Part>) {
    match files.has_language_model_head(architecture) {
        true => (architecture.clone(), Part::all(architecture)),
        false => without_head(architecture),
    }
}

fn rows(found: &Found) -> Vec<Row> {
    let mut rows =
        found.architecture.as_ref().map_or_else(Vec::new, |architecture| of_architecture(found, architecture));
    if let Some(held) = found.held {
        rows.push(("numbers held", json!(held), " in its safetensors".into()));
    }
    if let Some(last_token) = found.last_token {
        let vocabulary = found.architecture.as_ref().map(|architecture| architecture.vocabulary);
        let beyond = vocabulary.is_some_and(|vocabulary| last_token as usize >= vocabulary);
        let remark = if beyond { ": texts with a token beyond the vocabulary's rows are refused" } else { "" };
        rows.push(("last token id", json!(last_token), remark.into()));
    }
    if let (Some(architecture), Some(files)) = (&found.architecture, &found.files) {
        rows.extend(of_weights(architecture, files));
    }
    rows
}

/// Rows from config.json.
fn of_architecture(found: &Found, architecture: &Architecture) -> Vec<Row> {
    let (model, parts) = match &found.files {
        Some(files) => as_read(files, architecture),
        None => (architecture.clone(), Part::all(architecture)),
    };
    let declared = parts.iter().flat_map(|part| part.parameters(&model));
    let count: usize = declared.map(|one| one.shape.iter().product::<i64>() as usize).sum();
    let Architecture { vocabulary, width, max_positions, blocks, names, part_of, .. } = architecture;
    let mut rows = vec![
        ("class", json!(names.reward_model), String::new()),
        ("parameters", json!(count), format!(", including a reward head of {width}")),
        ("blocks", json!(blocks.len()), String::new()),
        ("width", json!(width), String::new()),
        ("longest sequence", json!(max_positions), " tokens".into()),
        ("vocabulary", json!(vocabulary), " rows".into()),
    ];
    if let Some(whole) = part_of {
        rows.push(("covers", json!(format!("the text part of a {whole} model: images are not read")), String::new()));
    }
    rows
}

/// Rows from the safetensors files.
fn of_weights(architecture: &Architecture, files: &WeightFiles) -> Vec<Row> {
    let head = match (files.has_language_model_head(architecture), architecture.tied) {
        (true, true) => "the embedding",
        (true, false) => "its own",
        (false, _) => "none: a policy loss cannot be trained",
    };
    let reward = if files.names().any(|name| files.is_head(name)) { "there" } else { "none: it starts at zero" };
    let mut rows =
        vec![("language-model head", json!(head), String::new()), ("reward head", json!(reward), String::new())];
    let (model, parts) = as_read(files, architecture);
    let unused = files.unused(&model, &parts);
    if let Some(first) = unused.first() {
        rows.push(("tensors not used", json!(unused.len()), format!(", {first} the first")));
    }
    rows
}
