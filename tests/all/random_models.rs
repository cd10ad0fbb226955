//! Promise: in valid configurations of every family, drawn at random, pairs packed together with a shared prefix have the
//! losses and gradients of single sequences, with and without adapters, and gradients are the slopes of the loss.
//!
//! The configurations are the same in every run. Not here: Transformers' numbers for them (`golden.rs`).

use haf_dist::config::{LoraConfig, LossConfig};
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::engine::head::Objective;
use haf_dist::engine::{Buckets, Engine};
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::architecture::{Architecture, FAMILIES, NormKind};
use haf_dist::model::layout::Part;
use haf_dist::model::lora;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::write_model;
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Configurations a family.
const DRAWS: u64 = 2;
/// Largest relative distance of packed from single, in f32.
const PACKED: f64 = 2e-5;
/// Largest relative distance of a slope from the gradient's norm, beyond what the rounding of an f32 loss makes of it.
const SLOPE: f64 = 2e-2;
const ROUNDING: f64 = 5e-3;
/// Segments of all models in which a step along the gradient may send a token to other experts.
const MOST_FLIPPED: usize = 8;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % count as u64) as usize
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// A number of n / 8.
    fn eighths(&mut self, from: usize, to: usize) -> f64 {
        (from + self.below(to - from + 1)) as f64 / 8.0
    }
}

/// A scaling for `count` frequencies, of any kind; limits lie among the lengths of the pairs.
fn scaling(dice: &mut Dice, count: usize, phi3: bool) -> Value {
    let theta = dice.one_of(&[20.0, 100.0, 10_000.0]);
    let kinds = ["default", "longrope", "linear", "dynamic", "yarn", "llama3"];
    let kind = match dice.one_of(if phi3 { &kinds[..2] } else { &kinds }) {
        // Refused: it divides by zero.
        "dynamic" if count < 2 => "linear",
        kind => kind,
    };
    let mut set = json!({"rope_type": kind, "rope_theta": theta});
    if kind != "default" {
        set["factor"] = json!(dice.eighths(9, 40));
    }
    if ["longrope", "yarn", "llama3"].contains(&kind) {
        set["original_max_position_embeddings"] = json!(6 + dice.below(6));
    }
    match kind {
        "longrope" => {
            let mut divisors = |from| (0..count).map(|_| dice.eighths(from, from + 8)).collect::<Vec<_>>();
            (set["short_factor"], set["long_factor"]) = (json!(divisors(8)), json!(divisors(16)));
        }
        "yarn" => (set["beta_fast"], set["beta_slow"]) = (json!(dice.eighths(8, 40)), json!(dice.eighths(1, 6))),
        "llama3" => (set["low_freq_factor"], set["high_freq_factor"]) = (json!(1.0), json!(dice.eighths(10, 32))),
        _ => {}
    }
    set
}

