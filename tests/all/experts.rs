//! Promise: models with experts load from files of either form, and adapters beside experts are refused by name; which expert
//! takes a token depends on its sequence alone; the loss that balances experts is the formula of single sequences; in bf16
//! rounding sends few tokens to other experts.
//!
//! Not here: other losses and gradients; `golden.rs` has those, and `ops/experts.rs` the products.

use crate::families::{load, tensors, values, written};
use crate::golden::{Golden, OwnedPair, distance, pack};
use haf_dist::config::{LoraConfig, LossConfig};
use haf_dist::data::batch::Packing;
use haf_dist::engine::head::{Objective, PairScores};
use haf_dist::engine::{Buckets, Engine};
use haf_dist::model::architecture::{Architecture, Experts};
use haf_dist::model::layout::{Part, active_elements};
use haf_dist::model::lora::Lora;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

const CASES: [&str; 4] = ["qwen3-moe", "qwen3-moe-mixed", "mixtral", "olmoe"];

/// A case's tensors as Transformers 5 has them in memory: all experts' matrices in one.
fn fused(case: &str) -> BTreeMap<String, Tensor> {
    let mut held = tensors(case);
    let names = if case == "mixtral" { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
    let module = if case == "mixtral" { "block_sparse_moe" } else { "mlp" };
    for block in if case == "qwen3-moe-mixed" { 1..2 } else { 0..2 } {
        let prefix = format!("model.layers.{block}.{module}");
        let count = held[&format!("{prefix}.gate.weight")].size()[0];
        let mut all = |name: &str| -> Vec<Tensor> {
            (0..count).map(|expert| held.remove(&format!("{prefix}.experts.{expert}.{name}.weight")).unwrap()).collect()
        };
        let [gates, ups, downs] = names.map(|name| Tensor::stack(&all(name), 0));
        let router = held.remove(&format!("{prefix}.gate.weight")).unwrap();
        let prefix = format!("model.layers.{block}.mlp");
        held.insert(format!("{prefix}.gate.weight"), router);
        held.insert(format!("{prefix}.experts.gate_up_proj"), Tensor::cat(&[gates, ups], 1));
        held.insert(format!("{prefix}.experts.down_proj"), downs);
    }
    held
}

#[test]
fn files_with_one_tensor_for_all_experts_are_the_same_model() {
    for case in CASES {
        let (apart, fused) = (tensors(case), fused(case));
        assert!(fused.len() < apart.len());
        for files in [1, 3] {
            let loaded = values(&load(written(case, &fused, files).path(), true).unwrap());
            for (name, value) in &apart {
                assert_eq!(&loaded[name], value, "{case}, {files} files: {name}");
            }
        }
        let refusal = |tensors: &BTreeMap<String, Tensor>| load(written(case, tensors, 1).path(), true).err().unwrap();
        let name = "model.layers.1.mlp.experts.down_proj";
        let mut wrong = fused.iter().map(|(name, value)| (name.clone(), value.copy())).collect::<BTreeMap<_, _>>();
        wrong.insert(name.into(), fused[name].transpose(1, 2).contiguous());
        let error = refusal(&wrong);
        assert!(error.message.contains("experts.down_proj has shape") && error.hint.is_some(), "{error}");
        wrong.remove(name);
        let error = refusal(&wrong);
        assert!(error.message.contains("tensors are missing: model.layers.1."), "{error}");
        // Both forms of one matrix: which counts?
        let (twin, value) =
            apart.iter().find(|(name, _)| name.contains("layers.1") && name.contains("experts.0.")).unwrap();
        let mut both = fused;
        both.insert(twin.clone(), value.copy());
        assert!(refusal(&both).message.contains("is there twice"));
    }
}

#[test]
fn adapters_beside_experts_are_refused_and_all_other_projections_have_some() {
    for case in CASES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let architecture = Architecture::open(&folder).unwrap();
        let lora = |targets: &[&str]| {
            let targets = targets.iter().map(|target| target.to_string()).collect();
            Lora::new(
                &LoraConfig { rank: 2, alpha: 4.0, targets, seed: 0, use_rslora: false, base: None },
                &architecture,
            )
        };
        let all = lora(&["q_proj", "k_proj", "v_proj", "o_proj"]).unwrap();
        assert_eq!(all.parameters(&architecture, 1).len(), 8);
        for target in if case == "mixtral" { ["w1", "w2", "gate"] } else { ["up_proj", "down_proj", "mlp.gate"] } {
            let error = lora(&["q_proj", target]).unwrap_err();
            let hint = error.hint.unwrap_or_default();
            assert!(error.message.contains("belongs to experts") && hint.contains("v_proj") && !hint.contains("gate"));
        }
        assert!(lora(&["other"]).unwrap_err().message.contains("no projection"));
    }
}

