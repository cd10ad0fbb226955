//! Promise: an evaluation's figures of its own reliability follow from their formulas: the heads' sum and the prompts it was fitted
//! on, ties, abstention, disagreement, mistakes, exchanged sides, markdown; and `eval` reports them for the rewards that `score`
//! writes.

use crate::tiny::{Workspace, parse_lines, rows};
use haf_dist::checkpoint::{Fitted, Weights};
use haf_dist::evaluate::doubt::{Disagreement, Doubts, Shown, auroc, disagreed, mistakes};
use haf_dist::evaluate::fitting::weights;
use haf_dist::evaluate::heads::{Head, side_by_side};
use haf_dist::evaluate::report::marks;
use haf_dist::evaluate::swap::{Swap, bounds, judge};
use serde_json::{Value, json};
use tch::Kind;

fn head(name: &'static str, margins: &[f64]) -> Head {
    Head { name, rewards: margins.iter().map(|margin| [margin + 0.25, 0.25]).collect() }
}

#[test]
fn weights_are_where_the_penalized_likelihood_is_flat_and_prefer_the_head_that_knows() {
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
    let rows = side_by_side("eval", &heads, &prompts, Some(&json.prompts()));
    assert!(rows.iter().all(|row| (row.pairs, row.left_out) == (12, Some(8))), "{rows:?}");
    assert_eq!([rows[0].accuracy, rows[1].accuracy], [1.0, 0.0]);
    assert!(side_by_side("eval", &heads, &prompts, Some(&Fitted::on(&prompts).prompts())).is_empty());
    // Where it is not known which those are, none is claimed to be left out.
    let rows = side_by_side("eval", &heads, &prompts, None);
    assert!(rows.iter().all(|row| (row.pairs, row.left_out) == (20, None)), "{rows:?}");
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
    let shown = |pair: usize| Shown {
        pair,
        domain: "all".into(),
        prompt: format!("prompt {pair}"),
        chosen: String::new(),
        rejected: String::new(),
    };
    let worst = mistakes(&head("reward", &margins), 2, shown);
    assert_eq!(worst.iter().map(|row| (row.mistake, row.shown.pair)).collect::<Vec<_>>(), [(1, 4), (2, 8)]);
    assert_eq!(worst[0].margin, -3.0);
    assert_eq!(mistakes(&head("reward", &margins), 9, shown).len(), 3, "there are three");
    let implicit = head("implicit", &[1.0, 1.0, 1.0, -1.0, 2.0, 1.0, 1.0, 1.0, -1.0, 1.0]);
    let heads = [head("reward", &margins), implicit];
    let found = Disagreement::of("eval", &heads).unwrap();
    // Pairs 2, 4 and 5; of them the reward head has pair 4.
    assert_eq!((found.pairs, found.of, found.reward_right), (3, 10, Some(1.0 / 3.0)));
    assert_eq!(found.accuracy_where_agreed, Some(5.0 / 6.0));
    assert_eq!(Disagreement::of("eval", &[head("reward", &margins)]), None);
    // -3 x 2 is the strongest, then 4 x -1; the scale of a head does not matter.
    let rows = disagreed(&heads, 2, shown);
    let found: Vec<_> =
        rows.iter().map(|row| (row.disagreed, row.shown.pair, row.margin, row.implicit_margin)).collect();
    assert_eq!(found, [(1, 4, -3.0, 2.0), (2, 3, 4.0, -1.0)]);
    assert_eq!((disagreed(&heads, 9, shown).len(), disagreed(&heads[..1], 9, shown).len()), (3, 0));
}

