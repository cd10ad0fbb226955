//! A suite's figures with 95% intervals by prompt and with baselines: always the longest or the shortest answer, and chance.
//!
//! Not here: the figures themselves.

use super::items::Role;
use super::{Item, Suite, clusters};
use crate::metrics::{number, with_interval};
use crate::statistics::{Interval, RESAMPLES, SEED, stratified_bootstrap};
use crate::terminal::Table;
use serde::Serialize;
use std::collections::BTreeMap;

/// A figure with its interval and baselines, as printed in JSON, where NaN becomes null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The suite.
    pub(crate) suite: Suite,
    /// The head: `reward` or `implicit`.
    pub(crate) scored_by: &'static str,
    /// The subset, the section, or `all`.
    pub subset: String,
    /// Number of items.
    pub(crate) items: usize,
    /// The figure, as the suite's authors define it.
    pub score: f64,
    /// Lower end of its 95% interval.
    pub low: Option<f64>,
    /// Upper end of its 95% interval.
    pub high: Option<f64>,
    /// The figure for always taking the longest answer, in characters.
    pub longest: f64,
    /// The figure for always taking the shortest answer.
    pub shortest: f64,
    /// The mean figure for random scores.
    pub chance: f64,
    /// The figure without cutting, if something was cut; answers beyond the model's own limit are still cut to that.
    pub(crate) uncut: Option<f64>,
    /// Cut answers in the whole suite.
    #[serde(flatten)]
    pub(crate) cutting: Cutting,
}

/// How a suite's answers were cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cutting {
    /// The length they were cut to, in tokens.
    pub limit: usize,
    /// Number of answers that were cut to it.
    pub cut: usize,
    /// Number of answers that are longer than the model's own limit.
    pub beyond: usize,
}

/// The lines of a suite. `scores`, and `uncut` if something was cut, have one list per item with one entry per answer.
///
/// Intervals are percentiles of a bootstrap that draws prompts, each with all its items in all subsets, from the prompts that
/// occur in the same subsets, so that every subset keeps its size. An interval without width, because every prompt had the same
/// outcome, becomes Wilson's with the number of prompts. So does one for Ties that is no wider than the term of its formula that
/// is not a share.
pub fn lines(
    suite: Suite,
    scored_by: &'static str,
    items: &[Item],
    scores: &[Vec<f64>],
    uncut: Option<&[Vec<f64>]>,
    cutting: Cutting,
) -> Vec<Line> {
    let by_name = clusters(items);
    let clusters: Vec<&Vec<usize>> = by_name.values().collect();
    let figures = suite.figures_of(items, scores, &clusters);
    let (strata, prompts) = prompts(items, &clusters);
    let intervals = stratified_bootstrap(&strata, RESAMPLES, SEED, |drawn| {
        let drawn: Vec<&Vec<usize>> = drawn.iter().flat_map(|&prompt| prompts[prompt].iter().copied()).collect();
        suite.figures_of(items, scores, &drawn).into_iter().map(|figure| figure.score).collect()
    });
    // The n of Wilson's interval.
    let independent = |figure: &str| {
        let counts =
            |cluster: &&Vec<usize>| cluster.first().is_some_and(|&item| suite.counts(figure, &items[item].subset));
        prompts.iter().filter(|clusters| clusters.iter().any(&counts)).count()
    };
    let by_length = |sign: f64| {
        let length = |answer: &String| sign * answer.chars().count() as f64;
        let lengths: Vec<Vec<f64>> = items.iter().map(|item| item.answers.iter().map(length).collect()).collect();
        suite.figures_of(items, &lengths, &clusters)
    };
    let (longest, shortest) = (by_length(1.0), by_length(-1.0));
    let uncut = uncut.map(|scores| suite.figures_of(items, scores, &clusters));
    let chance = suite.chance(items, &clusters, figures.len());
    let line = |(index, figure): (usize, &super::Figure)| {
        let interval = intervals.get(index).copied().flatten();
        let interval = interval
            .map(|interval| interval.or_wilson(figure.score, independent(&figure.name), suite.smooth(&figure.name)));
        Line {
            suite,
            scored_by,
            subset: figure.name.clone(),
            items: figure.items,
            score: figure.score,
            low: interval.map(|Interval { low, .. }| low),
            high: interval.map(|Interval { high, .. }| high),
            longest: longest[index].score,
            shortest: shortest[index].score,
            chance: chance[index],
            uncut: uncut.as_ref().map(|figures| figures[index].score),
            cutting,
        }
    };
    figures.iter().enumerate().map(line).collect()
}

/// The strata's sizes (a stratum has the prompts that occur in the same subsets), and every prompt's clusters, stratum by
/// stratum.
fn prompts<'c>(items: &[Item], clusters: &[&'c Vec<usize>]) -> (Vec<usize>, Vec<Vec<&'c Vec<usize>>>) {
    let mut by_prompt: BTreeMap<_, (Vec<&str>, Vec<&Vec<usize>>)> = BTreeMap::new();
    for &cluster in clusters {
        let Some(item) = cluster.first().map(|&first| &items[first]) else { continue };
        let (subsets, clusters) = by_prompt.entry(prompt_of(item)).or_default();
        subsets.push(&item.subset);
        clusters.push(cluster);
    }
    let mut strata: BTreeMap<Vec<&str>, Vec<Vec<&Vec<usize>>>> = BTreeMap::new();
    for (subsets, clusters) in by_prompt.into_values() {
        strata.entry(subsets).or_default().push(clusters);
    }
    (strata.values().map(Vec::len).collect(), strata.into_values().flatten().collect())
}

/// Identifies an item's prompt: by its text, in Ties by its number, which may equal another prompt's text.
pub(super) fn prompt_of(item: &Item) -> (bool, &str) {
    (matches!(item.role, Role::Reference | Role::Tied), &item.cluster)
}

/// A plain table of a suite's lines.
pub(crate) fn table(lines: &[Line]) -> String {
    let was_cut = lines.iter().any(|line| line.uncut.is_some());
    let mut header = vec!["subset", "items", "score (95%)", "longest", "shortest", "chance"];
    header.extend(was_cut.then_some("without truncation"));
    let numbers = 1..header.len();
    let mut table = Table::new(header).right(numbers);
    for line in lines {
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let mut row = vec![
            line.subset.clone(),
            line.items.to_string(),
            with_interval(finite(line.score), Interval::between(line.low, line.high)),
            number(finite(line.longest)),
            number(finite(line.shortest)),
            number(finite(line.chance)),
        ];
        row.extend(was_cut.then(|| number(line.uncut.and_then(finite))));
        table.row(row);
    }
    table.to_string()
}
