//! An evaluation's report beyond accuracy: how well margins are calibrated and how far they follow length and markdown, for the
//! reward head and the implicit reward, in total and per domain.
//!
//! Not here: the formulas (`calibration.rs`, `length.rs`).

use super::calibration::{CHANCE, Calibration};
use super::length::{LengthReport, Measured};
use crate::metrics::{TOTAL, number};
use crate::terminal::Table;
use serde::Serialize;

/// A pair's rewards by one head, and its answers' lengths and marks.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewarded {
    /// The pair's domain.
    pub domain: String,
    /// Rewards and lengths, in tokens.
    pub measured: Measured,
    /// Markdown marks of the two answers, by feature.
    pub marks: [[usize; FEATURES.len()]; 2],
}

/// The report on one head and one domain's pairs, as printed in JSON. Missing and non-finite numbers are null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the split, as in the metrics.
    pub(crate) report: String,
    /// The pairs' domain; `all` for all of them.
    pub(crate) domain: String,
    /// The head: `reward` or `implicit`.
    pub(crate) scored_by: &'static str,
    /// Number of pairs.
    pub(crate) pairs: usize,
    /// How margins are calibrated.
    pub(crate) calibration: Option<Calibration>,
    /// How far rewards follow length.
    pub(crate) length: Option<LengthReport>,
    /// How far rewards follow markdown: all its features together, then each.
    pub markdown: Vec<Marked>,
    /// The temperature fitted on the run's dev pairs.
    pub dev_temperature: Option<f64>,
    /// How these pairs' margins are calibrated when divided by it.
    pub(crate) at_dev_temperature: Option<Calibration>,
}

/// Features of markdown that are counted.
pub(crate) const FEATURES: [&str; 4] = ["headings", "entries", "fences", "bold"];

/// How far rewards follow a feature of markdown: as for `length`, with 1 + the number of an answer's marks in place of its
/// length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Marked {
    /// One of [`FEATURES`], or `all` of them.
    pub feature: &'static str,
    /// The effect of the feature.
    #[serde(flatten)]
    pub found: LengthReport,
}

/// Marks of markdown in a text, by feature: headings, entries of lists, fences of code, and spans in bold.
pub fn marks(text: &str) -> [usize; FEATURES.len()] {
    let numbered = |line: &str| {
        let rest = line.trim_start_matches(|letter: char| letter.is_ascii_digit());
        rest.len() < line.len() && rest.starts_with(". ")
    };
    let heading = |line: &str| {
        let rest = line.trim_start_matches('#');
        (1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')
    };
    let entry = |line: &str| ["- ", "* ", "+ "].iter().any(|start| line.starts_with(start)) || numbered(line);
    let lines = |is: &dyn Fn(&str) -> bool| text.lines().filter(|line| is(line.trim_start())).count();
    [lines(&heading), lines(&entry), lines(&|line| line.starts_with("```")), text.matches("**").count() / 2]
}

/// The reports on one head: for all pairs, then for each of `domains` if there are several.
pub fn reports(
    split: &str,
    scored_by: &'static str,
    domains: &[String],
    pairs: &[Rewarded],
    dev_temperature: Option<f64>,
) -> Vec<Report> {
    let report = |domain: &str| {
        let of_domain = || pairs.iter().filter(|pair| domain == TOTAL || pair.domain == domain);
        let measured: Vec<Measured> = of_domain().map(|pair| pair.measured).collect();
        let marked = |feature: &'static str, count: &dyn Fn([usize; FEATURES.len()]) -> usize| {
            let marked =
                |pair: &Rewarded| Measured { lengths: pair.marks.map(|marks| 1 + count(marks)), ..pair.measured };
            LengthReport::of(&of_domain().map(marked).collect::<Vec<_>>()).map(|found| Marked { feature, found })
        };
        let all = marked(TOTAL, &|marks| marks.iter().sum());
        let each = FEATURES.iter().enumerate().filter_map(|(place, feature)| marked(feature, &|marks| marks[place]));
        let margins: Vec<f64> = measured.iter().map(|pair| pair.rewards[0] - pair.rewards[1]).collect();
        Report {
            report: split.to_owned(),
            domain: domain.to_owned(),
            scored_by,
            pairs: measured.len(),
            calibration: Calibration::of(&margins),
            length: LengthReport::of(&measured),
            markdown: all.into_iter().chain(each).collect(),
            dev_temperature,
            at_dev_temperature: dev_temperature.and_then(|temperature| {
                let margins: Vec<f64> = margins.iter().map(|margin| margin / temperature).collect();
                Calibration::of(&margins)
            }),
        }
    };
    let mut reports = vec![report(TOTAL)];
    reports.extend(domains.iter().map(|domain| report(domain)).filter(|report| report.pairs > 0));
    // A single domain would repeat the total.
    if reports.len() == 2 {
        reports.truncate(1);
    }
    reports
}

