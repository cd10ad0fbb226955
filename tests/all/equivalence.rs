//! Promise: the same trajectory for 1, 2 and 3 ranks, for any micro-batch budget, with and without activation
//! checkpointing; scores that do not depend on what else is in the batch; losses that are idle, and rows that nobody
//! reads, change nothing.
//!
//! Whole training steps on a tiny model with the threads backend; mpirun does the same in tests/all/runs/.

use crate::steps;
use haf_dist::comm::{CommThread, threads};
use haf_dist::config::Config;
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::engine::Buckets;
use haf_dist::engine::head::{Objective, PairScores};
use haf_dist::model::decoder::Part;
use haf_dist::train::{Trainer, check_replicas};
use haf_dist::update::sharding::state_bytes;
use steps::{PAIRS, config, engine, pairs};
use tch::{Device, Kind, Tensor};

const STEPS: usize = 5;

fn trainer<'a>(config: &'a Config, comm: &'a CommThread) -> Trainer<'a> {
    trainer_in(config, comm, Kind::Float)
}

fn trainer_in<'a>(config: &'a Config, comm: &'a CommThread, kind: Kind) -> Trainer<'a> {
    steps::trainer(config, comm, steps::engine_of_rank(config, (kind, Device::Cpu), comm))
}

/// Losses of every step and the final masters, as every rank must see them.
#[derive(Debug)]
struct Trajectory {
    losses: Vec<f64>,
    norms: Vec<f64>,
    masters: Vec<Tensor>,
    /// Bytes of rank 0's masters and moments.
    state: usize,
}

fn run(config: &Config, world_size: usize) -> Trajectory {
    run_in(config, world_size, Kind::Float)
}

fn run_in(config: &Config, world_size: usize, kind: Kind) -> Trajectory {
    let rank = |seat: threads::Seat| {
        let comm = CommThread::start(move || Ok(seat.communicator())).unwrap();
        let mut trainer = trainer_in(config, &comm, kind);
        let steps: Vec<_> = (0..STEPS).map(|_| trainer.step(STEPS).unwrap().0).collect();
        check_replicas(&trainer.engine, trainer.state.step, &comm).unwrap();
        let masters = trainer.engine.model.named_values();
        Trajectory {
            losses: steps.iter().map(|step| step.loss).collect(),
            norms: steps.iter().map(|step| step.grad_norm).collect(),
            masters: masters.into_iter().map(|(_, master)| master.to_kind(kind).to_kind(Kind::Float).copy()).collect(),
            state: state_bytes(&trainer.engine.model),
        }
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            threads::world(world_size).into_iter().map(|seat| scope.spawn(move || rank(seat))).collect();
        let mut trajectories: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        for other in &trajectories[1..] {
            assert_eq!(other.losses, trajectories[0].losses, "every rank reports the same losses");
        }
        trajectories.swap_remove(0)
    })
}

/// Largest relative difference of losses, gradient norms and masters.
fn difference(left: &Trajectory, right: &Trajectory) -> f64 {
    let scalars = left.losses.iter().chain(&left.norms).zip(right.losses.iter().chain(&right.norms));
    let scalars = scalars.map(|(left, right)| (left - right).abs() / right.abs());
    let masters = left
        .masters
        .iter()
        .zip(&right.masters)
        .map(|(left, right)| ((left - right).norm() / right.norm().clamp_min(1e-12)).double_value(&[]));
    scalars.chain(masters).fold(0.0, f64::max)
}

#[test]
fn one_two_and_three_ranks_train_the_same() {
    for lines in [&[][..], &["loss.objective=reward", "loss.centering=0.01"], &["loss.policy=simpo", "loss.beta=2.0"]] {
        let config = config("llama-tied", lines);
        let one = run(&config, 1);
        for world_size in [2, 3] {
            let far = difference(&run(&config, world_size), &one);
            assert!(far < 2e-5, "{world_size} ranks, {lines:?}: {far:.1e}");
        }
    }
}

