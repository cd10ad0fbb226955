//! `haf-dist check CONFIG`: finds mistakes in a run's settings, model and data within seconds, before anything is computed.
//!
//! Writes nothing. Not here: the machine itself (`doctor.rs`).

use super::findings::{self, Finding};
use super::{hub, models, setup};
use crate::checkpoint;
use crate::cli::Checking;
use crate::config::{Config, Source};
use crate::data::formats;
use crate::data::tokenize::{Encoded, Encoder};
use crate::error::{Error, Result};
use crate::files;
use crate::launcher::linked::gpus_in_use;
use crate::machine::{self, backend};
use crate::model::architecture::Architecture;
use crate::plan::Job;
use crate::plan::here::{self, Room};
use crate::train;
use std::path::Path;
use tch::Kind;

/// Number of pairs of each file that are rendered and tokenized.
const LOOKED_AT: usize = 10;

/// Prints a line for each finding.
///
/// # Errors
/// A config that cannot be read; any finding that is not OK, after all are printed.
pub(crate) fn run(checking: &Checking) -> Result<()> {
    let (path, set) = checking.run.clone().resolve()?;
    let config = Config::load(&path, &set)?;
    let mut found = vec![Finding::ok("config", format!("{}: every key and value", path.display()))];
    found.extend(ranks(&config, checking.ranks));
    let cards = gpus_in_use();
    let with_gpus = cards.is_some();
    if let Err(error) = backend::check(&config.parallel, checking.ranks, with_gpus, with_gpus) {
        found.push(Finding::error("backend", error));
    }
    found.push(output(&config, checking.resume));
    found.extend(unwritable("cache", &config.data.cache_dir));
    let encoder = model(&config, &mut found);
    for (split, sources) in [("train", &config.data.train), ("dev", &config.data.dev), ("test", &config.data.test)] {
        found.extend(sources.iter().map(|source| data(split, source, encoder.as_ref())));
    }
    found.extend(memory_and_disk(&config, checking.ranks, cards.as_deref()));
    findings::print(&found, checking.json, |faults| {
        Error::input(format!("{faults} of {} checks failed", found.len())).hint("see the hints above")
    })
}

fn ranks(config: &Config, ranks: usize) -> Option<Finding> {
    let pairs = config.train.pairs_per_step;
    let threads = if config.parallel.threads == 0 { 1 } else { config.parallel.threads };
    let (wanted, usable) = (ranks * threads, machine::usable_cores());
    Some(if ranks > pairs {
        let found = format!("{ranks} ranks share train.pairs_per_step = {pairs}: some ranks would never get a pair");
        Finding::wrong("ranks", found, format!("start at most {pairs}, or raise train.pairs_per_step"))
    } else {
        let (word, each) = (if ranks == 1 { "rank" } else { "ranks" }, pairs.div_ceil(ranks));
        let slow = if wanted > usable {
            format!("; slow: {wanted} threads share {usable} usable cores, so they wait for one another")
        } else {
            String::new()
        };
        Finding::ok("ranks", format!("{ranks} {word}, {each} pairs each per step{slow}"))
    })
}

fn output(config: &Config, resume: bool) -> Finding {
    let folder = &config.output.dir;
    let found = if resume { "holds a run to continue" } else { "holds no run yet" };
    match checkpoint::check_run(folder, resume) {
        Ok(()) => unwritable("output", folder)
            .unwrap_or_else(|| Finding::ok("output", format!("{} {found}", folder.display()))),
        Err(error) => Finding::error("output", error),
    }
}

/// A finding if files cannot be made in the folder, or if it cannot be made itself. Leaves nothing behind.
fn unwritable(what: &str, folder: &Path) -> Option<Finding> {
    let error = tempfile::tempfile_in(files::nearest_existing(folder)).err()?;
    let found = format!("cannot write into the folder {}: {error}", folder.display());
    Some(Finding::wrong(what, found, "name another folder, or allow writing there"))
}

/// Checks the model's folder, its adapter and its tokenizer; returns the encoder for the data.
fn model(config: &Config, found: &mut Vec<Finding>) -> Option<Encoder> {
    if hub::is_on_hub(&config.model.path) {
        let architecture = hub::fetch_config_alone(&config.model.path).and_then(|folder| Architecture::open(&folder));
        let text = format!("{}: its config.json; the rest is fetched at the start", config.model.path.display());
        found.push(architecture.map_or_else(|error| Finding::error("model", error), |_| Finding::ok("model", text)));
        return None;
    }
    let origin = setup::origin(config).map_err(|error| found.push(Finding::error("model", error))).ok()?;
    match models::refused(&origin.base) {
        Some(error) => found.push(Finding::error("model", error)),
        None => found.push(Finding::ok("model", format!("{} loads", origin.base.display()))),
    }
    let architecture = Architecture::open(&origin.base).ok()?;
    if config.lora.is_some() {
        let job = Job::new(config, architecture.clone(), tch::Kind::Float);
        let text = |job: &Job| format!("{} parameters in adapters and reward head", job.trained());
        found.push(job.map_or_else(|error| Finding::error("lora", error), |job| Finding::ok("lora", text(&job))));
    }
    match setup::encoder(config, origin.tokenizer(), &architecture) {
        Ok(encoder) => Some(encoder),
        Err(error) => {
            found.push(Finding::error("tokenizer", error));
            None
        }
    }
}

