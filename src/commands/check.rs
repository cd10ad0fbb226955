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
use crate::machine::{self, look};
use crate::model::architecture::Architecture;
use crate::plan::Job;
use crate::plan::here::{self, Room};
use std::path::Path;

/// Number of pairs of each file that are rendered and tokenised.
const LOOKED_AT: usize = 10;

/// Bytes in a checkpoint for each trained parameter: the weights in bf16, masters and two moments in f32.
const CHECKPOINT_BYTES: u64 = 14;

/// Prints a line for each finding.
///
/// # Errors
/// A config that cannot be read; any finding that is not OK, after all are printed.
pub(crate) fn run(checking: &Checking) -> Result<()> {
    let (path, set) = checking.run.clone().resolve()?;
    let config = Config::load(&path, &set)?;
    let mut found = vec![Finding::ok("config", format!("{}: every key and value", path.display()))];
    found.extend(ranks(&config, checking.ranks));
    found.push(output(&config));
    let encoder = model(&config, &mut found);
    for (split, sources) in [("train", &config.data.train), ("dev", &config.data.dev), ("test", &config.data.test)] {
        found.extend(sources.iter().map(|source| data(split, source, encoder.as_ref())));
    }
    found.extend(memory_and_disk(&config, checking.ranks));
    findings::print(&found, checking.json, |faults| {
        Error::input(format!("{faults} of {} lines are not OK", found.len())).hint("the lines say what to do")
    })
}

fn ranks(config: &Config, ranks: usize) -> Option<Finding> {
    let pairs = config.train.pairs_per_step;
    let threads = if config.parallel.threads == 0 { 1 } else { config.parallel.threads };
    let (wanted, usable) = (ranks * threads, machine::usable_cores());
    Some(if ranks > pairs {
        let found = format!("{ranks} ranks share train.pairs_per_step = {pairs}: some ranks would never get a pair");
        Finding::wrong("ranks", found, format!("start at most {pairs}, or raise train.pairs_per_step"))
    } else if wanted > usable {
        let found =
            format!("{ranks} ranks of {threads} threads on {usable} usable cores: they would wait for one another");
        Finding::wrong("ranks", found, "start fewer, or lower parallel.threads")
    } else {
        Finding::ok("ranks", format!("{ranks}; {} pairs a rank and step", pairs.div_ceil(ranks)))
    })
}

fn output(config: &Config) -> Finding {
    let folder = &config.output.dir;
    match checkpoint::check_run(folder, false) {
        Ok(()) => Finding::ok("output", format!("{} holds no run yet", folder.display())),
        Err(error) => Finding::error("output", error),
    }
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

/// Renders and tokenises the first pairs of a file.
fn data(split: &str, source: &Source, encoder: Option<&Encoder>) -> Finding {
    if hub::is_on_hub(&source.path) {
        return Finding::ok(split, format!("{}: on the hub, fetched at the start", source.path.display()));
    }
    let looked = || -> Result<String> {
        let pairs = formats::first(source, LOOKED_AT)?;
        let Some(encoder) = encoder else {
            return Ok(format!("{}: {} pairs read, none tokenised", source.path.display(), pairs.len()));
        };
        let (mut kept, mut cut, mut longest) = (0, 0, 0);
        let mut reasons = Vec::new();
        for pair in pairs.iter().take(LOOKED_AT) {
            match encoder.encode(pair).map_err(|error| error.at(source.path.display()))? {
                Encoded::Dropped(reason) => reasons.push(reason.to_string()),
                Encoded::Kept(pair) => {
                    kept += 1;
                    cut += usize::from(pair.prompt_cut || pair.answer_cut);
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
        let cut = if cut > 0 { format!(", {cut} cut to data.max_length") } else { String::new() };
        Ok(format!("{}: of the first rows {kept} pairs, up to {longest} tokens{dropped}{cut}", source.path.display()))
    };
    looked().map_or_else(|error| Finding::error(split, error), |text| Finding::ok(split, text))
}

/// Checks memory with `plan` on this computer, and disk space for the checkpoints that are kept.
fn memory_and_disk(config: &Config, ranks: usize) -> Vec<Finding> {
    let origin = setup::origin(config).map(|origin| origin.base);
    let folder = origin.and_then(|base| hub::fetch_config_alone(&base));
    let Ok(architecture) = folder.and_then(|folder| Architecture::open(&folder)) else { return Vec::new() };
    let mut found = Vec::new();
    if look::gpus().is_none() {
        let Room { needed, usable, .. } = match here::on_processor(config, &architecture, ranks) {
            Ok(room) => room,
            Err(error) => return vec![Finding::error("memory", error)],
        };
        let text = format!("a rank needs {:.1} GB at most and may fill {:.1} GB", needed / 1e9, usable / 1e9);
        found.push(match needed <= usable {
            true => Finding::ok("memory", text),
            false => Finding::wrong("memory", text, "haf-dist plan CONFIG --gpu cpu shows what would fit"),
        });
    }
    let Ok(job) = Job::new(config, architecture, tch::Kind::Float) else { return found };
    let checkpoints = (config.checkpoint.keep as u64 + 2) * CHECKPOINT_BYTES * job.trained() as u64;
    let folder = config.output.dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    if let Some(free) = look::free_bytes(folder) {
        let text = format!(
            "{:.1} GB free, {} checkpoints take up to {:.1} GB",
            free as f64 / 1e9,
            config.checkpoint.keep + 2,
            checkpoints as f64 / 1e9
        );
        found.push(match checkpoints <= free {
            true => Finding::ok("disk", text),
            false => Finding::wrong("disk", text, "set output.dir to a larger disk, or lower checkpoint.keep"),
        });
    }
    found
}
