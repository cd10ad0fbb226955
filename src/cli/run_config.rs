//! The config file of a run as typed: by position or with `--config`, and keys that replace the file's.
//!
//! Not here: reading the file (`config/`).

use crate::error::{Error, Result};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A run's config file, and keys that replace the file's.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize)]
pub(crate) struct RunConfig {
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
    pub(crate) fn is_given(&self) -> bool {
        self.config.is_some() || self.first.as_ref().is_some_and(|word| !word.contains('='))
    }

    /// [`resolve`](Self::resolve) for a command line without a command.
    ///
    /// # Errors
    /// Nothing to do; a mistyped command; as [`resolve`](Self::resolve).
    pub(crate) fn of_training(self) -> Result<(PathBuf, Vec<String>)> {
        if !self.is_given() {
            return Err(nothing());
        }
        if let (None, Some(word)) = (&self.config, &self.first)
            && !word.contains(['.', '/'])
            && !Path::new(word).exists()
        {
            let nearest = nearest_command(word).map(|command| format!("did you mean haf-dist {command}? "));
            return Err(Error::input(format!("there is no command and no config file called {word}"))
                .hint(nearest.unwrap_or_default() + "haf-dist --help lists the commands"));
        }
        self.resolve()
    }

    /// The replaced keys alone, if no config is named.
    ///
    /// # Errors
    /// A word that is not KEY=VALUE.
    pub(crate) fn overrides(&self) -> Result<Vec<String>> {
        let config = Some(PathBuf::new());
        Self { config, ..self.clone() }.resolve().map(|(_, set)| set)
    }

    /// The file and its replaced keys, those of `--set` first.
    ///
    /// # Errors
    /// No file, or two; a word that is not KEY=VALUE.
    pub(crate) fn resolve(self) -> Result<(PathBuf, Vec<String>)> {
        let Self { first, mut rest, config, mut set } = self;
        let config = match (config, first) {
            (Some(config), first) => {
                rest.splice(0..0, first);
                config
            }
            (None, Some(first)) => PathBuf::from(first),
            (None, None) => {
                return Err(Error::input("no config: expected the path of a TOML file")
                    .hint("haf-dist init writes one; haf-dist init --reference shows every key"));
            }
        };
        if let Some(word) = rest.iter().find(|word| !word.contains('=')) {
            return Err(Error::input(format!(
                "{word}: expected KEY=VALUE; the config is already {}",
                config.display()
            ))
            .hint("name one config only; write a key as in train.steps=100"));
        }
        set.append(&mut rest);
        Ok((config, set))
    }
}

fn nothing() -> Error {
    let commands = super::command_names().join(", ");
    Error::input(format!("nothing to do: expected a config file to train with, or a command ({commands})"))
        .hint("haf-dist --help shows them with examples; haf-dist init --model FOLDER --train FILE writes a config")
}

/// The command most similar to a mistyped word, if any is similar enough.
fn nearest_command(word: &str) -> Option<String> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&word.to_lowercase(), name);
    let names = super::command_names().into_iter().map(|name| (likeness(&name), name));
    names.filter(|(likeness, _)| *likeness > 0.5).max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(first: Option<&str>, rest: &[&str], config: Option<&str>) -> Result<(PathBuf, Vec<String>)> {
        let rest = rest.iter().map(|word| (*word).to_owned()).collect();
        RunConfig { first: first.map(str::to_owned), rest, config: config.map(PathBuf::from), set: vec!["c=3".into()] }
            .resolve()
    }

    /// Promise: a config is named by position or with `--config`; all other words are keys.
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

    /// Promise: a mistyped command is not taken for a config.
    #[test]
    fn a_word_that_is_neither_a_command_nor_a_file_is_answered() {
        let of =
            |first: Option<&str>| RunConfig { first: first.map(str::to_owned), ..RunConfig::default() }.of_training();
        let mistyped = of(Some("evla")).unwrap_err();
        assert!(mistyped.hint.as_ref().is_some_and(|hint| hint.contains("haf-dist eval?")), "{mistyped}");
        assert!(of(Some("xyzzyplugh")).unwrap_err().hint.is_some_and(|hint| !hint.contains("did you mean")));
        assert!(of(None).unwrap_err().message.contains("compare, "), "every command is listed");
        assert_eq!(
            of(Some("absent.toml")).unwrap().0,
            PathBuf::from("absent.toml"),
            "its reader says that it is absent"
        );
    }
}
