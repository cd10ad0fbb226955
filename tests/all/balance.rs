//! Promise: the balance loss of experts is the formula of single sequences, and the router metrics in `metrics.jsonl` cover all
//! tokens of every sequence: whatever the objective, the weight, the packing, the micro-batches and the number of ranks.
//!
//! Not here: which expert takes a token (`experts.rs`).

use crate::experts::{CASES, experts_of};
use crate::golden::{Golden, OwnedPair, distance, pack};
use crate::steps;
use haf_dist::comm::{CommThread, threads};
use haf_dist::config::{self, LoraConfig, LossConfig};
use haf_dist::data::batch::Packing;
use haf_dist::data::prepared::{LabeledPair, PreparedData};
use haf_dist::data::sequence;
use haf_dist::engine::head::Objective;
use haf_dist::engine::{Buckets, Engine};
use haf_dist::metrics::StepMetrics;
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::segment::Use;
use haf_dist::model::weights::LoadOptions;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const OBJECTIVES: [config::Objective; 3] =
    [config::Objective::Hybrid, config::Objective::Reward, config::Objective::Policy];

/// What routers did with pairs, so many a batch: the sum of their balance losses, the load of each block's experts, the
/// smallest gap; and the gradients of the balance loss alone.
pub struct Routed {
    balance: f64,
    load: Vec<Vec<f64>>,
    pub gap: f64,
    buckets: Buckets,
}

/// By the balance loss alone.
pub fn routed(engine: &mut Engine, pairs: &[OwnedPair], packing: Packing, per_batch: usize, weight: f64) -> Routed {
    let config = LossConfig { router_balance: weight, ..LossConfig::default() };
    // Of the other losses nothing has a gradient.
    let objective = Objective { config: &config, reward_weight: 0.0, alpha: 0.0, log_probs: true };
    routed_by(&objective, engine, pairs, packing, per_batch)
}

fn routed_by(
    objective: &Objective,
    engine: &mut Engine,
    pairs: &[OwnedPair],
    packing: Packing,
    per_batch: usize,
) -> Routed {
    let (_, experts) = experts_of(engine);
    let blocks = engine.model.architecture.blocks.iter().filter(|block| block.mlp.experts.is_some()).count();
    let experts = experts.count;
    let buckets = Buckets::of(&engine.model).unwrap();
    let mut all = Routed { balance: 0.0, load: vec![vec![0.0; experts]; blocks], gap: f64::INFINITY, buckets };
    for (number, chunk) in pairs.chunks(per_batch).enumerate() {
        let batch = pack(chunk, number * per_batch, packing);
        let losses = engine.forward_backward(&batch, objective, &mut all.buckets).unwrap();
        assert_eq!(losses.routing.len(), blocks);
        for (sum, routing) in all.load.iter_mut().zip(&losses.routing) {
            let load = Vec::<f64>::try_from(routing.load.to_kind(Kind::Double)).unwrap();
            sum.iter_mut().zip(load).for_each(|(sum, tokens)| *sum += tokens);
            all.balance += routing.balance.as_ref().map_or(0.0, |balance| balance.double_value(&[]));
            all.gap = all.gap.min(routing.gap.double_value(&[]));
        }
    }
    all
}

