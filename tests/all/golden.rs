//! Promise: every logit, loss and gradient agrees with Hugging Face Transformers and plain PyTorch formulas.
//!
//! The golden files are made by tests/golden/make_golden.py. Each case is also run with separate packing, one pair at a
//! time and with activation checkpointing, which must all give the golden numbers.

use crate::device::gpu;
use haf_dist::config::LossConfig;
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::engine::head::{Objective, PairLosses};
use haf_dist::engine::{Buckets, Engine};
use haf_dist::model::architecture::Architecture;
use haf_dist::model::decoder::Part;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::Mapped;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Names another device and kind than f32 on the CPU: "cuda f32" or "cuda bf16". launch/gpu-check.sh sets it for the test
/// of losses and gradients; single logits are further off in bf16, and what a control notices in f32 may drown.
const PLACE: &str = "HAF_DIST_TEST_GOLDEN";

/// Where the cases run, and the largest ||a - b|| / ||b||, per tensor: of what is computed forward, and of gradients, of
/// which bf16 keeps fewer digits where they nearly cancel (a key's bias).
fn place() -> (Device, Kind, [f64; 2]) {
    match std::env::var(PLACE).as_deref() {
        Ok("cuda f32") => (gpu(0), Kind::Float, [1e-4; 2]),
        Ok("cuda bf16") => (gpu(0), Kind::BFloat16, [5e-2, 3e-1]),
        Ok("cpu bf16") => (Device::Cpu, Kind::BFloat16, [5e-2, 3e-1]),
        Ok(other) => panic!("{PLACE} = {other:?}"),
        Err(_) => (Device::Cpu, Kind::Float, [1e-5; 2]),
    }
}
pub const CASES: [&str; 31] = [
    "llama-tied",
    "llama-untied",
    "llama-linear",
    "mistral",
    "mistral-some-windows",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "qwen3-moe-mixed",
    "mixtral",
    "olmoe",
    "phi",
    "phi-normed",
    "phi3",
    "gemma2",
    "gemma3",
    "olmo2",
    "olmo3",
    "ministral3",
    "llama-yarn",
    "llama-dynamic",
    "phi3-longrope",
    "granite",
    "exaone4",
    "glm",
    "glm4",
    "cohere2",
    "smollm3",
    "gpt-neox-odd",
    "gpt-neox-parallel",
    "gpt-neox-sequential",
];

impl OwnedPair {
    /// Of both sequences: a prefix counts twice.
    pub fn tokens_of_both(&self) -> usize {
        2 * self.prefix.len() + self.chosen.len() + self.rejected.len()
    }

    pub fn spans(&self) -> [AnswerSpan; 2] {
        AnswerSpan::of_pair(self.prompt_length, self.prefix.len(), self.chosen.len(), self.rejected.len())
    }
}

pub struct Golden {
    pub folder: PathBuf,
    pub file: Mapped,
    loss: LossConfig,
    margins: Vec<f32>,
}

pub struct OwnedPair {
    pub prefix: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    prompt_length: usize,
    margin: f32,
    reference: [f32; 2],
}

impl Golden {
    pub fn open(case: &str, file: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let file = Mapped::open(&folder.join(file)).unwrap();
        let about: serde_json::Value = serde_json::from_str(&file.metadata()["golden"]).unwrap();
        let loss = serde_json::from_value(about["loss"].clone()).unwrap();
        let margins = serde_json::from_value(about["margins"].clone()).unwrap();
        Self { folder, file, loss, margins }
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        Vec::try_from(self.file.read(name).unwrap().to_kind(Kind::Float).flatten(0, -1)).unwrap()
    }

