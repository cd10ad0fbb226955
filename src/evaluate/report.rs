//! What an evaluation says beside accuracy: how well margins are calibrated and how far they follow length, of the reward head
//! and of the implicit reward, in total and per domain.
//!
//! Not here: the formulas (`calibration.rs`, `length.rs`).

use super::calibration::{CHANCE, Calibration};
use super::length::{LengthReport, Measured};
use crate::metrics::{TOTAL, number};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// A pair's rewards of one head, and its answers' lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewarded {
    /// The pair's domain.
    pub domain: String,
    /// Rewards and lengths, in tokens.
    pub measured: Measured,
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
}

/// The reports of one head: of all pairs, then of each of `domains` where there are several.
pub fn reports(split: &str, scored_by: &'static str, domains: &[String], pairs: &[Rewarded]) -> Vec<Report> {
    let report = |domain: &str| {
        let of_domain = pairs.iter().filter(|pair| domain == TOTAL || pair.domain == domain);
        let measured: Vec<Measured> = of_domain.map(|pair| pair.measured).collect();
        let margins: Vec<f64> = measured.iter().map(|pair| pair.rewards[0] - pair.rewards[1]).collect();
        Report {
            report: split.to_owned(),
            domain: domain.to_owned(),
            scored_by,
            pairs: measured.len(),
            calibration: Calibration::of(&margins),
            length: LengthReport::of(&measured),
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

/// Plain tables: calibration, the reliability of all pairs, length.
pub fn tables(reports: &[Report]) -> String {
    let mut calibration = titled(&["domain", "by", "pairs", "ECE", "Brier", "log loss", "temperature"]);
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
    for report in reports {
        let names = [report.domain.clone(), report.scored_by.to_owned()];
        if let Some(found) = &report.calibration {
            let numbers = [found.ece, found.brier, found.log_loss].map(|value| number(Some(value)));
            let row = names.iter().cloned().chain([report.pairs.to_string()]).chain(numbers);
            calibration.add_row(row.chain([number(found.temperature)]));
            for bin in found.bins.iter().filter(|_| report.domain == TOTAL) {
                let numbers = [number(Some(bin.confidence)), number(Some(bin.accuracy))];
                reliability.add_row(names.iter().cloned().chain([bin.pairs.to_string()]).chain(numbers));
            }
        }
        if let Some(found) = &report.length {
            let of = |accuracy: Option<f64>, pairs: usize| format!("{} of {pairs}", number(accuracy));
            length.add_row(names.iter().cloned().chain([
                number(Some(found.longer_accuracy)),
                number(found.correlation),
                of(found.accuracy_chosen_longer, found.chosen_longer),
                of(found.accuracy_chosen_shorter, found.chosen_shorter),
                number(found.length_controlled_accuracy),
            ]));
        }
    }
    for table in [&mut calibration, &mut reliability, &mut length] {
        for index in 2..table.column_count() {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    format!(
        "calibration of sigmoid(margin); chance: Brier 0.2500, log loss {CHANCE:.4}\n{calibration}\n\nreliability, in bins \
         of equal mass\n{reliability}\n\nlength, in tokens: accuracies, and what the longer answer alone would \
         reach\n{length}"
    )
}

fn titled(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).force_no_tty();
    table.set_header(header.to_vec());
    table
}