#[test]
fn sharded_optimizer_state_trains_the_same_in_a_share_of_the_memory() {
    // In bf16 masters are compared rounded, as every rank holds them: a few are a step apart where sums round otherwise.
    let lora = ["lora.rank=3", "lora.alpha=6.0", "lora.targets=['q_proj', 'down_proj']"];
    for (case, kind, lines, bound) in [
        ("llama-tied", Kind::Float, &[][..], 2e-5),
        ("llama-untied", Kind::BFloat16, &[], 5e-4),
        ("llama-tied", Kind::BFloat16, &lora, 5e-4),
    ] {
        let shard = [lines, &["parallel.shard_optimizer=true"]].concat();
        let (whole, sharded) = (config(case, lines), config(case, &shard));
        let clipped = config(case, &[&shard[..], &["train.clip_norm=0.01"]].concat());
        for world_size in [2, 3] {
            let expected = run_in(&whole, world_size, kind);
            let found = run_in(&sharded, world_size, kind);
            let far = difference(&found, &expected);
            assert!(far < bound, "{world_size} ranks, {kind:?}: {far:.1e}");
            let most = (1.0 / world_size as f64 + 0.05) * expected.state as f64;
            assert!((found.state as f64) < most, "{world_size} ranks hold {} of {} bytes", found.state, expected.state);
            // Control: the norm of all shares is what is clipped, and it shows.
            let far = difference(&run_in(&clipped, world_size, kind), &expected);
            assert!(far > 10.0 * bound, "{world_size} ranks clipped: {far:.1e}");
        }
    }
}

#[test]
fn ranks_without_a_pair_take_part() {
    // The third batch has 7 pairs: with 8 ranks one of them holds none.
    let config = config("llama-untied", &[]);
    let far = difference(&run(&config, 8), &run(&config, 1));
    assert!(far < 2e-5, "{far:.1e}");
}

#[test]
fn the_micro_batch_budget_changes_nothing() {
    for case in ["llama-tied", "mistral", "gemma2", "gpt-neox-parallel"] {
        let run_with = |budget: &str| run(&config(case, &[&format!("train.tokens_per_micro_batch={budget}")]), 1);
        let whole = run_with("100000");
        for budget in ["1", "40"] {
            let far = difference(&run_with(budget), &whole);
            assert!(far < 2e-5, "{case}, {budget} tokens: {far:.1e}");
        }
    }
}

#[test]
fn activation_checkpointing_changes_no_bit() {
    for case in
        ["llama-untied", "qwen3", "phi", "phi-normed", "gemma2", "gemma3", "olmo2", "smollm3", "gpt-neox-sequential"]
    {
        let kept = run(&config(case, &[]), 1);
        let recomputed = run(&config(case, &["train.activation_checkpointing=true"]), 1);
        assert_eq!(difference(&recomputed, &kept), 0.0, "{case}");
    }
}

#[test]
fn the_same_run_twice_is_the_same_to_the_last_bit() {
    let config = config("llama-tied", &[]);
    assert_eq!(difference(&run(&config, 2), &run(&config, 2)), 0.0);
}

#[test]
fn control_another_seed_batch_size_or_loss_is_another_trajectory() {
    let base = run(&config("llama-tied", &[]), 1);
    for line in ["data.seed=1", "train.pairs_per_step=7", "loss.alpha=0.3", "train.adam_epsilon=1e-3"] {
        let far = difference(&run(&config("llama-tied", &[line]), 1), &base);
        assert!(far > 1e-3, "{line}: {far:.1e}");
    }
}

#[test]
fn scores_do_not_depend_on_what_else_is_in_the_batch() {
    for case in [
        "llama-tied",
        "mistral",
        "qwen2",
        "qwen3",
        "phi",
        "phi-normed",
        "phi3",
        "gemma2",
        "gemma3",
        "olmo2",
        "smollm3",
        "gpt-neox-parallel",
    ] {
        check_scores(case);
    }
}