    /// The pairs, always from the case's main file, with their longest common prefix split off.
    pub fn pairs(&self) -> Vec<OwnedPair> {
        let main = Mapped::open(&self.folder.join("golden.safetensors")).unwrap();
        let ids = |name: String| -> Vec<u32> {
            let ids: Vec<i64> = Vec::try_from(main.read(&name).unwrap()).unwrap();
            ids.into_iter().map(|id| id as u32).collect()
        };
        let split = |(index, &margin): (usize, &f32)| {
            let prompt = ids(format!("pair{index}.prompt"));
            let join = |answer| [prompt.clone(), ids(format!("pair{index}.{answer}"))].concat();
            let (chosen, rejected) = (join("chosen"), join("rejected"));
            let common = chosen.iter().zip(&rejected).take_while(|(left, right)| left == right).count();
            let common = common.min(chosen.len() - 1).min(rejected.len() - 1);
            let reference = main.read(&format!("pair{index}.reference_logps")).unwrap().to_kind(Kind::Float);
            OwnedPair {
                prefix: chosen[..common].to_vec(),
                chosen: chosen[common..].to_vec(),
                rejected: rejected[common..].to_vec(),
                prompt_length: prompt.len(),
                margin,
                reference: Vec::<f32>::try_from(reference).unwrap().try_into().unwrap(),
            }
        };
        self.margins.iter().enumerate().map(split).collect()
    }

    fn engine(&self, folder: &Path, checkpointing: bool) -> Engine {
        self.engine_of(folder, checkpointing, &|_| ())
    }

    /// With something else in the model's description.
    pub fn engine_of(&self, folder: &Path, checkpointing: bool, change: &dyn Fn(&mut Architecture)) -> Engine {
        self.engine_in(place().1, folder, checkpointing, change)
    }

    /// Computed in `kind`.
    pub fn engine_in(
        &self,
        kind: Kind,
        folder: &Path,
        checkpointing: bool,
        change: &dyn Fn(&mut Architecture),
    ) -> Engine {
        let options = LoadOptions { kind, device: place().0, purpose: Use::Train, log_probs: self.loss.needs_policy() };
        let mut model = Model::load(folder, options).unwrap();
        let main = Mapped::open(&self.folder.join("golden.safetensors")).unwrap();
        let (index, _) = model.segment(Part::RewardHead).unwrap();
        model.segments[index].set(0, &main.read("score.weight").unwrap());
        change(&mut model.architecture);
        Engine::new(model, checkpointing).unwrap()
    }

    fn objective(&self) -> Objective<'_> {
        Objective {
            config: &self.loss,
            reward_weight: self.loss.effective_reward_weight(),
            alpha: self.loss.effective_alpha(),
            log_probs: self.loss.needs_policy(),
        }
    }
}

pub fn pack(pairs: &[OwnedPair], from: usize, packing: Packing) -> PackedBatch {
    let items = pairs.iter().enumerate().map(|(index, pair)| PairToPack {
        index: from + index,
        pair: TokenPair {
            prefix: &pair.prefix,
            chosen: &pair.chosen,
            rejected: &pair.rejected,
            spans: pair.spans(),
            margin: pair.margin,
            tied: false,
            domain: 0,
            prompt_hash: 0,
        },
        reference: pair.reference,
    });
    PackedBatch::new(items, packing, place().0)
}

/// The prefix once wherever the model allows it, as runs pack.
fn shared(engine: &Engine) -> Packing {
    Packing::shared(engine.model.architecture.alike())
}

pub fn distance(mine: &Tensor, golden: &Tensor) -> f64 {
    let mine = mine.to_device(Device::Cpu).to_kind(Kind::Float);
    let norm = golden.norm().double_value(&[]);
    let difference = (&mine - golden).norm().double_value(&[]);
    if norm == 0.0 { difference } else { difference / norm }
}

/// Runs the pairs `per_batch` at a time and compares losses and every gradient that the golden file holds. Returns the
/// largest relative distance of a gradient.
pub fn check(golden: &Golden, engine: &mut Engine, packing: Packing, per_batch: usize) -> Result<f64, String> {
    check_within(place().2, golden, engine, packing, per_batch)
}

