//! `haf-dist export`: copies only the Hugging Face files of a checkpoint, or with `--merge` makes one model from a base and its
//! adapter, with the reward head. Both keep the settings for reading texts (`haf_dist.json`) and the rewards to compare with
//! (`self-test.json`), and write the chat template that ends where the reward is read.
//!
//! A merged weight is W + scale * B A, computed in f32 and rounded to W's kind in the base's file. Everything else is copied
//! bit for bit, shard by shard, so that memory holds one shard at a time.

use crate::checkpoint::{self, AsTrained, Changed, Export, FileCheck, SelfTest};
use crate::cli::Exporting;
use crate::error::{Error, Result, file_error};
use crate::files;
use crate::model::adapter::{self, Change, Changes, Origin};
use crate::model::architecture::Architecture;
use crate::model::layout::{Part, REWARD_HEAD};
use crate::model::peft::PeftConfig;
use crate::model::weight_files::{REWARD_BIAS, WeightFiles};
use crate::safetensors_io;
use crate::terminal;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};
use tch::{Kind, Tensor};
use tracing::warn;

/// Runs the command, on one rank.
///
/// # Errors
/// A folder that is not a checkpoint, nothing to merge, an `OUT` that exists, or a failed read or write; everything written
/// so far is removed.
pub(crate) fn run(exporting: &Exporting) -> Result<()> {
    let Exporting { merge, checkpoint: source, out, base, allow_changed, json } = exporting;
    if fs::symlink_metadata(out).is_ok() {
        return Err(Error::input(format!("{} exists already", out.display()))
            .hint("nothing is overwritten: name another OUT, or move it away"));
    }
    let is_adapter = PeftConfig::is_in(source);
    if !is_adapter && !source.join("config.json").is_file() {
        return Err(Error::input(format!("{} is not a checkpoint: it has no config.json", source.display()))
            .hint("name a step-N folder of a run, or a folder as PEFT or Transformers writes it"));
    }
    if *merge && !is_adapter {
        return Err(Error::input(format!("{} has no adapter: there is nothing to merge", source.display()))
            .hint("leave --merge out to copy the folder without trainer/"));
    }
    let origin = Origin::of(source, base.as_deref()).or_else(|error| match merge {
        true => Err(error),
        // A copy does not need the base.
        false => Ok(Origin { base: source.clone(), adapter: None }),
    })?;
    let read = origin.folders().filter(|folder| *merge || *folder == source);
    let check = FileCheck::begin(read, Changed::allowed_if(*allow_changed))?;
    // Written under another name until it is complete. Leftovers of killed exports are removed.
    let above = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    files::make_folder(above).map_err(|error| file_error(above, "create", &error))?;
    files::clear_unfinished_beside(out);
    let unfinished = files::unfinished_folder(out).map_err(|error| file_error(out, "create", &error))?;
    fill(unfinished.path(), source, &origin, *merge).map_err(|error| {
        // The user knows the folder by the name that it will have.
        let (temporary, named) = (unfinished.path().display().to_string(), out.display().to_string());
        Error { message: error.message.replace(&temporary, &named), ..error }
    })?;
    check.finish()?;
    unfinished.persist(out).map_err(|error| file_error(out, "rename the finished folder to", &error))?;
    match json {
        true => terminal::out(json!({
            "export": out.display().to_string(),
            "checkpoint": source.display().to_string(),
            "merged": merge,
            "files": files_of(out)?,
        })),
        false => terminal::out(out.display()),
    }
}

/// Writes everything into the folder `out`.
fn fill(out: &Path, source: &Path, origin: &Origin, merge: bool) -> Result<()> {
    match merge {
        true => write_merged(origin, out)?,
        false => copy(source, out)?,
    }
    if let Some(as_trained) = AsTrained::of_checkpoint(source)? {
        let chat_template = checkpoint::write_chat_template(out, out, &as_trained)?;
        AsTrained { chat_template, ..as_trained }.write(out)?;
        checkpoint::complete_config(out)?;
    }
    Ok(())
}

/// Names of a folder's files, sorted.
fn files_of(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|error| file_error(folder, "list", &error))?;
    let files = entries.iter().filter(|entry| entry.path().is_file());
    let mut names: Vec<String> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Copies the files of a checkpoint that other programs read: all except the folder `trainer/`.
fn copy(source: &Path, out: &Path) -> Result<()> {
    let failed = |error: std::io::Error| file_error(source, "list", &error);
    for entry in fs::read_dir(source).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            files::copy(&path, &out.join(name))?;
        }
    }
    checkpoint::copy_named_templates(source, out)
}

