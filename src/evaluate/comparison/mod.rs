//! The results of runs of different objectives on the same test pairs: accuracies, their intervals, paired differences.
//!
//! A run is one objective and one seed. The reward head ranks a pair by its rewards, the policy by its implicit rewards;
//! a tie is half a hit. Pure functions of the runs' outcomes. Not here: reading them (`metrics/pairs.rs`), the tables
//! (`comparison/report.rs`).

mod report;

use crate::config::{Config, Objective, ParallelConfig, listed};
use crate::error::{Error, Result};
use crate::loss::hit;
use crate::metrics::{PairOutcome, RunFacts};
use crate::statistics::{Interval, RESAMPLES, SEED, clustered_bootstrap, holm, sign_flip, standard_deviation};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A finished run, as its folder tells it.
#[derive(Debug, Clone)]
pub struct ComparedRun {
    /// Its folder's name, for errors.
    pub name: String,
    /// What run it was.
    pub facts: RunFacts,
    /// The result of each test pair.
    pub outcomes: Vec<PairOutcome>,
}

/// Which of a model's two heads ranks the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RankedBy {
    /// The reward head.
    Reward,
    /// The language-model head's implicit reward.
    Policy,
}

/// A way to rank pairs: what a model was trained with, and which of its heads is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ranker {
    /// What was minimised.
    pub objective: Objective,
    /// Which head is asked.
    pub ranked_by: RankedBy,
}

const HYBRID: Ranker = Ranker { objective: Objective::Hybrid, ranked_by: RankedBy::Reward };
const HYBRID_POLICY: Ranker = Ranker { objective: Objective::Hybrid, ranked_by: RankedBy::Policy };
const REWARD: Ranker = Ranker { objective: Objective::Reward, ranked_by: RankedBy::Reward };
const POLICY: Ranker = Ranker { objective: Objective::Policy, ranked_by: RankedBy::Policy };

const RANKERS: [Ranker; 4] = [HYBRID, HYBRID_POLICY, REWARD, POLICY];

/// The three models as reward models, each by the head that it trains for that; then what the reward head does for the
/// policy.
const CONTRASTS: [(Ranker, Ranker); 4] =
    [(HYBRID, REWARD), (HYBRID, POLICY), (REWARD, POLICY), (HYBRID_POLICY, POLICY)];

/// How often a ranker puts the chosen answer first.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// Who ranks.
    pub ranker: Ranker,
    /// Each run's accuracy with its 95% interval over the test prompts, by seed.
    pub by_seed: BTreeMap<u64, (f64, Option<Interval>)>,
    /// The mean over those runs.
    pub mean: f64,
    /// Its 95% interval over the test prompts, the runs as they are.
    pub interval: Option<Interval>,
    /// Standard deviation over the runs.
    pub deviation: Option<f64>,
}

/// How much more often one ranker than another puts the chosen answer first, on the same pairs after the same training
/// pairs in the same order.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Whose accuracy is higher where the difference is positive.
    pub of: Ranker,
    /// Whose is subtracted.
    pub over: Ranker,
    /// The difference of the runs of each seed.
    pub by_seed: BTreeMap<u64, f64>,
    /// Their mean.
    pub mean: f64,
    /// Its 95% interval over the test prompts, the runs as they are.
    pub interval: Option<Interval>,
    /// Standard deviation over the seeds.
    pub deviation: Option<f64>,
    /// [`sign_flip`] over prompts, each with its pairs and all seeds together.
    pub p: f64,
    /// The same, adjusted for the number of differences ([`holm`]).
    pub p_holm: f64,
}

/// Runs compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What all runs share, as the first of them has it.
    pub facts: RunFacts,
    /// Every seed of any run.
    pub seeds: BTreeSet<u64>,
    /// Test pairs.
    pub pairs: usize,
    /// Their prompts.
    pub prompts: usize,
    /// Of every ranker that there are runs of.
    pub accuracies: Vec<Accuracy>,
    /// Of every two rankers that have seeds in common.
    pub differences: Vec<Difference>,
}

/// Hits of a ranker, 0, 1/2 or 1 a pair in the order of the data, by seed.
type Hits = BTreeMap<u64, Vec<f64>>;

