//! Looks at a model and files of pairs for the facts that a config depends on. Writes nothing, and reads no weights.
//!
//! Not here: choosing settings from these facts (`own.rs`).

use crate::commands::{hub, models};
use crate::config::{Format, Source, TemplateKind, Truncation};
use crate::data::formats::{self, DropReason};
use crate::data::template::Template;
use crate::data::tokenize::{Encoded, Encoder, Rules};
use crate::data::{self, Pair, Prompt};
use crate::error::{Error, Result};
use crate::model::adapter::Origin;
use crate::model::architecture::Architecture;
use crate::model::layout::Part;
use crate::model::peft::PeftConfig;
use crate::model::weight_files::WeightFiles;
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// Number of pairs of each file that are tokenized.
const LOOKED_AT: usize = 512;

/// Of files with more bytes, only the first pairs are read.
const MOST_BYTES: u64 = 256 << 20;

/// A length beyond any sequence.
const ENDLESS: usize = 1 << 24;

/// A model.
pub(crate) struct ModelFacts {
    /// Its architecture; None for a model on the hub that could not be read.
    pub(crate) architecture: Option<Architecture>,
    /// The folder of its tokenizer, if that is on this machine.
    pub(crate) tokenizer: Option<PathBuf>,
    /// Whether it has a chat template; assumed for a model on the hub that could not be read.
    pub(crate) chat: bool,
    /// Whether it has a language-model head, which a policy loss needs.
    pub(crate) language_model_head: bool,
    /// The adapter's config and projections, if the folder is an adapter.
    pub(crate) adapter: Option<(PeftConfig, Vec<String>)>,
    /// A sentence about each of these facts.
    pub(crate) about: Vec<String>,
}

/// Looks at a model.
///
/// # Errors
/// A folder that would not load.
pub(crate) fn model(path: &Path) -> Result<ModelFacts> {
    if hub::is_on_hub(path) {
        return Ok(on_hub(path));
    }
    hub::expect_model(path)?;
    let origin = Origin::of(path, None)?;
    if let Some(error) = models::refused(&origin.base) {
        return Err(error);
    }
    let architecture = Architecture::open(&origin.base)?;
    let files = WeightFiles::of_model(&origin.base, &architecture)?;
    let language_model_head = files.has_language_model_head(&architecture);
    let chat = Template::open(TemplateKind::Chat, origin.tokenizer()).is_ok();
    let mut about = vec![described(&architecture)];
    about.push(has_template(chat).to_owned());
    if files.names().any(|name| files.is_head(name)) {
        about.push("It is a reward model already: training continues from its reward head.".to_owned());
    }
    if !language_model_head {
        about.push("It has no language-model head: a policy loss cannot be trained.".to_owned());
    }
    let adapter = match &origin.adapter {
        Some(folder) => {
            about.push(format!("The folder is an adapter of {}: its training continues.", origin.base.display()));
            Some((PeftConfig::open(folder)?, adapted(folder)?))
        }
        None => None,
    };
    let tokenizer = Some(origin.tokenizer().to_path_buf());
    Ok(ModelFacts { architecture: Some(architecture), tokenizer, chat, language_model_head, adapter, about })
}

/// A model on the hub, fetched without its weights. If that fails, the config can be written all the same.
fn on_hub(path: &Path) -> ModelFacts {
    let fetched = hub::fetch_without_weights_alone(path).and_then(|folder| Ok((Architecture::open(&folder)?, folder)));
    let (architecture, tokenizer, chat, about) = match fetched {
        Ok((architecture, folder)) => {
            let template = Template::open(TemplateKind::Chat, &folder).is_ok();
            let about = vec![described(&architecture), has_template(template).to_owned()];
            (Some(architecture), folder.join("tokenizer.json").exists().then_some(folder), template, about)
        }
        Err(error) => {
            let about = "The model is on the hub: its tokenizer and chat template were not looked at.";
            (None, None, true, vec![format!("It could not be looked at: {}", error.message), about.to_owned()])
        }
    };
    ModelFacts { architecture, tokenizer, chat, language_model_head: true, adapter: None, about }
}

fn has_template(chat: bool) -> &'static str {
    match chat {
        true => "It has a chat template, as instruct models have.",
        false => "It has no chat template, as base models have none.",
    }
}

fn described(architecture: &Architecture) -> String {
    let declared = Part::all(architecture).into_iter().flat_map(|part| part.parameters(architecture));
    let count: i64 = declared.map(|one| one.shape.iter().product::<i64>()).sum();
    let head = if architecture.tied { "tied" } else { "untied" };
    let Architecture { names, max_positions, .. } = architecture;
    let causal = names.reward_model.replace("ForSequenceClassification", "");
    format!(
        "A {causal} model of {} parameters, embeddings {head}, for up to {max_positions} tokens.",
        short(count as f64)
    )
}

/// `134M`.
fn short(count: f64) -> String {
    match count {
        count if count >= 1e9 => format!("{:.1}B", count / 1e9),
        count if count >= 1e6 => format!("{:.0}M", count / 1e6),
        count => format!("{count:.0}"),
    }
}

/// The projections that an adapter's file names.
fn adapted(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("adapter_config.json");
    let text = crate::files::read_within(&path, 1 << 20)?;
    let config: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Error::input(format!("{}: {error}", path.display())).hint("write it with PEFT"))?;
    let names = config.get("target_modules").and_then(serde_json::Value::as_array);
    let names = names.map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect());
    names.ok_or_else(|| {
        Error::input(format!("{}: target_modules is not a list of names", path.display()))
            .hint("write the config by hand: haf-dist init --reference shows [lora]")
    })
}

