//! Benchmarks of reward models: turns a suite's rows into items to score, and the scores into figures as the suite's authors
//! define them.
//!
//! One file per suite. Not here: scoring the items (`commands/suites.rs`), and intervals and baselines (`report.rs`).

pub mod contamination;
mod items;
mod judgebench;
pub mod paired;
pub mod report;
mod rewardbench;
mod rewardbench2;
mod rm_bench;
mod ties;

pub use items::Item;

use crate::data;
use crate::error::{Error, Result};
use crate::files;
use items::Row;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// RewardBench (arXiv 2403.13787), as in the package rewardbench 0.1.4.
    Rewardbench,
    /// RewardBench 2 (arXiv 2506.01937), as in the same package.
    Rewardbench2,
    /// RM-Bench (arXiv 2410.16184), as in its repository's scripts/utils.py at 659399c.
    RmBench,
    /// JudgeBench (arXiv 2410.12784), as its repository judges with reward models at 12a499c.
    Judgebench,
}

/// One number of a suite: for a subset, for a section or for all items.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The subset, the section, or `all`.
    pub name: String,
    /// Number of items in it.
    pub(crate) items: usize,
    /// Its value: at most 1, or 1.01 for Ties; NaN where the authors' own code gives NaN.
    pub score: f64,
}

/// The name of a suite's total.
pub(crate) const ALL: &str = "all";

impl Suite {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rewardbench => "rewardbench",
            Self::Rewardbench2 => "rewardbench2",
            Self::RmBench => "rm-bench",
            Self::Judgebench => "judgebench",
        }
    }

    /// The length, in tokens, that the leaderboards' scripts cut to by default: `run_rm.py`, `run_v2.py`. The command of the
    /// package rewardbench has 512, but cuts only with --force_truncation.
    pub(crate) fn max_length(self) -> Option<usize> {
        match self {
            Self::Rewardbench | Self::Rewardbench2 | Self::RmBench => Some(2048),
            Self::Judgebench => None,
        }
    }

    /// Whether the authors' code keeps the second BOS that some tokenizers put in front of a rendered conversation. Rewardbench
    /// 0.1.4 masks one of the two out (`pipeline.py`).
    pub(crate) fn keeps_second_bos(self) -> bool {
        matches!(self, Self::RmBench | Self::Judgebench)
    }

    /// The items of a suite's files, in their order.
    ///
    /// # Errors
    /// A file that is named twice or cannot be read, or a row that does not belong to the suite; the error says where.
    pub fn read<P: AsRef<Path>>(self, files: &[P], max_row_bytes: usize) -> Result<Vec<Item>> {
        let item = match self {
            Self::Rewardbench => rewardbench::item,
            Self::Rewardbench2 => rewardbench2::item,
            Self::RmBench => rm_bench::item,
            Self::Judgebench => judgebench::item,
        };
        files::each_once(files.iter().map(AsRef::as_ref), self.name())?;
        let mut items = Vec::new();
        for file in files {
            data::objects(file.as_ref(), max_row_bytes, |row| {
                items.push(item(&Row::new(self, row))?);
                Ok(())
            })?;
        }
        if self == Self::Rewardbench2 {
            ties::check(&items)?;
        }
        match items.is_empty() {
            true => Err(Error::input(format!("{}: no file is named", self.name())).hint("name its files after it")),
            false => Ok(items),
        }
    }

    /// The suite's figures for these scores (one list per item, one entry per answer): subsets first, then those computed from
    /// them.
    ///
    /// Figures that need a missing subset are left out.
    pub fn figures(self, items: &[Item], scores: &[Vec<f64>]) -> Vec<Figure> {
        let clusters: Vec<Vec<usize>> = clusters(items).into_values().collect();
        self.figures_of(items, scores, &clusters.iter().collect::<Vec<_>>())
    }

    /// The same for the items of these clusters, which may be repeated.
    fn figures_of(self, items: &[Item], scores: &[Vec<f64>], clusters: &[&Vec<usize>]) -> Vec<Figure> {
        match self {
            Self::Rewardbench => rewardbench::figures(items, scores, clusters),
            Self::Rewardbench2 => rewardbench2::figures(items, scores, clusters),
            Self::RmBench => rm_bench::figures(items, scores, clusters),
            Self::Judgebench => judgebench::figures(items, scores, clusters),
        }
    }

    /// Mean [`figures`](Self::figures) for random scores, uniformly drawn and all different.
    fn chance(self, items: &[Item], clusters: &[&Vec<usize>], figures: usize) -> Vec<f64> {
        match self {
            Self::Rewardbench2 => rewardbench2::chance(items, clusters),
            // Each is a mean over comparisons of two scores.
            _ => vec![0.5; figures],
        }
    }

    /// Each item's contribution to its subset's plain mean, from 0 to 1.
    fn outcomes(self, items: &[Item], scores: &[Vec<f64>]) -> Vec<f64> {
        let outcome = |(item, scores): (&Item, &Vec<f64>)| match self {
            Self::Rewardbench => one_if(scores[0] > scores[1]),
            Self::Rewardbench2 => rewardbench2::outcome(item, scores),
            Self::RmBench => rm_bench::outcome(scores),
            Self::Judgebench => judgebench::outcome(item, scores),
        };
        items.iter().zip(scores).map(outcome).collect()
    }

    /// Outcomes are whole multiples of 1 / this, unless more than four answers in RewardBench 2 tie at the top.
    fn parts(self) -> f64 {
        match self {
            Self::Rewardbench | Self::Judgebench => 1.0,
            Self::Rewardbench2 => 12.0,
            Self::RmBench => 9.0,
        }
    }

    /// How far a figure may move while every item's outcome stays the same.
    fn smooth(self, figure: &str) -> f64 {
        match self {
            Self::Rewardbench2 => rewardbench2::smooth(figure),
            _ => 0.0,
        }
    }

    /// Whether an item of `subset` is counted in the figure with this name.
    fn counts(self, figure: &str, subset: &str) -> bool {
        match self {
            Self::Rewardbench => figure == subset || figure == ALL || rewardbench::is_in_section(figure, subset),
            // A level in a domain, or in all domains.
            Self::RmBench => match figure.strip_prefix(subset) {
                Some(level) => level.is_empty() || level.starts_with(' '),
                None => figure == ALL || rm_bench::is_level(figure),
            },
            Self::Rewardbench2 | Self::Judgebench => figure == subset || figure == ALL,
        }
    }
}

