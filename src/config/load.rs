//! Loads a checked [`Config`] from a file and overrides, with errors that name file and line.
//!
//! Not here: the rules themselves (`validate.rs`) and the keys (`keys.rs`).

use super::overrides::{self, Override};
use super::words::{self, Renamed};
use super::{Config, HubPath, SEE_REFERENCE, defaults, keys};
use crate::error::{Error, Result, file_error};
use crate::files;
use std::path::Path;
use toml::Value;
use toml::de::{DeTable, DeValue};

/// The largest config file: a checkpoint has one too, which may be somebody else's.
const MOST_BYTES: u64 = 4 << 20;

impl Config {
    /// Reads a config file, applies `--set table.key=value` overrides, fills in the defaults and checks everything.
    ///
    /// # Errors
    /// A missing or unreadable file; text that is not TOML; an unknown or ill-typed key; a value out of its range;
    /// options that exclude each other. Each names the file and line (or the override), the key and what was expected.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let bytes = files::read_at_most(path, MOST_BYTES).map_err(|error| {
            let failed = file_error(path, "read the config file", &error);
            let hint = failed.hint.as_deref().map_or_else(String::new, |hint| format!("{hint} "));
            failed.hint(hint + "`haf-dist init` writes a config")
        })?;
        let name = path.display().to_string();
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = line_at(error.as_bytes(), error.utf8_error().valid_up_to());
            Error::input(format!("{name}:{line}: not UTF-8 text; expected a TOML file")).hint("save it as UTF-8")
        })?;
        let mut config = Self::parse(&name, &text, overrides)?;
        config.look_beside(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Uses an input beside the config file if it does not exist in the current folder. Outputs stay in the current folder.
    fn look_beside(&mut self, folder: &Path) {
        let data = &mut self.data;
        let sources = data.train.iter_mut().chain(&mut data.dev).chain(&mut data.test).map(|source| &mut source.path);
        let base = self.lora.as_mut().and_then(|lora| lora.base.as_mut());
        for path in sources.chain([&mut self.model.path]).chain(base) {
            let beside = folder.join(&*path);
            if HubPath::parse(path).is_none() && !path.exists() && beside.exists() {
                tracing::info!("{} is not in the current folder: using {}", path.display(), beside.display());
                *path = beside;
            }
        }
    }

    /// [`Config::load`] for text already read; errors call it `name`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let tree = keys::tree();
        let mut value = toml::from_str(text).map(Value::Table).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text.as_bytes(), span.start));
            Error::input(format!("{name}:{line}: not TOML: {}", error.message())).hint(
                "a line is a [table] or `key = value`, text in quotes; `haf-dist init --reference` prints an example",
            )
        })?;
        let overrides = overrides.iter().map(|set| Override::parse(set, &tree, &value)).collect::<Result<Vec<_>>>()?;
        let mut document = Document { name, text, overrides: &overrides, renamed: Vec::new() };
        document.renamed = words::translate(&mut value).map_err(|refusal| {
            Error::input(refusal.message).at(document.place_in_file(&refusal.path)).hint(refusal.hint)
        })?;
        overrides::apply(&overrides, &mut value)?;

        if let Some(path) = keys::first_unknown(&value, &tree) {
            let error = document.error(&path, keys::unknown_key(&path, &tree));
            return Err(error.hint(keys::unknown_key_hint(&path, &tree)));
        }
        defaults::set_dependent(&mut value);
        let mut config: Self = serde_path_to_error::deserialize(value).map_err(|error| document.ill_typed(&error))?;
        config.resolve();
        match config.check() {
            Ok(()) => Ok(config),
            Err(complaint) => {
                let path: Vec<String> = complaint.key.split('.').map(String::from).collect();
                Err(Error::from(complaint).at(document.place(&path)))
            }
        }
    }

    /// The config as TOML: every key with its value, defaults filled in. Loading it gives an equal config.
    ///
    /// # Errors
    /// A value that TOML cannot hold: a path that is not UTF-8, an integer above 2^63 - 1. A loaded config has none.
    pub fn resolved_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::runtime(format!("cannot write the config as TOML: {error}")))
    }
}