fn check_scores(case: &str) {
    let config = config(case, &[]);
    let mut engine = engine(&config);
    let (head, _) = engine.model.segment(Part::RewardHead).unwrap();
    let width = engine.model.architecture.width as i64;
    engine.model.segments[head].set(0, &(Tensor::arange(width, (Kind::Float, Device::Cpu)).sin().view([1, width])));
    let data = pairs(engine.model.architecture.vocabulary as u32);
    let pack = |pairs: &[usize], packing| {
        let items = pairs.iter().map(|&index| PairToPack { index, pair: data.pair(index), reference: [0.0; 2] });
        PackedBatch::new(items, packing, Device::Cpu)
    };
    let all: Vec<usize> = (0..PAIRS).collect();
    let together = engine.score(&pack(&all, Packing::Shared), true).unwrap();
    for (index, together) in together.iter().enumerate() {
        for packing in [Packing::Shared, Packing::Separate] {
            let alone = engine.score(&pack(&[index], packing), true).unwrap()[0];
            // Without log-probs two rows of the batch are read.
            let rewards = engine.score(&pack(&[index], packing), false).unwrap()[0].rewards;
            let far = [0, 1].map(|answer| (rewards[answer] - together.rewards[answer]).abs());
            assert!(far.iter().all(|far| *far < 1e-5), "{case}, pair {index}, {packing:?}, rewards alone: {far:?}");
            for answer in 0..2 {
                let reward = (alone.rewards[answer] - together.rewards[answer]).abs();
                let log_prob = (alone.log_probs[answer] - together.log_probs[answer]).abs();
                assert!(
                    reward < 1e-5 && log_prob < 1e-4,
                    "{case}, pair {index}, {packing:?}: {reward:.1e}, {log_prob:.1e}"
                );
            }
        }
    }
}

/// Scores of all pairs in one batch, and every gradient of their reward losses. Where log-probs are read too, so is every
/// row: the prompts are of one token.
fn reward_pass(config: &Config, log_probs: bool) -> (Vec<PairScores>, Vec<Tensor>) {
    let mut engine = engine(config);
    let (head, segment) = engine.model.segment(Part::RewardHead).unwrap();
    let weight = Tensor::arange(segment.length() as i64, (Kind::Float, Device::Cpu)).sin();
    engine.model.segments[head].set(0, &weight.view([1, -1]));
    let data = pairs(engine.model.architecture.vocabulary as u32);
    let pair = |index| {
        let pair = data.pair(index);
        let spans = pair.spans.map(|span| AnswerSpan { start: 1, ..span });
        PairToPack { index, pair: TokenPair { spans, ..pair }, reference: [0.0; 2] }
    };
    let batch = PackedBatch::new((0..PAIRS).map(pair), Packing::Shared, Device::Cpu);
    let read = batch.read_rows(log_probs).rows.size()[0] as usize;
    assert_eq!(read, if log_probs { batch.token_count() } else { 2 * PAIRS });
    let objective = Objective { config: &config.loss, reward_weight: 1.0, alpha: 0.0, log_probs };
    let mut buckets = Buckets::of(&engine.model).unwrap();
    let losses = engine.forward_backward(&batch, &objective, &mut buckets).unwrap().read().unwrap();
    let gradients = buckets.iter().map(|(_, bucket)| bucket.flat().copy());
    (losses.into_iter().map(|losses| losses.scores).collect(), gradients.collect())
}

