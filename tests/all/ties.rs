//! Promise: a training pair with two equally good answers is dropped and counted, or trained on as half a label each way; in dev
//! and test it is always dropped.

use crate::tiny::Workspace;
use clap::ValueEnum;
use haf_dist::config::{LossConfig, PolicyLoss, Source, Ties};
use haf_dist::data::formats::{DropReason, read};
use haf_dist::engine::head::{Objective, PairScores};
use serde_json::json;

#[test]
fn ties_of_every_kind_are_dropped_and_counted_or_taken_without_a_margin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    for (row, ties, others) in [
        (json!({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie"}), 1, 0),
        (json!({"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": 0, "margin": 2.0}), 1, 0),
        (
            json!({"prompt": "q", "answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 1}, {"answer": "z", "rank": 2}]}),
            1,
            2,
        ),
    ] {
        std::fs::write(&path, row.to_string()).unwrap();
        let taken = |ties: Ties| read(&Source { ties, ..Source::new(&path) }).unwrap();
        let [dropped, half] = [taken(Ties::Drop), taken(Ties::Half)];
        assert_eq!((dropped.pairs.len(), dropped.dropped.get(&DropReason::Tie)), (others, Some(&ties)), "{row}");
        let tied: Vec<_> = half.pairs.iter().filter(|pair| pair.tied).collect();
        assert_eq!((half.pairs.len(), tied.len(), half.dropped.len()), (others + ties, ties, 0), "{row}");
        assert!(tied.iter().all(|pair| pair.margin.is_none() && pair.rejected.is_some()), "{row}: {half:?}");
        assert!(dropped.pairs.iter().all(|pair| !pair.tied));
    }
}

#[test]
fn a_ties_losses_are_the_means_of_both_orders_for_every_policy_loss() {
    for &policy in PolicyLoss::value_variants() {
        let config = LossConfig { policy, ..LossConfig::default() };
        let objective = Objective { config: &config, reward_weight: 1.0, alpha: 1.0, log_probs: true };
        let scores =
            PairScores { rewards: [0.3, -1.1], log_probs: [-7.0, -4.0], tokens: [3, 5], ..PairScores::default() };
        let turned = PairScores { rewards: [-1.1, 0.3], log_probs: [-4.0, -7.0], tokens: [5, 3], ..scores };
        let of = |scores, reference, tied| {
            let losses = objective.losses(scores, 0.0, reference, tied);
            [losses.reward_loss, losses.policy_loss.unwrap()]
        };
        let (one, other) = (of(scores, [-6.0, -5.0], false), of(turned, [-5.0, -6.0], false));
        let tied = of(scores, [-6.0, -5.0], true);
        assert_eq!(tied, of(turned, [-5.0, -6.0], true), "{policy:?}: the order says nothing");
        for loss in 0..2 {
            assert!((tied[loss] - (one[loss] + other[loss]) / 2.0).abs() < 1e-12, "{policy:?}");
            assert!((one[loss] - other[loss]).abs() > 1e-3, "{policy:?}: the control: an order does");
        }
    }
}

#[test]
fn a_run_trains_on_half_labels_and_says_how_many() {
    let workspace = Workspace::new();
    let row = |number: usize| {
        let prompt = format!("Which of {}?", "x".repeat(number));
        json!({"prompt": prompt, "response_a": "a cat", "response_b": "the dog 4", "winner": if number < 3 { "tie" } else { "model_a" }})
    };
    let text: String = (0..8).map(|number| format!("{}\n", row(number))).collect();
    workspace.write("arena.jsonl", &text);
    let sources =
        ["data.train=[{ path = 'arena.jsonl' }]", "data.dev=[{ path = 'arena.jsonl' }]", "train.pairs_per_step=8"];
    let run = |ties: &str, ranks: usize| {
        let own = [format!("data.ties={ties}"), format!("output.dir='{ties}-{ranks}'")];
        let set = [&sources[..], &[&own[0], &own[1]]].concat();
        workspace.train(ranks, &set).succeeded()
    };
    let said = |text: &str, wanted: &[&str]| text.lines().any(|line| wanted.iter().all(|part| line.contains(part)));
    let half = run("half", 1);
    let all = format!("{}{}", half.stdout, half.stderr);
    // Read, of which the dev pairs lose three.
    assert!(said(&all, &["ties, as half labels", "3", "0"]) && said(&all, &["- ties", "0", "3"]), "{all}");
    assert!(said(&all, &["pairs kept", "8", "5"]), "{all}");
    let first = &workspace.steps("half-1")[0];
    // All tie at the start, and the loss is that of labels.
    assert_eq!(first["accuracy"], 0.5);
    assert!((first["reward_loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{first}");
    // Later rewards are told apart: the three ties still count one half each, so that eights of hits end in a half.
    let last = workspace.steps("half-1").last().unwrap()["accuracy"].as_f64().unwrap();
    assert_eq!((8.0 * last).fract(), 0.5, "{last}");
    run("half", 2);
    for (one, two) in workspace.losses("half-1").iter().zip(workspace.losses("half-2")) {
        assert!((one - two).abs() < 1e-4, "{one} {two}");
    }
    run("drop", 1);
    assert_ne!(workspace.losses("half-1"), workspace.losses("drop-1"), "the control");
}