impl Comparison {
    /// Compares runs of one config that differ in `loss.objective` and `data.seed` alone.
    ///
    /// # Errors
    /// [`Error::input`] for runs that are not comparable, with what differs.
    pub fn of(runs: &[ComparedRun]) -> Result<Self> {
        let Some(first) = runs.first() else { return Err(Error::input("there are no runs to compare")) };
        check(first, runs)?;
        // Named as in the closing table, so that intervals are drawn alike.
        let names = first.outcomes.iter().map(|outcome| u64::from_str_radix(&outcome.prompt, 16).unwrap_or_default());
        let prompts: Vec<u64> = names.collect();
        let mut hits = Vec::with_capacity(RANKERS.len());
        for ranker in RANKERS {
            hits.push((ranker, hits_of(ranker, runs)?));
        }
        let accuracies = hits.iter().filter(|(_, hits)| !hits.is_empty());
        let accuracies = accuracies.map(|(ranker, hits)| accuracy(*ranker, hits, &prompts)).collect();
        let find = |wanted: Ranker| hits.iter().find(|(ranker, _)| *ranker == wanted).map(|(_, hits)| hits);
        let contrast = |(of, over)| difference((of, find(of)?), (over, find(over)?), &prompts);
        let mut differences: Vec<Difference> = CONTRASTS.into_iter().filter_map(contrast).collect();
        let adjusted = holm(&differences.iter().map(|difference| difference.p).collect::<Vec<_>>());
        differences.iter_mut().zip(adjusted).for_each(|(difference, p)| difference.p_holm = p);
        Ok(Self {
            facts: first.facts.clone(),
            seeds: runs.iter().map(seed).collect(),
            pairs: prompts.len(),
            prompts: prompts.iter().collect::<BTreeSet<_>>().len(),
            accuracies,
            differences,
        })
    }
}

fn seed(run: &ComparedRun) -> u64 {
    run.facts.config.data.seed
}

/// What must be the same in all runs: everything but the objective, the seed, and what changes no result.
fn check(first: &ComparedRun, runs: &[ComparedRun]) -> Result<()> {
    let same_config = comparable(&first.facts.config);
    let mut seen = BTreeSet::new();
    for run in runs {
        let refuse = |what: &str, hint: &str| Err(Error::input(format!("{}: {what}", run.name)).hint(hint));
        let objective = run.facts.config.loss.objective;
        if !seen.insert((format!("{objective:?}"), seed(run))) {
            let what = format!("a second run with loss.objective = {objective:?} and data.seed = {}", seed(run));
            return refuse(&what.to_lowercase(), "name one run of each");
        }
        let differences = same_config.differences(&comparable(&run.facts.config))?;
        if !differences.is_empty() {
            let what = format!("other settings than {}: {}", first.name, listed(&differences));
            return refuse(&what, "only loss.objective and data.seed may differ");
        }
        if run.facts.step != first.facts.step {
            let what =
                format!("tested after step {}, but {} after step {}", run.facts.step, first.name, first.facts.step);
            return refuse(&what, "let both runs come to their end");
        }
        if run.facts.model_key != first.facts.model_key {
            return refuse(&format!("another starting model than {}'s", first.name), "repeat one of the runs");
        }
        let twin = runs.iter().find(|other| seed(other) == seed(run)).unwrap_or(first);
        if run.facts.data_key != twin.facts.data_key {
            let what = format!("other training pairs than {}, or another order", twin.name);
            return refuse(&what, "have the data files changed in between? repeat one of the runs");
        }
        let ids = |run: &ComparedRun| run.outcomes.iter().map(|outcome| outcome.pair.clone()).collect::<Vec<_>>();
        if run.outcomes.is_empty() || ids(run) != ids(first) {
            return refuse(
                &format!("other test pairs than {}, or none", first.name),
                "test all runs on the same pairs",
            );
        }
    }
    Ok(())
}

