//! `haf-dist init`: writes a commented config that fits the model and the data, or translates another program's config.
//!
//! Runs in one process, without libtorch and MPI. Overwrites nothing, and writes no config that would not load.

mod content;
mod course;
mod draft;
mod foreign;
mod look;
mod method;
mod own;
mod python;
mod sources;
mod tokens;
mod translate;
mod yaml;

use crate::cli::Initializing;
use crate::commands::shell;
use crate::config::{Config, RowRange, Source};
use crate::error::{Error, Result, file_error};
use crate::terminal;
use draft::Draft;
use look::{DataFacts, ModelFacts};
use sources::{Chosen, Splits};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use toml::{Table, Value};
use translate::Translation;

/// A config with every key and its default.
const REFERENCE: &str = include_str!("../../../configs/reference.toml");

/// Writes the config.
///
/// # Errors
/// No model or no data, or such that would not load; a foreign file that cannot be read; an output file that exists.
pub(crate) fn run(asked: &Initializing) -> Result<()> {
    if asked.reference {
        return terminal::out(REFERENCE.trim_end());
    }
    let to_stdout = asked.out.as_os_str() == "-";
    if !to_stdout && std::fs::symlink_metadata(&asked.out).is_ok() {
        return Err(Error::input(format!("{} exists already and is not overwritten", asked.out.display()))
            .hint("name another file with --out, or - for standard output"));
    }
    // Before the data is read, which may take long.
    if let Some(folder) = asked.out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        return Err(Error::input(format!(
            "--out {}: the folder {} does not exist",
            asked.out.display(),
            folder.display()
        ))
        .hint("create it first, or name another file"));
    }
    let text = written(asked)?;
    if to_stdout {
        return terminal::out(text.trim_end());
    }
    let failed = |error| file_error(&asked.out, "write", &error);
    // Fails if another process has made it since.
    let mut file = File::create_new(&asked.out).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    let out = shell::quoted(&asked.out.to_string_lossy());
    terminal::out(format_args!("wrote {}\nnext: haf-dist check {out}, then haf-dist train {out}", asked.out.display()))
}

/// A path as text for a config.
///
/// # Errors
/// A path that is not UTF-8: a TOML file cannot hold it.
fn in_toml(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::input(format!("{}: the path is not UTF-8, so a config cannot name it", path.display()))
            .hint("rename it, or make a symbolic link with another name")
    })
}

/// The text of the config.
fn written(asked: &Initializing) -> Result<String> {
    let foreign = asked.from.as_deref().map(foreign::read).transpose()?;
    let mut draft = Draft::default();
    draft.say("Written by `haf-dist init`. `haf-dist init --reference` shows every key with its default.");
    if let Some(foreign) = &foreign {
        let trains = match foreign.trains {
            foreign::Trains::Reward => "a reward model",
            foreign::Trains::Policy => "a policy with a preference loss",
        };
        draft.say(format!(
            "Made from {}, which trains {trains}: {}. \"line N\" below is a line of that file.",
            foreign.file, foreign.evidence
        ));
    }
    let mut from = foreign.map(|foreign| Translation::new(foreign, asked.processes));
    let (path, why) = model_path(asked, from.as_mut())?;
    let splits = splits(asked, from.as_mut())?;
    let model = look::model(&path)?;
    let mut about = why.into_iter().collect::<Vec<_>>();
    about.extend(model.about.iter().cloned());
    draft.set_with("model.path", in_toml(&path)?, about);
    let train = add_sources(&mut draft, "data.train", &splits.train)?;
    add_sources(&mut draft, "data.dev", &splits.dev)?;
    let test: Vec<Chosen> = asked.test.iter().map(|path| named(path)).collect();
    add_sources(&mut draft, "data.test", &test)?;
    output(&mut draft, asked, from.as_mut(), &path)?;
    rest(&mut draft, from, &model, &train, !splits.dev.is_empty(), asked)
}

