//! Arguments of `compare`, and their meaning.
//!
//! Not here: doing it (`commands/compare/`).

use super::values::positive;
use crate::config::key_meant;
use crate::error::{Error, Result};
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The three objectives of the method, in the order in which they are trained.
const OBJECTIVES: [&str; 3] = ["hybrid", "reward", "policy"];

/// Keys that a comparison sets itself.
const OWN_KEYS: [&str; 2] = ["data.seed", "output.dir"];

/// The arguments of `compare`.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparing {
    /// Finished runs, or runs to be trained first.
    pub(crate) runs: Compared,
    /// Whether outcomes may have changed since they were written.
    pub(crate) allow_changed: bool,
    /// JSON lines instead of tables.
    pub(crate) json: bool,
}

/// Finished runs, or runs to be trained first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Compared {
    /// Folders of finished runs.
    Finished(Vec<PathBuf>),
    /// Runs to be trained first.
    Trained(Training),
}

/// Runs of one config that differ in a few settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Training {
    /// The config file.
    pub(crate) config: PathBuf,
    /// `table.key=value` overrides of every run.
    pub(crate) set: Vec<String>,
    /// The settings that differ.
    pub(crate) variants: Vec<VariantSettings>,
    /// Learning rates to choose from, as typed; empty: the config's.
    pub(crate) learning_rates: Vec<String>,
    /// Seeds are 1 to this.
    pub(crate) seeds: usize,
    /// Folder for the runs and the tables.
    pub(crate) out: PathBuf,
    /// Ranks per run.
    pub(crate) ranks: usize,
    /// Whether to delete a run's checkpoint once the run is finished.
    pub(crate) drop_checkpoints: bool,
    /// Whether to print the commands only.
    pub(crate) dry_run: bool,
}

/// The settings of one variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VariantSettings {
    /// Its name in folder names: the values, joined.
    pub(crate) name: String,
    /// `table.key=value` overrides.
    pub(crate) set: Vec<String>,
}

/// The arguments as typed.
#[derive(Debug, Args)]
pub(super) struct TypedComparing {
    /// Folders of finished runs with the same test pairs
    #[arg(value_name = "RUN", required_unless_present = "train", conflicts_with = "train")]
    runs: Vec<PathBuf>,

    /// Train the runs first: the three objectives, or --variant, of this config with the same seeds
    ///
    /// A run is written to DIR/NAME-seed-N and keeps its last checkpoint, 14 bytes per parameter in bf16. Nothing is
    /// overwritten; after an interruption, the same command continues where it stopped. The tables are written to
    /// DIR/comparison.md, and as JSON lines to DIR/comparison.jsonl.
    #[arg(long, value_name = "CONFIG", help_heading = "Training the runs")]
    train: Option<PathBuf>,

    /// Objectives to compare [default: hybrid,reward,policy]
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        requires = "train",
        conflicts_with = "variant",
        help_heading = "Training the runs"
    )]
    objectives: Vec<String>,

    /// Settings of one of the variants to compare, e.g. loss.objective=hybrid,loss.prior=normal; may be repeated
    #[arg(long, value_name = "KEY=VALUE,...", requires = "train", help_heading = "Training the runs")]
    variant: Vec<String>,

    /// Choose each variant's learning rate from these, by its accuracy on the dev pairs with seed 1 [default: the config's]
    #[arg(long, value_delimiter = ',', value_name = "RATES", requires = "train", help_heading = "Training the runs")]
    learning_rates: Vec<String>,

    /// Train with data.seed = 1 to N [default: 3]
    #[arg(long, value_name = "N", value_parser = positive, requires = "train", help_heading = "Training the runs")]
    seeds: Option<usize>,

    /// Folder for the runs [default: runs/compare-NAME for a config file NAME.toml]
    #[arg(long, value_name = "DIR", requires = "train", help_heading = "Training the runs")]
    out: Option<PathBuf>,

    /// Replace one key of the config in every run; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "train", help_heading = "Training the runs")]
    set: Vec<String>,

    /// Remove a run's checkpoint once its test pairs are ranked, to save disk [default: keep it]
    #[arg(long, requires = "train", help_heading = "Training the runs")]
    drop_checkpoints: bool,

    /// Only print the commands
    #[arg(long, requires = "train", help_heading = "Training the runs")]
    dry_run: bool,

    /// Accept outcomes that have changed since they were written [default: refuse them]
    #[arg(long)]
    allow_changed: bool,

    /// Print JSON lines instead of tables [default: tables]
    #[arg(long)]
    json: bool,
}

