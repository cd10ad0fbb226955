//! Promise: models with experts load from files of either form, and adapters for experts are refused by name; a token goes to the
//! experts that Transformers chooses, which depend on its sequence alone, and of equal shares to the first; in bf16 rounding
//! sends few tokens to other experts.
//!
//! Not here: losses and gradients (`golden.rs`), the balance loss (`balance.rs`), and the products (`ops/experts.rs`).

use crate::balance::routed;
use crate::families::{load, tensors, values, written};
use crate::golden::{Golden, OwnedPair, pack};
use haf_dist::config::LoraConfig;
use haf_dist::data::batch::Packing;
use haf_dist::engine::Engine;
use haf_dist::engine::head::PairScores;
use haf_dist::model::architecture::{Architecture, Experts};
use haf_dist::model::layout::{Part, active_elements};
use haf_dist::model::lora::Lora;
use haf_dist::packing::Group;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

pub const CASES: [&str; 4] = ["qwen3-moe", "qwen3-moe-mixed", "mixtral", "olmoe"];

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
fn adapters_for_experts_are_refused_and_all_other_projections_have_some() {
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
pub fn experts_of(engine: &Engine) -> (usize, Experts) {
    let mut blocks = engine.model.architecture.blocks.iter().enumerate();
    blocks.find_map(|(number, block)| Some((number, block.mlp.experts?))).unwrap()
}

/// The experts of each token of each sequence in each block, in ascending order: those of the first sequence's first block
/// first, whatever the packing.
fn choices(engine: &mut Engine, pairs: &[OwnedPair], packing: Packing, per_batch: usize) -> Vec<Vec<i64>> {
    let mut all = Vec::new();
    for (number, chunk) in pairs.chunks(per_batch).enumerate() {
        let batch = pack(chunk, number * per_batch, packing);
        let blocks: Vec<Vec<Vec<i64>>> = engine
            .experts(&batch)
            .unwrap()
            .iter()
            .map(|chosen| Vec::try_from(chosen.sort(-1, false).0).unwrap())
            .collect();
        for rows in batch.groups.iter().flat_map(sequences) {
            all.extend(blocks.iter().flat_map(|block| rows.iter().map(|&row| block[row].clone())));
        }
    }
    all
}

/// The rows of each sequence of a group.
fn sequences(group: &Group) -> Vec<Vec<usize>> {
    let mut start = group.start + group.prefix;
    let mut sequence = |length: &usize| {
        start += length;
        (group.start..group.start + group.prefix).chain(start - length..start).collect()
    };
    group.suffixes.iter().map(&mut sequence).collect()
}

/// How many choices of an expert for a token are others.
fn flips(one: &[Vec<i64>], other: &[Vec<i64>]) -> usize {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).flat_map(|(one, other)| one.iter().filter(|expert| !other.contains(expert))).count()
}

/// The same by the shares that Transformers' routers give.
fn of_transformers(golden: &Golden, top_k: usize) -> Vec<Vec<i64>> {
    let sides = (0..golden.pairs().len()).flat_map(|pair| ["chosen", "rejected"].map(|side| (pair, side)));
    let of_sequence = |(pair, side)| -> Vec<Vec<i64>> {
        let shares = golden.file.read(&format!("pair{pair}.shares_{side}")).unwrap();
        let chosen = shares.topk(top_k as i64, -1, true, true).1.flatten(0, 1);
        Vec::try_from(chosen.sort(-1, false).0).unwrap()
    };
    sides.flat_map(of_sequence).collect()
}

/// Changes the router of the first block with experts.
fn change_router(engine: &mut Engine, change: impl Fn(&Tensor) -> Tensor) {
    let (index, _) = engine.model.segment(Part::Block(experts_of(engine).0)).unwrap();
    let segment = &mut engine.model.segments[index];
    let place = segment.parameters().iter().position(|one| one.name.contains(".gate.")).unwrap();
    let changed = change(&segment.value(place));
    segment.set(place, &changed);
}

