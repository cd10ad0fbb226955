//! Groups runs whose settings differ only in `data.seed` into variants, and refuses runs that cannot be compared.

use super::ComparedRun;
use crate::config::{Config, DataConfig, Objective, ParallelConfig};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Runs with the same settings and different seeds.
#[derive(Debug, Clone)]
pub(super) struct Variant {
    /// The folder, if every variant has one run; else the objective, and if several variants have it, the settings in which those
    /// differ.
    pub(crate) name: String,
    /// The loss that was minimized.
    pub(crate) objective: Objective,
    /// Every setting that is not the same in all variants.
    pub(crate) settings: BTreeMap<String, String>,
    /// Indices of its runs in the list of all.
    pub(crate) runs: Vec<usize>,
}

/// The variants among `runs`: hybrid before reward before policy, otherwise in the order of `runs`.
pub(super) fn of(first: &ComparedRun, runs: &[ComparedRun]) -> Result<Vec<Variant>> {
    check(first, runs)?;
    // Two runs that differ in nothing else are compared by their seeds.
    let apart = matches!(runs, [one, other] if folder(one) != folder(other));
    let mut groups: Vec<(Config, Vec<usize>)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let config = comparable(&run.facts.config);
        match groups.iter_mut().find(|(of_group, _)| !apart && *of_group == config) {
            Some((_, members)) => members.push(index),
            None => groups.push((config, vec![index])),
        }
    }
    groups.sort_by_key(|(config, _)| match config.loss.objective {
        Objective::Hybrid => 0,
        Objective::Reward => 1,
        Objective::Policy => 2,
    });
    let configs: Vec<&Config> = groups.iter().map(|(config, _)| config).collect();
    let one_each = groups.len() > 1 && groups.iter().all(|(_, members)| members.len() == 1);
    let mut variants = Vec::with_capacity(groups.len());
    for (config, members) in &groups {
        let objective = config.loss.objective;
        let alike: Vec<&Config> = configs.iter().filter(|other| other.loss.objective == objective).copied().collect();
        let words = settings(config, &alike)?.into_iter().map(|(key, value)| format!(", {key}={value}"));
        let name = match members[..] {
            [run] if one_each => folder_name(&runs[run], runs),
            _ => format!("{objective:?}").to_lowercase() + &words.collect::<String>(),
        };
        check_seeds(&name, members, runs)?;
        variants.push(Variant { name, objective, settings: settings(config, &configs)?, runs: members.clone() });
    }
    Ok(variants)
}

/// The run's folder, however it was named.
fn folder(run: &ComparedRun) -> PathBuf {
    std::fs::canonicalize(&run.name).unwrap_or_else(|_| PathBuf::from(&run.name))
}

/// The last part of a run's path, or all of it if another run's ends alike.
fn folder_name(run: &ComparedRun, runs: &[ComparedRun]) -> String {
    let last = |run: &ComparedRun| Path::new(&run.name).file_name().map(|name| name.to_string_lossy().into_owned());
    let alone = runs.iter().filter(|other| last(other) == last(run)).count() == 1;
    last(run).filter(|_| alone).unwrap_or_else(|| run.name.clone())
}

/// The settings of `config` that differ in any of `configs`.
fn settings(config: &Config, configs: &[&Config]) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for other in configs {
        for difference in config.differences(other)? {
            let value = difference.then().trim_matches('"').to_owned();
            found.insert(difference.key, value);
        }
    }
    Ok(found)
}

/// Refuses two runs of a variant with the same seed.
fn check_seeds(variant: &str, members: &[usize], runs: &[ComparedRun]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match members.iter().map(|&index| &runs[index]).find(|run| !seen.insert(run.seed())) {
        None => Ok(()),
        Some(run) => {
            let message = format!("{}: a second run of {variant} with data.seed = {}", run.name, run.seed());
            Err(Error::input(message).hint("name only one run for each seed"))
        }
    }
}

/// Refuses runs that cannot be compared: with other test pairs, or with a model or order of training pairs that differs although
/// the settings name the same one.
fn check(first: &ComparedRun, runs: &[ComparedRun]) -> Result<()> {
    for (index, run) in runs.iter().enumerate() {
        let refuse = |what: &str, hint: &str| Err(Error::input(format!("{}: {what}", run.name)).hint(hint));
        let before = &runs[..index];
        let same_model = |other: &&ComparedRun| other.facts.config.model.path == run.facts.config.model.path;
        if let Some(other) = before.iter().filter(same_model).find(|other| other.facts.model_key != run.facts.model_key)
        {
            let what = format!("another starting model than {}'s, under the same model.path", other.name);
            return refuse(&what, "the model's files have changed in between: repeat one of the runs");
        }
        let same_order = |other: &&ComparedRun| order(&other.facts.config) == order(&run.facts.config);
        if let Some(other) = before.iter().filter(same_order).find(|other| other.facts.data_key != run.facts.data_key) {
            let what = format!("other training pairs than {}, or another order, with the same [data]", other.name);
            return refuse(&what, "the data files may have changed in between: repeat one of the runs");
        }
        let same_config = |other: &&ComparedRun| comparable(&other.facts.config) == comparable(&run.facts.config);
        if let Some(other) = before.iter().filter(same_config).find(|other| other.facts.step != run.facts.step) {
            let (ours, theirs) = (run.facts.step, other.facts.step);
            let what = format!("tested after step {ours}, but {} after step {theirs}", other.name);
            return refuse(&what, "let both runs finish");
        }
        let ids = |run: &ComparedRun| run.outcomes.iter().map(|outcome| outcome.pair.clone()).collect::<Vec<_>>();
        if run.outcomes.is_empty() || ids(run) != ids(first) {
            let what = format!("other test pairs than {}, or none", first.name);
            let hint = "test all runs on the same pairs, in the same order, with the same template and tokens";
            return refuse(&what, hint);
        }
    }
    Ok(())
}

/// The settings that the training pairs and their order depend on.
fn order(config: &Config) -> (PathBuf, DataConfig, [Option<usize>; 3]) {
    let mut data = config.data.clone();
    (data.dev, data.test, data.cache_dir) = (Vec::new(), Vec::new(), PathBuf::new());
    let train = &config.train;
    (config.model.path.clone(), data, [train.steps, train.epochs, Some(train.pairs_per_step)])
}

/// A config without the settings that may differ within a variant.
fn comparable(config: &Config) -> Config {
    let mut config = config.clone();
    config.data.seed = 0;
    config.data.cache_dir = PathBuf::from("cache");
    // The pairs themselves are compared.
    config.data.test = Vec::new();
    config.output.dir = PathBuf::from("run");
    config.parallel = ParallelConfig::default();
    config.train.tokens_per_micro_batch = 1;
    config.eval.every = 0;
    (config.checkpoint.every, config.checkpoint.keep) = (0, 1);
    config
}