/// A config without what may differ.
fn comparable(config: &Config) -> Config {
    let mut config = config.clone();
    config.loss.objective = Objective::Hybrid;
    config.data.seed = 0;
    config.data.cache_dir = PathBuf::from("cache");
    config.output.dir = PathBuf::from("run");
    config.parallel = ParallelConfig::default();
    config.train.tokens_per_micro_batch = 1;
    config.eval.every = 0;
    (config.checkpoint.every, config.checkpoint.keep) = (0, 1);
    config
}

/// Of the runs that the ranker applies to.
fn hits_of(ranker: Ranker, runs: &[ComparedRun]) -> Result<Hits> {
    let margin = |outcome: &PairOutcome| match ranker.ranked_by {
        RankedBy::Reward => outcome.margin,
        RankedBy::Policy => outcome.implicit_margin,
    };
    let mut hits = Hits::new();
    for run in runs.iter().filter(|run| run.facts.config.loss.objective == ranker.objective) {
        let of_pair = |outcome: &PairOutcome| margin(outcome).map(hit);
        let Some(of_run) = run.outcomes.iter().map(of_pair).collect::<Option<_>>() else {
            // Left out, a run that diverged would better its objective's mean.
            return Err(Error::input(format!("{}: a test pair has no finite score", run.name))
                .hint("the run has diverged: say so beside the comparison, and compare without its seed"));
        };
        hits.insert(seed(run), of_run);
    }
    Ok(hits)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean over seeds of each pair's value.
fn over_seeds(values: &Hits) -> Vec<f64> {
    let count = values.values().map(Vec::len).min().unwrap_or(0);
    (0..count).map(|pair| values.values().map(|of_seed| of_seed[pair]).sum::<f64>() / values.len() as f64).collect()
}

fn accuracy(ranker: Ranker, hits: &Hits, prompts: &[u64]) -> Accuracy {
    let interval = |hits: &[f64]| clustered_bootstrap(hits, prompts, RESAMPLES, SEED);
    let by_seed: BTreeMap<_, _> = hits.iter().map(|(&seed, hits)| (seed, (mean(hits), interval(hits)))).collect();
    let pooled = over_seeds(hits);
    let deviation = standard_deviation(&by_seed.values().map(|(accuracy, _)| *accuracy).collect::<Vec<_>>());
    Accuracy { ranker, mean: mean(&pooled), interval: interval(&pooled), deviation, by_seed }
}

/// `None` where the two have no seed in common.
fn difference((of, ours): (Ranker, &Hits), (over, theirs): (Ranker, &Hits), prompts: &[u64]) -> Option<Difference> {
    let subtract = |(seed, ours): (&u64, &Vec<f64>)| {
        let theirs = theirs.get(seed)?;
        Some((*seed, ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect()))
    };
    let differences: Hits = ours.iter().filter_map(subtract).collect();
    if differences.is_empty() {
        return None;
    }
    let pooled = over_seeds(&differences);
    let by_seed: BTreeMap<u64, f64> = differences.iter().map(|(&seed, values)| (seed, mean(values))).collect();
    // In half hits, which are whole numbers: what a prompt's pairs add up to over all seeds.
    let mut sums: BTreeMap<u64, i64> = BTreeMap::new();
    for values in differences.values() {
        for (value, prompt) in values.iter().zip(prompts) {
            *sums.entry(*prompt).or_default() += (2.0 * value).round() as i64;
        }
    }
    let p = sign_flip(&sums.into_values().collect::<Vec<_>>());
    Some(Difference {
        of,
        over,
        mean: mean(&pooled),
        interval: interval_of_difference(&pooled, prompts),
        deviation: standard_deviation(&by_seed.values().copied().collect::<Vec<_>>()),
        by_seed,
        p,
        p_holm: p,
    })
}

/// As of a proportion, from -1..=1 to 0..=1 and back: where no pair differs, the answer still has a width.
fn interval_of_difference(values: &[f64], prompts: &[u64]) -> Option<Interval> {
    let shares: Vec<f64> = values.iter().map(|value| (value + 1.0) / 2.0).collect();
    let interval = clustered_bootstrap(&shares, prompts, RESAMPLES, SEED)?;
    Some(Interval { low: 2.0 * interval.low - 1.0, high: 2.0 * interval.high - 1.0 })
}
