//! What an evaluation says beside accuracy: how well margins are calibrated and how far they follow length, of the reward head
//! and of the implicit reward, in total and per domain.
//!
//! Not here: the formulas (`calibration.rs`, `length.rs`).

use super::calibration::{CHANCE, Calibration};
use super::length::{LengthReport, Measured};
use crate::metrics::{TOTAL, number};
use crate::terminal::Table;
use serde::Serialize;

/// A pair's rewards of one head, and its answers' lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewarded {
    /// The pair's domain.
    pub domain: String,
    /// Rewards and lengths, in tokens.
    pub measured: Measured,
    /// Markdown marks of the two answers, by feature.
    pub marks: [[usize; FEATURES.len()]; 2],
}

/// What is said of one domain's pairs by one head, as it is printed as JSON. What is not a number is null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the split, as with the metrics.
    pub report: String,
    /// The pairs' domain; `all` for all of them.
    pub domain: String,
    /// What scored: `reward` or `implicit`.
    pub scored_by: &'static str,
    /// Number of pairs.
    pub pairs: usize,
    /// How margins are calibrated.
    pub calibration: Option<Calibration>,
    /// How far rewards follow length.
    pub length: Option<LengthReport>,
    /// How far rewards follow markdown: all its features together, then each.
    pub markdown: Vec<Marked>,
    /// The temperature that the run's dev pairs fit.
    pub dev_temperature: Option<f64>,
    /// How these pairs' margins divided by it are calibrated.
    pub at_dev_temperature: Option<Calibration>,
}

/// Features of markdown that are counted.
pub const FEATURES: [&str; 4] = ["headings", "entries", "fences", "bold"];

/// How far rewards follow a feature of markdown: as `length`, with 1 + the number of an answer's marks in the place of its length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Marked {
    /// One of [`FEATURES`], or `all` of them.
    pub feature: &'static str,
    /// What rewards say of it.
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

/// The reports of one head: of all pairs, then of each of `domains` where there are several.
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
    // One domain says the same again.
    if reports.len() == 2 {
        reports.truncate(1);
    }
    reports
}

/// Plain tables: calibration, the reliability of all pairs, length, markdown.
pub fn tables(reports: &[Report]) -> String {
    let mut calibration = titled(&["domain", "by", "pairs", "divided by", "ECE", "Brier", "log loss", "temperature"]);
    let mut reliability = titled(&["domain", "by", "pairs", "confidence", "accuracy"]);
    let mut length = titled(&[
        "domain",
        "by",
        "longer answer",
        "reward ~ log length",
        "chosen longer",
        "chosen shorter",
        "length-controlled",
    ]);
    let mut markdown = titled(&[
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
        let names = [report.domain.clone(), report.scored_by.to_owned()];
        if let Some(found) = &report.calibration {
            let mut row = |divisor: String, found: &Calibration| {
                let numbers = [Some(found.ece), Some(found.brier), Some(found.log_loss), found.temperature].map(number);
                let start = names.iter().cloned().chain([report.pairs.to_string(), divisor]);
                calibration.row(start.chain(numbers));
            };
            row("1".to_owned(), found);
            if let Some(found) = &report.at_dev_temperature {
                row(format!("{}, dev's", number(report.dev_temperature)), found);
            }
            for bin in found.bins.iter().filter(|_| report.domain == TOTAL) {
                let numbers = [number(Some(bin.confidence)), number(Some(bin.accuracy))];
                reliability.row(names.iter().cloned().chain([bin.pairs.to_string()]).chain(numbers));
            }
        }
        let of_length = |found: &LengthReport| {
            let of = |accuracy: Option<f64>, pairs: usize| format!("{} of {pairs}", number(accuracy));
            [
                number(Some(found.longer_accuracy)),
                number(found.correlation),
                of(found.accuracy_chosen_longer, found.chosen_longer),
                of(found.accuracy_chosen_shorter, found.chosen_shorter),
                number(found.length_controlled_accuracy),
            ]
        };
        if let Some(found) = &report.length {
            length.row(names.iter().cloned().chain(of_length(found)));
        }
        for Marked { feature, found } in &report.markdown {
            markdown.row(names.iter().cloned().chain([feature.to_string()]).chain(of_length(found)));
        }
    }
    format!(
        "calibration of sigmoid(margin), whatever loss.prior the model was trained with; chance: Brier 0.2500, log loss \
         {CHANCE:.4}; margins as they are and divided by the temperature of the run's dev pairs, with the temperature that would \
         fit\n{calibration}\n\nreliability, in bins of equal mass\n{reliability}\n\nlength, in tokens: \
         accuracies, and what the longer answer alone would reach\n{length}\n\nmarkdown, as length, in 1 + marks (headings, \
         entries of lists, fences, bold)\n{markdown}"
    )
}

fn titled(header: &[&str]) -> Table {
    Table::new(header.to_vec()).right(2..header.len())
}
