//! Where to doubt an evaluation: ties, pairs that the model is least sure of, pairs on which its two heads disagree, and its
//! worst mistakes.
//!
//! Pure functions of margins. Not here: the pairs' texts.

use super::heads::Head;
use crate::loss::hit;
use crate::metrics::{number, table};

use serde::Serialize;

/// Shares of the pairs, the surest first, for which accuracy is reported as if the model abstained from the others.
const SHARES: [f64; 7] = [1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1];

/// Accuracy of the surest pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answered {
    /// One of the requested shares of the pairs.
    pub share: f64,
    /// Number of pairs: that share, and those exactly as sure as the last of it.
    pub pairs: usize,
    /// Share of them ranked correctly.
    pub accuracy: f64,
}

/// Doubts about one head, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Doubts {
    /// Name of the split, as in the metrics.
    pub(crate) doubts: String,
    /// The head.
    pub(crate) scored_by: &'static str,
    /// Number of pairs.
    pub pairs: usize,
    /// Pairs whose two answers have the same reward: half a hit each.
    pub ties: usize,
    /// AUROC of -|margin| as a sign of error: the probability that a wrongly ranked pair has a smaller |margin| than a correctly
    /// ranked one. `None` if all are right, or all wrong.
    pub auroc: Option<f64>,
    /// Accuracy as a function of abstention.
    pub answered: Vec<Answered>,
}

impl Doubts {
    /// From one head's margins.
    pub fn of(split: &str, head: &Head) -> Self {
        let margins = head.margins();
        let unsure: Vec<f64> = margins.iter().map(|margin| -margin.abs()).collect();
        Self {
            doubts: split.to_owned(),
            scored_by: head.name,
            pairs: margins.len(),
            ties: margins.iter().filter(|margin| **margin == 0.0).count(),
            auroc: auroc(&unsure, &errors(&margins)),
            answered: answered(&margins),
        }
    }
}

fn answered(margins: &[f64]) -> Vec<Answered> {
    let mut sorted = margins.to_vec();
    sorted.sort_by(|one, other| other.abs().total_cmp(&one.abs()));
    let of_share = |share: f64| {
        let mut pairs = ((share * sorted.len() as f64).round() as usize).max(1).min(sorted.len());
        while pairs < sorted.len() && sorted[pairs].abs() == sorted[pairs - 1].abs() {
            pairs += 1;
        }
        let hits: f64 = sorted[..pairs].iter().map(|&margin| hit(margin)).sum();
        Answered { share, pairs, accuracy: hits / pairs as f64 }
    };
    if sorted.is_empty() { Vec::new() } else { SHARES.map(of_share).to_vec() }
}

/// Whether each pair is ranked wrongly; None for a tie.
fn errors(margins: &[f64]) -> Vec<Option<bool>> {
    margins.iter().map(|&margin| if margin == 0.0 { None } else { Some(hit(margin) < 0.5) }).collect()
}

/// Area under the ROC curve: the probability that a true case has a larger score than a false one, where equal scores count one
/// half (Mann and Whitney's U). Cases that are neither do not count. `None` unless there are cases of both kinds.
pub fn auroc(scores: &[f64], is_true: &[Option<bool>]) -> Option<f64> {
    let mut known: Vec<(f64, bool)> =
        scores.iter().zip(is_true).filter_map(|(score, truth)| truth.map(|truth| (*score, truth))).collect();
    known.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut below, mut wins) = (0.0, 0.0);
    let mut start = 0;
    while start < known.len() {
        let end = start + known[start..].iter().take_while(|(score, _)| *score == known[start].0).count();
        let truths = known[start..end].iter().filter(|(_, truth)| *truth).count() as f64;
        let others = (end - start) as f64 - truths;
        wins += truths * (below + others / 2.0);
        below += others;
        start = end;
    }
    let truths = known.len() as f64 - below;
    (truths > 0.0 && below > 0.0).then(|| wins / (truths * below))
}