#[test]
fn rows_that_nobody_reads_change_no_reward_and_no_gradient() {
    let lora = ["lora.rank=3", "lora.alpha=6.0", "lora.targets=['o_proj', 'gate_proj', 'down_proj']"];
    let recomputed = ["train.activation_checkpointing=true"];
    let families = [
        "llama-untied",
        "mistral",
        "qwen2",
        "qwen3",
        "phi",
        "phi-normed",
        "phi3",
        "gemma2",
        "gpt-neox-parallel",
        "gpt-neox-sequential",
    ];
    let plain = families.iter().flat_map(|case| [(*case, &[][..]), (*case, &recomputed[..])]);
    let lora_recomputed = [&lora[..], &recomputed].concat();
    for (case, lines) in plain.chain([("llama-tied", &lora[..]), ("llama-tied", &lora_recomputed)]) {
        let config = config(case, lines);
        let (all_scores, all) = reward_pass(&config, true);
        let (scores, gradients) = reward_pass(&config, false);
        for (found, expected) in scores.iter().zip(&all_scores) {
            let far = [0, 1].map(|answer| (found.rewards[answer] - expected.rewards[answer]).abs());
            assert!(far.iter().all(|far| *far < 1e-5), "{case}, {lines:?}: {far:?}");
        }
        for (segment, (found, expected)) in gradients.iter().zip(&all).enumerate() {
            let size = expected.norm().double_value(&[]);
            let far = (found - expected).norm().double_value(&[]) / size.max(1e-12);
            assert!(far < 1e-5, "{case}, {lines:?}, gradient {segment}: {far:.1e}");
            // Control: but for a language-model head without a loss there is something to compare.
            let idle = segment + 2 == gradients.len() && size == 0.0;
            assert!(size > 1e-4 || idle, "{case}, {lines:?}, gradient {segment}: {size:.1e}");
        }
    }
}

#[test]
fn an_idle_loss_contributes_no_gradient() {
    let config = config("llama-tied", &["loss.alternate_every=1", "train.weight_decay=0"]);
    let comm = CommThread::start(|| Ok(Box::new(haf_dist::comm::solo::Solo))).unwrap();
    let mut trainer = trainer(&config, &comm);
    let head = |trainer: &Trainer| {
        let (_, segment) = trainer.engine.model.segment(Part::RewardHead).unwrap();
        segment.weights.view(0).abs().max().double_value(&[])
    };
    // Policy first: the reward head stays at zero; its loss is reported all the same.
    let (metrics, _) = trainer.step(STEPS).unwrap();
    assert_eq!(head(&trainer), 0.0);
    assert!(metrics.reward_loss.is_some() && metrics.loss == 0.2 * metrics.policy_loss.unwrap());
    // Then the reward.
    let (metrics, _) = trainer.step(STEPS).unwrap();
    assert!(head(&trainer) > 0.0);
    assert!(metrics.policy_loss.is_some() && metrics.loss == metrics.reward_loss.unwrap());
}

#[test]
fn a_reward_run_leaves_an_untied_language_model_head_alone() {
    let config = config("llama-untied", &["loss.objective=reward"]);
    let comm = CommThread::start(|| Ok(Box::new(haf_dist::comm::solo::Solo))).unwrap();
    let mut trainer = trainer(&config, &comm);
    let (index, _) = trainer.engine.model.segment(Part::LanguageModelHead).unwrap();
    let before = trainer.engine.model.segments[index].weights.view(0).copy();
    let embedding = trainer.engine.model.segments[0].weights.view(0).copy();
    for _ in 0..STEPS {
        trainer.step(STEPS).unwrap();
    }
    assert!(trainer.engine.model.segments[index].weights.view(0).equal(&before));
    assert!(trainer.engine.model.segments[index].state.is_none());
    assert!(!trainer.engine.model.segments[0].weights.view(0).equal(&embedding), "the rest is trained and decayed");
}

#[test]
fn a_weight_that_is_not_finite_skips_the_update_on_every_rank() {
    // Up, query, key and norm weights lead through every fused loop of a block.
    for (part, parameter) in [(Part::Block(0), 7), (Part::Block(1), 1), (Part::Block(1), 2), (Part::Norm, 0)] {
        for value in [f64::NAN, f64::INFINITY] {
            let config = config("llama-tied", &[]);
            let comm = CommThread::start(|| Ok(Box::new(haf_dist::comm::solo::Solo))).unwrap();
            let mut trainer = trainer(&config, &comm);
            let (index, segment) = trainer.engine.model.segment(part).unwrap();
            let flat = segment.weights.view(parameter).copy();
            let shape = flat.size();
            let _ = flat.view(-1).get(0).fill_(value);
            trainer.engine.model.segments[index].set(parameter, &flat.view(shape.as_slice()));
            let (metrics, updated) = trainer.step(STEPS).unwrap();
            assert!(!updated && !metrics.grad_norm.is_finite(), "{part:?} {parameter} {value}: {}", metrics.grad_norm);
        }
    }
}