#[test]
fn in_bf16_few_tokens_go_to_other_experts_and_scores_stay_near() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let mut engines =
            [Kind::Float, Kind::BFloat16].map(|kind| golden.engine_in(kind, &golden.folder, false, &|_| ()));
        let (mut flipped, mut chosen, mut squares, mut values) = (0, 0, 0.0, 0);
        for pair in golden.pairs().chunks(1) {
            let [exact, rounded] = engines.each_mut().map(|engine| choices(engine, pair, Packing::Shared, 1));
            flipped += flips(&exact, &rounded);
            chosen += exact.iter().map(Vec::len).sum::<usize>();
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
        assert!(flipped * 20 < chosen, "{case}: {flipped} of {chosen}");
        assert!(distance < 1e-1, "{case}: {distance:.1e}");
    }
}

#[test]
fn every_token_goes_to_the_experts_of_transformers_alone_and_in_a_batch() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let (pairs, mut engine) = (golden.pairs(), golden.engine_of(&golden.folder, false, &|_| ()));
        let alone = choices(&mut engine, &pairs, Packing::Separate, 1);
        let together = choices(&mut engine, &pairs, Packing::Shared, 5);
        let gap = |engine: &mut Engine, packing, per_batch| routed(engine, &pairs, packing, per_batch, 1e-9).gap;
        let gaps = [gap(&mut engine, Packing::Separate, 1), gap(&mut engine, Packing::Shared, 5)];
        println!("{case}: {} flips; the smallest gap is {:.1e}", flips(&alone, &together), gaps[1]);
        assert_eq!(flips(&alone, &together), 0, "{case}");
        assert_eq!(flips(&of_transformers(&golden, experts_of(&engine).1.top_k), &together), 0, "{case}");
        // Rounding moves a share by 1e-6 at most.
        assert!(gaps[1] > 1e-4 && (gaps[1] - gaps[0]).abs() < 1e-6, "{case}: {gaps:?}");
        // Control: two tokens that change places, so that every expert has as many as before.
        let mut exchanged = together.clone();
        let other = exchanged.iter().position(|chosen| *chosen != exchanged[0]).unwrap();
        exchanged.swap(0, other);
        assert!(flips(&together, &exchanged) > 0, "{case}");
        // Control: other weights of the router are seen.
        change_router(&mut engine, |router| router.flip([0]));
        assert!(flips(&alone, &choices(&mut engine, &pairs, Packing::Shared, 5)) > 0, "{case}");
    }
}

#[test]
fn of_experts_with_equal_logits_the_first_are_chosen() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let (pairs, experts) = (golden.pairs(), experts_of(&golden.engine_of(&golden.folder, false, &|_| ())).1);
        let (last, top_k) = (experts.count as i64 - 1, experts.top_k as i64);
        for kind in [Kind::Float, Kind::BFloat16] {
            // Those of the first block with experts.
            let first_blocks = |change: &dyn Fn(&Tensor) -> Tensor| {
                let mut engine = golden.engine_in(kind, &golden.folder, false, &|_| ());
                change_router(&mut engine, change);
                let batch = pack(&pairs, 0, Packing::Shared);
                let chosen = engine.experts(&batch).unwrap().remove(0);
                Vec::<Vec<i64>>::try_from(chosen).unwrap()
            };
            let none = first_blocks(&|router| router.zeros_like());
            assert!(none.iter().all(|chosen| *chosen == Vec::from_iter(0..top_k)), "{case} {kind:?}: {none:?}");
            // The last expert's logit is always the first one's: one input each, since sums may round otherwise for each expert.
            let same = first_blocks(&|router| {
                let one_input_each = router.zeros_like();
                for expert in 0..last {
                    let _ = one_input_each.get(expert).get(expert).fill_(1.0);
                }
                let _ = one_input_each.get(last).get(0).fill_(1.0);
                one_input_each
            });
            let place = |chosen: &[i64], expert| chosen.iter().position(|one| *one == expert);
            let later = |chosen: &Vec<i64>| match (place(chosen, 0), place(chosen, last)) {
                (first, Some(last)) => first.is_some_and(|first| first < last),
                (_, None) => true,
            };
            assert!(same.iter().all(later), "{case} {kind:?}: {same:?}");
            assert!(same.iter().any(|chosen| place(chosen, last).is_some()), "{case} {kind:?}: never both");
            // Control: as it is, some token goes to the last and not to the first.
            assert!(!first_blocks(&|router| router.copy()).iter().all(later), "{case} {kind:?}");
        }
    }
}