impl TypedComparing {
    /// # Errors
    /// Invalid variants, or two of one name; keys that a comparison sets itself; invalid learning rates.
    pub(super) fn understood(self, ranks: Option<usize>) -> Result<Comparing> {
        let (allow_changed, json) = (self.allow_changed, self.json);
        let Some(config) = self.train else {
            return Ok(Comparing { runs: Compared::Finished(self.runs), allow_changed, json });
        };
        let variants = variants(&self.objectives, &self.variant)?;
        let own =
            |key: &str| OWN_KEYS.contains(&key) || (key == "train.learning_rate" && !self.learning_rates.is_empty());
        for (option, set) in
            self.set.iter().map(|set| ("--set", set)).chain(self.variant.iter().map(|set| ("--variant", set)))
        {
            let keys = set.split(',').filter_map(|word| word.split('=').next()).map(key_meant);
            if let Some(key) = keys.into_iter().find(|key| own(key)) {
                return Err(Error::input(format!("{option} {set}: the comparison sets {key} itself"))
                    .hint("take it out and use --seeds, --out or --learning-rates"));
            }
        }
        for rate in &self.learning_rates {
            if !rate.parse::<f64>().is_ok_and(|rate| rate.is_finite() && rate > 0.0) {
                return Err(Error::input(format!("--learning-rates: {rate} is not a learning rate"))
                    .hint("expected numbers above 0, as in --learning-rates 3e-5,1e-4,3e-4"));
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.learning_rates.iter().find(|rate| !seen.insert(rate.parse().map_or(0, f64::to_bits)))
        {
            return Err(Error::input(format!("--learning-rates: {twice} is given twice")).hint("leave one out"));
        }
        let name = config.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let out = self.out.unwrap_or_else(|| PathBuf::from(format!("runs/compare-{name}")));
        let training = Training {
            config,
            set: self.set,
            variants,
            learning_rates: self.learning_rates,
            seeds: self.seeds.unwrap_or(3),
            out,
            ranks: ranks.unwrap_or(1),
            drop_checkpoints: self.drop_checkpoints,
            dry_run: self.dry_run,
        };
        Ok(Comparing { runs: Compared::Trained(training), allow_changed, json })
    }
}

fn variants(objectives: &[String], typed: &[String]) -> Result<Vec<VariantSettings>> {
    let objectives: Vec<String> = match objectives {
        [] => OBJECTIVES.map(str::to_owned).to_vec(),
        some => some.to_vec(),
    };
    let of_objective = |name: String| VariantSettings { set: vec![format!("loss.objective={name}")], name };
    let variants: Vec<VariantSettings> = match typed {
        [] => objectives.into_iter().map(of_objective).collect(),
        some => some.iter().map(|settings| variant(settings)).collect::<Result<_>>()?,
    };
    let mut seen = BTreeSet::new();
    match variants.iter().find(|variant| !seen.insert(&variant.name)) {
        Some(twice) => Err(Error::input(format!("two variants are called {}", twice.name))
            .hint("a variant is named after its values: leave out settings that all share, or add one that differs")),
        None => Ok(variants),
    }
}

/// `loss.objective=hybrid,loss.prior=normal` is called `hybrid-normal`.
fn variant(settings: &str) -> Result<VariantSettings> {
    let set: Vec<String> = settings.split(',').map(|word| word.trim().to_owned()).collect();
    let value = |word: &String| {
        let value = word.split_once('=').map(|(_, value)| value.trim_matches('"')).filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| {
            Error::input(format!("--variant {settings}: {word} is not KEY=VALUE"))
                .hint("expected settings joined by commas, as in loss.objective=hybrid,loss.prior=normal")
        })
    };
    let name = set.iter().map(value).collect::<Result<Vec<_>>>()?.join("-");
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    Ok(VariantSettings { name: name.trim_start_matches('.').to_owned(), set })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: variants are named after their values, and no two have the same name.
    #[test]
    fn variants_are_called_by_their_values() {
        let names = |objectives: &[&str], typed: &[&str]| -> Result<Vec<String>> {
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            Ok(variants(&owned(objectives), &owned(typed))?.into_iter().map(|variant| variant.name).collect())
        };
        assert_eq!(names(&[], &[]).unwrap(), OBJECTIVES);
        assert_eq!(names(&["reward"], &[]).unwrap(), ["reward"]);
        let typed =
            ["loss.objective=hybrid", "loss.objective=hybrid,loss.prior=\"normal\"", "data.train.0.path=a/b.jsonl"];
        assert_eq!(names(&[], &typed).unwrap(), ["hybrid", "hybrid-normal", "a-b.jsonl"]);
        assert!(names(&["reward", "reward"], &[]).is_err());
        assert!(names(&[], &["loss.prior"]).unwrap_err().message.contains("loss.prior is not KEY=VALUE"));
    }

    /// Promise: no option is ignored because another one sets the same key, by whatever name.
    #[test]
    fn what_a_comparison_sets_itself_is_refused_by_every_name() {
        #[derive(clap::Parser)]
        struct Typed {
            #[command(flatten)]
            comparing: TypedComparing,
        }
        let understood = |options: &str| {
            let words = ["compare", "--train", "a.toml"].into_iter().chain(options.split_whitespace());
            <Typed as clap::Parser>::try_parse_from(words).unwrap().comparing.understood(None)
        };
        let rates = "--learning-rates 1e-4,2e-4";
        for (options, says) in [
            ("--set data.seed=3".to_owned(), "sets data.seed itself"),
            ("--set output.output_dir=x".to_owned(), "sets output.dir itself"),
            (format!("--set train.lr=1e-3 {rates}"), "sets train.learning_rate itself"),
            (format!("--variant loss.alpha=1,train.lr=1e-3 {rates}"), "sets train.learning_rate itself"),
            ("--learning-rates 1e-4,0.0001".to_owned(), "0.0001 is given twice"),
            ("--learning-rates 1e-4,fast".to_owned(), "fast is not a learning rate"),
        ] {
            let error = understood(&options).unwrap_err();
            assert!(error.message.contains(says), "{options}: {error}");
        }
        assert!(understood("--set train.lr=1e-3").is_ok() && understood(rates).is_ok(), "the control");
    }
}