#[test]
fn the_balance_loss_and_its_gradients_are_transformers_shares_by_the_formula_however_pairs_are_packed() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let pairs = golden.pairs();
        let expected = f64::from(golden.floats("balance.loss")[0]);
        let mut farthest = 0f64;
        for (packing, per_batch, checkpointing) in [
            (Packing::Shared, 5, false),
            (Packing::Shared, 5, true),
            (Packing::Shared, 2, false),
            (Packing::Shared, 1, false),
            (Packing::Separate, 5, false),
            (Packing::Separate, 1, true),
        ] {
            let what = format!("{case}, {packing:?}, {per_batch} a batch, checkpointing {checkpointing}");
            let mut engine = golden.engine_of(&golden.folder, checkpointing, &|_| ());
            let Routed { balance, load, buckets, .. } = routed(&mut engine, &pairs, packing, per_batch, 0.5);
            let count = pairs.len() as f64;
            assert!((balance / (0.5 * count) - expected).abs() < 1e-5 * expected, "{what}: {balance} {expected}");
            let tokens: usize = pairs.iter().map(OwnedPair::tokens_of_both).sum();
            let top_k = experts_of(&engine).1.top_k;
            assert!(load.iter().all(|block| block.iter().sum::<f64>() == (tokens * top_k) as f64), "{what}: {load:?}");
            let mut compared = 0;
            for (segment, bucket) in buckets.iter() {
                for (sum, parameter) in bucket.views().iter().zip(engine.model.segments[segment].parameters().iter()) {
                    let name = format!("balance.grad.{}", parameter.name);
                    let found = parameter.rows.to_file(&(sum / (0.5 * count)));
                    if !golden.file.names().contains(&name) {
                        assert!(found.norm().double_value(&[]) == 0.0, "{what}: {name} is not zero");
                        continue;
                    }
                    let far = distance(&found, &golden.file.read(&name).unwrap());
                    assert!(far < 2e-5, "{what}, {name}: {far:.1e}");
                    (compared, farthest) = (compared + 1, farthest.max(far));
                }
            }
            assert_eq!(compared, golden.file.names().iter().filter(|name| name.starts_with("balance.grad.")).count());
        }
        // Control: one token a batch further is another loss.
        let mut engine = golden.engine_of(&golden.folder, false, &|_| ());
        let some = routed(&mut engine, &pairs[1..], Packing::Shared, 4, 0.5).balance;
        assert!((some / (0.5 * 4.0) - expected).abs() > 1e-3 * expected, "{case}");
        println!("{case}: balance loss {expected:.4}, gradients off by {farthest:.1e} at most");
    }
}

#[test]
fn the_balance_loss_falls_along_its_gradient() {
    let golden = Golden::open("qwen3-moe", "golden.safetensors");
    let (pairs, mut engine) = (golden.pairs(), golden.engine_of(&golden.folder, false, &|_| ()));
    let before = routed(&mut engine, &pairs, Packing::Shared, 5, 1.0);
    for (segment, bucket) in before.buckets.iter() {
        let gradient = bucket.flat().copy();
        let norm = gradient.norm().double_value(&[]);
        if norm == 0.0 {
            continue;
        }
        let count = engine.model.segments[segment].parameters().len();
        let kept: Vec<Tensor> = (0..count).map(|index| engine.model.segments[segment].value(index).copy()).collect();
        let mut at = |step: f64| {
            for (index, kept) in kept.iter().enumerate() {
                let direction = engine.model.segments[segment].parameters()[index].view(&gradient) / norm;
                engine.model.segments[segment].set(index, &(kept + direction * step));
            }
            let there = routed(&mut engine, &pairs, Packing::Shared, 5, 1.0);
            // No expert is chosen otherwise, so that the loss is smooth between.
            assert_eq!(there.load, before.load);
            there.balance
        };
        let slope = (at(5e-4) - at(-5e-4)) / 1e-3;
        assert!((slope / norm - 1.0).abs() < 2e-2, "segment {segment}: slope {slope}, norm {norm}");
        kept.iter().enumerate().for_each(|(index, kept)| engine.model.segments[segment].set(index, kept));
    }
}

