//! Chooses the files of a repository that make up a model or a split, by their names.
//!
//! Not here: the file lists of a data set's card, which are not read; a path can always name a file.

use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// The files of an adapter.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The files of a model other than its weights. Those that exist are read.
const OTHER_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/original.jinja",
    "haf_dist.json",
    "self-test.json",
    "model.safetensors.index.json",
    "value_head.safetensors",
];
const DATA: [&str; 7] = [".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst"];

/// A model's files: config, tokenizer, template, and weights in one file or in shards; or an adapter's, with or without a
/// config.json.
///
/// # Errors
/// No config.json, no safetensors, or a shard that is missing.
pub(super) fn model_files(listed: &[String]) -> Result<Vec<String>> {
    if ADAPTER.iter().all(|needed| listed.iter().any(|file| file == needed)) {
        let wanted = |file: &&String| OTHER_FILES.contains(&file.as_str()) || ADAPTER.contains(&file.as_str());
        return Ok(listed.iter().filter(wanted).cloned().collect());
    }
    if !listed.iter().any(|file| file == "config.json") {
        return Err(needs("config.json"));
    }
    let is_weights = |file: &str| file.starts_with("model") && file.ends_with(".safetensors");
    let weights: Vec<&String> = listed.iter().filter(|file| !file.contains('/') && is_weights(file)).collect();
    if weights.is_empty() {
        return Err(needs("model.safetensors, whole or in shards"));
    }
    all_shards(&weights)?;
    Ok(listed.iter().filter(|file| OTHER_FILES.contains(&file.as_str()) || weights.contains(file)).cloned().collect())
}

/// The same without weights, and without the index of their shards.
///
/// # Errors
/// No config.json.
pub(super) fn files_without_weights(listed: &[String]) -> Result<Vec<String>> {
    if !listed.iter().any(|file| file == "config.json") {
        return Err(needs("config.json"));
    }
    let wanted = |file: &&String| OTHER_FILES.contains(&file.as_str()) && !file.contains(".safetensors");
    Ok(listed.iter().filter(wanted).cloned().collect())
}

fn needs(file: &str) -> Error {
    Error::input(format!("there is no {file}"))
        .hint("a model is a Hugging Face folder with config.json and safetensors")
}

/// A split's files in their order: `part` is a file's path, or `split` or `config/split` as the hub's data sets name
/// them: `split.jsonl`, `config/split.jsonl.gz`, `data/split-00000-of-00002.parquet`, `config/split/0000.parquet`.
/// Without a part there must be one split only.
///
/// # Errors
/// No such file or split, several splits to choose from, or a shard that is missing.
pub(super) fn split_files(listed: &[String], part: Option<&str>) -> Result<Vec<String>> {
    if let Some(file) = listed.iter().find(|file| Some(file.as_str()) == part) {
        return Ok(vec![file.clone()]);
    }
    let splits: Vec<(String, &String)> = listed.iter().filter_map(|file| Some((split_of(file)?, file))).collect();
    let names: BTreeSet<&str> = splits.iter().map(|(split, _)| split.as_str()).collect();
    let choices = || {
        let shown: Vec<&str> = names.iter().copied().take(12).collect();
        let more = if names.len() > shown.len() { ", ..." } else { "" };
        match shown.is_empty() {
            true => String::from("there is no file ending in .parquet, .jsonl, .json (or .gz, .zst of these)"),
            false => format!("its splits are {}{more}", shown.join(", ")),
        }
    };
    let wanted = match (part, names.first()) {
        (Some(part), _) if names.contains(part) => part,
        (None, Some(only)) if names.len() == 1 => only,
        (Some(part), _) => {
            return Err(Error::input(format!("there is no file or split {part:?}")).hint(choices()));
        }
        (None, _) => {
            return Err(Error::input("no split is named").hint(format!("{}; add one to the path", choices())));
        }
    };
    let mut files: Vec<&String> = splits.iter().filter(|(split, _)| split == wanted).map(|(_, file)| *file).collect();
    files.sort();
    all_shards(&files)?;
    Ok(files.into_iter().cloned().collect())
}

/// The split that a data file belongs to; `None` for other files.
fn split_of(file: &str) -> Option<String> {
    let stem = DATA.iter().filter_map(|ending| file.strip_suffix(ending)).min_by_key(|stem| stem.len())?;
    let (folder, name) = stem.rsplit_once('/').map_or((None, stem), |(folder, name)| (Some(folder), name));
    let folder = match folder {
        Some("data") => None,
        Some(folder) => Some(folder.strip_prefix("data/").unwrap_or(folder)),
        None => None,
    };
    let name = Shard::parse(name).map_or(name, |shard| shard.name);
    let numbered = name.bytes().all(|byte| byte.is_ascii_digit());
    match folder {
        Some(folder) if numbered => Some(folder.to_owned()),
        Some(folder) => Some(format!("{folder}/{name}")),
        // Metadata, not data.
        None if matches!(name, "dataset_infos" | "dataset_info" | "state") => None,
        None => Some(name.to_owned()),
    }
}

/// `train-00000-of-00002-0123456789abcdef`: name `train`, number 0, total 2.
struct Shard<'n> {
    name: &'n str,
    number: usize,
    total: usize,
}

impl<'n> Shard<'n> {
    fn parse(name: &'n str) -> Option<Self> {
        let (before, after) = name.split_once("-of-")?;
        let (name, number) = before.rsplit_once('-')?;
        let total = after.split('-').next()?;
        let five = |digits: &str| if digits.len() == 5 { digits.parse().ok() } else { None };
        Some(Self { name, number: five(number)?, total: five(total)? })
    }
}

/// Refuses a list that lacks a shard, as an incomplete cache may have it.
fn all_shards(files: &[&String]) -> Result<()> {
    let stems = files.iter().filter_map(|file| file.rsplit('/').next()?.split('.').next());
    let shards: Vec<_> = stems.filter_map(Shard::parse).collect();
    let Some(&Shard { total, .. }) = shards.first() else { return Ok(()) };
    let there: BTreeSet<usize> = shards.iter().map(|shard| shard.number).collect();
    // Weights count from 1 to the total, data from 0.
    let first = usize::from(there.contains(&total));
    match (first..first + total).find(|number| !there.contains(number)) {
        None => Ok(()),
        Some(missing) => Err(Error::input(format!("shard {missing} of {total} is missing beside {}", files[0]))
            .hint("the cache is incomplete: fetch the rest with a network")),
    }
}
