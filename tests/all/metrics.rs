//! Promises of the metric sinks and of the confidence intervals.

use haf_dist::metrics::{EvaluationMetrics, Jsonl, Sink, StepMetrics, TOTAL, evaluation_table};
use haf_dist::statistics::{Interval, clustered_bootstrap, wilson};
use std::fs;
use std::path::Path;

const RESAMPLES: usize = 4000;

fn step(step: usize) -> StepMetrics {
    StepMetrics {
        step,
        loss: 0.831777,
        reward_loss: Some(0.7),
        policy_loss: None,
        accuracy: Some(0.5),
        margin: Some(f64::NAN),
        router: None,
        grad_norm: f64::INFINITY,
        lr: 1e-5,
        pairs_per_s: 2.0,
        tokens_per_s: 512.0,
        seconds: 8.0,
    }
}

fn evaluation(step: usize, domain: &str) -> EvaluationMetrics {
    EvaluationMetrics {
        eval: "dev".into(),
        step,
        domain: domain.into(),
        pairs: 500,
        accuracy: Some(0.75),
        accuracy_low: Some(0.71),
        accuracy_high: Some(0.79),
        policy_accuracy: None,
        policy_accuracy_low: None,
        policy_accuracy_high: None,
        margin: Some(0.25),
        reward_loss: Some(0.5),
        policy_loss: None,
        longer_accuracy: 0.55,
        over_length: None,
        rewards: None,
        fitted: None,
    }
}

/// The files of a run's folder, by name.
fn files(run: &Path) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let paths = fs::read_dir(run).unwrap().map(|item| item.unwrap().path());
    let mut found: Vec<_> = paths.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect();
    found.sort();
    found
}

