//! Promise: what an evaluation says of its own doubts follows from its formulas: the heads' sum and who it was fitted on, ties,
//! abstention, disagreement, mistakes, exchanged sides, markdown; and `eval` says it of the rewards that `score` writes.

use crate::tiny::{Workspace, parse_lines};
use haf_dist::checkpoint::Fitted;
use haf_dist::evaluate::doubt::{Disagreement, Doubts, auroc, worst};
use haf_dist::evaluate::fitting::weights;
use haf_dist::evaluate::heads::{Head, side_by_side};
use haf_dist::evaluate::report::marks;
use haf_dist::evaluate::swap::Swap;
use serde_json::{Value, json};

fn head(name: &'static str, margins: &[f64]) -> Head {
    Head { name, rewards: margins.iter().map(|margin| [margin + 0.25, 0.25]).collect() }
}

#[test]
fn weights_are_where_the_penalised_likelihood_is_flat_and_prefer_the_head_that_knows() {
    let reward: Vec<f64> = (0..40).map(|pair| f64::from(pair * 7 % 40 - 11) / 10.0).collect();
    let implicit: Vec<f64> = (0..40).map(|pair| f64::from(pair * 11 % 40 - 16) / 2.0).collect();
    let found = weights(&reward, &implicit).unwrap();
    let scale = |margins: &[f64]| (margins.iter().map(|m| m * m).sum::<f64>() / 40.0).sqrt();
    let cost = |a: f64, b: f64| {
        let loss = |(r, i): (&f64, &f64)| (1.0 + (-(a * r + b * i)).exp()).ln();
        let penalty = (a * scale(&reward)).powi(2) + (b * scale(&implicit)).powi(2);
        reward.iter().zip(&implicit).map(loss).sum::<f64>() + penalty / 2.0
    };
    let least = cost(found.reward, found.implicit);
    for (a, b) in [(1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-4), (0.0, -1e-4), (1e-3, -1e-4)] {
        assert!(cost(found.reward + a, found.implicit + b) > least, "{found:?}");
    }
    // A head that is always right has a finite weight, and more of it than one that is a coin.
    let right = vec![0.5; 40];
    let coin: Vec<f64> = (0..40).map(|pair| if pair % 2 == 0 { 0.5 } else { -0.5 }).collect();
    let found = weights(&right, &coin).unwrap();
    assert!(found.reward.is_finite() && found.reward > 5.0 * found.implicit.abs(), "{found:?}");
    assert_eq!(weights(&[0.0; 4], &[1.0; 4]), None, "a head without margins has nothing to add");
}

#[test]
fn the_sum_is_not_judged_on_the_prompts_it_was_fitted_on() {
    let prompts: Vec<u64> = (0..20).map(|prompt| 0x1234_5678_0000_0000 + prompt).collect();
    let fitted = Fitted::on(&prompts[..8]);
    let json: Fitted = serde_json::from_str(&serde_json::to_string(&fitted).unwrap()).unwrap();
    assert_eq!(json, fitted);
    let heads = [head("reward", &[1.0; 20]), head("combined", &[-1.0; 20])];
    let rows = side_by_side("eval", &heads, &prompts, &json.prompts());
    assert!(rows.iter().all(|row| (row.pairs, row.left_out) == (12, 8)), "{rows:?}");
    assert_eq!([rows[0].accuracy, rows[1].accuracy], [1.0, 0.0]);
    assert!(side_by_side("eval", &heads, &prompts, &Fitted::on(&prompts).prompts()).is_empty());
}

#[test]
fn auroc_counts_pairs_of_right_and_wrong_and_ties_by_half() {
    let truth = |text: &str| -> Vec<Option<bool>> {
        text.chars().map(|letter| (letter != '-').then_some(letter == 't')).collect()
    };
    assert_eq!(auroc(&[1.0, 2.0, 3.0, 4.0], &truth("fftt")), Some(1.0));
    assert_eq!(auroc(&[4.0, 3.0, 2.0, 1.0], &truth("fftt")), Some(0.0));
    assert_eq!(auroc(&[1.0, 1.0, 1.0], &truth("ftf")), Some(0.5));
    // Of 2 x 2 comparisons three are won and one is tied; what is neither true nor false does not count.
    assert_eq!(auroc(&[1.0, 2.0, 9.0, 2.0, 3.0], &truth("ff-tt")), Some(3.5 / 4.0));
    assert_eq!([auroc(&[1.0], &truth("t")), auroc(&[], &[])], [None, None]);
}

#[test]
fn doubts_are_ties_unsure_pairs_disagreements_and_the_worst_mistakes() {
    let margins = [5.0, -0.1, 0.0, 4.0, -3.0, 2.0, 1.0, 0.5, -0.2, 0.3];
    let found = Doubts::of("eval", &head("reward", &margins));
    assert_eq!((found.pairs, found.ties), (10, 1));
    assert_eq!(found.answered[0].accuracy, 0.65, "all: six right, a tie");
    let half = found.answered.iter().find(|answered| answered.share == 0.5).unwrap();
    assert_eq!((half.pairs, half.accuracy), (5, 0.8), "the surest five");
    // Errors have 0.1, 0.2 and 3: of 3 x 6 comparisons with right ones 6 + 6 + 2 are less sure.
    assert!((found.auroc.unwrap() - 14.0 / 18.0).abs() < 1e-12);
    assert_eq!(worst(&head("reward", &margins), 2), [4, 8]);
    let implicit = head("implicit", &[1.0, 1.0, 1.0, -1.0, 2.0, 1.0, 1.0, 1.0, -1.0, 1.0]);
    let found = Disagreement::of("eval", &[head("reward", &margins), implicit]).unwrap();
    // Pairs 2, 4 and 5; of them the reward head has pair 4.
    assert_eq!((found.pairs, found.of, found.reward_right), (3, 10, Some(1.0 / 3.0)));
    assert_eq!(found.accuracy_where_agreed, Some(5.0 / 6.0));
    assert_eq!(Disagreement::of("eval", &[head("reward", &margins)]), None);
}