fn write_merged(origin: &Origin, out: &Path) -> Result<()> {
    let Some(folder) = &origin.adapter else { return Err(Error::runtime("there is no adapter")) };
    let architecture = Architecture::open(&origin.base)?;
    let Changes { weights: changes, head } = adapter::changes(folder, &origin.base, &architecture)?;
    let base = WeightFiles::of_model(&origin.base, &architecture)?;
    let mut parts = Part::all(&architecture);
    parts.retain(|part| *part != Part::LanguageModelHead);
    base.check(&origin.base, &architecture, &parts)?;
    let head = match head {
        Some(head) => Some(head),
        None => base.reward_head()?,
    };
    let Some((head, bias)) = head else {
        return Err(Error::input(format!("{} has no reward head: it is not a reward model", folder.display()))
            .hint("PEFT saves the head of task_type SEQ_CLS as one of modules_to_save"));
    };
    if bias != 0.0 {
        warn!(
            "the reward head has a bias, {bias}, which other programs do not read: it goes into config.json ({REWARD_BIAS}) for \
             haf-dist; other programs' rewards lack it, which changes no comparison of answers"
        );
    }
    let kind = write_shards(&base, &changes, &head, out)?;
    let architecture = architecture.names.reward_model;
    let (model_dir, tokenizer_dir) = (origin.base.as_path(), origin.tokenizer());
    let pad_token_id = pad_token(origin)?;
    let self_test = SelfTest::read(folder)?;
    let dev_rewards = self_test.as_ref().and_then(|test| test.dev_rewards);
    // The tensors and their names are those of the base.
    let (untied, reward_bias) = (false, bias);
    Export { model_dir, tokenizer_dir, architecture, pad_token_id, kind, untied, reward_bias, dev_rewards }
        .write(out)?;
    // The rewards before merging; after it they must be the same up to the precision.
    self_test.map_or(Ok(()), |self_test| self_test.write(out))
}

/// Writes every tensor of the base, with its adapter merged if it has one, and the head, into files as the base's. Returns the
/// kind of the largest tensor, as the model's.
fn write_shards(base: &WeightFiles, changes: &BTreeMap<String, Change>, head: &Tensor, out: &Path) -> Result<Kind> {
    // Skips a file that held only the head.
    let shards: Vec<_> = base.shards().filter(|(_, names)| !names.is_empty()).collect();
    let (mut index, mut total, mut merged) = (Map::new(), 0, 0);
    let (mut largest, mut of_model) = (0, Kind::Float);
    for (number, (shard, names)) in shards.iter().enumerate() {
        let mut tensors = Vec::new();
        // Constants are not copied; some have kinds that cannot be read.
        for name in names.iter().map(|name| name.to_string()) {
            let value = base.read(&name)?;
            let kind = value.kind();
            if value.numel() > largest {
                (largest, of_model) = (value.numel(), kind);
            }
            let value = match changes.get(&name) {
                Some(change) => {
                    merged += 1;
                    (value.to_kind(Kind::Float) + change.make()).to_kind(kind)
                }
                None => value,
            };
            tensors.push((name, value));
        }
        if number + 1 == shards.len() {
            // In f32 whatever the model's kind: rewards rounded to bf16 would tie.
            tensors.push((REWARD_HEAD.to_string(), head.to_kind(Kind::Float)));
        }
        let name = shard.file_name().unwrap_or_default();
        for (tensor, value) in &tensors {
            index.insert(tensor.clone(), json!(name.to_string_lossy()));
            total += value.numel() * value.kind().elt_size_in_bytes();
        }
        safetensors_io::write_model(&out.join(name), &tensors)?;
    }
    if merged != changes.len() {
        return Err(Error::runtime(format!("{merged} of {} adapters found their weight", changes.len())));
    }
    if shards.len() > 1 {
        let text = json!({ "metadata": { "total_size": total }, "weight_map": Value::Object(index) }).to_string();
        files::write_atomic(&out.join("model.safetensors.index.json"), text.as_bytes())?;
    }
    Ok(of_model)
}

/// The token that the adapter's tokenizer pads with; if there is none, or it ends sequences, another special token.
fn pad_token(origin: &Origin) -> Result<u32> {
    let ends = checkpoint::end_tokens(&origin.base)?;
    if let Some(pad) = checkpoint::pad_token(origin.tokenizer())?.filter(|pad| !ends.contains(pad)) {
        return Ok(pad);
    }
    let size = Architecture::open(&origin.base)?.vocabulary;
    let special = checkpoint::special_tokens(origin.tokenizer())?;
    let occurs: Vec<bool> = (0..size as u32).map(|id| !special.contains(&id)).collect();
    let pad = checkpoint::choose_pad_token(&occurs, &ends, |_| true).ok_or_else(|| {
        Error::input(format!("{} names no token to pad with", origin.tokenizer().display()))
            .hint("give tokenizer_config.json a pad_token that is not an end of sequence")
    })?;
    warn!(
        "the tokenizer has no pad token other than an end of sequence: config.json gets {pad}, which must not occur in texts"
    );
    Ok(pad)
}