/// Renders and tokenizes the first pairs of a file.
fn data(split: &str, source: &Source, encoder: Option<&Encoder>) -> Finding {
    if source.path.as_os_str() == files::DASH {
        return Finding::ok(split, "-: standard input, which is read at the start");
    }
    if hub::is_on_hub(&source.path) {
        let text = format!(
            "{}: on the hub or in its cache; what is not cached is fetched at the start",
            source.path.display()
        );
        let looked_up = hub::look_up_alone(&source.path);
        return looked_up.map_or_else(|error| Finding::error(split, error), |()| Finding::ok(split, text));
    }
    let looked = || -> Result<String> {
        let pairs = formats::first(source, LOOKED_AT)?;
        let Some(encoder) = encoder else {
            return Ok(format!("{}: {} pairs read, none tokenized", source.path.display(), pairs.len()));
        };
        let (mut kept, mut cut, mut ends, mut longest) = (0, 0, 0, 0);
        let mut reasons = Vec::new();
        for pair in pairs.iter().take(LOOKED_AT) {
            match encoder.encode(pair).map_err(|error| error.at(source.path.display()))? {
                Encoded::Dropped(reason) => reasons.push(reason.to_string()),
                Encoded::Kept(pair) => {
                    kept += 1;
                    cut += usize::from(pair.prompt_cut || pair.answer_cut);
                    ends += usize::from(pair.answer_cut);
                    longest = longest.max(pair.prefix + pair.chosen.max(pair.rejected));
                }
            }
        }
        if kept == 0 {
            let why = reasons.first().map_or("no row makes a pair", String::as_str);
            return Err(Error::input(format!("{}: none of the first pairs can be used: {why}", source.path.display()))
                .hint("check the source's format, and data.max_length and data.truncation"));
        }
        let dropped = reasons.first().map(|why| format!(", {} left out ({why})", reasons.len())).unwrap_or_default();
        let cut = match (cut, ends) {
            (0, _) => String::new(),
            (cut, 0) => format!(", {cut} truncated to data.max_length"),
            (cut, ends) => format!(", {cut} truncated to data.max_length ({ends} of them lose the end of an answer)"),
        };
        Ok(format!("{}: the first {kept} pairs are fine, up to {longest} tokens{dropped}{cut}", source.path.display()))
    };
    looked().map_or_else(|error| Finding::error(split, error), |text| Finding::ok(split, text))
}

/// Checks memory with `plan` on this computer, and disk space for the checkpoints that are kept.
fn memory_and_disk(config: &Config, ranks: usize, cards: Option<&[String]>) -> Vec<Finding> {
    let Ok(origin) = setup::origin(config) else { return Vec::new() };
    let folder = hub::fetch_config_alone(&origin.base);
    let Ok(architecture) = folder.and_then(|folder| Architecture::open(&folder)) else { return Vec::new() };
    let mut found = Vec::new();
    match here::on_first_device(config, &architecture, ranks, cards) {
        Err(error) => return vec![Finding::error("memory", error)],
        Ok(None) => {}
        Ok(Some(Room { needed, usable, device })) => {
            let text =
                format!("a rank needs {:.1} GB at most and may fill {:.1} GB of {device}", needed / 1e9, usable / 1e9);
            found.push(match needed <= usable {
                true => Finding::ok("memory", text),
                false => Finding::wrong("memory", text, "haf-dist plan CONFIG shows what would fit (--gpu cpu: here)"),
            });
        }
    }
    let kind = here::kind(config, cards.is_some());
    let Ok(job) = Job::new(config, architecture, kind) else { return found };
    // As when a run starts: with adapters exactly the trained parameters are exported, in f32.
    let exported = if config.lora.is_some() { (job.trained(), Kind::Float) } else { (job.parameters(), kind) };
    let bytes = checkpoint::expected_bytes(origin.tokenizer(), exported, job.trained());
    // Without train.steps, as many as may be kept.
    let checkpoints = train::checkpoints_at_once(config, config.train.steps.unwrap_or(usize::MAX));
    let disk = checkpoint::check_disk(&config.output.dir, bytes, checkpoints);
    found.push(disk.map_or_else(|error| Finding::error("disk", error), |text| Finding::ok("disk", text)));
    found
}