/// The same with other bounds: of losses and of gradients.
pub fn check_within(
    bounds: [f64; 2],
    golden: &Golden,
    engine: &mut Engine,
    packing: Packing,
    per_batch: usize,
) -> Result<f64, String> {
    let pairs = golden.pairs();
    let packing = if packing == Packing::Shared { shared(engine) } else { packing };
    let (mut losses, mut buckets) = (Vec::<PairLosses>::new(), Buckets::of(&engine.model).unwrap());
    for (batch, chunk) in pairs.chunks(per_batch).enumerate() {
        let packed = pack(chunk, batch * per_batch, packing);
        losses.extend(engine.forward_backward(&packed, &golden.objective(), &mut buckets).unwrap().read().unwrap());
    }
    let count = pairs.len() as f64;
    let mean = |value: &dyn Fn(&PairLosses) -> f64| losses.iter().map(value).sum::<f64>() / count;
    let reward = mean(&|loss| loss.reward_loss);
    let policy = mean(&|loss| loss.policy_loss.unwrap_or(0.0));
    let objective = golden.objective();
    let expected = golden.floats("losses");
    let close = |name: &str, mine: f64, golden: f32| {
        let golden = f64::from(golden);
        let near = (mine - golden).abs() <= bounds[0] * golden.abs().max(1.0);
        if near { Ok(()) } else { Err(format!("{name}: {mine} is not {golden}")) }
    };
    if objective.reward_weight != 0.0 {
        close("reward loss", reward, expected[0])?;
    }
    if objective.log_probs {
        close("policy loss", policy, expected[1])?;
    }
    close("total", objective.reward_weight * reward + objective.alpha * policy, expected[2])?;
    let (mut compared, mut farthest) = (0, 0f64);
    for (segment, bucket) in buckets.iter() {
        for (sum, parameter) in bucket.views().iter().zip(engine.model.segments[segment].parameters().iter()) {
            let name = format!("grad.{}", parameter.name);
            if !golden.file.names().contains(&name) {
                continue;
            }
            let mine = parameter.rows.to_file(&(sum / count));
            let far = distance(&mine, &golden.file.read(&name).unwrap());
            if far.is_nan() || far > bounds[1] {
                return Err(format!("{name}: relative distance {far:.1e}"));
            }
            compared += 1;
            farthest = farthest.max(far);
        }
    }
    let expected = golden.file.names().iter().filter(|name| name.starts_with("grad.")).count();
    if compared == expected { Ok(farthest) } else { Err(format!("{compared} of {expected} gradients compared")) }
}

#[test]
fn losses_and_every_gradient_equal_pytorchs_in_every_packing() {
    for case in CASES {
        let mut farthest = 0f64;
        let golden = Golden::open(case, "golden.safetensors");
        let experts =
            Architecture::open(&golden.folder).unwrap().blocks.iter().any(|block| block.mlp.experts.is_some());
        if experts && place().1 == Kind::BFloat16 {
            // Rounding sends some tokens to other experts (`experts.rs` counts them), whose gradients are then others'.
            continue;
        }
        for packing in [Packing::Shared, Packing::Separate] {
            for per_batch in [1, 2, 5] {
                for checkpointing in [false, true] {
                    let mut engine = golden.engine(&golden.folder, checkpointing);
                    let outcome = check(&golden, &mut engine, packing, per_batch);
                    let what = format!("{case}, {packing:?}, {per_batch} a batch, checkpointing {checkpointing}");
                    farthest = farthest.max(outcome.unwrap_or_else(|why| panic!("{what}: {why}")));
                }
            }
        }
        println!("{case}: largest relative distance of a gradient {farthest:.1e}");
    }
}

#[test]
fn every_loss_variant_equals_pytorchs() {
    for variant in ["reward", "hinge", "ipo", "simpo", "sft"] {
        let golden = Golden::open("llama-tied", &format!("golden-{variant}.safetensors"));
        let mut engine = golden.engine(&golden.folder, false);
        check(&golden, &mut engine, Packing::Shared, 5).unwrap_or_else(|why| panic!("{variant}: {why}"));
    }
}

#[test]
fn rewards_and_log_probs_equal_transformers() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let mut engine = golden.engine(&golden.folder, false);
        let pairs = golden.pairs();
        for scores in engine.score(&pack(&pairs, 0, shared(&engine)), true).unwrap() {
            let index = scores.index;
            let rewards = golden.floats(&format!("pair{index}.rewards"));
            let log_probs = golden.floats(&format!("pair{index}.logps"));
            for answer in 0..2 {
                // As for the losses: what is near zero has the rounding of its terms.
                let far = |mine: f64, golden: f32| (mine - f64::from(golden)).abs() / f64::from(golden).abs().max(1.0);
                assert!(far(scores.rewards[answer], rewards[answer]) < place().2[0], "{case}, pair {index}");
                assert!(far(scores.log_probs[answer], log_probs[answer]) < place().2[0], "{case}, pair {index}");
            }
        }
    }
}

