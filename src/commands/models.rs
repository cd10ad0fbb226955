//! `haf-dist models`: the families that are known, or whether a folder would load, with all that is against it.
//!
//! A folder's config.json, tokenizer and safetensors headers are read, by the code that loads a model; no weight is. Not here:
//! the families (`model/architecture/families/`).

use crate::data::tokenizer_files;
use crate::error::{Error, Result};
use crate::model::architecture::{Architecture, FAMILIES, Family};
use crate::model::layout::Part;
use crate::model::peft::PeftConfig;
use crate::model::weight_files::{WeightFiles, weight_paths};
use crate::safetensors_io::Mapped;
use crate::terminal;
use serde_json::json;
use std::path::Path;

/// What there is to say of a folder that would load.
struct Found {
    architecture: Architecture,
    files: WeightFiles,
    /// The largest token id of its tokenizer.
    last_token: u32,
}

/// Prints the families, or what a folder holds.
///
/// # Errors
/// A folder that would not load: one error with every reason.
pub fn run(folder: Option<&Path>, json: bool) -> Result<()> {
    let Some(folder) = folder else {
        if json {
            let line = |family: &Family| json!({"model_type": family.model_type, "covers": family.covers});
            return terminal::lines(FAMILIES.iter().map(line));
        }
        let width = FAMILIES.iter().map(|family| family.model_type.len()).max().unwrap_or(0);
        let families = FAMILIES.iter().map(|family| format!("{:width$}  {}", family.model_type, family.covers));
        return terminal::lines(["By model_type in config.json:".to_string()].into_iter().chain(families));
    };
    let rows = describe(&look(folder).map_err(|reasons| refusal(folder, reasons))?)?;
    if json {
        let said = rows.into_iter().map(|(what, said)| (what.replace([' ', '-'], "_"), said.into()));
        return terminal::out(serde_json::Value::Object(said.collect()));
    }
    terminal::lines(rows.iter().map(|(what, said)| format!("{what:<19}  {said}")))
}

/// Why a folder would not load; none where it would.
pub fn refused(folder: &Path) -> Option<Error> {
    look(folder).err().map(|reasons| refusal(folder, reasons))
}

/// All that a folder needs, or every reason against it.
fn look(folder: &Path) -> std::result::Result<Found, Vec<Error>> {
    if !folder.join("config.json").exists() && PeftConfig::is_in(folder) {
        let error = Error::input(format!("{} is an adapter: it has the family of its base", folder.display()));
        return Err(vec![error.hint("name the folder of the base (base_model_name_or_path in adapter_config.json)")]);
    }
    let mut reasons = Vec::new();
    let architecture = Architecture::open_all(folder).map_err(|errors| reasons.extend(errors)).ok();
    let files = weights(folder, architecture.as_ref(), &mut reasons);
    let tokenizer = tokenizer_files::open(folder).map(|opened| opened.tokenizer);
    let last_token = tokenizer.map(|tokenizer| tokenizer.get_vocab(true).into_values().max().unwrap_or(0));
    match last_token {
        Err(error) => reasons.push(error),
        Ok(last_token) => {
            if let (Some(architecture), Some(files), true) = (architecture, files, reasons.is_empty()) {
                return Ok(Found { architecture, files, last_token });
            }
        }
    }
    Err(reasons)
}

/// The weight files; what is wrong with them goes to `reasons`. Without an architecture only that they are there and whole.
fn weights(folder: &Path, architecture: Option<&Architecture>, reasons: &mut Vec<Error>) -> Option<WeightFiles> {
    let paths = weight_paths(folder).map_err(|error| reasons.push(error)).ok()?;
    let before = reasons.len();
    reasons.extend(paths.iter().filter_map(|path| Mapped::open(path).err()));
    let architecture = architecture.filter(|_| reasons.len() == before)?;
    let files = WeightFiles::of_model(folder, architecture).map_err(|error| reasons.push(error)).ok()?;
    let parts = needed_parts(&files, architecture);
    match files.problems(folder, architecture, &parts) {
        Ok(problems) => reasons.extend(problems),
        Err(error) => reasons.push(error),
    }
    Some(files)
}

/// The parts that must be there: a reward model's folder may lack the language-model head.
fn needed_parts(files: &WeightFiles, architecture: &Architecture) -> Vec<Part> {
    let mut parts = Part::all(architecture);
    if !has_language_model_head(files, architecture) {
        parts.retain(|part| *part != Part::LanguageModelHead);
    }
    parts
}

fn has_language_model_head(files: &WeightFiles, architecture: &Architecture) -> bool {
    files.has(&format!("{}.weight", architecture.names.head[0]))
}

/// One error of many.
fn refusal(folder: &Path, mut reasons: Vec<Error>) -> Error {
    if reasons.len() == 1 {
        return reasons.remove(0);
    }
    let listed: Vec<String> = reasons.iter().map(|reason| format!("- {reason}")).collect();
    let said = format!("{} would not load, for {} reasons\n{}", folder.display(), reasons.len(), listed.join("\n"));
    Error::input(said).hint("haf-dist models lists what is read; the first reasons may be behind the others")
}

fn describe(found: &Found) -> Result<Vec<(&'static str, String)>> {
    let Found { architecture, files, last_token } = found;
    let parts = needed_parts(files, architecture);
    let declared = parts.iter().flat_map(|part| part.parameters(architecture));
    let count: usize = declared.map(|one| one.shape.iter().product::<i64>() as usize).sum();
    let mut held = 0;
    for name in files.names() {
        held += files.shape(name)?.iter().product::<i64>() as usize;
    }
    let head = match (architecture.tied, has_language_model_head(files, architecture)) {
        (true, _) => "the embedding",
        (false, true) => "its own",
        (false, false) => "none: a policy loss cannot be trained",
    };
    let reward = if files.names().any(|name| files.is_head(name)) { "there" } else { "none: it starts at zero" };
    let Architecture { vocabulary, width, max_positions, blocks, names, .. } = architecture;
    let beyond = if *last_token as usize >= *vocabulary { ": texts with one beyond the rows are refused" } else { "" };
    let mut rows = vec![
        ("would load as", names.reward_model.to_string()),
        ("parameters", format!("{count}, a reward head among them; the safetensors hold {held} numbers")),
        ("shape", format!("{} blocks of width {width}, sequences of up to {max_positions} tokens", blocks.len())),
        ("vocabulary", format!("{vocabulary} rows, token ids up to {last_token}{beyond}")),
        ("language-model head", head.to_string()),
        ("reward head", reward.to_string()),
    ];
    if let Some(whole) = architecture.part_of {
        rows.push(("covers", format!("the text part of a {whole} model: images are not read")));
    }
    let unused = files.unused(architecture, &parts);
    if let Some(first) = unused.first() {
        rows.push(("not used", format!("{} tensors, {first} the first", unused.len())));
    }
    Ok(rows)
}