#[test]
fn exchanged_sides_turn_accuracy_round_and_measure_rounding() {
    let (one, turned) = ([1.0, -2.0, 0.001, 0.0, 3.0], [-1.0, 2.0, 0.001, 0.0, -3.0]);
    let of = |one: &[f64], turned: &[f64]| {
        // Exchanged, the rejected answer stands first and has the lower reward: 0.25, as in `head`.
        let turned = turned.iter().map(|margin| [0.25, 0.25 - margin]).collect();
        Swap::of("eval", &head("reward", one), &Head { name: "reward", rewards: turned }, 1e-2)
    };
    let found = of(&one, &turned);
    assert_eq!((found.accuracy, found.exchanged, found.ties), (0.7, 0.5, 1));
    assert!((found.rounding - 0.002).abs() < 1e-9 && found.passed);
    assert_eq!((&found.under[..], found.under_rounding, found.accuracy_above), (&[3, 4][..], 2, Some(2.0 / 3.0)));
    assert_eq!((found.always_first, found.always_second), (1, 0));
    judge(std::slice::from_ref(&found)).unwrap();
    // The controls: a model that likes what stands first, by more than the bound, and one that gives both answers more there.
    let biased = of(&[1.0, 1.0], &[0.5, 1.0]);
    assert!(!biased.passed && biased.under_rounding == 2);
    let error = judge(&[found, biased]).unwrap_err();
    assert!(error.exit_code() == 1 && error.message.contains("which answer comes first"), "{error}");
    let shifted = Head { name: "reward", rewards: vec![[1.25, 2.25]] };
    assert!(!Swap::of("eval", &head("reward", &[1.0]), &shifted, 1e-2).passed);
    // By less than the bound, but always by the order. Rounding falls on either side.
    let order: Vec<f64> = (0..40).map(|_| 0.001).collect();
    let either: Vec<f64> = (0..40).map(|pair| if pair % 2 == 0 { 0.001 } else { -0.001 }).collect();
    assert!(!of(&order, &order).passed && of(&either, &either).passed);
    // All of them are named, not the first twenty alone.
    assert_eq!(of(&either, &either).under.len(), 40);
    // What rounding explains grows with what is rounded, and is less in f32.
    let heads = [head("reward", &[-0.05, 0.02]), head("implicit", &[9.75]), head("combined", &[7.0])];
    let weights = Some(Weights { reward: -2.0, implicit: 0.5 });
    for (kind, of_reward, of_policy) in [(Kind::Float, 2.7e-5, 1e-4), (Kind::BFloat16, 0.0405, 0.1)] {
        let expected = [of_reward, of_policy, 2.0 * of_reward + 0.5 * of_policy];
        let found = bounds(kind, &heads, weights);
        assert!(found.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-9), "{found:?} {expected:?}");
    }
}

#[test]
fn markdown_marks_are_counted() {
    for (text, count) in [
        ("plain - text * with # signs 1. 2", [0; 4]),
        ("# Title\n\n- one\n* two\n  + three\n10. four\n**bold** and **more**", [1, 4, 0, 2]),
        ("```\ncode\n```", [0, 0, 2, 0]),
        ("#hashtag\n1.5 liters\n**open", [0; 4]),
    ] {
        assert_eq!(marks(text), count, "{text:?}");
    }
}

