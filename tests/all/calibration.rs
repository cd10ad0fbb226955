//! Promise: calibration and length say what their formulas say: numbers from numpy, extremes, and controls that must differ.

use crate::tiny::{Workspace, parse_lines};
use haf_dist::evaluate::calibration::{Calibration, temperature};
use haf_dist::evaluate::length::{LengthReport, Measured};

const MARGINS: [f64; 8] = [2.0, -0.5, 0.3, 1.5, -1.0, 0.0, 3.0, 0.7];
const LENGTHS: [[usize; 2]; 8] = [[10, 5], [20, 25], [30, 10], [5, 10], [8, 8], [12, 6], [50, 20], [9, 18]];

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 1e-9, "{what}: {found} is not {expected}");
}

fn measured(margins: &[f64]) -> Vec<Measured> {
    margins.iter().zip(LENGTHS).map(|(&margin, lengths)| Measured { rewards: [margin + 0.25, 0.25], lengths }).collect()
}

#[test]
fn calibration_is_what_numpy_says() {
    let found = Calibration::of(&MARGINS).unwrap();
    near(found.brier, 0.189104801528299, "Brier");
    near(found.log_loss, 0.5393694732764658, "log loss");
    near(found.ece, 0.030886734975705488, "ECE in one bin");
    assert!((found.temperature.unwrap() - 1.0182034).abs() < 1e-5, "{:?}", found.temperature);
    // Margins that are 8 times too large have 8 times the temperature, and are too sure.
    let sure = MARGINS.map(|margin| 8.0 * margin);
    near(temperature(&sure).unwrap(), 8.0 * found.temperature.unwrap(), "temperature");
    assert!(Calibration::of(&sure).unwrap().ece > found.ece);
}

#[test]
fn a_coin_and_the_extremes_have_what_they_must() {
    let coin = Calibration::of(&[0.0; 40]).unwrap();
    assert_eq!((coin.ece, coin.brier, coin.temperature), (0.0, 0.25, None));
    near(coin.log_loss, 2f64.ln(), "log loss of a coin");
    // One confidence is one bin, however many there might be.
    assert_eq!(coin.bins.len(), 1);
    let right = Calibration::of(&[1e4; 40]).unwrap();
    assert_eq!((right.brier, right.log_loss, right.temperature), (0.0, 0.0, None));
    let wrong = Calibration::of(&[-1e4; 40]).unwrap();
    assert_eq!((wrong.ece, wrong.brier, wrong.log_loss, wrong.temperature), (1.0, 1.0, 1e4, None));
    assert_eq!(Calibration::of(&[]), None);
    assert_eq!(Calibration::of(&[1.0, f64::NAN]), None);
    // Ten bins of like size, least sure first; the order of the pairs does not matter.
    let mut margins: Vec<f64> = (0..205).map(|index| f64::from(index * 37 % 205 - 60) / 50.0 + 0.003).collect();
    let found = Calibration::of(&margins).unwrap();
    assert_eq!(found.bins.len(), 10);
    assert!(found.bins.iter().all(|bin| (20..=21).contains(&bin.pairs)), "{:?}", found.bins);
    assert!(found.bins.is_sorted_by(|one, other| one.confidence < other.confidence));
    margins.reverse();
    assert_eq!(Calibration::of(&margins).unwrap().bins, found.bins);
}

#[test]
fn length_is_what_numpy_says_and_a_reward_that_is_length_has_nothing_left() {
    let found = LengthReport::of(&measured(&MARGINS)).unwrap();
    near(found.length_controlled_accuracy.unwrap(), 0.6656019581872824, "length-controlled accuracy");
    assert_eq!(found.longer_accuracy, 4.5 / 8.0);
    assert_eq!((found.chosen_longer, found.chosen_shorter), (4, 3));
    assert_eq!((found.accuracy_chosen_longer, found.accuracy_chosen_shorter), (Some(3.5 / 4.0), Some(2.0 / 3.0)));
    assert_eq!(LengthReport::of(&[]), None);
    // A reward that is the log of the length: perfectly correlated, as good as the longer answer, and no finite fit.
    let long = LENGTHS.map(|lengths| Measured { rewards: lengths.map(|length| (length as f64).ln()), lengths });
    let found = LengthReport::of(&long).unwrap();
    near(found.correlation.unwrap(), 1.0, "correlation");
    assert_eq!((found.accuracy_chosen_longer, found.accuracy_chosen_shorter), (Some(1.0), Some(0.0)));
    assert_eq!(found.length_controlled_accuracy, None);
    // Equal lengths say nothing of length.
    let equal: Vec<Measured> =
        measured(&MARGINS).into_iter().map(|pair| Measured { lengths: [7, 7], ..pair }).collect();
    let found = LengthReport::of(&equal).unwrap();
    assert_eq!((found.longer_accuracy, found.correlation, found.length_controlled_accuracy), (0.5, None, None));
}

#[test]
fn eval_reports_both_heads_in_total_and_per_domain() {
    let workspace = Workspace::trained(1);
    let eval = |more: &[&str]| {
        let arguments = [&["eval", "--checkpoint", "run/step-6", "--data", "test.jsonl"][..], more].concat();
        workspace.run(1, &arguments).succeeded().stdout
    };
    let lines = parse_lines(&eval(&["--json"]));
    let reports: Vec<_> = lines.iter().filter(|line| line.get("report").is_some()).collect();
    assert_eq!(
        reports.iter().map(|report| report["scored_by"].as_str().unwrap()).collect::<Vec<_>>(),
        ["reward", "implicit", "combined"]
    );
    // The metrics' own losses: Bradley-Terry, and DPO, without smoothing.
    for (report, loss) in reports.iter().zip(["reward_loss", "policy_loss"]) {
        let [found, expected] =
            [&report["calibration"]["log_loss"], &lines[0][loss]].map(|value| value.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-6, "{loss}: {found}, {expected}");
        assert_eq!(report["pairs"], lines[0]["pairs"]);
    }
    let table = eval(&[]);
    assert!(reports.iter().all(|report| report["markdown"]["longer_accuracy"].is_f64()));
    for title in ["log loss", "markdown, as length", "log loss at dev's", "reliability", "length-controlled"] {
        assert!(table.contains(title), "{table}");
    }
}