#[test]
fn every_logit_equals_transformers() {
    for case in CASES {
        let golden = Golden::open(case, "golden.safetensors");
        let mut engine = golden.engine(&golden.folder, false);
        let vocabulary = engine.model.segments[engine.order.vocabulary().unwrap()].weights.share();
        for (index, pair) in golden.pairs().iter().enumerate() {
            let batch = pack(std::slice::from_ref(pair), 0, shared(&engine));
            let hidden = engine.hidden(&batch).unwrap();
            let mut logits = hidden.matmul(&vocabulary.view(0).tr());
            if engine.model.architecture.head_bias {
                logits += vocabulary.view(1);
            }
            if let Some(scale) = engine.model.architecture.logit_scale {
                logits *= scale;
            }
            if let Some(cap) = engine.model.architecture.logit_cap {
                logits = (logits / cap).tanh() * cap;
            }
            // Rows of [prefix | chosen | rejected]: those of each whole sequence, in order.
            let [prefix, chosen, rejected] = [&pair.prefix, &pair.chosen, &pair.rejected].map(|part| part.len() as i64);
            let chosen_rows = logits.narrow(0, 0, prefix + chosen);
            let rejected_rows = match batch.groups.len() {
                1 => Tensor::cat(&[logits.narrow(0, 0, prefix), logits.narrow(0, prefix + chosen, rejected)], 0),
                _ => logits.narrow(0, prefix + chosen, prefix + rejected),
            };
            for (answer, rows) in [("chosen", chosen_rows), ("rejected", rejected_rows)] {
                let expected = golden.file.read(&format!("pair{index}.logits_{answer}")).unwrap();
                assert_eq!(rows.size(), expected.size());
                let far = distance(&rows, &expected);
                assert!(far < place().2[0], "{case}, pair {index}, {answer}: {far:.1e}");
            }
        }
    }
}

#[test]
fn a_prefix_is_not_shared_by_sequences_on_different_sides_of_a_limit() {
    for case in ["llama-dynamic", "phi3-longrope"] {
        let golden = Golden::open(case, "golden.safetensors");
        let mut engine = golden.engine(&golden.folder, false);
        let pairs = golden.pairs();
        let groups = |pair| pack(std::slice::from_ref(pair), 0, shared(&engine)).groups.len();
        let shares: Vec<bool> = pairs.iter().map(|pair| groups(pair) == 1).collect();
        // 5 + 5 and 5 + 7 tokens, 3 + 6 and 3 + 3, 6 + 1 and 6 + 4, 4 + 4 twice, 3 + 2 and 3 + 6; the limit is 8. A dynamic
        // rotation is another for every length beyond it.
        assert_eq!(shares, [case == "phi3-longrope", false, false, true, false], "{case}");
        // Control: to share all of them is an error, not another number.
        let error = engine.score(&pack(&pairs, 0, Packing::Shared), true).err().unwrap();
        assert!(error.message.contains("rotated differently"), "{error}");
    }
}

#[test]
fn sharded_weights_are_the_same_model() {
    let golden = Golden::open("llama-linear", "golden.safetensors");
    let mut engine = golden.engine(&golden.folder.join("sharded"), false);
    check(&golden, &mut engine, Packing::Shared, 5).unwrap();
}

#[test]
fn control_a_swapped_pair_or_a_shifted_reward_is_noticed() {
    let golden = Golden::open("llama-tied", "golden.safetensors");
    let run = |change: &dyn Fn(&mut PackedBatch)| {
        let mut engine = golden.engine(&golden.folder, false);
        let mut buckets = Buckets::of(&engine.model).unwrap();
        let mut batch = pack(&golden.pairs(), 0, Packing::Shared);
        change(&mut batch);
        engine.forward_backward(&batch, &golden.objective(), &mut buckets).unwrap();
        let mine = &buckets.get(engine.order.embedding).unwrap().views()[0] / 5.0;
        distance(&mine, &golden.file.read("grad.model.embed_tokens.weight").unwrap())
    };
    assert!(run(&|_| {}) < place().2[1]);
    assert!(run(&|batch| batch.pairs[0].answers.swap(0, 1)) > 1e-3);
    assert!(run(&|batch| batch.pairs[1].answers[0].reward_row -= 1) > 1e-3);
    assert!(run(&|batch| batch.positions += 1 - batch.positions.clamp(0, 1)) > 1e-3);
}
