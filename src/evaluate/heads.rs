//! Answers' rewards by each reported head: the reward head, the implicit reward, and their weighted sum if a checkpoint has the
//! weights. And all heads side by side, on pairs that the weights were not fitted on.

use super::Reported;
use super::calibration::Calibration;
use crate::checkpoint::FittedOn;
use crate::engine::head::PairScores;
use crate::loss::{AnswerLogProb, hit, implicit_reward};
use crate::metrics::{number, table, with_interval};
use crate::statistics::{Interval, RESAMPLES, SEED, clustered_bootstrap};

use serde::Serialize;

/// Rewards by one head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `reward`, `implicit` or `combined`.
    pub name: &'static str,
    /// Rewards of each pair's answers, chosen first; a single answer's reward comes first too.
    pub rewards: Vec<[f64; 2]>,
}

impl Head {
    /// Each pair's reward, chosen minus rejected.
    pub(crate) fn margins(&self) -> Vec<f64> {
        self.rewards.iter().map(|[chosen, rejected]| chosen - rejected).collect()
    }
}

/// The implicit rewards of one pair's answers.
pub(crate) fn implicit(scores: &PairScores, reference: Option<&[f32; 2]>, reported: Reported) -> [f64; 2] {
    [0, 1].map(|answer| {
        let PairScores { log_probs, tokens, .. } = scores;
        let reference = reference.map_or(0.0, |row| f64::from(row[answer]));
        implicit_reward(reported.loss, AnswerLogProb { policy: log_probs[answer], reference, tokens: tokens[answer] })
    })
}

/// The reported heads. `references` has one entry per pair, or is empty if the loss needs none.
pub(crate) fn heads(scores: &[PairScores], references: &[[f32; 2]], reported: Reported) -> Vec<Head> {
    let rewards: Vec<[f64; 2]> = scores.iter().map(|scores| scores.rewards).collect();
    let mut heads = Vec::new();
    if reported.policy {
        let implicit = |(index, scores)| implicit(scores, references.get(index), reported);
        let implicit: Vec<[f64; 2]> = scores.iter().enumerate().map(implicit).collect();
        if let Some(weights) = reported.weights.filter(|_| reported.reward) {
            let combine = |(reward, implicit): (&[f64; 2], &[f64; 2])| {
                [0, 1].map(|answer| weights.combine(reward[answer], implicit[answer]))
            };
            heads.push(Head { name: "combined", rewards: rewards.iter().zip(&implicit).map(combine).collect() });
        }
        heads.push(Head { name: "implicit", rewards: implicit });
    }
    if reported.reward {
        heads.push(Head { name: "reward", rewards });
    }
    heads.reverse();
    heads
}

/// One head on the pairs that all heads are compared on, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideBySide {
    /// Name of the split, as in the metrics.
    pub(crate) heads: String,
    /// The head.
    pub(crate) scored_by: &'static str,
    /// Number of those pairs.
    pub pairs: usize,
    /// Pairs left out because the weights were fitted on their prompts; `None` if those prompts are not known, so that none is
    /// left out.
    pub left_out: Option<usize>,
    /// Share of pairs ranked correctly; a tie counts as one half.
    pub accuracy: f64,
    /// Lower end of its 95% interval, which draws whole prompts.
    pub(crate) accuracy_low: Option<f64>,
    /// Upper end.
    pub(crate) accuracy_high: Option<f64>,
    /// Mean of -log sigmoid(margin).
    pub(crate) log_loss: Option<f64>,
}

/// The heads on the pairs whose `prompts` (hashes) the weights were not fitted on, or on all pairs if that is not known; empty
/// if no pairs are left.
pub fn side_by_side(split: &str, heads: &[Head], prompts: &[u64], fitted_on: Option<&FittedOn>) -> Vec<SideBySide> {
    let is_left_out = |pair: usize| fitted_on.is_some_and(|fitted_on| fitted_on.has(prompts[pair]));
    let kept: Vec<usize> = (0..prompts.len()).filter(|&pair| !is_left_out(pair)).collect();
    if kept.is_empty() {
        return Vec::new();
    }
    let clusters: Vec<u64> = kept.iter().map(|&pair| prompts[pair]).collect();
    let row = |head: &Head| {
        let all = head.margins();
        let margins: Vec<f64> = kept.iter().map(|&pair| all[pair]).collect();
        let hits: Vec<f64> = margins.iter().map(|&margin| hit(margin)).collect();
        let interval = clustered_bootstrap(&hits, &clusters, RESAMPLES, SEED);
        SideBySide {
            heads: split.to_owned(),
            scored_by: head.name,
            pairs: kept.len(),
            left_out: fitted_on.map(|_| prompts.len() - kept.len()),
            accuracy: hits.iter().sum::<f64>() / hits.len() as f64,
            accuracy_low: interval.map(|interval| interval.low),
            accuracy_high: interval.map(|interval| interval.high),
            log_loss: Calibration::of(&margins).map(|found| found.log_loss),
        }
    };
    heads.iter().map(row).collect()
}

/// A plain table of them.
pub(crate) fn side_by_side_table(rows: &[SideBySide]) -> String {
    let row = |row: &SideBySide| {
        vec![
            row.scored_by.to_owned(),
            row.pairs.to_string(),
            with_interval(Some(row.accuracy), Interval::between(row.accuracy_low, row.accuracy_high)),
            number(row.log_loss),
        ]
    };
    table(&["by", "pairs", "accuracy (95%)", "log loss"], 1, rows.iter().map(row))
}
