//! Runs with the same test pairs, compared: accuracies, their intervals, paired differences.
//!
//! Runs whose settings differ in `data.seed` alone are one variant. The reward head ranks a pair by its rewards, the policy by its
//! implicit rewards, both together by the sum that was fitted on the dev pairs; a tie is half a hit. Pure functions of the runs'
//! outcomes. Not here: which runs are a variant (`variants.rs`), reading them (`metrics/pairs.rs`), the tables (`report.rs`).

mod report;
mod variants;

use crate::config::Objective;
use crate::error::{Error, Result};
use crate::loss::hit;
use crate::metrics::{PairOutcome, RunFacts};
use crate::statistics::{
    Interval, RESAMPLES, SEED, clustered_bootstrap, detectable, holm, interval_of_differences, sign_flip,
    standard_deviation,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use variants::Variant;

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

impl ComparedRun {
    fn seed(&self) -> u64 {
        self.facts.config.data.seed
    }
}

/// What ranks the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RankedBy {
    /// The reward head.
    Reward,
    /// The language-model head's implicit reward.
    Policy,
    /// The sum of both, as it was fitted on the dev pairs.
    Combined,
}

/// A way to rank pairs: runs of one variant, and which of their heads is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ranker {
    /// The variant's name.
    pub variant: String,
    /// What was minimised.
    pub objective: Objective,
    /// Which head is asked.
    pub ranked_by: RankedBy,
}

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

/// How much more often one ranker than another puts the chosen answer first, on the same pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Whose accuracy is higher where the difference is positive.
    pub of: Ranker,
    /// Whose is subtracted.
    pub over: Ranker,
    /// The difference of the runs of each seed that both have; empty where they have none in common.
    pub by_seed: BTreeMap<u64, f64>,
    /// The difference of the means over those seeds, or over all runs where no seed is common.
    pub mean: f64,
    /// Its 95% interval over the test prompts, the runs as they are.
    pub interval: Option<Interval>,
    /// Standard deviation over the common seeds.
    pub deviation: Option<f64>,
    /// [`sign_flip`] over prompts, each with its pairs and all seeds together.
    pub p: f64,
    /// The same, adjusted for the number of differences ([`holm`]).
    pub p_holm: f64,
    /// The difference that test pairs like these would have shown with p < 0.05 (not adjusted) in four of five tests
    /// ([`detectable`]); none where that is more than the largest difference there can be, 1.
    pub detectable: Option<f64>,
    /// Whether no pair's mean over the seeds differs.
    pub alike: bool,
}

/// Runs compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The first run's.
    facts: RunFacts,
    /// In the order of the tables.
    variants: Vec<Variant>,
    /// Every seed of any run.
    pub seeds: BTreeSet<u64>,
    /// Test pairs.
    pub pairs: usize,
    /// Their prompts.
    pub prompts: usize,
    /// Of every ranker that there are runs of.
    pub accuracies: Vec<Accuracy>,
    /// Of every two variants, each by the head that its loss trains for ranking; then of every two that both train a policy, by
    /// the implicit reward; then of a variant's combined heads over its reward head.
    pub differences: Vec<Difference>,
}

/// Hits of a ranker, 0, 1/2 or 1 a pair in the order of the data, by seed.
type Hits = BTreeMap<u64, Vec<f64>>;

impl Comparison {
    /// Compares runs on the same test pairs.
    ///
    /// # Errors
    /// [`Error::input`] for runs that are not comparable, with what differs.
    pub fn of(runs: &[ComparedRun]) -> Result<Self> {
        let Some(first) = runs.first() else { return Err(Error::input("there are no runs to compare")) };
        let variants = variants::of(first, runs)?;
        // Named as in the closing table, so that intervals are drawn alike.
        let names = first.outcomes.iter().map(|outcome| u64::from_str_radix(&outcome.prompt, 16).unwrap_or_default());
        let prompts: Vec<u64> = names.collect();
        let mut hits = Vec::new();
        for variant in &variants {
            for ranked_by in heads(variant.objective) {
                let of_variant = hits_of(variant, *ranked_by, runs)?;
                if !of_variant.is_empty() {
                    let (name, objective) = (variant.name.clone(), variant.objective);
                    hits.push((Ranker { variant: name, objective, ranked_by: *ranked_by }, of_variant));
                }
            }
        }
        let mut differences: Vec<Difference> = contrasts(&hits)
            .into_iter()
            .map(|(of, over)| difference((&of.0, &of.1), (&over.0, &over.1), &prompts))
            .collect();
        let adjusted = holm(&differences.iter().map(|difference| difference.p).collect::<Vec<_>>());
        differences.iter_mut().zip(adjusted).for_each(|(difference, p)| difference.p_holm = p);
        Ok(Self {
            facts: first.facts.clone(),
            variants,
            seeds: runs.iter().map(ComparedRun::seed).collect(),
            pairs: prompts.len(),
            prompts: prompts.iter().collect::<BTreeSet<_>>().len(),
            accuracies: hits.iter().map(|(ranker, hits)| accuracy(ranker, hits, &prompts)).collect(),
            differences,
        })
    }
}

/// The heads that an objective trains, the one that it trains for ranking first.
fn heads(objective: Objective) -> &'static [RankedBy] {
    match objective {
        Objective::Hybrid => &[RankedBy::Reward, RankedBy::Policy, RankedBy::Combined],
        Objective::Reward => &[RankedBy::Reward],
        Objective::Policy => &[RankedBy::Policy],
    }
}

