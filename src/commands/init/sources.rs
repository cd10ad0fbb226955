//! Translates model and data from another program's config: names on the hub, files, splits with a range of rows,
//! LLaMA-Factory's dataset_info.json.
//!
//! Not here: looking at them (`look.rs`).

use super::content::Item;
use super::draft::quoted;
use super::foreign::Program;
use super::translate::{Given, Translation, as_number};
use crate::config::{RowRange, Source};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The largest dataset_info.json that is read.
const MOST_BYTES: u64 = 4 << 20;

/// The hint if a foreign config does not lead to the data.
const NAME_DATA: &str = "name the files of pairs with --train FILE (and --dev FILE)";

/// A source, and why it was chosen.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Its path and rows; everything else is default.
    pub(crate) source: Source,
    /// The place in the file that names it.
    pub(crate) why: String,
}

/// The sources of a config.
#[derive(Debug, Default)]
pub(crate) struct Splits {
    /// Training pairs.
    pub(crate) train: Vec<Chosen>,
    /// Pairs that pick the best checkpoint.
    pub(crate) dev: Vec<Chosen>,
}

impl Translation {
    /// The model.
    pub(crate) fn model(&mut self) -> Option<Given<PathBuf>> {
        let mut given = self.text("model_name_or_path").or_else(|| self.text("model"))?;
        let mut path = place(&given.value);
        if let Some(revision) = self.text("model_revision") {
            match path.starts_with("hf:/") {
                true => {
                    path = PathBuf::from(format!("{}@{}", path.display(), revision.value));
                    given.place += &format!("; {}", revision.place);
                }
                false => self.leave_given(&revision, "the model is a folder, which has no revisions"),
            }
        }
        Some(Given { value: path, place: given.place, line: given.line })
    }

    /// The data. If `train` or `dev` files were named on the command line, they override the file's settings, which are listed.
    ///
    /// # Errors
    /// A data set that cannot be found, or a part of one that a config cannot name.
    pub(crate) fn splits(&mut self, train: bool, dev: bool) -> Result<Splits> {
        const OF_DEV: [&str; 4] = ["dataset_test_split", "eval_dataset", "val_size", "test_split_size"];
        const OF_TRAIN: [&str; 8] = [
            "dataset_name",
            "dataset_config",
            "dataset_train_split",
            "datasets",
            "load_dataset",
            "dataset",
            "dataset_dir",
            "max_samples",
        ];
        if train && !dev {
            let rows =
                "--train names the data: --dev names held-out pairs, or a source's `rows` = \":5%\" a share of it";
            self.leave_all(&["val_size", "test_split_size"], rows);
        }
        if train || dev {
            self.leave_all(&OF_DEV, if dev { "--dev names these pairs" } else { "--train names the data" });
        }
        if train {
            self.leave_all(&OF_TRAIN, "--train names the data");
            return Ok(Splits::default());
        }
        let mut splits = match self.program {
            Program::LlamaFactory => self.of_factory()?,
            Program::Trl | Program::Transformers => self.of_trl()?,
        };
        for word in ["val_size", "test_split_size"] {
            match self.number(word) {
                Some(share) if share.value == 0.0 => self.leave_given(&share, "nothing is held out"),
                Some(share) => self.hold_out(&mut splits, share),
                None => {}
            }
        }
        if let Some(most) = self.whole("max_samples") {
            for chosen in &mut splits.train {
                match chosen.source.rows == RowRange::default() {
                    true => {
                        chosen.source.rows = range(&format!(":{}", most.value), &most.place)?;
                        chosen.why += &format!("; {}", most.place);
                    }
                    false => chosen.why += &format!("; {} is left out: there is a range of rows already", most.place),
                }
            }
        }
        if dev {
            for dropped in std::mem::take(&mut splits.dev) {
                self.leave_note(format!("{}: --dev names these pairs", dropped.why));
            }
        }
        Ok(splits)
    }