/// What the shares that Transformers' routers give come to, sequence by sequence, in f64: the mean balance loss, and the
/// tokens of each expert in each block.
fn of_transformers(golden: &Golden, top_k: usize) -> (f64, Vec<Vec<f64>>) {
    let (mut losses, mut load) = (Vec::new(), Vec::new());
    for number in 0..golden.pairs().len() {
        for side in ["chosen", "rejected"] {
            let shares = golden.file.read(&format!("pair{number}.shares_{side}")).unwrap().to_kind(Kind::Double);
            let blocks: Vec<Vec<Vec<f64>>> = Vec::try_from(shares).unwrap();
            load.resize(blocks.len(), vec![0.0; blocks[0][0].len()]);
            for (block, load) in blocks.iter().zip(&mut load) {
                let (experts, tokens) = (block[0].len(), block.len() as f64);
                let (mut counts, mut means) = (vec![0.0; experts], vec![0.0; experts]);
                for shares in block {
                    let mut order: Vec<usize> = (0..experts).collect();
                    order.sort_by(|&one, &other| shares[other].total_cmp(&shares[one]));
                    order[..top_k].iter().for_each(|&expert| counts[expert] += 1.0);
                    (0..experts).for_each(|expert| means[expert] += shares[expert] / tokens);
                }
                let of_expert = |expert| experts as f64 / (top_k as f64 * tokens) * counts[expert] * means[expert];
                losses.push((0..experts).map(of_expert).sum::<f64>());
                (0..experts).for_each(|expert| load[expert] += counts[expert]);
            }
        }
    }
    (losses.iter().sum::<f64>() / losses.len() as f64, load)
}

#[test]
fn whatever_the_objective_and_the_weight_every_token_of_every_block_counts() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let (pairs, mut unread) = (golden.pairs(), 0);
        let top_k = experts_of(&golden.engine_of(&golden.folder, false, &|_| ())).1.top_k;
        let (balance, load) = of_transformers(&golden, top_k);
        assert!((balance / f64::from(golden.floats("balance.loss")[0]) - 1.0).abs() < 1e-5, "{case}");
        for objective in OBJECTIVES {
            for (packing, per_batch, checkpointing) in [(Packing::Shared, 2, false), (Packing::Separate, 5, true)] {
                let what = format!("{case}, {objective:?}, {packing:?}, {per_batch} a batch");
                let mut run = |weight: f64| {
                    let config = LossConfig { objective, router_balance: weight, ..LossConfig::default() };
                    let (reward_weight, alpha) = (config.effective_reward_weight(), config.effective_alpha());
                    let log_probs = config.needs_policy();
                    let objective = Objective { config: &config, reward_weight, alpha, log_probs };
                    let read = pack(&pairs, 0, packing).read_rows(log_probs).rows.size()[0];
                    unread += pack(&pairs, 0, packing).token_count() as i64 - read;
                    let mut engine = golden.engine_of(&golden.folder, checkpointing, &|_| ());
                    routed_by(&objective, &mut engine, &pairs, packing, per_batch)
                };
                let (without, with) = (run(0.0), run(0.5));
                assert_eq!((&without.load, &with.load), (&load, &load), "{what}");
                assert_eq!(without.balance, 0.0, "{what}");
                let count = pairs.len() as f64;
                assert!((with.balance / (0.5 * count) / balance - 1.0).abs() < 1e-5, "{what}: {}", with.balance);
                // What the weight adds to the gradients is the balance loss's own, which other losses' rounding blurs.
                let engine = golden.engine_of(&golden.folder, false, &|_| ());
                for ((segment, without), (_, with)) in without.buckets.iter().zip(with.buckets.iter()) {
                    let parameters = engine.model.segments[segment].parameters().iter();
                    for ((without, with), parameter) in without.views().iter().zip(with.views()).zip(parameters) {
                        let added = parameter.rows.to_file(&((with - without) / (0.5 * count)));
                        let name = format!("balance.grad.{}", parameter.name);
                        let blur = 1e-5 * with.norm().double_value(&[]);
                        let far = match golden.file.names().contains(&name) {
                            true => (added - golden.file.read(&name).unwrap()).norm().double_value(&[]),
                            false => added.norm().double_value(&[]),
                        };
                        assert!(far <= blur, "{what}, {name}: off by {far:.1e}");
                    }
                }
            }
        }
        // Control: some rows are read by no loss, of which the last block computes no more than the router.
        assert!(unread > 0, "{case}");
    }
}

