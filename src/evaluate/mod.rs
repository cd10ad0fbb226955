//! Metrics over a data set: accuracy with its interval, margin and both losses, per domain and in total.
//!
//! Means are taken over pairs, never over batches or ranks, so uneven shards do not matter. A tie is half a hit.

pub mod best_of;
pub mod calibration;
pub mod comparison;
pub mod doubt;
pub mod fitting;
pub mod heads;
pub mod length;
mod parts;
pub mod reference;
pub mod report;
pub mod scoring;
pub mod suites;
pub mod swap;
pub(crate) mod tokens;
pub(crate) mod verdict;

use crate::checkpoint::{Fitted, Weights};
use crate::config::{LossConfig, Objective as Trained};
use crate::data::TokenPair;
use crate::data::prepared::PreparedData;
use crate::engine::head::{Objective, PairLosses, PairScores};
use crate::files;
use crate::loss::hit;
use crate::metrics::{EvaluationMetrics, PairOutcome, TOTAL};
use crate::statistics::{RESAMPLES, SEED, Spread, clustered_bootstrap, interval_of_differences};
use heads::Head;
use length::Measured;
use report::{FEATURES, Report, Rewarded};

/// Which of the two heads an evaluation reports, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reported<'a> {
    /// The losses' constants.
    pub(crate) loss: &'a LossConfig,
    /// Whether the reward head is reported.
    pub(crate) reward: bool,
    /// Whether the policy is reported. That needs log-probs, and a reference if the loss has one.
    pub(crate) policy: bool,
    /// Weights of the heads' sum, if a checkpoint has them.
    pub(crate) weights: Option<Weights>,
}

impl<'a> Reported<'a> {
    /// The heads that a run with this loss table reports.
    pub(crate) fn of_run(loss: &'a LossConfig) -> Self {
        Self { loss, reward: loss.objective != Trained::Policy, policy: loss.needs_policy(), weights: None }
    }
}

/// Metrics of scored pairs, in total and then per domain, in the order of the data's domain names.
///
/// `scores` has one entry per pair in the data's order; so has `references`, which is empty if the loss needs none.
pub(crate) fn metrics(
    split: &str,
    step: usize,
    data: &PreparedData,
    scores: &[PairScores],
    references: &[[f32; 2]],
    reported: Reported,
) -> Vec<EvaluationMetrics> {
    let pairs = evaluated(data, scores, references, reported);
    let summarize = |domain: &str, pairs: &[&Evaluated]| summary(split, step, domain, pairs, reported);
    let mut rows = vec![summarize(TOTAL, &pairs.iter().collect::<Vec<_>>())];
    for (index, domain) in data.domains().iter().enumerate() {
        let of_domain: Vec<_> = pairs.iter().filter(|pair| pair.domain == index).collect();
        if !of_domain.is_empty() {
            rows.push(summarize(domain, &of_domain));
        }
    }
    rows
}

/// The result of each scored pair, in the data's order; the arguments are those of [`metrics`].
pub(crate) fn outcomes(
    data: &PreparedData,
    scores: &[PairScores],
    references: &[[f32; 2]],
    reported: Reported,
) -> Vec<PairOutcome> {
    let outcome = |(index, evaluated): (usize, &Evaluated)| {
        let pair = data.pair(index);
        PairOutcome {
            pair: fingerprint(&pair),
            prompt: format!("{:016x}", pair.prompt_hash),
            domain: data.domains()[pair.domain].clone(),
            margin: reported.reward.then(|| evaluated.margin()),
            implicit_margin: evaluated.losses.implicit_margin.filter(|_| reported.policy),
        }
    };
    evaluated(data, scores, references, reported).iter().enumerate().map(outcome).collect()
}

/// Each head's calibration and dependence on length and markdown. `marks` has the markdown marks of each pair's answers,
/// `fitted` the checkpoint's values fitted on its dev pairs.
pub(crate) fn reports(
    split: &str,
    data: &PreparedData,
    heads: &[Head],
    marks: &[[[usize; FEATURES.len()]; 2]],
    fitted: Option<&Fitted>,
) -> Vec<Report> {
    let of_head = |head: &Head| {
        let rewarded = |index: usize| {
            let pair = data.pair(index);
            let measured = Measured { rewards: head.rewards[index], lengths: lengths(&pair) };
            Rewarded { domain: data.domains()[pair.domain].clone(), measured, marks: marks[index] }
        };
        let pairs: Vec<Rewarded> = (0..head.rewards.len()).map(rewarded).collect();
        let temperature = fitted.and_then(|fitted| match head.name {
            "reward" => fitted.reward_temperature,
            "implicit" => fitted.implicit_temperature,
            _ => None,
        });
        report::reports(split, head.name, data.domains(), &pairs, temperature)
    };
    heads.iter().flat_map(of_head).collect()
}

