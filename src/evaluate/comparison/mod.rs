//! Compares runs on the same test pairs: accuracies, their intervals, paired differences.
//!
//! Runs whose settings differ only in `data.seed` are one variant. The reward head ranks a pair by its rewards, the policy by its
//! implicit rewards, both combined by the weighted sum fitted on the dev pairs; a tie is half a hit. Pure functions of the runs'
//! outcomes. Not here: grouping runs into variants (`variants.rs`), reading them (`metrics/pairs.rs`), the tables (`report.rs`).

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

/// A finished run, read from its folder.
#[derive(Debug, Clone)]
pub struct ComparedRun {
    /// Its folder's name, for errors.
    pub name: String,
    /// Its step, keys and config.
    pub facts: RunFacts,
    /// The result of each test pair.
    pub outcomes: Vec<PairOutcome>,
}

impl ComparedRun {
    fn seed(&self) -> u64 {
        self.facts.config.data.seed
    }
}

/// The head that ranks the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RankedBy {
    /// The reward head.
    Reward,
    /// The language-model head's implicit reward.
    Policy,
    /// The weighted sum of both, as fitted on the dev pairs.
    Combined,
}

/// A way to rank pairs: one head of a variant's runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ranker {
    /// The variant's name.
    pub variant: String,
    /// The loss that was minimized.
    pub objective: Objective,
    /// The head that ranks.
    pub ranked_by: RankedBy,
}

/// How often a ranker puts the chosen answer first.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    /// The ranker.
    pub ranker: Ranker,
    /// Each run's accuracy with its 95% interval over the test prompts, by seed.
    pub by_seed: BTreeMap<u64, (f64, Option<Interval>)>,
    /// The mean over those runs.
    pub mean: f64,
    /// Its 95% interval over the test prompts, for these runs.
    pub interval: Option<Interval>,
    /// Standard deviation over the runs.
    pub(crate) deviation: Option<f64>,
}

/// How much more often one ranker than another puts the chosen answer first, on the same pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The ranker whose accuracy is higher if the difference is positive.
    pub of: Ranker,
    /// The ranker whose accuracy is subtracted.
    pub over: Ranker,
    /// The difference between the runs with each seed that both have; empty if they have none in common.
    pub by_seed: BTreeMap<u64, f64>,
    /// The difference of the means over those seeds, or over all runs if they have no seed in common.
    pub mean: f64,
    /// Its 95% interval over the test prompts, for these runs.
    pub interval: Option<Interval>,
    /// Standard deviation over the common seeds.
    pub deviation: Option<f64>,
    /// [`sign_flip`] over prompts; a prompt's value is the sum over its pairs and all seeds.
    pub p: f64,
    /// The same, adjusted for the number of differences ([`holm`]).
    pub p_holm: f64,
    /// The smallest difference that test pairs like these would show with p < 0.05 (not adjusted) in four of five tests
    /// ([`detectable`]); None if that is above 1, the largest possible difference.
    pub detectable: Option<f64>,
    /// Whether both have the same mean over the seeds for every pair.
    pub(crate) alike: bool,
}

/// The result of comparing runs.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Facts of the first run.
    facts: RunFacts,
    /// The variants, in the order of the tables.
    variants: Vec<Variant>,
    /// All seeds that occur.
    pub seeds: BTreeSet<u64>,
    /// Number of test pairs.
    pub pairs: usize,
    /// Number of their distinct prompts.
    pub prompts: usize,
    /// The accuracy of every ranker that has runs.
    pub accuracies: Vec<Accuracy>,
    /// Between every two variants, each by the head that its loss trains for ranking; then between every two that train a policy,
    /// by the implicit reward; then of each variant's combined heads over its reward head.
    pub differences: Vec<Difference>,
}

/// Hits of a ranker by seed: 0, 1/2 or 1 per pair, in the order of the data.
type Hits = BTreeMap<u64, Vec<f64>>;