#[test]
fn eval_reports_it_for_the_rewards_that_score_writes_and_the_sum_is_in_the_checkpoint() {
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
    let eval = ["eval", "--checkpoint", "run/step-6", "--data", "test.jsonl", "--check-swap", "--worst", "2", "--json"];
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
        assert_eq!(swaps.len(), 3, "{swaps:?}");
        for swap in swaps {
            assert_eq!(swap["passed"], true, "{swap}");
            // What is explained is far below the margins themselves, or the check says nothing.
            assert!(swap["rounding"].as_f64().unwrap() <= swap["bound"].as_f64().unwrap(), "{swap}");
            let sum = swap["accuracy"].as_f64().unwrap() + swap["exchanged"].as_f64().unwrap();
            let under = swap["under_rounding"].as_f64().unwrap() / swap["pairs"].as_f64().unwrap();
            assert!((sum - 1.0).abs() <= under + 1e-9, "{swap}");
        }
        // Of each head the two worst mistakes, or as many as there are.
        let margin = |row: &Value, head: &str| {
            row[format!("{head}_chosen")].as_f64().unwrap() - row[format!("{head}_rejected")].as_f64().unwrap()
        };
        for head in names {
            let mut wrong: Vec<f64> =
                scored.iter().map(|row| margin(row, head)).filter(|margin| *margin < 0.0).collect();
            wrong.sort_by(f64::total_cmp);
            let shown: Vec<f64> = mistakes
                .iter()
                .filter(|line| line["scored_by"] == head)
                .map(|line| line["margin"].as_f64().unwrap())
                .collect();
            assert_eq!(shown.len(), wrong.len().min(2), "{head}: {mistakes:?}");
            assert!(
                shown.iter().zip(&wrong).all(|(one, other)| (one - other).abs() < 1e-5),
                "{head}: {shown:?} {wrong:?}"
            );
        }
        assert!(!mistakes.is_empty(), "the run is not perfect, or this shows nothing");
        let split = |row: &&Value| margin(row, "reward") * margin(row, "implicit") < 0.0;
        let strongest = with("disagreed");
        assert_eq!(strongest.len(), scored.iter().filter(split).count().min(2), "{strongest:?}");
        for line in mistakes.iter().chain(&strongest) {
            assert!(line["prompt"].as_str().unwrap().contains("What is"), "{line}");
            assert!(line["rejected"].as_str().unwrap().contains('.'), "{line}");
            let pair = line["pair"].as_u64().unwrap() as usize;
            let by = line["scored_by"].as_str().unwrap_or("reward");
            assert!((line["margin"].as_f64().unwrap() - margin(&scored[pair - 1], by)).abs() < 1e-5, "{line}");
        }
        assert!(with("eval").iter().all(|line| line["longer_accuracy"].is_f64()));
        assert_eq!(with("disagreement").len(), 1);
    }
    // On the dev pairs themselves there is nothing to judge the sum on.
    let dev = ["eval", "--checkpoint", "run/step-6", "--data", "dev.jsonl"];
    let told = workspace.run(1, &dev).succeeded();
    let text = &told.stdout;
    assert!(text.contains("no other pair is left") && text.contains("the heads disagree on"), "{text}");
    // The other tables are of those pairs too, which is said; of prompts that are no dev prompts nothing is said.
    assert!(told.stderr.contains("5 of 5 pairs have a dev prompt of the run"), "{}", told.stderr);
    workspace.write("other-prompts.jsonl", &rows(66, 2));
    let others = ["eval", "--checkpoint", "run/step-6", "--data", "other-prompts.jsonl"];
    let told = workspace.run(1, &others).succeeded();
    assert!(
        !told.stderr.contains("dev prompt") && told.stdout.contains("0 pairs with a dev prompt"),
        "{}",
        told.stderr
    );
    // A prompt's name is a hash of its rendering: with another template none is recognized, and none said to be left out.
    let plain = [&dev[..], &["--template", "plain"]].concat();
    let told = workspace.run(1, &plain).succeeded();
    assert!(
        told.stderr.contains("are not recognized") && told.stdout.contains("are not recognized"),
        "{}",
        told.stderr
    );
    let lines = parse_lines(&workspace.run(1, &[&plain[..], &["--json"]].concat()).succeeded().stdout);
    let heads: Vec<_> = lines.iter().filter(|line| line.get("heads").is_some()).collect();
    assert!(heads.len() == 3 && heads.iter().all(|line| line["left_out"].is_null()), "{heads:?}");
    // A checkpoint without dev pairs has no sum.
    workspace.train(1, &["data.dev=[]", "output.dir='alone'"]).succeeded();
    let alone = ["score", "--checkpoint", "alone/step-6", "--data", "test.jsonl", "--combined"];
    let refused = workspace.run(1, &alone);
    assert!(refused.code == 2 && refused.stderr.contains("no weights for the sum of its heads"), "{}", refused.stderr);
}
