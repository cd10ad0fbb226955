//! The config file of a run as it is typed: by its place or by `--config`, and keys that replace the file's.
//!
//! Not here: reading the file (`config/`).

use crate::error::{Error, Result};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// A run's config file, and keys that replace the file's.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize)]
pub struct RunConfig {
    /// The run, as a TOML file
    #[arg(value_name = "CONFIG")]
    first: Option<String>,

    /// Keys of the config to replace, e.g. train.steps=100 or data.train.0.path=more.jsonl
    #[arg(value_name = "KEY=VALUE")]
    rest: Vec<String>,

    /// The same as CONFIG
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The same as KEY=VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RunConfig {
    /// Whether a config was named.
    pub fn is_given(&self) -> bool {
        self.config.is_some() || self.first.as_ref().is_some_and(|word| !word.contains('='))
    }

    /// The keys alone, where no config is named.
    ///
    /// # Errors
    /// A word that is no KEY=VALUE.
    pub fn overrides(&self) -> Result<Vec<String>> {
        let config = Some(PathBuf::new());
        Self { config, ..self.clone() }.resolve().map(|(_, set)| set)
    }

    /// The file, and its replaced keys in the order of `--set` first.
    ///
    /// # Errors
    /// No file, or two; a word that is no KEY=VALUE.
    pub fn resolve(self) -> Result<(PathBuf, Vec<String>)> {
        let Self { first, mut rest, config, mut set } = self;
        let config = match (config, first) {
            (Some(config), first) => {
                rest.splice(0..0, first);
                config
            }
            (None, Some(first)) => PathBuf::from(first),
            (None, None) => {
                return Err(Error::input("no config: expected the path of a TOML file")
                    .hint("haf-dist init writes one; configs/reference.toml shows every key"));
            }
        };
        if let Some(word) = rest.iter().find(|word| !word.contains('=')) {
            return Err(Error::input(format!("{word}: expected KEY=VALUE beside the config {}", config.display()))
                .hint("one config a run; a key is written as in train.steps=100"));
        }
        set.append(&mut rest);
        Ok((config, set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(first: Option<&str>, rest: &[&str], config: Option<&str>) -> Result<(PathBuf, Vec<String>)> {
        let rest = rest.iter().map(|word| (*word).to_owned()).collect();
        RunConfig { first: first.map(str::to_owned), rest, config: config.map(PathBuf::from), set: vec!["c=3".into()] }
            .resolve()
    }

    /// Promise: a config is named by its place or by `--config`, and what else stands there are keys.
    #[test]
    fn a_config_and_keys_are_told_apart() {
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let expected = (PathBuf::from("run.toml"), keys(&["c=3", "a=1", "b=2"]));
        assert_eq!(typed(Some("run.toml"), &["a=1", "b=2"], None).unwrap(), expected);
        assert_eq!(typed(Some("a=1"), &["b=2"], Some("run.toml")).unwrap(), expected);
        assert!(typed(Some("run.toml"), &["other.toml"], None).unwrap_err().to_string().contains("other.toml"));
        assert!(typed(Some("two.toml"), &[], Some("run.toml")).is_err());
        assert!(typed(None, &[], None).is_err());
    }
}