impl Comparison {
    /// Compares runs on the same test pairs.
    ///
    /// # Errors
    /// [`Error::input`] for runs that are not comparable; it says what differs.
    pub fn of(runs: &[ComparedRun]) -> Result<Self> {
        let Some(first) = runs.first() else { return Err(Error::input("there are no runs to compare")) };
        let variants = variants::of(first, runs)?;
        // Clustered as in a run's closing table, so that the intervals are the same.
        let names = first.outcomes.iter().map(|outcome| u64::from_str_radix(&outcome.prompt, 16).unwrap_or_default());
        let prompts: Vec<u64> = names.collect();
        let mut ranked = Vec::new();
        for variant in &variants {
            for ranked_by in heads(variant.objective) {
                let hits = hits_of(variant, *ranked_by, runs)?;
                if !hits.is_empty() {
                    let (name, objective) = (variant.name.clone(), variant.objective);
                    let ranker = Ranker { variant: name, objective, ranked_by: *ranked_by };
                    ranked.push(Ranked { ranker, hits });
                }
            }
        }
        let mut differences: Vec<Difference> =
            contrasts(&ranked).iter().map(|contrast| difference(contrast, &prompts)).collect();
        let adjusted = holm(&differences.iter().map(|difference| difference.p).collect::<Vec<_>>());
        differences.iter_mut().zip(adjusted).for_each(|(difference, p)| difference.p_holm = p);
        Ok(Self {
            facts: first.facts.clone(),
            variants,
            seeds: runs.iter().map(ComparedRun::seed).collect(),
            pairs: prompts.len(),
            prompts: prompts.iter().collect::<BTreeSet<_>>().len(),
            accuracies: ranked.iter().map(|ranked| accuracy(ranked, &prompts)).collect(),
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

/// A ranker with its hits.
struct Ranked {
    ranker: Ranker,
    hits: Hits,
}

/// Two rankers to compare.
struct Contrast<'a> {
    of: &'a Ranked,
    /// Its accuracy is subtracted.
    over: &'a Ranked,
}

/// The rankers to compare; see [`Comparison::differences`].
fn contrasts(all: &[Ranked]) -> Vec<Contrast<'_>> {
    let is_own = |ranker: &Ranker| heads(ranker.objective).first() == Some(&ranker.ranked_by);
    let by = |ranked_by| move |ranked: &&Ranked| ranked.ranker.ranked_by == ranked_by;
    let own: Vec<&Ranked> = all.iter().filter(|ranked| is_own(&ranked.ranker)).collect();
    let policies: Vec<&Ranked> = all.iter().filter(by(RankedBy::Policy)).collect();
    let mut chosen = among(&own);
    // Two variants that train only a policy are compared already.
    let is_new = |contrast: &Contrast| !(is_own(&contrast.of.ranker) && is_own(&contrast.over.ranker));
    chosen.extend(among(&policies).into_iter().filter(is_new));
    for combined in all.iter().filter(by(RankedBy::Combined)) {
        let same_variant = |ranked: &&Ranked| ranked.ranker.variant == combined.ranker.variant;
        let reward = all.iter().filter(by(RankedBy::Reward)).find(same_variant);
        chosen.extend(reward.map(|reward| Contrast { of: combined, over: reward }));
    }
    chosen
}

/// Every two of some rankers.
fn among<'a>(rankers: &[&'a Ranked]) -> Vec<Contrast<'a>> {
    let mut contrasts = Vec::new();
    for (index, of) in rankers.iter().enumerate() {
        contrasts.extend(rankers[index + 1..].iter().map(|over| Contrast { of, over }));
    }
    contrasts
}

/// Hits of the variant's runs. Runs without fitted weights have none by the combined heads.
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
            // Leaving out a run that diverged would improve its variant's mean.
            return Err(Error::input(format!("{}: a test pair has no finite score", run.name))
                .hint("the run has diverged: compare without its seed, and report that it diverged"));
        };
        hits.insert(run.seed(), of_run);
    }
    Ok(hits)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Each pair's mean over the seeds.
fn over_seeds(values: &Hits) -> Vec<f64> {
    let count = values.values().map(Vec::len).min().unwrap_or(0);
    (0..count).map(|pair| values.values().map(|of_seed| of_seed[pair]).sum::<f64>() / values.len() as f64).collect()
}

fn accuracy(Ranked { ranker, hits }: &Ranked, prompts: &[u64]) -> Accuracy {
    let interval = |hits: &[f64]| clustered_bootstrap(hits, prompts, RESAMPLES, SEED);
    let by_seed: BTreeMap<_, _> = hits.iter().map(|(&seed, hits)| (seed, (mean(hits), interval(hits)))).collect();
    let pooled = over_seeds(hits);
    let deviation = standard_deviation(&by_seed.values().map(|(accuracy, _)| *accuracy).collect::<Vec<_>>());
    Accuracy { ranker: ranker.clone(), mean: mean(&pooled), interval: interval(&pooled), deviation, by_seed }
}

fn difference(Contrast { of, over }: &Contrast, prompts: &[u64]) -> Difference {
    let (ours, theirs) = (&of.hits, &over.hits);
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
    // In units that make sums of half hits whole numbers, also for different numbers of runs.
    let units = least_common_multiple(ours.len(), theirs.len());
    let mut sums: BTreeMap<u64, i64> = BTreeMap::new();
    for (value, prompt) in pooled.iter().zip(prompts) {
        *sums.entry(*prompt).or_default() += (2.0 * units as f64 * value).round() as i64;
    }
    let p = sign_flip(&sums.into_values().collect::<Vec<_>>());
    Difference {
        of: of.ranker.clone(),
        over: over.ranker.clone(),
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