fn drawn(family: &str, dice: &mut Dice) -> Value {
    let [heads, kv, head_width] = [dice.one_of(&[1, 2, 3]), dice.one_of(&[1, 2]), dice.one_of(&[4, 6, 8])];
    let (heads, kv) = if family == "gpt_neox" { (heads, heads) } else { (heads * kv, kv) };
    let layers = 1 + dice.below(3);
    let has_head_dim = [
        "llama",
        "mistral",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "ministral3",
        "granite",
        "exaone4",
        "glm",
        "glm4",
        "qwen3_moe",
        "mixtral",
    ]
    .contains(&family);
    let width = if has_head_dim { 8 + 2 * dice.below(8) } else { heads * head_width };
    let act = dice.one_of(&["silu", "gelu", "gelu_new", "quick_gelu"]);
    let share = match family {
        "phi" | "gpt_neox" | "phi3" | "glm" | "glm4" => dice.one_of(&[0.5, 0.75, 1.0]),
        _ => 1.0,
    };
    let rotated = (head_width as f64 * share) as usize;
    let mut set = scaling(dice, rotated.div_ceil(2), family == "phi3");
    // Whole heads are not the default of these.
    if share != 1.0 || ["phi", "gpt_neox", "glm", "glm4"].contains(&family) {
        set["partial_rotary_factor"] = json!(share);
    }
    let window = dice.below(4) + 2;
    let kinds: Vec<&str> = (0..layers).map(|_| dice.one_of(&["full_attention", "sliding_attention"])).collect();
    let plain = json!({"rope_type": "default", "rope_theta": 50.0});
    let mut config = json!({
        "model_type": family, "vocab_size": 17 + dice.below(9), "hidden_size": width,
        "intermediate_size": 8 + dice.below(9), "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "max_position_embeddings": 8 + dice.below(4), "hidden_act": act,
        "hidden_activation": act, "tie_word_embeddings": dice.below(2) == 0,
        "attention_bias": dice.below(2) == 0, "mlp_bias": dice.below(2) == 0, "rope_parameters": set,
    });
    if has_head_dim {
        config["head_dim"] = json!(head_width);
    }
    if let Some(original) =
        config["rope_parameters"].get("original_max_position_embeddings").filter(|_| family == "phi3")
    {
        config["original_max_position_embeddings"] = original.clone();
    }
    // With them "mistral" would be read as "ministral".
    if ["ministral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo3", "smollm3", "exaone4", "cohere2"]
        .contains(&family)
    {
        config["layer_types"] = json!(kinds);
        config["use_sliding_window"] = json!(true);
    }
    if family != "ministral3" || dice.below(2) == 0 {
        config["sliding_window"] = json!(window);
    }
    let mut more = match family {
        "gemma3_text" | "olmo3" => {
            json!({"rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": plain}})
        }
        "granite" => json!({"embedding_multiplier": dice.eighths(4, 20), "residual_multiplier": dice.eighths(2, 10),
                            "attention_multiplier": dice.eighths(1, 8), "logits_scaling": dice.eighths(4, 20)}),
        "cohere2" => json!({"logit_scale": dice.eighths(2, 12)}),
        "phi" => json!({"qk_layernorm": dice.below(2) == 0}),
        "gpt_neox" => json!({"use_parallel_residual": dice.below(2) == 0}),
        "qwen3_moe" | "mixtral" | "olmoe" => {
            let count = 2 + dice.below(4);
            json!({"num_local_experts": count, "num_experts_per_tok": 1 + dice.below(count),
                   "moe_intermediate_size": 4 + dice.below(5), "norm_topk_prob": dice.below(2) == 0,
                   "use_sliding_window": dice.below(2) == 0, "decoder_sparse_step": 1 + dice.below(2)})
        }
        "smollm3" => json!({"no_rope_layers": (0..layers).map(|_| dice.below(2)).collect::<Vec<_>>()}),
        _ => json!({}),
    };
    if family == "gemma2" {
        more = json!({"attn_logit_softcapping": dice.eighths(16, 40), "final_logit_softcapping": dice.eighths(16, 60)});
    }
    if family.starts_with("gemma") {
        more["query_pre_attn_scalar"] = json!(4 + dice.below(8));
    }
    if family == "ministral3" {
        config["rope_parameters"]["llama_4_scaling_beta"] = json!(dice.eighths(1, 8));
    }
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// A folder with random weights that all matter.
fn write(config: &Value, folder: &Path) -> Architecture {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let architecture = Architecture::open(folder).unwrap_or_else(|error| panic!("{error}\n{config:#}"));
    let usual = if architecture.norm == NormKind::RootMeanSquarePlusOne { 0.0 } else { 1.0 };
    let declared = Part::all(&architecture).into_iter().flat_map(|part| part.parameters(&architecture));
    let tensors: Vec<(String, Tensor)> = declared
        .map(|declared| {
            let noise = Tensor::randn(declared.shape.as_slice(), (Kind::Float, Device::Cpu));
            let value = match declared.shape[..] {
                _ if declared.name.ends_with("bias") => noise * 0.2,
                [_] => noise * 0.2 + usual,
                [_, inputs] => noise * 0.8 / (inputs as f64).sqrt(),
                _ => panic!("{declared:?}"),
            };
            (declared.name, value)
        })
        .collect();
    write_model(&folder.join("model.safetensors"), &tensors).unwrap();
    architecture
}

struct Pairs(Vec<[Vec<u32>; 3]>);

impl Pairs {
    /// Sequences of 4 to 13 tokens.
    fn drawn(vocabulary: usize, dice: &mut Dice) -> Self {
        let mut part = |from: usize, to: usize| -> Vec<u32> {
            let length = from + dice.below(to - from + 1);
            (0..length).map(|_| dice.below(vocabulary) as u32).collect()
        };
        Self((0..4).map(|_| [part(3, 7), part(1, 6), part(1, 6)]).collect())
    }

