//! `haf-dist compare --train`: trains every variant of a config with the same seeds, one run after the other, then compares them.
//!
//! A run is `haf-dist train` in a process of its own. A finished run is not repeated, an interrupted one is continued.
//! Not here: choosing the learning rate (`rates.rs`), the comparison (`evaluate/comparison/`).

use super::compare;
use super::rates::{self, DevResult, Tried};
use crate::checkpoint::Changed;
use crate::cli::{Training, VariantSettings};
use crate::commands::shell::quoted;
use crate::config::{Config, Difference, Objective};
use crate::error::{Error, Result, file_error};
use crate::files;
use crate::launcher::child;
use crate::metrics::{METRICS, TEST_PAIRS, read_pairs};
use crate::terminal;
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The seed with which learning rates are tried.
const TRIED_WITH: usize = 1;

/// One run of a comparison.
struct Run<'a> {
    variant: &'a VariantSettings,
    /// As typed; None for the config's own.
    learning_rate: Option<&'a str>,
    seed: usize,
    folder: PathBuf,
}

/// Trains the missing runs, then prints the comparison and writes it into the runs' folder.
///
/// # Errors
/// A config that cannot be read or has no test pairs; a folder with another comparison; a run that failed or was interrupted; the
/// errors of [`compare`].
pub(crate) fn run(training: &Training, changed: Changed, json: bool) -> Result<()> {
    let objectives = objectives(training)?;
    if training.dry_run {
        return print_commands(training);
    }
    claim(training)?;
    let mut progress = Progress::of(training);
    let mut tried = Vec::new();
    for ((variant, objective), rate) in pairs_with_rates(training, &objectives) {
        let run = Run::of(training, variant, Some(rate), TRIED_WITH);
        progress.train(&run, training)?;
        let DevResult { accuracy: dev_accuracy, loss: dev_loss } = rates::last_dev(&run.folder, objective)?;
        let (variant, learning_rate) = (variant.name.clone(), rate.to_owned());
        tried.push(Tried { variant, learning_rate, dev_accuracy, dev_loss, chosen: false });
    }
    rates::choose(&mut tried);
    let mut folders = Vec::new();
    // All variants of a seed first, so that the runs of an interrupted comparison can be compared.
    for seed in 1..=training.seeds {
        for variant in &training.variants {
            let of_variant = |row: &&Tried| row.chosen && row.variant == variant.name;
            let rate = tried.iter().find(of_variant).map(|row| row.learning_rate.as_str());
            let run = Run::of(training, variant, rate, seed);
            progress.train(&run, training)?;
            folders.push(run.folder);
        }
    }
    let comparison = compare(&folders, changed)?;
    let mut lines: Vec<String> = tried
        .iter()
        .map(|row| {
            let mut line = json!(row);
            line["compare"] = json!("learning rate");
            line.to_string()
        })
        .collect();
    lines.extend(comparison.json_lines().iter().map(ToString::to_string));
    let text =
        if tried.is_empty() { String::new() } else { rates::markdown(&tried) } + comparison.markdown().trim_end();
    let written = Outputs::free(&training.out);
    files::clear_unfinished_beside(&written.tables);
    files::write_atomic(&written.json_lines, (lines.join("\n") + "\n").as_bytes())?;
    files::write_atomic(&written.tables, format!("{text}\n").as_bytes())?;
    if json {
        terminal::lines(lines)?
    } else {
        terminal::out(&text)?
    }
    terminal::note(format!("\ntables      {}\nJSON lines  {}", written.tables.display(), written.json_lines.display()));
    Ok(())
}

/// Each variant's objective. Checks first that every run's config is valid and names the pairs it needs, so that mistakes are
/// found before hours of training.
fn objectives(training: &Training) -> Result<Vec<Objective>> {
    let objective = |variant: &VariantSettings| {
        let config = Run::of(training, variant, None, 1).config(training)?;
        let path = training.config.display();
        if config.data.test.is_empty() {
            return Err(Error::input(format!("{path} names no test pairs, which the comparison needs"))
                .hint("add test = [{ path = \"...\" }] to its [data]"));
        }
        if config.data.dev.is_empty() && !training.learning_rates.is_empty() {
            return Err(Error::input(format!("{path} names no dev pairs, on which learning rates are chosen"))
                .hint("add dev = [{ path = \"...\" }] to its [data]"));
        }
        for rate in &training.learning_rates {
            Run::of(training, variant, Some(rate), TRIED_WITH).config(training)?;
        }
        Ok(config.loss.objective)
    };
    training.variants.iter().map(objective).collect()
}