#[test]
fn a_model_is_computed_with_a_share_of_its_experts() {
    // As the hub has them, in the keys of Transformers 4; the numbers that their names speak of, in billions.
    for (config, all, active) in [
        (
            r#"{"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
                "num_experts_per_tok": 2}"#,
            46_702_792_704usize,
            12_879_925_248usize,
        ),
        (
            r#"{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
                "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
                "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true}"#,
            30_532_122_624,
            3_353_032_704,
        ),
        (
            r#"{"model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
                "num_hidden_layers": 16, "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8}"#,
            6_919_161_856,
            1_282_017_280,
        ),
    ] {
        let model = Architecture::parse(config).unwrap();
        let parts = Part::all(&model).into_iter().filter(|part| *part != Part::RewardHead);
        let (mut counted, mut passed) = (0, 0);
        for part in parts {
            let elements = part.parameters(&model).iter().map(|one| one.shape.iter().product::<i64>() as usize).sum();
            counted += elements;
            passed += if let Part::Block(block) = part { active_elements(&model, block) } else { elements };
        }
        assert_eq!((counted, passed), (all, active), "{config}");
    }
}

/// The first block with experts, and what they are.
fn experts_of(engine: &Engine) -> (usize, Experts) {
    let mut blocks = engine.model.architecture.blocks.iter().enumerate();
    blocks.find_map(|(number, block)| Some((number, block.mlp.experts?))).unwrap()
}

/// What routers did with pairs, so many a batch: the sum of their balance losses, the load of each block's experts, the
/// smallest gap; and the gradients of the balance loss alone.
struct Routed {
    balance: f64,
    load: Vec<Vec<f64>>,
    gap: f64,
    buckets: Buckets,
}

fn routed(engine: &mut Engine, pairs: &[OwnedPair], packing: Packing, per_batch: usize, weight: f64) -> Routed {
    let config = LossConfig { router_balance: weight, ..LossConfig::default() };
    // Of the other losses nothing has a gradient.
    let objective = Objective { config: &config, reward_weight: 0.0, alpha: 0.0, log_probs: true };
    let (_, experts) = experts_of(engine);
    let blocks = engine.model.architecture.blocks.iter().filter(|block| block.mlp.experts.is_some()).count();
    let experts = experts.count;
    let buckets = Buckets::of(&engine.model).unwrap();
    let mut all = Routed { balance: 0.0, load: vec![vec![0.0; experts]; blocks], gap: f64::INFINITY, buckets };
    for (number, chunk) in pairs.chunks(per_batch).enumerate() {
        let batch = pack(chunk, number * per_batch, packing);
        let losses = engine.forward_backward(&batch, &objective, &mut all.buckets).unwrap();
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

/// How many tokens went to other experts.
fn flips(one: &Routed, other: &Routed) -> f64 {
    let pairs = one.load.iter().flatten().zip(other.load.iter().flatten());
    pairs.map(|(one, other)| (one - other).abs()).sum::<f64>() / 2.0
}

#[test]
fn in_bf16_few_tokens_go_to_other_experts_and_scores_stay_near() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let mut engines =
            [Kind::Float, Kind::BFloat16].map(|kind| golden.engine_in(kind, &golden.folder, false, &|_| ()));
        let (mut flipped, mut chosen, mut squares, mut values) = (0.0, 0, 0.0, 0);
        for pair in golden.pairs().chunks(1) {
            let [exact, rounded] = engines.each_mut().map(|engine| routed(engine, pair, Packing::Shared, 1, 1e-9));
            flipped += flips(&exact, &rounded);
            chosen += pair[0].tokens_of_both() * experts_of(&engines[0]).1.top_k * exact.load.len();
            let batch = pack(pair, 0, Packing::Shared);
            let [exact, rounded] = engines.each_mut().map(|engine| engine.score(&batch, true).unwrap().remove(0));
            let scores = |scores: &PairScores| [scores.rewards, scores.log_probs].concat();
            for (exact, rounded) in scores(&exact).into_iter().zip(scores(&rounded)) {
                squares += ((rounded - exact) / exact.abs().max(1.0)).powi(2);
                values += 1;
            }
        }
        let distance = (squares / f64::from(values)).sqrt();
        println!(
            "{case}: in bf16 {flipped} of {chosen} choices are others; scores off by {distance:.1e} (root mean square)"
        );
        assert!(flipped * 20.0 < chosen as f64, "{case}: {flipped} of {chosen}");
        assert!(distance < 1e-1, "{case}: {distance:.1e}");
    }
}

#[test]
fn no_expert_is_chosen_otherwise_in_company() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let (pairs, mut engine) = (golden.pairs(), golden.engine_of(&golden.folder, false, &|_| ()));
        let alone = routed(&mut engine, &pairs, Packing::Separate, 1, 1e-9);
        let together = routed(&mut engine, &pairs, Packing::Shared, 5, 1e-9);
        println!("{case}: {} flips; the smallest gap is {:.1e}", flips(&alone, &together), together.gap);
        assert_eq!(flips(&alone, &together), 0.0, "{case}");
        // Rounding moves a share by 1e-6 at most.
        assert!(together.gap > 1e-4 && (together.gap - alone.gap).abs() < 1e-6, "{case}: {}", together.gap);
        // Control: other weights of the router are seen.
        let (index, _) = engine.model.segment(Part::Block(experts_of(&engine).0)).unwrap();
        let place =
            engine.model.segments[index].parameters().iter().position(|one| one.name.contains(".gate.")).unwrap();
        let router = engine.model.segments[index].value(place).copy();
        engine.model.segments[index].set(place, &router.flip([0]));
        assert!(flips(&alone, &routed(&mut engine, &pairs, Packing::Shared, 5, 1e-9)) > 0.0, "{case}");
    }
}