    fn pack(&self, numbers: std::ops::Range<usize>, packing: Packing) -> PackedBatch {
        let items = numbers.map(|index| {
            let [prefix, chosen, rejected] = &self.0[index];
            let spans = AnswerSpan::of_pair(prefix.len(), prefix.len(), chosen.len(), rejected.len());
            let pair =
                TokenPair { prefix, chosen, rejected, spans, margin: 0.1, tied: false, domain: 0, prompt_hash: 0 };
            PairToPack { index, pair, reference: [-3.0, -2.0] }
        });
        PackedBatch::new(items, packing, Device::Cpu)
    }
}

/// The sum of the pairs' losses, and its gradient.
fn loss(engine: &mut Engine, batches: &[PackedBatch]) -> (f64, Buckets) {
    let config = LossConfig::default();
    let (reward_weight, alpha) = (1.0, 0.5);
    let objective = Objective { config: &config, reward_weight, alpha, log_probs: true };
    let mut buckets = Buckets::of(&engine.model).unwrap();
    let mut sum = 0.0;
    for batch in batches {
        let losses = engine.forward_backward(batch, &objective, &mut buckets).unwrap().read().unwrap();
        let of_pair = losses.iter().map(|loss| reward_weight * loss.reward_loss + alpha * loss.policy_loss.unwrap());
        sum += of_pair.sum::<f64>();
    }
    (sum, buckets)
}

/// The largest distance of packed from single, of the loss or of a segment's gradient.
fn packed_apart(engine: &mut Engine, pairs: &Pairs, packing: Packing) -> f64 {
    let alone: Vec<PackedBatch> = (0..4).map(|index| pairs.pack(index..index + 1, Packing::Separate)).collect();
    let (expected, wanted) = loss(engine, &alone);
    let (packed, found) = loss(engine, &[pairs.pack(0..4, packing)]);
    let mut far = (packed / expected - 1.0).abs();
    // `max` passes over what is no number.
    assert!(far.is_finite(), "the loss is {packed} packed, {expected} alone");
    for ((segment, found), (_, wanted)) in found.iter().zip(wanted.iter()) {
        let of_segment = ((found.flat() - wanted.flat()).norm() / wanted.flat().norm()).double_value(&[]);
        assert!(of_segment.is_finite(), "segment {segment} has a gradient that is not finite, or zero");
        far = far.max(of_segment);
    }
    far
}

/// How far the slope of the loss along a segment's gradient is from that gradient's norm, relatively. None where a token goes
/// through other experts on the way, since the loss has a step there.
fn slope_apart(engine: &mut Engine, pairs: &Pairs, packing: Packing, segment: usize) -> Option<f64> {
    let batch = pairs.pack(0..4, packing);
    let before = engine.experts(&batch).unwrap();
    let (_, buckets) = loss(engine, std::slice::from_ref(&batch));
    let gradient = buckets.get(segment).unwrap().flat().copy();
    let norm = gradient.norm().double_value(&[]);
    let count = engine.model.segments[segment].parameters().len();
    let kept: Vec<Tensor> = (0..count).map(|index| engine.model.segments[segment].value(index).copy()).collect();
    let mut smooth = true;
    let mut loss_at = |step: f64| {
        for (index, kept) in kept.iter().enumerate() {
            let direction = engine.model.segments[segment].parameters()[index].view(&gradient) / norm;
            engine.model.segments[segment].set(index, &(kept + direction * step));
        }
        smooth &= engine.experts(&batch).unwrap() == before;
        loss(engine, std::slice::from_ref(&batch)).0
    };
    // Richardson's: norms over few numbers bend a loss.
    let mut slope = |step: f64| (loss_at(step) - loss_at(-step)) / (2.0 * step);
    let slope = (4.0 * slope(1e-3) - slope(2e-3)) / 3.0;
    kept.iter().enumerate().for_each(|(index, kept)| engine.model.segments[segment].set(index, kept));
    assert!(slope.is_finite() && norm.is_finite(), "the slope is {slope}, the norm {norm}");
    smooth.then(|| ((slope - norm).abs() - ROUNDING).max(0.0) / norm)
}