    fn of_trl(&mut self) -> Result<Splits> {
        let mut splits = Splits::default();
        let evaluates = self.has("dataset_test_split") || self.evaluates();
        let (train, test) = (self.text("dataset_train_split"), self.text("dataset_test_split"));
        let config = self.text("dataset_config");
        if let Some(item) = self.take("datasets") {
            let list = match &item.value {
                Value::Array(list) => list.clone(),
                _ => return Err(Error::input(format!("{}: expected a list", item.place())).hint(NAME_DATA)),
            };
            for one in &list {
                let Value::Object(one) = one else {
                    return Err(Error::input(format!("{}: expected objects with a path", item.place())).hint(NAME_DATA));
                };
                self.one(one, &item, &mut splits)?;
            }
        }
        while let Some(item) = self.take("load_dataset") {
            match &item.value {
                Value::Object(one) if one.contains_key("path") => self.one(one, &item, &mut splits)?,
                _ => self.leave(&item, "its arguments are not literals: name the data with --train"),
            }
        }
        let name = self.text("dataset_name").filter(|name| {
            if !splits.train.is_empty() {
                self.leave_given(name, "`datasets` overrides it");
            }
            splits.train.is_empty()
        });
        let Some(name) = &name else {
            let parts = [&config, &train, &test].into_iter().flatten();
            parts.for_each(|part| self.leave_given(part, "has a meaning only with dataset_name"));
            return Ok(splits);
        };
        let of_split = |split: &Option<Given<String>>, default: &str| -> Result<Vec<Chosen>> {
            let parts = [Some(name), config.as_ref(), split.as_ref()].into_iter().flatten();
            let why = parts.map(|given| given.place.clone()).collect::<Vec<_>>().join("; ");
            let split = split.as_ref().map_or(default, |given| &given.value);
            chosen(&name.value, config.as_ref().map(|given| &given.value[..]), split, &why)
        };
        splits.train = of_split(&train, "train")?;
        let on_hub = place(&name.value).starts_with("hf:/");
        if evaluates && on_hub {
            splits.dev = of_split(&test, "test")?;
        } else if let Some(test) = &test {
            self.leave_given(
                test,
                if on_hub { "there are no evaluations" } else { "a file has one split: name another with --dev" },
            );
        }
        Ok(splits)
    }

    /// Whether the file asks for evaluations.
    fn evaluates(&self) -> bool {
        self.peek_text("eval_strategy").is_some_and(|strategy| strategy != "no")
    }

    /// An entry of `datasets`, or a call of `load_dataset`.
    fn one(&mut self, one: &Map<String, Value>, item: &Item, splits: &mut Splits) -> Result<()> {
        let text = |key: &str| one.get(key).and_then(Value::as_str);
        for (key, value) in one {
            if !["path", "name", "split", "data_files"].contains(&key.as_str()) && !value.is_null() {
                let part = Item { name: format!("{}.{key}", item.name), value: value.clone(), line: item.line };
                self.leave(
                    &part,
                    match &key[..] {
                        "fraction" => "a source's weight says how often it is drawn, and rows which rows",
                        "columns" => "keys that are not used are listed in the data report",
                        _ => "has no counterpart in a source",
                    },
                );
            }
        }
        let path =
            text("path").ok_or_else(|| Error::input(format!("{}: without a path", item.place())).hint(NAME_DATA))?;
        let files = one.get("data_files");
        // Without a split all of them are loaded: those that data_files names; without these, the training split is meant.
        let names: Vec<&str> = match (text("split"), files) {
            (Some(split), _) => vec![split],
            (None, Some(Value::Object(files))) => files.keys().map(String::as_str).collect(),
            (None, _) => vec!["train"],
        };
        for split in names {
            let why = format!("line {}: {} = {}, split {}", item.line, item.name, quoted(path), quoted(split));
            let files = data_files(files, split);
            let named: Vec<&str> = if files.is_empty() { vec![path] } else { files };
            let list = if split.starts_with("train") { &mut splits.train } else { &mut splits.dev };
            for file in named {
                list.extend(chosen(file, text("name"), split, &why)?);
            }
        }
        Ok(())
    }

    fn of_factory(&mut self) -> Result<Splits> {
        let folder = self.text("dataset_dir");
        if let Some(folder) = &folder {
            self.leave_given(folder, "used to find dataset_info.json");
        }
        let folder = folder.map_or_else(|| PathBuf::from("data"), |given| PathBuf::from(given.value));
        let mut splits = Splits::default();
        for (word, list) in [("dataset", &mut splits.train), ("eval_dataset", &mut splits.dev)] {
            let Some(given) = self.texts(word) else { continue };
            for name in &given.value {
                list.extend(of_info(&folder, name, &given.place)?);
            }
        }
        Ok(splits)
    }