#[test]
fn exchanged_sides_turn_accuracy_round_and_measure_rounding() {
    let (one, turned) = ([1.0, -2.0, 0.001, 0.0, 3.0], [-1.0, 2.0, 0.001, 0.0, -3.0]);
    let found = Swap::of("eval", &head("reward", &one), &head("reward", &turned), 1e-2);
    assert_eq!((found.accuracy, found.exchanged, found.ties), (0.7, 0.5, 1));
    assert!((found.rounding - 0.002).abs() < 1e-9 && found.passed);
    assert_eq!((&found.under[..], found.under_rounding, found.accuracy_above), (&[3, 4][..], 2, Some(2.0 / 3.0)));
    // The control: a model that likes what stands first.
    let biased = Swap::of("eval", &head("reward", &[1.0, 1.0]), &head("reward", &[0.5, 1.0]), 1e-2);
    assert!(!biased.passed && biased.under_rounding == 2);
}

#[test]
fn markdown_marks_are_counted() {
    for (text, count) in [
        ("plain - text * with # signs 1. 2", 0),
        ("# Title\n\n- one\n* two\n  + three\n10. four\n**bold** and **more**", 7),
        ("```\ncode\n```", 2),
        ("#hashtag\n1.5 litres\n**open", 0),
    ] {
        assert_eq!(marks(text), count, "{text:?}");
    }
}

#[test]
fn eval_says_it_of_the_rewards_that_score_writes_and_the_sum_is_in_the_checkpoint() {
    let workspace = Workspace::trained(1);
    let kept: Value = serde_json::from_slice(&workspace.read("run/step-6/haf_dist.json")).unwrap();
    let combined = &kept["fitted"]["combined"];
    let (a, b) = (combined["reward"].as_f64().unwrap(), combined["implicit"].as_f64().unwrap());
    assert_eq!(kept["fitted"]["pairs"], 5);
    let score = ["score", "--checkpoint", "run/step-6", "--data", "test.jsonl", "--combined"];
    let scored = parse_lines(&workspace.run(1, &score).succeeded().stdout);
    for row in &scored {
        let of = |key: &str| row[key].as_f64().unwrap();
        let sum = a * of("reward_chosen") + b * of("implicit_chosen");
        assert!((of("combined_chosen") - sum).abs() < 1e-9, "{row}");
    }
    let eval = ["eval", "--checkpoint", "run/step-6", "--data", "test.jsonl", "--check-swap", "--json"];
    for ranks in [1, 2] {
        let lines = parse_lines(&workspace.run(ranks, &eval).succeeded().stdout);
        let with = |key: &str| -> Vec<&Value> { lines.iter().filter(|line| line.get(key).is_some()).collect() };
        let (heads, swaps, mistakes) = (with("heads"), with("swap"), with("mistake"));
        let names: Vec<&str> = heads.iter().map(|line| line["scored_by"].as_str().unwrap()).collect();
        assert_eq!(names, ["reward", "implicit", "combined"]);
        // The first four test pairs have prompts of the dev pairs: What is xxx?, and xxxx.
        let judged = &scored[4..];
        let hit = |row: &&Value| row["combined_chosen"].as_f64().unwrap() > row["combined_rejected"].as_f64().unwrap();
        let accuracy = judged.iter().filter(hit).count() as f64 / judged.len() as f64;
        assert!(heads.iter().all(|row| (&row["pairs"], &row["left_out"]) == (&json!(3), &json!(4))), "{heads:?}");
        assert!((heads[2]["accuracy"].as_f64().unwrap() - accuracy).abs() < 1e-9, "{heads:?} {scored:?}");
        for swap in swaps {
            assert_eq!(swap["passed"], true, "{swap}");
            let sum = swap["accuracy"].as_f64().unwrap() + swap["exchanged"].as_f64().unwrap();
            let under = swap["under_rounding"].as_f64().unwrap() / swap["pairs"].as_f64().unwrap();
            assert!((sum - 1.0).abs() <= under + 1e-9, "{swap}");
        }
        for mistake in mistakes {
            assert!(mistake["margin"].as_f64().unwrap() < 0.0);
            assert!(mistake["prompt"].as_str().unwrap().contains("What is"), "{mistake}");
            assert!(mistake["rejected"].as_str().unwrap().contains('.'), "{mistake}");
        }
        assert!(with("eval").iter().all(|line| line["longer_accuracy"].is_f64()));
        assert_eq!(with("disagreement").len(), 1);
    }
    // On the dev pairs themselves there is nothing to judge the sum on.
    let dev = ["eval", "--checkpoint", "run/step-6", "--data", "dev.jsonl"];
    let text = workspace.run(1, &dev).succeeded().stdout;
    assert!(text.contains("no other pair is left") && text.contains("the heads disagree on"), "{text}");
    // A checkpoint without dev pairs has no sum.
    workspace.train(1, &["data.dev=[]", "output.dir='alone'"]).succeeded();
    let alone = ["score", "--checkpoint", "alone/step-6", "--data", "test.jsonl", "--combined"];
    let refused = workspace.run(1, &alone);
    assert!(refused.code == 2 && refused.stderr.contains("no weights for the sum of its heads"), "{}", refused.stderr);
}