type Ranked = (Ranker, Hits);

/// Which rankers are compared; see [`Comparison::differences`].
fn contrasts(hits: &[Ranked]) -> Vec<(&Ranked, &Ranked)> {
    let is_own = |ranker: &Ranker| heads(ranker.objective).first() == Some(&ranker.ranked_by);
    let by = |ranked_by| move |(ranker, _): &&Ranked| ranker.ranked_by == ranked_by;
    let own: Vec<&Ranked> = hits.iter().filter(|(ranker, _)| is_own(ranker)).collect();
    let policies: Vec<&Ranked> = hits.iter().filter(by(RankedBy::Policy)).collect();
    let among = |rankers: &[&'_ Ranked]| -> Vec<(usize, usize)> {
        (0..rankers.len()).flat_map(|of| (of + 1..rankers.len()).map(move |over| (of, over))).collect()
    };
    let mut chosen: Vec<(&Ranked, &Ranked)> = Vec::new();
    chosen.extend(among(&own).into_iter().map(|(of, over)| (own[of], own[over])));
    // Two that train nothing but a policy are among the first already.
    let second = among(&policies).into_iter().map(|(of, over)| (policies[of], policies[over]));
    chosen.extend(second.filter(|(of, over)| !(is_own(&of.0) && is_own(&over.0))));
    for combined in hits.iter().filter(by(RankedBy::Combined)) {
        let same = |(ranker, _): &&Ranked| ranker.variant == combined.0.variant && ranker.ranked_by == RankedBy::Reward;
        chosen.extend(hits.iter().find(same).map(|reward| (combined, reward)));
    }
    chosen
}

/// Of the variant's runs; none by a sum that was not fitted.
fn hits_of(variant: &Variant, ranked_by: RankedBy, runs: &[ComparedRun]) -> Result<Hits> {
    let mut hits = Hits::new();
    for run in variant.runs.iter().map(|&index| &runs[index]) {
        let combined = run.facts.combined;
        if ranked_by == RankedBy::Combined && combined.is_none() {
            continue;
        }
        let margin = |outcome: &PairOutcome| match ranked_by {
            RankedBy::Reward => outcome.margin,
            RankedBy::Policy => outcome.implicit_margin,
            RankedBy::Combined => Some(combined?.combine(outcome.margin?, outcome.implicit_margin?)),
        };
        let of_pair = |outcome: &PairOutcome| margin(outcome).map(hit);
        let Some(of_run) = run.outcomes.iter().map(of_pair).collect::<Option<_>>() else {
            // Left out, a run that diverged would better its variant's mean.
            return Err(Error::input(format!("{}: a test pair has no finite score", run.name))
                .hint("the run has diverged: say so beside the comparison, and compare without its seed"));
        };
        hits.insert(run.seed(), of_run);
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

fn accuracy(ranker: &Ranker, hits: &Hits, prompts: &[u64]) -> Accuracy {
    let interval = |hits: &[f64]| clustered_bootstrap(hits, prompts, RESAMPLES, SEED);
    let by_seed: BTreeMap<_, _> = hits.iter().map(|(&seed, hits)| (seed, (mean(hits), interval(hits)))).collect();
    let pooled = over_seeds(hits);
    let deviation = standard_deviation(&by_seed.values().map(|(accuracy, _)| *accuracy).collect::<Vec<_>>());
    Accuracy { ranker: ranker.clone(), mean: mean(&pooled), interval: interval(&pooled), deviation, by_seed }
}

fn difference((of, ours): (&Ranker, &Hits), (over, theirs): (&Ranker, &Hits), prompts: &[u64]) -> Difference {
    let common: BTreeSet<u64> = ours.keys().filter(|seed| theirs.contains_key(seed)).copied().collect();
    let taken = |hits: &Hits| -> Hits {
        let of_seed = |(&seed, hits): (&u64, &Vec<f64>)| (seed, hits.clone());
        hits.iter().filter(|(seed, _)| common.is_empty() || common.contains(seed)).map(of_seed).collect()
    };
    let (ours, theirs) = (taken(ours), taken(theirs));
    let subtract = |ours: &[f64], theirs: &[f64]| -> Vec<f64> { ours.iter().zip(theirs).map(|(a, b)| a - b).collect() };
    let by_seed: BTreeMap<u64, f64> =
        common.iter().map(|seed| (*seed, mean(&subtract(&ours[seed], &theirs[seed])))).collect();
    let pooled = subtract(&over_seeds(&ours), &over_seeds(&theirs));
    // In units that make the sums of half hits over unlike numbers of runs whole numbers.
    let units = least_common_multiple(ours.len(), theirs.len());
    let mut sums: BTreeMap<u64, i64> = BTreeMap::new();
    for (value, prompt) in pooled.iter().zip(prompts) {
        *sums.entry(*prompt).or_default() += (2.0 * units as f64 * value).round() as i64;
    }
    let p = sign_flip(&sums.into_values().collect::<Vec<_>>());
    Difference {
        of: of.clone(),
        over: over.clone(),
        mean: mean(&pooled),
        interval: interval_of_differences(&pooled, prompts),
        deviation: standard_deviation(&by_seed.values().copied().collect::<Vec<_>>()),
        by_seed,
        p,
        p_holm: p,
        alike: pooled.iter().all(|value| *value == 0.0),
        detectable: detectable(&pooled, prompts).filter(|least| *least <= 1.0),
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    (1..=b).map(|factor| a * factor).find(|multiple| multiple % b == 0).unwrap_or(a * b)
}