/// The text of a config, kept to name the place of an error.
struct Document<'d> {
    name: &'d str,
    text: &'d str,
    overrides: &'d [Override],
    /// Keys for which the file uses another trainer's name.
    renamed: Vec<Renamed>,
}

impl Document<'_> {
    fn error(&self, path: &[String], message: String) -> Error {
        Error::input(message).at(self.place(path))
    }

    /// `FILE:LINE` of a key, or the override that set it.
    fn place(&self, path: &[String]) -> String {
        let touched = |set: &&Override| path.starts_with(&set.path) || set.path.starts_with(path);
        match self.overrides.iter().rev().find(touched) {
            Some(set) => format!("--set {}", set.text),
            None => self.place_in_file(path),
        }
    }

    /// `FILE:LINE` of a key, by the name that the file uses.
    fn place_in_file(&self, path: &[String]) -> String {
        let renamed = self.renamed.iter().find(|renamed| path.starts_with(&renamed.ours));
        match self.line(renamed.map_or(path, |renamed| &renamed.typed)) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.to_string(),
        }
    }

    /// The line of a key, or of its nearest parent; `None` if the file has neither.
    fn line(&self, path: &[String]) -> Option<usize> {
        let document = DeTable::parse(self.text).ok()?;
        let root = DeValue::Table(document.into_inner());
        let mut node = &root;
        let mut offset = None;
        for key in path {
            let found = match node {
                DeValue::Table(table) => table
                    .iter()
                    .find(|(name, _)| name.get_ref() == key)
                    .map(|(name, value)| (name.span().start, value.get_ref())),
                DeValue::Array(rows) => key
                    .parse()
                    .ok()
                    .and_then(|index: usize| rows.get(index))
                    .map(|row| (row.span().start, row.get_ref())),
                _ => None,
            };
            let Some((start, value)) = found else { break };
            (offset, node) = (Some(start), value);
        }
        offset.map(|offset| line_at(self.text.as_bytes(), offset))
    }

    /// Rewrites serde's error about a missing or ill-typed key.
    fn ill_typed(&self, error: &serde_path_to_error::Error<toml::de::Error>) -> Error {
        use serde_path_to_error::Segment;
        let mut path: Vec<String> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Map { key } => Some(key.clone()),
                Segment::Seq { index } => Some(index.to_string()),
                Segment::Enum { .. } | Segment::Unknown => None,
            })
            .collect();
        let message = error.inner().message();
        if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            let place = self.place(&path);
            path.push(field.to_string());
            let key = path.join(".");
            return Error::input(format!("{place}: `{key}` is missing; it has no default"))
                .hint(format!("add it to the file or pass --set {key}=VALUE"));
        }
        let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
        let variants: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let expected = match expected {
            // The message says it already.
            "" => String::new(),
            "usize" | "u64" => String::from("; expected a whole number, 0 or above"),
            "f64" => String::from("; expected a number"),
            "a boolean" => String::from("; expected true or false"),
            "path string" | "a string" => String::from("; expected a string"),
            "a sequence" => String::from("; expected an array"),
            _ if expected.starts_with("struct ") => String::from("; expected a table"),
            _ if !variants.is_empty() => format!("; expected one of {}", variants.join(", ")),
            other => format!("; expected {other}"),
        };
        let what = what.replacen("unknown variant", "unknown value", 1);
        let made = self.error(&path, format!("`{}`: {what}{expected}", path.join(".")));
        let typed = what.split('`').nth(1).unwrap_or_default();
        made.hint(match keys::nearest(typed, variants.into_iter()) {
            Some(nearest) => format!("did you mean \"{nearest}\"?"),
            None => SEE_REFERENCE.to_string(),
        })
    }
}

/// The line, from 1, that byte `offset` is on.
fn line_at(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count()
}