/// A file of pairs.
pub(crate) struct DataFacts {
    /// Number of usable pairs; None if not all were read.
    pub(crate) pairs: Option<usize>,
    /// The layout of its rows.
    pub(crate) format: Option<Format>,
    /// The first pairs.
    pub(crate) first: Vec<Pair>,
    /// A sentence about each of these facts.
    pub(crate) about: Vec<String>,
}

/// Looks at a source: at all of its rows unless the file is large.
///
/// # Errors
/// A missing, broken or empty file, or one of no known layout.
pub(crate) fn data(source: &Source) -> Result<DataFacts> {
    if hub::is_on_hub(&source.path) {
        return cached(source);
    }
    let whole = std::fs::metadata(&source.path).is_ok_and(|file| file.len() <= MOST_BYTES);
    let mut counted = Counted::default();
    let mut first = Vec::new();
    let read = formats::stream(source, &mut |pair| {
        counted.count(&pair);
        if first.len() < LOOKED_AT {
            first.push(pair);
            return Ok(());
        }
        if whole { Ok(()) } else { Err(Error::input("enough")) }
    });
    let stopped = !whole && first.len() == LOOKED_AT && counted.pairs > LOOKED_AT;
    let read = if stopped { formats::SourceRows::default() } else { read? };
    if counted.pairs == 0 {
        return Err(Error::input(format!("{}: no row makes a pair", source.path.display()))
            .hint("haf-dist formats shows the layouts that are read"));
    }
    let mut about = vec![rows(&read, stopped, counted.pairs)];
    about.push(format!("Keys that are read: {}. {}", keys(source, &read).join(", "), counted.described()));
    if !read.dropped.is_empty() {
        let ties = read.dropped.contains_key(&DropReason::Tie);
        let reasons: Vec<String> = read.dropped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let hint = if ties { " (ties = \"half\" would train on ties)" } else { "" };
        about.push(format!("Left out: {}{hint}.", reasons.join(", ")));
    }
    let pairs = (!stopped).then_some(counted.pairs);
    Ok(DataFacts { pairs, format: read.format, first, about })
}

/// A split on the hub. Its first file is looked at if it is in the hub's cache.
fn cached(source: &Source) -> Result<DataFacts> {
    let Some((path, rest)) = hub::cached_split(&source.path).ok().and_then(|files| {
        let (first, rest) = files.split_first()?;
        Some((first.clone(), rest.len()))
    }) else {
        let about = vec!["On the hub: not looked at. It is fetched when training starts.".to_owned()];
        return Ok(DataFacts { pairs: None, format: None, first: Vec::new(), about });
    };
    let mut facts = data(&Source { path, ..source.clone() })?;
    if rest > 0 {
        facts.pairs = None;
        facts.about.push(format!("That is the first of {} files.", rest + 1));
    }
    Ok(facts)
}

fn rows(read: &formats::SourceRows, stopped: bool, pairs: usize) -> String {
    let name = read.format.and_then(|format| Some(format.to_possible_value()?.get_name().to_owned()));
    match (stopped, name) {
        (false, Some(name)) => format!("Format \"{name}\". Rows: {}; usable pairs: {pairs}.", read.rows),
        _ => format!("A large file, of which the first {LOOKED_AT} pairs were looked at."),
    }
}

/// Keys of the first row that are used.
fn keys(source: &Source, read: &formats::SourceRows) -> Vec<String> {
    let mut keys = Vec::new();
    // The file was readable before: the error only stops the reading.
    let _ = data::objects(&source.path, source.max_row_bytes, |row| {
        keys = row.keys().filter(|key| !read.unused.contains_key(*key)).cloned().collect();
        Err(Error::input("enough"))
    });
    keys.truncate(12);
    keys.iter().map(|key| super::draft::quoted(key)).collect()
}

/// Counts of pairs with some properties.
#[derive(Default)]
struct Counted {
    pairs: usize,
    several_turns: usize,
    margins: usize,
}

impl Counted {
    fn count(&mut self, pair: &Pair) {
        let turns = match &pair.prompt {
            Prompt::Text(_) => 1,
            Prompt::Messages(messages) => messages.iter().filter(|message| message.role == "user").count(),
        };
        self.pairs += 1;
        self.several_turns += usize::from(turns > 1);
        self.margins += usize::from(pair.margin.is_some());
    }

    fn described(&self) -> String {
        let of = |count: usize| match count {
            0 => "none".to_owned(),
            count if count == self.pairs => "all".to_owned(),
            count => count.to_string(),
        };
        format!("Pairs with several turns: {}; with a margin: {}.", of(self.several_turns), of(self.margins))
    }
}

/// Lengths of the first pairs in tokens, the longer sequence of each; empty without the tokenizer.
///
/// # Errors
/// A broken tokenizer or template, or a text that it cannot take.
pub(crate) fn lengths(model: &ModelFacts, template: TemplateKind, data: &[DataFacts]) -> Result<Vec<usize>> {
    let (Some(folder), Some(architecture)) = (&model.tokenizer, &model.architecture) else { return Ok(Vec::new()) };
    let rules = Rules::new(template, ENDLESS, ENDLESS / 2, Truncation::Cut);
    let encoder = Encoder::open(folder, rules, architecture.vocabulary)?;
    let mut lengths = Vec::new();
    for pair in data.iter().flat_map(|one| &one.first) {
        if let Encoded::Kept(pair) = encoder.encode(pair)? {
            lengths.push(pair.prefix + pair.chosen.max(pair.rejected));
        }
    }
    Ok(lengths)
}
