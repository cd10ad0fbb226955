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
    /// Markdown marks of the two answers.
    pub marks: [usize; 2],
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
    /// How far rewards follow markdown: as `length`, with 1 + the number of an answer's marks in the place of its length.
    pub markdown: Option<LengthReport>,
    /// The temperature that the run's dev pairs fit.
    pub dev_temperature: Option<f64>,
    /// Log loss of these pairs' margins divided by it.
    pub log_loss_at_dev_temperature: Option<f64>,
}

/// Marks of markdown in a text: headings, entries of lists, fences of code, and spans in bold.
pub fn marks(text: &str) -> usize {
    let numbered = |line: &str| {
        let rest = line.trim_start_matches(|letter: char| letter.is_ascii_digit());
        rest.len() < line.len() && rest.starts_with(". ")
    };
    let heading = |line: &str| {
        let rest = line.trim_start_matches('#');
        (1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')
    };
    let starts = ["- ", "* ", "+ ", "```"];
    let marked = |line: &&str| {
        let line = line.trim_start();
        starts.iter().any(|start| line.starts_with(start)) || numbered(line) || heading(line)
    };
    text.lines().filter(marked).count() + text.matches("**").count() / 2
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
        let marked = |pair: &Rewarded| Measured { lengths: pair.marks.map(|marks| 1 + marks), ..pair.measured };
        let marked: Vec<Measured> = of_domain().map(marked).collect();
        let margins: Vec<f64> = measured.iter().map(|pair| pair.rewards[0] - pair.rewards[1]).collect();
        Report {
            report: split.to_owned(),
            domain: domain.to_owned(),
            scored_by,
            pairs: measured.len(),
            calibration: Calibration::of(&margins),
            length: LengthReport::of(&measured),
            markdown: LengthReport::of(&marked),
            dev_temperature,
            log_loss_at_dev_temperature: dev_temperature.and_then(|temperature| {
                let margins: Vec<f64> = margins.iter().map(|margin| margin / temperature).collect();
                Calibration::of(&margins).map(|found| found.log_loss)
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
    let mut calibration =
        titled(&["domain", "by", "pairs", "ECE", "Brier", "log loss", "temperature", "dev's", "log loss at dev's"]);
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
        "more marks",
        "reward ~ log marks",
        "chosen more",
        "chosen fewer",
        "marks controlled",
    ]);
    for report in reports {
        let names = [report.domain.clone(), report.scored_by.to_owned()];
        if let Some(found) = &report.calibration {
            let numbers = [found.ece, found.brier, found.log_loss].map(|value| number(Some(value)));
            let row = names.iter().cloned().chain([report.pairs.to_string()]).chain(numbers);
            let of_dev = [report.dev_temperature, report.log_loss_at_dev_temperature].map(number);
            calibration.row(row.chain([number(found.temperature)]).chain(of_dev));
            for bin in found.bins.iter().filter(|_| report.domain == TOTAL) {
                let numbers = [number(Some(bin.confidence)), number(Some(bin.accuracy))];
                reliability.row(names.iter().cloned().chain([bin.pairs.to_string()]).chain(numbers));
            }
        }
        for (table, found) in [(&mut length, &report.length), (&mut markdown, &report.markdown)] {
            let Some(found) = found else { continue };
            let of = |accuracy: Option<f64>, pairs: usize| format!("{} of {pairs}", number(accuracy));
            table.row(names.iter().cloned().chain([
                number(Some(found.longer_accuracy)),
                number(found.correlation),
                of(found.accuracy_chosen_longer, found.chosen_longer),
                of(found.accuracy_chosen_shorter, found.chosen_shorter),
                number(found.length_controlled_accuracy),
            ]));
        }
    }
    format!(
        "calibration of sigmoid(margin), whatever loss.prior the model was trained with; chance: Brier 0.2500, log loss \
         {CHANCE:.4}; the temperature that would fit, and that of the run's dev pairs\n{calibration}\n\nreliability, in bins of equal mass\n{reliability}\n\nlength, in tokens: \
         accuracies, and what the longer answer alone would reach\n{length}\n\nmarkdown, as length, in 1 + marks (headings, \
         entries of lists, fences, bold)\n{markdown}"
    )
}

fn titled(header: &[&str]) -> Table {
    Table::new(header.to_vec()).right(2..header.len())
}