/// Plain tables: calibration, the reliability of all pairs, length, markdown.
pub(crate) fn tables(reports: &[Report]) -> String {
    format!(
        "Calibration of sigmoid(margin), whatever loss.prior the model was trained with; chance: Brier 0.2500, log loss \
         {CHANCE:.4}; for margins as they are, and divided by the temperature fitted on the run's dev pairs; the last column is \
         the temperature that fits these pairs\n{}\n\nReliability: pairs sorted into equal groups by confidence\n{}\n\nLength, in tokens: accuracies, \
         and that of always taking the longer answer\n{}\n\nMarkdown: does the reward follow the number of formatting \
         marks (headings, list entries, code fences, bold)?\n{}",
        calibration(reports),
        reliability(reports),
        length(reports),
        markdown(reports)
    )
}

fn calibration(reports: &[Report]) -> Table {
    let mut table = titled(&["domain", "by", "pairs", "divided by", "ECE", "Brier", "log loss", "temperature"]);
    let mut row = |report: &Report, divisor: String, found: &Calibration| {
        let numbers = [Some(found.ece), Some(found.brier), Some(found.log_loss), found.temperature].map(number);
        table.row(report.names().into_iter().chain([report.pairs.to_string(), divisor]).chain(numbers));
    };
    for report in reports {
        if let Some(found) = &report.calibration {
            row(report, "1".to_owned(), found);
            if let Some(found) = &report.at_dev_temperature {
                row(report, format!("{}, dev's", number(report.dev_temperature)), found);
            }
        }
    }
    table
}

/// The bins of all pairs.
fn reliability(reports: &[Report]) -> Table {
    let mut table = titled(&["domain", "by", "pairs", "confidence", "accuracy"]);
    for report in reports.iter().filter(|report| report.domain == TOTAL) {
        for bin in report.calibration.iter().flat_map(|found| &found.bins) {
            let numbers = [number(Some(bin.confidence)), number(Some(bin.accuracy))];
            table.row(report.names().into_iter().chain([bin.pairs.to_string()]).chain(numbers));
        }
    }
    table
}

fn length(reports: &[Report]) -> Table {
    let mut table = titled(&[
        "domain",
        "by",
        "longer answer",
        "reward ~ log length",
        "chosen longer",
        "chosen shorter",
        "length-controlled",
    ]);
    for report in reports {
        if let Some(found) = &report.length {
            table.row(report.names().into_iter().chain(figures(found)));
        }
    }
    table
}

fn markdown(reports: &[Report]) -> Table {
    let mut table = titled(&[
        "domain",
        "by",
        "marks",
        "more marks",
        "reward ~ log marks",
        "chosen more",
        "chosen fewer",
        "marks controlled",
    ]);
    for report in reports {
        for Marked { feature, found } in &report.markdown {
            table.row(report.names().into_iter().chain([feature.to_string()]).chain(figures(found)));
        }
    }
    table
}

impl Report {
    /// The first two columns of its rows.
    fn names(&self) -> [String; 2] {
        [self.domain.clone(), self.scored_by.to_owned()]
    }
}

fn figures(found: &LengthReport) -> [String; 5] {
    let of = |accuracy: Option<f64>, pairs: usize| format!("{} of {pairs}", number(accuracy));
    [
        number(Some(found.longer_accuracy)),
        number(found.correlation),
        of(found.accuracy_chosen_longer, found.chosen_longer),
        of(found.accuracy_chosen_shorter, found.chosen_shorter),
        number(found.length_controlled_accuracy),
    ]
}

fn titled(header: &[&str]) -> Table {
    Table::new(header.to_vec()).right(2..header.len())
}