#[test]
fn with_adapters_every_token_of_the_last_block_counts_as_where_all_go_through_it() {
    let golden = Golden::open("qwen3-moe", "golden.safetensors");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora-qwen3-moe");
    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Train, log_probs: true };
    let targets = ["q_proj", "v_proj", "o_proj"].map(str::to_string).to_vec();
    let lora = LoraConfig { rank: 2, alpha: 4.0, targets, seed: 0, use_rslora: false, base: None };
    let model = adapter::load(&Origin::of(&folder, None).unwrap(), options, Some(&lora)).unwrap();
    let mut engine = Engine::new(model, false).unwrap();
    let pairs = golden.pairs();
    let mut load = |weight: f64| routed(&mut engine, &pairs, Packing::Shared, 5, weight).load;
    let all = load(1e-9);
    assert_eq!(load(0.0), all);
    // Control: adapters send some tokens elsewhere.
    assert_ne!(of_transformers(&golden, 2).1, all);
}

/// A pair as a data set holds it.
fn labeled(pair: &OwnedPair) -> LabeledPair {
    let pair = sequence::OwnedPair {
        tokens: [&pair.prefix[..], &pair.chosen, &pair.rejected].concat(),
        prefix: pair.prefix.len(),
        chosen: pair.chosen.len(),
        rejected: pair.rejected.len(),
        spans: pair.spans(),
        prompt_hash: 0,
        prompt_cut: false,
        answer_cut: false,
        special_in_text: 0,
    };
    LabeledPair { pair, margin: 0.0, tied: false, domain: "golden".into() }
}

/// What a run logs of its first step, over the pairs of a golden file.
fn logged(case: &str, lines: &[&str], ranks: usize) -> StepMetrics {
    let all = ["train.pairs_per_step=5", "train.steps=1", "loss.router_balance=0.5"];
    let config = steps::config(case, &[&all[..], lines].concat());
    let golden = Golden::open(case, "golden.safetensors");
    let rank = |seat: threads::Seat| {
        let comm = CommThread::start(move || Ok(seat.communicator())).unwrap();
        let engine = steps::engine(&config);
        let data = PreparedData::from_pairs(golden.pairs().iter().map(labeled).collect()).unwrap();
        let buckets = Buckets::of(&engine.model).unwrap();
        steps::trainer_over(&config, &comm, (engine, buckets), data).step(1).unwrap().0
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = threads::world(ranks).into_iter().map(|seat| scope.spawn(|| rank(seat))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).next_back().unwrap()
    })
}

#[test]
fn a_step_logs_the_formula_of_single_sequences_on_any_number_of_ranks_and_in_any_micro_batches() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let experts = experts_of(&golden.engine_of(&golden.folder, false, &|_| ())).1;
        let (balance, load) = of_transformers(&golden, experts.top_k);
        // Of an even share.
        let uniform = load[0].iter().sum::<f64>() / experts.count as f64;
        let relative = || load.iter().flatten().map(|tokens| tokens / uniform);
        for objective in ["loss.objective='hybrid'", "loss.objective='reward'", "loss.objective='policy'"] {
            for (ranks, tokens) in [(1, 4096), (1, 20), (2, 4096), (2, 20), (3, 40)] {
                let budget = format!("train.tokens_per_micro_batch={tokens}");
                let found = logged(case, &[objective, &budget], ranks);
                let what = format!("{case}, {objective}, {ranks} ranks, {tokens} tokens a micro-batch");
                let router = found.router.unwrap();
                assert!((router.balance.unwrap() / balance - 1.0).abs() < 1e-5, "{what}: {router:?}, {balance}");
                let (most, least) = (relative().fold(0.0, f64::max), relative().fold(f64::INFINITY, f64::min));
                assert!((router.load_max - most).abs() < 1e-9 && (router.load_min - least).abs() < 1e-9, "{what}");
                let (reward, policy) = (found.reward_loss.unwrap_or(0.0), found.policy_loss.unwrap_or(0.0));
                let sum = reward + LossConfig::default().alpha * policy + 0.5 * balance;
                assert!((found.loss / sum - 1.0).abs() < 1e-5, "{what}: {} is not {sum}", found.loss);
            }
        }
        let unweighted = logged(case, &["loss.router_balance=0", "loss.objective='reward'"], 2).router.unwrap();
        assert_eq!(unweighted.balance, None, "{case}");
        assert!((unweighted.load_max - relative().fold(0.0, f64::max)).abs() < 1e-9, "{case}");
    }
}