#[test]
fn metric_names_are_an_interface_and_values_that_are_not_finite_are_null() {
    let run = tempfile::tempdir().unwrap();
    let mut sink = Jsonl::create(run.path()).unwrap();
    sink.step(&step(1)).unwrap();
    sink.evaluation(&evaluation(1, TOTAL)).unwrap();
    // Read while the sink is open: nothing waits in a buffer.
    let text = fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
    insta::assert_snapshot!(text, @r#"
    {"step":1,"loss":0.831777,"reward_loss":0.7,"policy_loss":null,"accuracy":0.5,"margin":null,"grad_norm":null,"lr":0.00001,"pairs_per_s":2.0,"tokens_per_s":512.0,"seconds":8.0}
    {"eval":"dev","step":1,"domain":"all","pairs":500,"accuracy":0.75,"accuracy_low":0.71,"accuracy_high":0.79,"policy_accuracy":null,"policy_accuracy_low":null,"policy_accuracy_high":null,"margin":0.25,"reward_loss":0.5,"policy_loss":null,"longer_accuracy":0.55}
    "#);
}

#[test]
fn a_new_run_never_overwrites_the_metrics_of_another() {
    let run = tempfile::tempdir().unwrap();
    Jsonl::create(run.path()).unwrap().step(&step(1)).unwrap();
    let error = Jsonl::create(run.path()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.hint.unwrap().contains("--resume"));
    assert_eq!(fs::read_to_string(run.path().join("metrics.jsonl")).unwrap().lines().count(), 1);
}

#[test]
fn a_resumed_run_moves_later_lines_aside_and_loses_none() {
    let run = tempfile::tempdir().unwrap();
    let mut sink = Jsonl::create(run.path()).unwrap();
    for number in 1..=4 {
        sink.step(&step(number)).unwrap();
    }
    sink.evaluation(&evaluation(4, TOTAL)).unwrap();
    drop(sink);
    let path = run.path().join("metrics.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    // The kill came in the middle of a line.
    fs::write(&path, format!("{whole}{{\"step\":5,\"lo")).unwrap();

    Jsonl::resume(run.path(), 2, None).unwrap().step(&step(3)).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let after = format!("{}\n{{\"step\":5,\"lo\n", lines[2..].join("\n"));
    let kept = format!("{}\n", lines[..3].join("\n"));
    let found = files(run.path());
    assert_eq!(found, [("metrics-after-step-2.jsonl".into(), after), ("metrics.jsonl".into(), kept.clone())]);

    // A second time from the same step: the first copy stays.
    Jsonl::resume(run.path(), 2, None).unwrap();
    let names: Vec<String> = files(run.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["metrics-after-step-2-2.jsonl", "metrics-after-step-2.jsonl", "metrics.jsonl"]);

    // Nothing beyond the step: nothing moves.
    Jsonl::resume(run.path(), 2, None).unwrap();
    assert_eq!(files(run.path()).len(), 3);
    assert_eq!(files(run.path())[2].1.lines().count(), 2);
}

#[test]
fn a_whole_last_line_without_its_newline_stays_and_the_next_starts_a_line() {
    let run = tempfile::tempdir().unwrap();
    Jsonl::create(run.path()).unwrap().step(&step(1)).unwrap();
    let path = run.path().join("metrics.jsonl");
    fs::write(&path, fs::read_to_string(&path).unwrap().trim_end()).unwrap();
    Jsonl::resume(run.path(), 1, None).unwrap().step(&step(2)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_a_checkpoint_counts_on_is_the_same_for_a_run_that_was_resumed() {
    let run = tempfile::tempdir().unwrap();
    let slower = |number| StepMetrics { seconds: 99.0, pairs_per_s: 0.1, tokens_per_s: 3.0, ..step(number) };
    let mut whole = Jsonl::create(run.path()).unwrap();
    whole.step(&step(1)).unwrap();
    let first = whole.settle().unwrap().unwrap();
    whole.step(&step(2)).unwrap();
    let second = whole.settle().unwrap().unwrap();
    assert_eq!((first.lines, second.lines), (1, 2));

    let mut resumed = Jsonl::resume(run.path(), 1, Some(&first)).unwrap();
    resumed.step(&slower(2)).unwrap();
    assert_eq!(resumed.settle().unwrap(), Some(second.clone()), "the clock does not count");
    // Even where lines were lost: a later checkpoint is that of the run that lost none.
    fs::write(run.path().join("metrics.jsonl"), "").unwrap();
    let mut robbed = Jsonl::resume(run.path(), 1, Some(&first)).unwrap();
    robbed.step(&slower(2)).unwrap();
    assert_eq!(robbed.settle().unwrap(), Some(second.clone()));
    // The control: another number is another digest.
    let mut other = Jsonl::resume(run.path(), 1, Some(&first)).unwrap();
    other.step(&StepMetrics { loss: 0.5, ..step(2) }).unwrap();
    assert_ne!(other.settle().unwrap(), Some(second));
}

#[test]
fn a_file_that_is_removed_or_replaced_under_a_run_is_put_back_with_every_line() {
    let run = tempfile::tempdir().unwrap();
    let path = run.path().join("metrics.jsonl");
    let mut sink = Jsonl::create(run.path()).unwrap();
    sink.step(&step(1)).unwrap();
    fs::remove_file(&path).unwrap();
    sink.step(&step(2)).unwrap();
    let mark = sink.settle().unwrap().unwrap();
    assert_eq!((mark.lines, fs::read_to_string(&path).unwrap().lines().count()), (2, 2));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "somebody's").unwrap();
    sink.step(&step(3)).unwrap();
    sink.settle().unwrap();
    sink.step(&step(4)).unwrap();
    let names: Vec<String> = files(run.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["metrics-replaced.jsonl", "metrics.jsonl"]);
    assert_eq!(fs::read_to_string(run.path().join("metrics-replaced.jsonl")).unwrap(), "somebody's");
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
}

#[test]
fn every_sink_of_a_list_gets_every_number() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |run: &Path| -> Box<dyn Sink> { Box::new(Jsonl::create(run).unwrap()) };
    let mut sinks = vec![open(first.path()), open(second.path())];
    sinks.step(&step(1)).unwrap();
    sinks.evaluation(&evaluation(1, "safety")).unwrap();
    assert_eq!(files(first.path()), files(second.path()));
    assert_eq!(files(first.path())[0].1.lines().count(), 2);
}

#[test]
fn the_closing_table_reads_without_color() {
    let mut total = evaluation(100, TOTAL);
    total.policy_accuracy = Some(0.5);
    (total.policy_accuracy_low, total.policy_accuracy_high) = (Some(0.4562), Some(0.5438));
    insta::assert_snapshot!(evaluation_table(&[evaluation(100, "safety"), total]), @r"
    | split | step | domain | pairs |          accuracy (95%) |   policy accuracy (95%) | longer answer | margin | reward loss | policy loss |
    |-------|------|--------|-------|-------------------------|-------------------------|---------------|--------|-------------|-------------|
    | dev   |  100 | safety |   500 | 0.7500 (0.710 to 0.790) |                       - |        0.5500 | 0.2500 |      0.5000 |           - |
    | dev   |  100 | all    |   500 | 0.7500 (0.710 to 0.790) | 0.5000 (0.456 to 0.544) |        0.5500 | 0.2500 |      0.5000 |           - |
    ");
}

/// A pseudo-random value in 0..1 that does not depend on any library.
fn noise(index: u64) -> f64 {
    let mut x = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn bernoulli(count: u64, share: f64) -> Vec<f64> {
    (0..count).map(|index| f64::from(noise(index) < share)).collect()
}

#[test]
fn the_bootstrap_of_independent_values_is_the_normal_approximation() {
    let values = bernoulli(1000, 0.7);
    let clusters: Vec<u64> = (0..1000).collect();
    let found = clustered_bootstrap(&values, &clusters, RESAMPLES, 0).unwrap();
    let mean = values.iter().sum::<f64>() / 1000.0;
    let half = 1.96 * (mean * (1.0 - mean) / 1000.0).sqrt();
    assert!((found.low - (mean - half)).abs() < 0.004, "{found:?} against {mean} -+ {half}");
    assert!((found.high - (mean + half)).abs() < 0.004, "{found:?} against {mean} -+ {half}");
}

#[test]
fn copies_within_a_cluster_add_no_certainty() {
    let once = bernoulli(250, 0.7);
    let four_times: Vec<f64> = once.iter().flat_map(|&value| [value; 4]).collect();
    let width = |values: &[f64], clusters: &[u64]| {
        let found = clustered_bootstrap(values, clusters, RESAMPLES, 0).unwrap();
        found.high - found.low
    };
    let single = width(&once, &(0..250).collect::<Vec<_>>());
    let clustered = width(&four_times, &(0..1000).map(|index| index / 4).collect::<Vec<_>>());
    assert_eq!(clustered, single);
    // The failing control: copies taken for independent pairs halve the interval.
    let naive = width(&four_times, &(0..1000).collect::<Vec<_>>());
    assert!((naive / single - 0.5).abs() < 0.05, "{naive} against {single}");
}

#[test]
fn the_interval_depends_on_the_seed_but_not_on_the_order_of_the_values() {
    let values = bernoulli(300, 0.6);
    let clusters: Vec<u64> = (0..300).map(|index| index / 3).collect();
    let found = clustered_bootstrap(&values, &clusters, 500, 7);
    let reversed = |list: &[f64]| list.iter().rev().copied().collect::<Vec<_>>();
    let backwards: Vec<u64> = clusters.iter().rev().copied().collect();
    assert_eq!(clustered_bootstrap(&reversed(&values), &backwards, 500, 7), found);
    assert_ne!(clustered_bootstrap(&values, &clusters, 500, 8), found);
}

#[test]
fn values_that_are_all_the_same_do_not_claim_certainty() {
    // 40 pairs of 20 prompts, all right: Wilson's interval of 20 out of 20 (Newcombe 1998 gives 0.8389 to 1).
    let clusters: Vec<u64> = (0..40).map(|index| index / 2).collect();
    let found = clustered_bootstrap(&[1.0; 40], &clusters, 500, 0).unwrap();
    assert!((found.low - 0.8389).abs() < 1e-4 && found.high == 1.0, "{found:?}");
    // All ties, as before the first update.
    let ties = clustered_bootstrap(&[0.5; 40], &clusters, 500, 0).unwrap();
    assert_eq!(ties, wilson(0.5, 20));
    assert!(ties.low < 0.5 && ties.high > 0.5);
    // Not a proportion: there is nothing to say but the value.
    assert_eq!(clustered_bootstrap(&[3.0; 40], &clusters, 500, 0), Some(Interval { low: 3.0, high: 3.0 }));
}

#[test]
fn wilson_gives_the_published_values() {
    // Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    for (right, n, low, high) in
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
    {
        let found = wilson(f64::from(right) / n as f64, n);
        assert!((found.low - low).abs() < 1e-4 && (found.high - high).abs() < 1e-4, "{right} of {n}: {found:?}");
    }
    assert_eq!(wilson(0.5, 0), Interval { low: 0.0, high: 1.0 });
}

#[test]
fn too_few_clusters_or_values_that_are_not_finite_have_no_interval() {
    assert_eq!(clustered_bootstrap(&[], &[], 500, 0), None);
    assert_eq!(clustered_bootstrap(&[1.0], &[3], 500, 0), None);
    assert_eq!(clustered_bootstrap(&[1.0, 0.0], &[3, 3], 500, 0), None);
    assert_eq!(clustered_bootstrap(&[1.0, f64::NAN], &[3, 4], 500, 0), None);
    assert!(clustered_bootstrap(&[1.0, 0.0], &[3, 4], 500, 0).is_some());
}