/// Lengths of a pair's answers in tokens.
fn lengths(pair: &TokenPair) -> [usize; 2] {
    pair.spans.map(|span| span.end.saturating_sub(span.start))
}

/// Hash of a pair's tokens.
fn fingerprint(pair: &TokenPair) -> String {
    let parts = [pair.prefix, pair.chosen, pair.rejected]
        .map(|tokens| tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
    format!("{:032x}", files::fingerprint_parts(parts.iter().map(Vec::as_slice)))
}

fn evaluated(
    data: &PreparedData,
    scores: &[PairScores],
    references: &[[f32; 2]],
    reported: Reported,
) -> Vec<Evaluated> {
    let objective = Objective { config: reported.loss, reward_weight: 1.0, alpha: 1.0, log_probs: reported.policy };
    scores
        .iter()
        .enumerate()
        .map(|(index, scores)| {
            let pair = data.pair(index);
            let reference = references.get(index).copied().unwrap_or_default().map(f64::from);
            let losses = objective.losses(*scores, f64::from(pair.margin), reference, pair.tied);
            let [chosen, rejected] = lengths(&pair);
            let longer = hit(chosen as f64 - rejected as f64);
            Evaluated { losses, domain: pair.domain, prompt: pair.prompt_hash, longer }
        })
        .collect()
}

struct Evaluated {
    losses: PairLosses,
    domain: usize,
    prompt: u64,
    /// Whether the chosen answer is the longer one: 0 or 1; 1/2 for equal lengths.
    longer: f64,
}

impl Evaluated {
    fn margin(&self) -> f64 {
        self.losses.scores.rewards[0] - self.losses.scores.rewards[1]
    }
}

fn summary(split: &str, step: usize, domain: &str, pairs: &[&Evaluated], reported: Reported) -> EvaluationMetrics {
    let prompts: Vec<u64> = pairs.iter().map(|pair| pair.prompt).collect();
    let mean = |wanted: bool, value: &dyn Fn(&Evaluated) -> f64| {
        wanted.then(|| pairs.iter().map(|pair| value(pair)).sum::<f64>() / pairs.len() as f64)
    };
    let interval = |wanted: bool, value: &dyn Fn(&Evaluated) -> f64| {
        let values: Vec<f64> = pairs.iter().map(|pair| value(pair)).collect();
        clustered_bootstrap(&values, &prompts, RESAMPLES, SEED).filter(|_| wanted)
    };
    let reward_hit = |pair: &Evaluated| hit(pair.margin());
    let policy_hit = |pair: &Evaluated| hit(pair.losses.implicit_margin.unwrap_or(f64::NAN));
    let accuracy_interval = interval(reported.reward, &reward_hit);
    let policy_interval = interval(reported.policy, &policy_hit);
    let longer_accuracy = pairs.iter().map(|pair| pair.longer).sum::<f64>() / pairs.len() as f64;
    // By length alone: always the longer answer or always the shorter one, whichever is right more often.
    let by_length = |pair: &Evaluated| if longer_accuracy >= 0.5 { pair.longer } else { 1.0 - pair.longer };
    let head = |pair: &Evaluated| if reported.reward { reward_hit(pair) } else { policy_hit(pair) };
    let over_length: Vec<f64> = pairs.iter().map(|pair| head(pair) - by_length(pair)).collect();
    EvaluationMetrics {
        eval: split.to_string(),
        step,
        domain: domain.to_string(),
        pairs: pairs.len(),
        accuracy: mean(reported.reward, &reward_hit),
        accuracy_low: accuracy_interval.map(|interval| interval.low),
        accuracy_high: accuracy_interval.map(|interval| interval.high),
        policy_accuracy: mean(reported.policy, &policy_hit),
        policy_accuracy_low: policy_interval.map(|interval| interval.low),
        policy_accuracy_high: policy_interval.map(|interval| interval.high),
        margin: mean(reported.reward, &Evaluated::margin),
        reward_loss: mean(reported.reward, &|pair| pair.losses.reward_loss),
        policy_loss: mean(reported.policy, &|pair| pair.losses.policy_loss.unwrap_or(f64::NAN)),
        longer_accuracy,
        over_length: interval_of_differences(&over_length, &prompts),
        fitted: None,
        rewards: Spread::of(&pairs.iter().flat_map(|pair| pair.losses.scores.rewards).collect::<Vec<_>>())
            .filter(|_| reported.reward),
    }
}