/// The items of each subset and prompt.
fn clusters(items: &[Item]) -> BTreeMap<(&str, &str), Vec<usize>> {
    let mut clusters: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        clusters.entry((&item.subset[..], &item.cluster[..])).or_default().push(index);
    }
    clusters
}

/// The clusters of each subset, by its name.
fn subsets<'c, 'i>(items: &'i [Item], clusters: &[&'c Vec<usize>]) -> BTreeMap<&'i str, Vec<&'c Vec<usize>>> {
    let mut subsets: BTreeMap<_, Vec<&Vec<usize>>> = BTreeMap::new();
    for &cluster in clusters {
        if let Some(&first) = cluster.first() {
            subsets.entry(&items[first].subset[..]).or_default().push(cluster);
        }
    }
    subsets
}

/// Mean over the items of these clusters.
fn figure(name: &str, clusters: &[&Vec<usize>], outcome: impl Fn(usize) -> f64) -> Figure {
    let items: usize = clusters.iter().map(|cluster| cluster.len()).sum();
    let sum: f64 = clusters.iter().flat_map(|cluster| cluster.iter()).map(|&item| outcome(item)).sum();
    Figure { name: name.to_owned(), items, score: sum / items as f64 }
}

/// Plain mean of figures.
fn mean_of(name: &str, figures: &[&Figure]) -> Figure {
    Figure {
        name: name.to_owned(),
        items: figures.iter().map(|figure| figure.items).sum(),
        score: figures.iter().map(|figure| figure.score).sum::<f64>() / figures.len() as f64,
    }
}

/// 1 if the comparison holds; NaN compares as false.
fn one_if(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
