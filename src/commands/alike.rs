//! Checks that all ranks have the same program, command, config, model files and tokens, before they use them. A difference is
//! one error that names it, within seconds.
//!
//! Not here: weights, since every rank gets rank 0's (`setup.rs`); the comparison itself (`comm/same.rs`).

use crate::cli::Command;
use crate::comm::{CommThread, Fact, leaves, leaves_within};
use crate::config::Config;
use crate::data::prepared::PreparedData;
use crate::error::Result;
use crate::files::{self, fingerprint_parts};
use crate::model::adapter::Origin;
use crate::model::architecture;
use crate::model::peft;
use serde_json::Value;
use std::path::Path;

/// The program's version, and a hash of the sources it was built from.
const PROGRAM: &str = concat!(env!("CARGO_PKG_VERSION"), " (sources ", env!("HAF_DIST_SOURCES"), ")");

/// Arguments that are not compared, and why.
const OF_A_RANK: [(&str, &str); 3] = [
    ("config", "its keys are compared once they are read"),
    ("set", "its keys are compared once they are read"),
    ("threads", "nodes may have different processors"),
];

/// Bytes of the names of a JSON file's keys, each with its whole path; beyond it the file's hash is compared.
const MOST_NAMES: usize = 1 << 20;

/// Files in a model's folder that tokenization depends on.
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/original.jinja",
    "chat_template.json",
];

/// Compares the program, the command and its arguments, and whether it is `traced`.
///
/// # Errors
/// An input error, the same on every rank: what differs, and where.
pub(crate) fn command(command: &Command, traced: bool, comm: &CommThread) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let (name, mut arguments) = typed(command);
    // First, or the error for another command would name its arguments.
    comm.same(&[("the program's version".into(), PROGRAM.into()), ("the command".into(), name)])?;
    arguments.push(("--trace".into(), traced.to_string()));
    comm.same(&arguments)
}

/// The command's name, and the arguments that it was given or has defaults for.
fn typed(command: &Command) -> (String, Vec<Fact>) {
    // A command with its arguments is one key with a table below.
    let Some((name, arguments)) = serde_json::to_value(command).ok().and_then(|tree| match tree {
        Value::Object(tree) => tree.into_iter().next(),
        _ => None,
    }) else {
        // A path that is not UTF-8 does not fit into JSON.
        return (format!("{command:?}"), Vec::new());
    };
    let compared = |key: &str| OF_A_RANK.iter().all(|(excluded, _)| *excluded != key);
    let named = leaves("", &arguments).into_iter().map(|(key, value)| (key.replace("scoring.", ""), value));
    let given = named.filter(|(key, value)| compared(key) && value != "null");
    (name, given.map(|(key, value)| (format!("--{}", key.replace('_', "-")), value)).collect())
}

/// Compares every key of the config that can change a number or the order of collectives.
///
/// # Errors
/// As [`command`].
pub(crate) fn config(config: &Config, comm: &CommThread) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    comm.same(&comm.agree(config.in_common())?)
}

/// Compares the model's config.json, key by key, its tokenizer and template, and an adapter's config.
///
/// # Errors
/// As [`command`]; a file that cannot be read.
pub(crate) fn model(origin: &Origin, comm: &CommThread) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    comm.same(&comm.agree(of_model(origin))?)
}

fn of_model(origin: &Origin) -> Result<Vec<Fact>> {
    let mut facts = json(&origin.base.join("config.json"))?;
    facts.push(("an adapter in the model's folder".into(), origin.adapter.is_some().to_string()));
    if let Some(folder) = &origin.adapter {
        facts.extend(json(&folder.join(peft::CONFIG))?);
    }
    for name in TOKENIZER {
        let path = origin.tokenizer().join(name);
        let hash = if path.exists() { hex(files::fingerprint_file(&path)?) } else { "absent".into() };
        facts.push((name.into(), hash));
    }
    Ok(facts)
}

/// The keys of a JSON file, or its hash: of one that is not JSON, which its reader reports, and of one whose keys would take far
/// more memory than itself.
fn json(path: &Path) -> Result<Vec<Fact>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !path.exists() {
        return Ok(vec![(name.into(), "absent".into())]);
    }
    let bytes = files::read_within(path, architecture::MOST_BYTES)?;
    let tree = serde_json::from_slice(&bytes).ok();
    Ok(match tree.and_then(|tree| leaves_within(&format!("{name}:"), &tree, MOST_NAMES)) {
        Some(leaves) => leaves.into_iter().map(|(key, value)| (key.replacen(":.", ": ", 1), value)).collect(),
        None => vec![(name.into(), hex(fingerprint_parts([&bytes[..]])))],
    })
}

/// Compares the tokens of a split.
///
/// # Errors
/// As [`command`].
pub(crate) fn data(split: &str, data: &PreparedData, comm: &CommThread) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    comm.same(&[
        (format!("the number of {split} pairs"), data.len().to_string()),
        (format!("the hash of the {split} pairs' tokens, margins and domains"), hex(data.content())),
    ])
}

/// Compares data that each rank has read from its own disk.
///
/// # Errors
/// As [`command`].
pub(crate) fn read(what: &str, hash: u128, comm: &CommThread) -> Result<()> {
    comm.same(&[(format!("the hash of {what}"), hex(hash))])
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Request};
    use clap::Parser;

    fn facts(line: &str) -> (String, Vec<Fact>) {
        match Request::try_from(Arguments::try_parse_from(line.split(' ')).unwrap()).unwrap() {
            Request::Together(command) => typed(&command),
            Request::Alone(alone) => panic!("{alone:?} is not compared"),
        }
    }

    /// Promise: every argument is compared under the name it is typed with, except those listed with a reason.
    #[test]
    fn commands_become_facts() {
        let expected = |name: &str, facts: &[(&str, &str)]| {
            let facts = facts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            (name.to_owned(), facts.collect::<Vec<_>>())
        };
        let train = facts("haf-dist --config run.toml --set loss.beta=0.5 --resume");
        assert_eq!(
            train,
            expected(
                "train",
                &[("--resume", "true"), ("--debug", "false"), ("--allow-changed", "false"), ("--json", "false")]
            )
        );
        let score = facts("haf-dist score --checkpoint m --data d.jsonl --threads 3 --output o.jsonl");
        let arguments = [
            ("--checkpoint", "\"m\""),
            ("--allow-changed", "false"),
            ("--data", "\"d.jsonl\""),
            ("--column", "[]"),
            ("--tokens-per-micro-batch", "4096"),
            ("--output.File", "\"o.jsonl\""),
            ("--combined", "false"),
            ("--tokens", "false"),
        ];
        assert_eq!(score, expected("score", &arguments));
    }
}
