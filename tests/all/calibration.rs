//! Promise: calibration and length are what their formulas give: numbers from numpy, extremes, and controls that must differ.

use crate::tiny::{Workspace, parse_lines};
use haf_dist::evaluate::calibration::{Calibration, temperature};
use haf_dist::evaluate::length::{LengthReport, Measured};
use haf_dist::evaluate::report::{Rewarded, reports};
use serde_json::{Value, json};

const MARGINS: [f64; 8] = [2.0, -0.5, 0.3, 1.5, -1.0, 0.0, 3.0, 0.7];
const LENGTHS: [[usize; 2]; 8] = [[10, 5], [20, 25], [30, 10], [5, 10], [8, 8], [12, 6], [50, 20], [9, 18]];

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 1e-9, "{what}: {found} is not {expected}");
}

fn measured(margins: &[f64]) -> Vec<Measured> {
    margins.iter().zip(LENGTHS).map(|(&margin, lengths)| Measured { rewards: [margin + 0.25, 0.25], lengths }).collect()
}

#[test]
fn calibration_equals_numpys() {
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
fn length_equals_numpys_and_a_reward_that_is_length_has_nothing_left() {
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

/// Promise: a feature of markdown is told from the others.
#[test]
fn a_reward_that_is_bold_follows_bold_and_no_other_feature() {
    let pair = |place: usize| {
        let bold = place % 3;
        let marks = [[0, place % 2, 0, bold], [0, 1, 0, 1]];
        Rewarded { domain: "all".into(), measured: Measured { rewards: [bold as f64, 1.0], lengths: [5, 5] }, marks }
    };
    let pairs: Vec<Rewarded> = (0..12).map(pair).collect();
    let report = reports("eval", "reward", &["all".into()], &pairs, None).swap_remove(0);
    let of = |feature: &str| &report.markdown.iter().find(|row| row.feature == feature).unwrap().found;
    assert_eq!((of("bold").accuracy_chosen_longer, of("bold").accuracy_chosen_shorter), (Some(1.0), Some(0.0)));
    assert!(of("bold").correlation.unwrap() > 0.9 && of("entries").correlation.unwrap() < 0.5, "{report:?}");
    assert_eq!((of("fences").longer_accuracy, of("fences").correlation), (0.5, None));
    // All features together: of 12 answers 2 have more marks than the other one's two, and 6 fewer.
    assert_eq!((of("all").chosen_longer, of("all").chosen_shorter), (2, 6));
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
    for report in &reports {
        let features: Vec<&Value> = report["markdown"].as_array().unwrap().iter().map(|row| &row["feature"]).collect();
        assert_eq!(features, ["all", "headings", "entries", "fences", "bold"]);
        assert!(report["markdown"][0]["longer_accuracy"].is_f64(), "{report}");
    }
    for title in ["log loss", "Markdown: does", "divided by", "Reliability: ", "length-controlled"] {
        assert!(table.contains(title), "{table}");
    }
}

/// Promise: each file is reported by itself, and at the temperature of the dev pairs, each head at its own.
#[test]
fn every_file_is_reported_and_at_each_heads_own_dev_temperature() {
    let workspace = Workspace::trained(1);
    let score = |file: &str, head: &str| -> Vec<f64> {
        let score = ["score", "--checkpoint", "run/step-6", "--allow-changed", "--combined", "--data", file];
        let lines = parse_lines(&workspace.run(1, &score).succeeded().stdout);
        let of = |line: &Value, side: &str| line[format!("{head}_{side}")].as_f64().unwrap();
        lines.iter().map(|line| of(line, "chosen") - of(line, "rejected")).collect()
    };
    // The tiny run's heads may be right on all dev pairs, or worse than a coin: then no temperature fits. These are of no fit.
    let path = "run/step-6/haf_dist.json";
    let mut kept: Value = serde_json::from_slice(&workspace.read(path)).unwrap();
    let temperatures = [("reward", 0.0625), ("implicit", 0.25)];
    for (head, temperature) in temperatures {
        kept["fitted"][format!("{head}_temperature")] = json!(temperature);
    }
    workspace.write(path, &kept.to_string());
    let eval =
        ["eval", "--checkpoint", "run/step-6", "--allow-changed", "--data", "test.jsonl", "--data", "other.jsonl"];
    for ranks in [1, 2] {
        let lines = parse_lines(&workspace.run(ranks, &[&eval[..], &["--json"]].concat()).succeeded().stdout);
        let reports: Vec<&Value> = lines.iter().filter(|line| line.get("report").is_some()).collect();
        assert_eq!(reports.len(), 9, "three heads, in total and of two files: {reports:?}");
        for (head, temperature) in temperatures {
            let files = ["test.jsonl", "other.jsonl"].map(|file| score(file, head));
            for (domain, margins) in [("all", files.concat()), ("test", files[0].clone()), ("other", files[1].clone())]
            {
                let is_it = |line: &&&Value| line["scored_by"] == head && line["domain"] == domain;
                let report = reports.iter().find(is_it).unwrap();
                assert_eq!(
                    (&report["pairs"], &report["dev_temperature"]),
                    (&json!(margins.len()), &json!(temperature))
                );
                for (key, divisor) in [("calibration", 1.0), ("at_dev_temperature", temperature)] {
                    let scaled: Vec<f64> = margins.iter().map(|margin| margin / divisor).collect();
                    let expected = Calibration::of(&scaled).unwrap();
                    for (name, expected) in
                        [("ece", expected.ece), ("brier", expected.brier), ("log_loss", expected.log_loss)]
                    {
                        let found = report[key][name].as_f64().unwrap();
                        let wrong = format!("{head}, {domain}: {key} {name}: {found}, {expected}");
                        assert!((found - expected).abs() < 1e-4 * (1.0 + expected), "{wrong}");
                    }
                }
                let [as_is, scaled] = ["calibration", "at_dev_temperature"].map(|key| report[key]["log_loss"].as_f64());
                assert!((as_is.unwrap() - scaled.unwrap()).abs() > 1e-3, "the control: {report}");
            }
        }
        let of_sum = reports.iter().filter(|line| line["scored_by"] == "combined");
        assert!(of_sum.clone().count() == 3 && of_sum.clone().all(|line| line["at_dev_temperature"].is_null()));
    }
    let table = workspace.run(1, &eval).succeeded().stdout;
    assert!(table.contains("0.0625, dev's") && table.contains("0.2500, dev's"), "{table}");
}