/// How far the reward head and the implicit reward disagree on the same pairs, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Disagreement {
    /// Name of the split, as in the metrics.
    pub(crate) disagreement: String,
    /// Pairs that they rank differently.
    pub pairs: usize,
    /// All pairs.
    pub of: usize,
    /// Share of those pairs that the reward head ranks correctly; the implicit reward is right on the others.
    pub reward_right: Option<f64>,
    /// Accuracy of the reward head where they agree.
    pub accuracy_where_agreed: Option<f64>,
    /// AUROC of the implicit margin in the direction opposite to the reward head's, as a sign that the reward head is wrong.
    pub(crate) auroc: Option<f64>,
}

impl Disagreement {
    /// `None` unless there are both heads.
    pub fn of(split: &str, heads: &[Head]) -> Option<Self> {
        let [reward, implicit] = both(heads)?;
        let both = || reward.iter().zip(&implicit);
        let share = |disagree: bool| {
            let kept = both().filter(|(r, i)| (*r * *i < 0.0) == disagree && **r * **i != 0.0);
            let hits: Vec<f64> = kept.map(|(reward, _)| hit(*reward)).collect();
            (!hits.is_empty()).then(|| hits.iter().sum::<f64>() / hits.len() as f64)
        };
        let against: Vec<f64> = both().map(|(reward, implicit)| -implicit * reward.signum()).collect();
        Some(Self {
            disagreement: split.to_owned(),
            pairs: both().filter(|(reward, implicit)| *reward * *implicit < 0.0).count(),
            of: reward.len(),
            reward_right: share(true),
            accuracy_where_agreed: share(false),
            auroc: auroc(&against, &errors(&reward)),
        })
    }
}

/// A pair with its text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The pair's number in the data, from 1, not counting dropped pairs.
    pub pair: usize,
    /// The name it is reported under.
    pub domain: String,
    /// The prompt of both answers.
    pub prompt: String,
    /// The chosen answer.
    pub chosen: String,
    /// The rejected answer.
    pub rejected: String,
}

/// A wrongly ranked pair with its text, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mistake {
    /// Its rank among the head's mistakes, from 1: the most negative margin is the worst.
    pub mistake: usize,
    /// The head whose margin it is.
    pub(crate) scored_by: &'static str,
    /// Chosen minus rejected.
    pub margin: f64,
    /// The pair.
    #[serde(flatten)]
    pub shown: Shown,
}

/// A pair that the heads rank differently, with its text, as printed in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Disagreed {
    /// Its rank among them, from 1, by the product of the two margins, so that their scales do not matter.
    pub disagreed: usize,
    /// Chosen minus rejected, by the reward head.
    pub margin: f64,
    /// The same by the implicit reward.
    pub implicit_margin: f64,
    /// The pair.
    #[serde(flatten)]
    pub shown: Shown,
}

/// The worst mistakes of a head, at most `most`.
pub fn mistakes(head: &Head, most: usize, shown: impl Fn(usize) -> Shown) -> Vec<Mistake> {
    let margins = head.margins();
    let mistake = |(rank, pair): (usize, usize)| Mistake {
        mistake: rank + 1,
        scored_by: head.name,
        margin: margins[pair],
        shown: shown(pair),
    };
    lowest(&margins, most).into_iter().enumerate().map(mistake).collect()
}

/// The pairs on which the heads disagree most strongly, at most `most`; empty unless there are both heads.
pub fn disagreed(heads: &[Head], most: usize, shown: impl Fn(usize) -> Shown) -> Vec<Disagreed> {
    let Some([reward, implicit]) = both(heads) else { return Vec::new() };
    let products: Vec<f64> = reward.iter().zip(&implicit).map(|(reward, implicit)| reward * implicit).collect();
    let row = |(rank, pair): (usize, usize)| Disagreed {
        disagreed: rank + 1,
        margin: reward[pair],
        implicit_margin: implicit[pair],
        shown: shown(pair),
    };
    lowest(&products, most).into_iter().enumerate().map(row).collect()
}