    /// Holds out a share of the training rows for evaluations: the last rows here, random ones there.
    fn hold_out(&mut self, splits: &mut Splits, share: Given<f64>) {
        let percent = (100.0 * share.value).round();
        let whole = (100.0 * share.value - percent).abs() < 1e-6 && (1.0..100.0).contains(&percent);
        let free = splits.dev.is_empty() && splits.train.iter().all(|chosen| chosen.source.rows == RowRange::default());
        if !whole || !free {
            let why = "set `rows` of data.train and data.dev: \":90%\" and \"90%:\" hold out the last tenth";
            self.leave_given(&share, why);
            return;
        }
        let kept = 100 - percent as usize;
        let why =
            format!("{}; the last {percent}% of the rows, while {} draws them at random", share.place, self.name());
        let (Ok(train), Ok(dev)) = (format!(":{kept}%").parse(), format!("{kept}%:").parse()) else { return };
        for chosen in &mut splits.train {
            chosen.source.rows = train;
            splits.dev.push(Chosen { source: Source { rows: dev, ..chosen.source.clone() }, why: why.clone() });
        }
    }
}

/// The path for a name: a file or folder if it exists, else a name on the hub if it looks like one.
fn place(name: &str) -> PathBuf {
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &&str| !part.is_empty() && !part.starts_with(['.', '~']);
    if !Path::new(name).exists() && parts.len() == 2 && parts.iter().all(plain) && !looks_like_a_file(name) {
        return PathBuf::from(format!("hf://{name}"));
    }
    PathBuf::from(name)
}

fn looks_like_a_file(name: &str) -> bool {
    [".json", ".jsonl", ".parquet", ".gz", ".zst", ".csv"].iter().any(|ending| name.ends_with(ending))
}

/// The sources of a data set's split, `train[:1000]+test` perhaps.
fn chosen(name: &str, config: Option<&str>, split: &str, why: &str) -> Result<Vec<Chosen>> {
    let mut sources = Vec::new();
    for part in split.split('+') {
        let (split, rows) = match part.split_once('[') {
            Some((split, rows)) => (split, Some(rows.trim_end_matches(']'))),
            None => (part, None),
        };
        let mut path = place(name);
        if path.starts_with("hf:/") {
            let config = config.map(|config| format!("/{config}")).unwrap_or_default();
            path = PathBuf::from(format!("hf://{name}{config}/{}", split.trim()));
        } else if path.is_dir() {
            return Err(
                Error::input(format!("{why}: {} is a folder; sources are files", path.display())).hint(NAME_DATA)
            );
        }
        let mut source = Source::new(path);
        if let Some(rows) = rows {
            source.rows = range(rows, why)?;
        }
        sources.push(Chosen { source, why: why.to_owned() });
    }
    Ok(sources)
}

fn range(rows: &str, why: &str) -> Result<RowRange> {
    rows.parse().map_err(|wrong: String| Error::input(format!("{}: {}", quoted(why), quoted(&wrong))).hint(NAME_DATA))
}

/// The files that `data_files` names for a split.
fn data_files<'v>(value: Option<&'v Value>, split: &str) -> Vec<&'v str> {
    match value {
        Some(Value::String(file)) => vec![file],
        Some(Value::Array(files)) => files.iter().filter_map(Value::as_str).collect(),
        Some(Value::Object(splits)) => {
            let split = split.split('[').next().unwrap_or_default();
            data_files(splits.get(split).filter(|value| !value.is_object()), split)
        }
        _ => Vec::new(),
    }
}

/// The sources of a data set named in dataset_info.json.
fn of_info(folder: &Path, name: &str, why: &str) -> Result<Vec<Chosen>> {
    let path = folder.join("dataset_info.json");
    let unknown = |what: String| Error::input(format!("{}: {what}", quoted(why))).hint(NAME_DATA);
    let bytes = files::read_within(&path, MOST_BYTES).map_err(|error| unknown(error.message))?;
    let info: Value =
        serde_json::from_slice(&bytes).map_err(|error| unknown(format!("{}: {error}", path.display())))?;
    let entry = info.get(name).ok_or_else(|| unknown(format!("{} has no \"{}\"", path.display(), quoted(name))))?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let mut found = match (text("file_name"), text("hf_hub_url")) {
        (Some(file), _) => vec![Chosen { source: Source::new(folder.join(file)), why: why.to_owned() }],
        (None, Some(hub)) => chosen(hub, text("subset"), text("split").unwrap_or("train"), why)?,
        (None, None) => {
            return Err(unknown(format!("{}: \"{name}\" has no file_name and no hf_hub_url", path.display())));
        }
    };
    for chosen in &mut found {
        if let Some(columns) = entry.get("columns") {
            chosen.why += &format!(
                "; its columns {} are detected from the rows; if not, set `columns`",
                quoted(&columns.to_string())
            );
        }
        if let Some(most) = entry.get("num_samples").and_then(as_number) {
            chosen.source.rows = range(&format!(":{most}"), why)?;
        }
    }
    Ok(found)
}
