//! JudgeBench: which of two answers is right. A judge that scores decides for A if A's score is higher, else for B: a tie
//! is right if B is. The total is the share of right decisions over all pairs.
//!
//! Source: utils/judges.py (`SkyworkReward`, `GRMReward`) and utils/metrics.py; a score needs only one order.

use super::items::{Role, Row};
use super::{ALL, Figure, Item, figure, one_if, subsets};
use crate::error::Result;

/// Start of a `source`, and the subset in which the paper counts it.
const SUBSETS: [(&str, &str); 4] = [
    ("mmlu-pro", "Knowledge"),
    ("livebench-reasoning", "Reasoning"),
    ("livebench-math", "Math"),
    ("livecodebench", "Coding"),
];

pub(super) fn item(row: &Row) -> Result<Item> {
    let (source, prompt) = (row.text("source")?, row.text("question")?);
    let subset = SUBSETS.iter().find(|(start, _)| source.starts_with(start)).map_or(&source[..], |(_, name)| name);
    let (a, b) = (row.text("response_A")?, row.text("response_B")?);
    let (answers, role) = match &row.text("label")?[..] {
        "A>B" => (vec![a, b], Role::Plain),
        "B>A" => (vec![b, a], Role::RightIfTied),
        other => return Err(row.refuse(format!("`label` is {other:?}, expected \"A>B\" or \"B>A\""))),
    };
    Ok(Item { subset: subset.to_owned(), cluster: prompt.clone(), prompt, answers, correct: 1, role })
}

/// Whether an item's decision is right.
pub(super) fn outcome(item: &Item, scores: &[f64]) -> f64 {
    let (right, wrong) = (scores[0], scores[1]);
    // If the wrong answer is A, anything but "A is higher" is a decision for B, a NaN too.
    match item.role {
        Role::RightIfTied => 1.0 - one_if(wrong > right),
        _ => one_if(right > wrong),
    }
}

pub(super) fn figures(items: &[Item], scores: &[Vec<f64>], clusters: &[&Vec<usize>]) -> Vec<Figure> {
    let right = |item: usize| outcome(&items[item], &scores[item]);
    let of_subset = |(name, clusters): (&str, Vec<&Vec<usize>>)| figure(name, &clusters, right);
    let figures: Vec<Figure> = subsets(items, clusters).into_iter().map(of_subset).collect();
    figures.into_iter().chain([figure(ALL, clusters, right)]).collect()
}