/// Indices of the values below 0, at most `most`, the lowest first.
fn lowest(values: &[f64], most: usize) -> Vec<usize> {
    let mut below: Vec<usize> = (0..values.len()).filter(|&place| values[place] < 0.0).collect();
    below.sort_by(|&one, &other| values[one].total_cmp(&values[other]));
    below.truncate(most);
    below
}

/// Margins by the reward head and by the implicit reward.
fn both(heads: &[Head]) -> Option<[Vec<f64>; 2]> {
    let margins = |name: &str| heads.iter().find(|head| head.name == name).map(Head::margins);
    Some([margins("reward")?, margins("implicit")?])
}

/// Plain tables: accuracy without the least sure pairs, where the heads disagree, each head's worst mistakes.
pub(crate) fn tables(
    doubts: &[Doubts],
    disagreement: Option<&Disagreement>,
    disagreed: &[Disagreed],
    mistakes: &[Mistake],
) -> String {
    let shares = SHARES.map(|share| format!("{:.0}%", 100.0 * share));
    let header: Vec<&str> = ["by", "ties", "AUROC"].into_iter().chain(shares.iter().map(String::as_str)).collect();
    let row = |doubts: &Doubts| {
        let names = [doubts.scored_by.to_owned(), doubts.ties.to_string(), number(doubts.auroc)];
        names.into_iter().chain(doubts.answered.iter().map(|answered| number(Some(answered.accuracy)))).collect()
    };
    let mut text = format!(
        "Accuracy on the pairs with the largest margins, and how well a small margin predicts a mistake (AUROC)\n{}",
        table(&header, 1, doubts.iter().map(row))
    );
    if let Some(found) = disagreement {
        text += &format!(
            "\n\nthe heads disagree on {} of {} pairs: the reward head's accuracy is {} there and {} elsewhere; AUROC of \
             disagreement as a sign that the reward head is wrong: {}",
            found.pairs,
            found.of,
            number(found.reward_right),
            number(found.accuracy_where_agreed),
            number(found.auroc)
        );
    }
    if !disagreed.is_empty() {
        let row = |row: &Disagreed| with_text([signed(row.margin), signed(row.implicit_margin)], &row.shown);
        text += &format!(
            "\n\nwhere the heads disagree most (--json has the whole texts)\n{}",
            table(&["reward", "implicit", "pair", "prompt", "chosen", "rejected"], 6, disagreed.iter().map(row))
        );
    }
    if !mistakes.is_empty() {
        let row = |row: &Mistake| with_text([row.scored_by.to_owned(), signed(row.margin)], &row.shown);
        text += &format!(
            "\n\nthe worst mistakes of each head (--json has the whole texts)\n{}",
            table(&["by", "margin", "pair", "prompt", "chosen", "rejected"], 6, mistakes.iter().map(row))
        );
    }
    text
}

fn signed(margin: f64) -> String {
    format!("{margin:+.4}")
}

fn with_text(first: [String; 2], shown: &Shown) -> Vec<String> {
    let Shown { pair, prompt, chosen, rejected, .. } = shown;
    let texts = [pair.to_string(), short(prompt, true), short(chosen, false), short(rejected, false)];
    first.into_iter().chain(texts).collect()
}

/// The end or the start of a text in one short line.
fn short(text: &str, end: bool) -> String {
    const MOST: usize = 48;
    let line: Vec<char> = text.escape_debug().collect();
    match (line.len() <= MOST, end) {
        (true, _) => line.into_iter().collect(),
        (false, true) => format!("...{}", line[line.len() - MOST..].iter().collect::<String>()),
        (false, false) => format!("{}...", line[..MOST].iter().collect::<String>()),
    }
}