/// Every variant with its objective, and every learning rate to try with it.
fn pairs_with_rates<'a>(
    training: &'a Training,
    objectives: &'a [Objective],
) -> impl Iterator<Item = ((&'a VariantSettings, Objective), &'a str)> {
    let variants = training.variants.iter().zip(objectives.iter().copied());
    variants.flat_map(|variant| training.learning_rates.iter().map(move |rate| (variant, rate.as_str())))
}

impl<'a> Run<'a> {
    fn of(training: &Training, variant: &'a VariantSettings, learning_rate: Option<&'a str>, seed: usize) -> Self {
        let rate = learning_rate.map(|rate| format!("-rate-{rate}")).unwrap_or_default();
        let folder = training.out.join(format!("{}{rate}-seed-{seed}", variant.name));
        Self { variant, learning_rate, seed, folder }
    }

    /// All `KEY=VALUE` arguments after the config.
    fn settings(&self, training: &Training) -> Vec<String> {
        let mut settings = training.set.clone();
        settings.extend(self.variant.set.iter().cloned());
        settings.extend(self.learning_rate.map(|rate| format!("train.learning_rate={rate}")));
        settings.push(format!("data.seed={}", self.seed));
        // Quoted: a folder may be called 2026.
        settings.push(format!("output.dir={}", toml::Value::String(self.folder.display().to_string())));
        settings
    }

    fn config(&self, training: &Training) -> Result<Config> {
        Config::load(&training.config, &self.settings(training))
    }

    /// Checks that a finished run has this run's settings: a folder's name has only their values, which another key may have too.
    ///
    /// # Errors
    /// Other settings.
    fn check_finished(&self, training: &Training) -> Result<()> {
        // Settings that change no result; and paths, which a run records as those of the files it fetched.
        const MAY_DIFFER: [&str; 10] = [
            "parallel.",
            "eval.",
            "checkpoint.",
            "data.cache_dir",
            "train.tokens_per_micro_batch",
            "model.path",
            "lora.base",
            "data.train",
            "data.dev",
            "data.test",
        ];
        let (facts, _) = read_pairs(&self.folder, Changed::Allowed)?;
        let differences = facts.config.differences(&self.config(training)?)?;
        let matters = |difference: &&Difference| !MAY_DIFFER.iter().any(|start| difference.key.starts_with(start));
        match differences.iter().find(matters) {
            Some(difference) => Err(Error::input(format!(
                "{} holds a finished run with other settings: {difference}",
                self.folder.display()
            ))
            .hint("name another --out, or remove that folder to train it again")),
            None => Ok(()),
        }
    }

    /// Whether the run has its last file.
    fn finished(&self) -> bool {
        self.folder.join(TEST_PAIRS).is_file()
    }

    fn has_started(&self) -> bool {
        let is_step = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("step-");
        let has_steps =
            || fs::read_dir(&self.folder).is_ok_and(|entries| entries.flatten().any(|entry| is_step(&entry)));
        self.folder.join(METRICS).exists() || has_steps()
    }

    /// The arguments for `haf-dist`.
    fn arguments(&self, training: &Training) -> Vec<String> {
        let mut arguments = vec!["train".to_owned(), training.config.display().to_string()];
        arguments.extend(self.settings(training));
        if training.ranks > 1 {
            arguments.extend(["--ranks".to_owned(), training.ranks.to_string()]);
        }
        arguments.extend(self.has_started().then(|| "--resume".to_owned()));
        arguments
    }

    fn drop_checkpoints(&self) -> Result<()> {
        let failed = |error: std::io::Error| file_error(&self.folder, "remove the checkpoints of", &error);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with("step-") && entry.path().is_dir() {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Prints the commands of the runs that are left, quoted for a shell.
fn print_commands(training: &Training) -> Result<()> {
    let mut lines = Vec::new();
    let mut add = |run: Run| {
        if !run.finished() {
            lines.push(format!(
                "haf-dist {}",
                run.arguments(training).iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
            ));
        }
    };
    for variant in &training.variants {
        training.learning_rates.iter().for_each(|rate| add(Run::of(training, variant, Some(rate), TRIED_WITH)));
    }
    if training.learning_rates.is_empty() {
        for seed in 1..=training.seeds {
            training.variants.iter().for_each(|variant| add(Run::of(training, variant, None, seed)));
        }
    } else if training.seeds > 1 {
        lines.push(format!("# then seeds 2 to {}, each variant with its best rate on the dev pairs", training.seeds));
    }
    terminal::lines(lines)
}

/// Reserves the folder for one config and its `--set` options: otherwise runs of two comparisons would be mixed.
fn claim(training: &Training) -> Result<()> {
    let read = |path: &Path| files::read_to_string(path).map_err(|error| file_error(path, "read", &error));
    let config = read(&training.config)?;
    let settings = training.set.iter().map(|set| format!("{set}\n")).collect::<String>();
    let (of_config, of_settings) = (training.out.join("config.toml"), training.out.join("settings.txt"));
    // The config is written last.
    if !of_config.exists() {
        fs::create_dir_all(&training.out).map_err(|error| file_error(&training.out, "create", &error))?;
        files::write_atomic(&of_settings, settings.as_bytes())?;
        return files::write_atomic(&of_config, config.as_bytes());
    }
    if read(&of_config)? != config || read(&of_settings)? != settings {
        let what = format!("{} holds a comparison of another config or other --set options", training.out.display());
        return Err(Error::input(what).hint(format!(
            "to continue that one, use its config {} and its options in {}; for a new one name another --out",
            of_config.display(),
            of_settings.display()
        )));
    }
    Ok(())
}

/// The files that a comparison is written to.
struct Outputs {
    tables: PathBuf,
    json_lines: PathBuf,
}

impl Outputs {
    /// The first free names: a comparison with more seeds keeps the earlier files.
    fn free(folder: &Path) -> Self {
        let mut number = 1;
        loop {
            let stem = if number == 1 { "comparison".to_owned() } else { format!("comparison-{number}") };
            let outputs =
                Self { tables: folder.join(format!("{stem}.md")), json_lines: folder.join(format!("{stem}.jsonl")) };
            if !outputs.tables.exists() && !outputs.json_lines.exists() {
                return outputs;
            }
            number += 1;
        }
    }
}

/// Progress of the runs.
struct Progress {
    started: Instant,
    total: usize,
    left: usize,
    done_here: usize,
}

impl Progress {
    fn of(training: &Training) -> Self {
        let (variants, rates) = (training.variants.len(), training.learning_rates.len());
        let total = variants * if rates == 0 { training.seeds } else { rates + training.seeds - 1 };
        let mut finished = 0;
        // Later seeds are trained with one rate, whichever it is.
        for variant in &training.variants {
            for seed in 1..=training.seeds {
                let rates = training.learning_rates.iter().map(|rate| Some(rate.as_str()));
                let rates: Vec<_> = if rates.len() == 0 { vec![None] } else { rates.collect() };
                let of_seed = rates.iter().filter(|rate| Run::of(training, variant, **rate, seed).finished()).count();
                finished += if seed == TRIED_WITH { of_seed } else { of_seed.min(1) };
            }
        }
        let left = total.saturating_sub(finished);
        terminal::note(format!("{total} runs in {}, {finished} of them finished", training.out.display()));
        Self { started: Instant::now(), total, left, done_here: 0 }
    }

    /// Trains a run to its end, unless it is finished already.
    fn train(&mut self, run: &Run, training: &Training) -> Result<()> {
        if run.finished() {
            return run.check_finished(training);
        }
        let arguments = run.arguments(training);
        let command = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let seconds = self.started.elapsed().as_secs();
        let left = match self.done_here {
            0 => "time left unknown until the first is done".to_owned(),
            done => format!("about {} left", clock(seconds * self.left as u64 / done as u64)),
        };
        let number = self.total + 1 - self.left;
        terminal::note(format!(
            "\n[run {number} of {}, {} so far, {left}]\nhaf-dist {command}",
            self.total,
            clock(seconds)
        ));
        let failed = |error: std::io::Error| Error::runtime(format!("cannot start {}: {error}", run.folder.display()));
        // The run's own table goes to stderr: stdout is for the comparison.
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
        let program = std::env::current_exe().map_err(failed)?;
        let mut process = Command::new(program);
        process.args(arguments).stdout(Stdio::from(stderr));
        match child::run(&mut process, Signal::SIGTERM)? {
            0 if run.finished() => {}
            0 => {
                return Err(Error::runtime(format!("{} ended without {TEST_PAIRS}", run.folder.display()))
                    .hint("does its config name test pairs?"));
            }
            code if code == Error::stopped("").exit_code() as u8 => {
                return Err(Error::stopped("interrupted").hint("the same command continues from here"));
            }
            code => {
                return Err(Error::runtime(format!("{} failed with exit code {code}", run.folder.display()))
                    .hint("see its error above; once that is fixed, the same command continues from here"));
            }
        }
        if training.drop_checkpoints {
            run.drop_checkpoints()?;
        }
        self.left = self.left.saturating_sub(1);
        self.done_here += 1;
        Ok(())
    }
}

/// A duration as h:mm:ss.
fn clock(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