/// Adds everything after model and data, and returns the text.
fn rest(
    draft: &mut Draft,
    mut from: Option<Translation>,
    model: &ModelFacts,
    train: &[DataFacts],
    has_dev: bool,
    asked: &Initializing,
) -> Result<String> {
    let pairs = train.iter().map(|data| data.pairs).sum::<Option<usize>>();
    let template = own::template(draft, model, train);
    match &mut from {
        Some(from) => {
            course::translate(from, draft, pairs);
            method::translate(from, draft, model)?;
        }
        None => own::objective(draft, model),
    }
    let file = from.as_ref().map(|from| from.file.clone());
    if let Some(from) = from {
        from.finish(draft);
    }
    own::adapter(draft, model);
    own::max_length(draft, model, &look::lengths(model, template, train)?);
    own::schedule(draft, pairs, has_dev);
    own::precision(draft);
    let parsed = |draft: &Draft| {
        Config::parse("draft", &draft.render(None), &[]).map_err(|error| {
            // The user has not seen the draft, so its line number has no meaning.
            let wrong = error.message.split_once(": ").map_or(&error.message[..], |(_, wrong)| wrong).to_owned();
            let from = asked.from.as_deref().map_or("these options".to_owned(), |from| from.display().to_string());
            Error { message: format!("{from}: the resulting config is not valid: {wrong}"), ..error }
        })
    };
    parsed(draft)?;
    own::memory(draft, model, file.is_some(), parsed)?;
    let text = draft.render(file.as_deref());
    Config::parse("the config", &text, &[])?;
    Ok(text)
}

/// The model's path, and why it is this one.
fn model_path(asked: &Initializing, from: Option<&mut Translation>) -> Result<(PathBuf, Option<String>)> {
    let file = asked.from.as_deref().map(|file| format!("{} names no model", file.display()));
    let given = from.and_then(|from| {
        let given = from.model()?;
        match &asked.model {
            Some(_) => {
                from.leave_given(&given, "--model names the model");
                None
            }
            None => Some(given),
        }
    });
    match (&asked.model, given) {
        (Some(path), _) => Ok((path.clone(), None)),
        (None, Some(given)) => Ok((given.value, Some(given.place))),
        (None, None) => Err(Error::input(file.unwrap_or("no model to start from".to_owned()))
            .hint("haf-dist init --model FOLDER --train FILE; the model may be hf://owner/name")),
    }
}

fn splits(asked: &Initializing, from: Option<&mut Translation>) -> Result<Splits> {
    let all = |files: &[PathBuf]| files.iter().map(|path| named(path)).collect();
    let mut splits = match from {
        Some(from) => from.splits(!asked.train.is_empty(), !asked.dev.is_empty())?,
        None => Splits::default(),
    };
    if !asked.train.is_empty() {
        splits.train = all(&asked.train);
    }
    if !asked.dev.is_empty() {
        splits.dev = all(&asked.dev);
    }
    if splits.train.is_empty() {
        let what = asked.from.as_deref().map(|file| format!("{} names no data", file.display()));
        return Err(Error::input(what.unwrap_or("no data to train on".to_owned()))
            .hint("haf-dist init --model FOLDER --train FILE [--dev FILE] [--test FILE]"));
    }
    Ok(splits)
}

/// A file named on the command line.
fn named(path: &Path) -> Chosen {
    Chosen { source: Source::new(path), why: String::new() }
}

/// Looks at sources and sets their key.
fn add_sources(draft: &mut Draft, key: &str, sources: &[Chosen]) -> Result<Vec<DataFacts>> {
    let (mut facts, mut list, mut about) = (Vec::new(), Vec::new(), Vec::new());
    for Chosen { source, why } in sources {
        let found = look::data(source)?;
        let mut table = Table::new();
        table.insert("path".to_owned(), in_toml(&source.path)?.into());
        if source.rows != RowRange::default() {
            table.insert("rows".to_owned(), source.rows.to_string().into());
        }
        list.push(Value::Table(table));
        if sources.len() > 1 {
            about.push(format!("{}:", source.path.display()));
        }
        about.extend((!why.is_empty()).then(|| why.clone()));
        about.extend(found.about.iter().cloned());
        facts.push(found);
    }
    if !list.is_empty() {
        draft.set_with(key, Value::Array(list), about);
    }
    Ok(facts)
}

/// The run's folder.
fn output(draft: &mut Draft, asked: &Initializing, from: Option<&mut Translation>, model: &Path) -> Result<()> {
    let given = from.and_then(|from| {
        let given = from.text("output_dir")?;
        match &asked.output_dir {
            Some(_) => {
                from.leave_given(&given, "--output-dir names the folder");
                None
            }
            None => Some(given),
        }
    });
    let (dir, why) = match (&asked.output_dir, given) {
        (None, Some(given)) => (given.value, given.place),
        (dir, _) => {
            // A model's name may have dots: Llama-3.2-1B.
            let name = if asked.out.as_os_str() == "-" { model.file_name() } else { asked.out.file_stem() };
            let default = || Path::new("runs").join(name.unwrap_or("run".as_ref()));
            let dir = dir.clone().unwrap_or_else(default);
            (in_toml(&dir)?, "The run's folder; it must not hold another run.".to_owned())
        }
    };
    draft.set("output.dir", dir, why);
    Ok(())
}

#[cfg(test)]
mod tests;
