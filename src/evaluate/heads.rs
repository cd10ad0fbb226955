//! The rewards of answers by each head that is reported: the reward head, the implicit reward, and their sum where a checkpoint
//! says how to add them up. And what they say side by side, on pairs that the sum was not fitted on.

use super::Reported;
use super::calibration::Calibration;
use crate::checkpoint::FittedOn;
use crate::engine::head::PairScores;
use crate::loss::{AnswerLogProb, hit, implicit_reward};
use crate::metrics::{number, table, with_interval};
use crate::statistics::{RESAMPLES, SEED, clustered_bootstrap};

use serde::Serialize;

/// Rewards by one head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `reward`, `implicit` or `combined`.
    pub name: &'static str,
    /// Of each pair's answers, or of a single answer in the first place.
    pub rewards: Vec<[f64; 2]>,
}

impl Head {
    /// Chosen minus rejected of each pair.
    pub fn margins(&self) -> Vec<f64> {
        self.rewards.iter().map(|[chosen, rejected]| chosen - rejected).collect()
    }
}

/// The implicit rewards of one pair's answers.
pub fn implicit(scores: &PairScores, reference: Option<&[f32; 2]>, reported: Reported) -> [f64; 2] {
    [0, 1].map(|answer| {
        let PairScores { log_probs, tokens, .. } = scores;
        let reference = reference.map_or(0.0, |row| f64::from(row[answer]));
        implicit_reward(reported.loss, AnswerLogProb { policy: log_probs[answer], reference, tokens: tokens[answer] })
    })
}

/// The heads that are reported. `references` has one entry a pair, or none where the loss needs none.
pub fn heads(scores: &[PairScores], references: &[[f32; 2]], reported: Reported) -> Vec<Head> {
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

/// One head on the pairs that all are compared on, as it is printed as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideBySide {
    /// Name of the split, as with the metrics.
    pub heads: String,
    /// Which head.
    pub scored_by: &'static str,
    /// Pairs compared on.
    pub pairs: usize,
    /// Pairs left out, because the sum was fitted on their prompts; `None` where those are not recognised, and none is left out.
    pub left_out: Option<usize>,
    /// Share of pairs ranked rightly; a tie counts as one half.
    pub accuracy: f64,
    /// Lower end of its 95% interval, which draws whole prompts.
    pub accuracy_low: Option<f64>,
    /// Upper end.
    pub accuracy_high: Option<f64>,
    /// Mean of -log sigmoid(margin), the combined margin as it is.
    pub log_loss: Option<f64>,
}

/// The heads on the pairs whose `prompts` (hashes) the sum was not fitted on, or on all pairs where that is not known; nothing
/// where none are left.
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
pub fn side_by_side_table(rows: &[SideBySide]) -> String {
    let row = |row: &SideBySide| {
        vec![
            row.scored_by.to_owned(),
            row.pairs.to_string(),
            with_interval(Some(row.accuracy), row.accuracy_low.zip(row.accuracy_high)),
            number(row.log_loss),
        ]
    };
    table(&["by", "pairs", "accuracy (95%)", "log loss"], 1, rows.iter().map(row))
}