#[test]
fn packed_is_single_and_gradients_are_slopes_in_random_models_of_every_family() {
    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Train, log_probs: true };
    let (mut packed, mut slope, mut slopes, mut unshared, mut flipped) = (0f64, 0f64, 0, 0, Vec::new());
    for (number, family) in
        FAMILIES.iter().filter(|family| !["gemma3", "mistral3"].contains(&family.model_type)).enumerate()
    {
        for draw in 0..DRAWS {
            let seed = 100 * number as u64 + draw;
            tch::manual_seed(seed as i64);
            let dice = &mut Dice(seed);
            let config = drawn(family.model_type, dice);
            let folder = tempfile::tempdir().unwrap();
            let architecture = write(&config, folder.path());
            let pairs = Pairs::drawn(architecture.vocabulary, dice);
            let packing = Packing::shared(architecture.alike());
            unshared += usize::from(pairs.pack(0..4, packing).groups.len() > 4);
            let mut engine = Engine::new(Model::load(folder.path(), options).unwrap(), draw == 0).unwrap();
            let far = packed_apart(&mut engine, &pairs, packing);
            assert!(far < PACKED, "packed is off by {far:.1e}: {config:#}");
            packed = packed.max(far);

            for segment in 0..if draw == 0 { engine.model.segments.len() } else { 0 } {
                let Some(far) = slope_apart(&mut engine, &pairs, packing, segment) else {
                    flipped.push(family.model_type);
                    continue;
                };
                slopes += 1;
                assert!(far < SLOPE, "{:?}: the slope is off by {far:.1e}: {config:#}", engine.model.parts[segment]);
                slope = slope.max(far);
            }

            // Adapters on all projections, with a B that is not zero.
            let projections = lora::projections(&architecture, 0);
            let targets = projections.iter().map(|(_, name, _)| lora::within_block(name).to_string()).collect();
            let settings = LoraConfig { rank: 2, alpha: 4.0, targets, seed, use_rslora: false, base: None };
            let origin = Origin { base: folder.path().into(), adapter: None };
            let mut model = adapter::load(&origin, options, Some(&settings)).unwrap();
            for block in 0..architecture.blocks.len() {
                let index = model.parts.iter().position(|part| *part == Part::Adapter(block)).unwrap();
                let segment = &model.segments[index];
                let values: Vec<Tensor> =
                    (0..segment.parameters().len()).map(|place| segment.value(place).randn_like() * 0.3).collect();
                values.iter().enumerate().for_each(|(place, value)| model.segments[index].set(place, value));
            }
            let mut engine = Engine::new(model, draw == 1).unwrap();
            let far = packed_apart(&mut engine, &pairs, packing);
            assert!(far < PACKED, "packed with adapters is off by {far:.1e}: {config:#}");
            packed = packed.max(far);
        }
    }
    assert!(unshared > 3, "{unshared} models have pairs that share no prefix");
    println!(
        "packed off by {packed:.1e} at most, {slopes} slopes by {slope:.1e}; {unshared} with unshared pairs; no slope where \
         a token changed its experts: {flipped:?}"
    );
    assert!(flipped.len() <= MOST_FLIPPED, "no slope was compared in {} segments: {flipped:?}", flipped.len());
}

#[test]
fn control_another_batch_and_its_gradient_are_noticed() {
    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Train, log_probs: true };
    let dice = &mut Dice(3);
    let folder = tempfile::tempdir().unwrap();
    let architecture = write(&drawn("granite", dice), folder.path());
    let [pairs, others] = [0, 1].map(|_| Pairs::drawn(architecture.vocabulary, dice));
    let mut engine = Engine::new(Model::load(folder.path(), options).unwrap(), false).unwrap();
    let packing = Packing::shared(architecture.alike());
    let (all, right) = loss(&mut engine, &[pairs.pack(0..4, packing)]);
    assert!((loss(&mut engine, &[pairs.pack(1..4, packing)]).0 / all - 1.0).abs() > 100.0 * PACKED);
    let (_, wrong) = loss(&mut engine, &[others.pack(0..4, packing)]);
    for ((_, right), (_, wrong)) in right.iter().zip(wrong.iter()) {
        let (right, wrong) = (right.flat(), wrong.flat());
        let along = (right * wrong).sum(Kind::Float) / (right.norm() * wrong.norm());
        assert!((along.double_value(&[]) - 1.0).abs() > SLOPE);
    }
}
