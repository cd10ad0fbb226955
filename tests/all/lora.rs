//! Promise: adapters compute and learn what PEFT's do, and nothing else is touched: losses and gradients on golden files,
//! one trajectory for any number of ranks, the base bit for bit as it was, the reference without adapters.
//!
//! The golden files are made by tests/golden/make_lora.py. Not here: whole runs of the program (tests/all/runs/lora.rs).

use crate::steps;
use haf_dist::comm::{CommThread, threads};
use haf_dist::config::{Config, LoraConfig, LossConfig};
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::engine::head::Objective;
use haf_dist::engine::{Buckets, Engine};
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::architecture::Architecture;
use haf_dist::model::layout::Part;
use haf_dist::model::lora::Lora;
use haf_dist::model::peft::PREFIX;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::Mapped;
use haf_dist::train::check_replicas;
use std::path::{Path, PathBuf};
use steps::{config, engine};
use tch::{Device, Kind, Tensor};

const MLP: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is set for the overrides of a trained config.
const LORA: [&str; 3] = ["lora.rank=4", "lora.alpha=8", "lora.targets=['q_proj', 'v_proj', 'down_proj']"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn settings(rank: usize, alpha: f64, use_rslora: bool, targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|target| target.to_string()).collect();
    LoraConfig { rank, alpha, targets, seed: 0, use_rslora, base: None }
}

fn cases() -> [(&'static str, LoraConfig); 9] {
    [
        ("lora-mlp", settings(4, 16.0, false, &MLP)),
        ("lora-all", settings(3, 6.0, true, &ALL)),
        ("lora-neox", settings(3, 6.0, false, &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"])),
        ("lora-phi3", settings(3, 6.0, false, &["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])),
        ("lora-gemma3", settings(2, 4.0, false, &ALL)),
        ("lora-olmo3", settings(2, 4.0, false, &["q_proj", "k_proj", "o_proj", "down_proj"])),
        ("lora-glm4", settings(2, 4.0, false, &["q_proj", "k_proj", "v_proj", "gate_up_proj"])),
        ("lora-qwen3-moe", settings(2, 4.0, false, &["q_proj", "v_proj", "o_proj"])),
        ("lora-some", settings(2, 3.0, false, &["k_proj", "up_proj"])),
    ]
}

fn options(kind: Kind, purpose: Use) -> LoadOptions {
    LoadOptions { kind, device: Device::Cpu, purpose, log_probs: true }
}

fn load(case: &str, kind: Kind, lora: &LoraConfig) -> Model {
    adapter::load(&Origin::of(&folder(case), None).unwrap(), options(kind, Use::Train), Some(lora)).unwrap()
}

/// The golden file of a case, and its pairs with their longest common prefix split off.
struct Golden {
    file: Mapped,
    pairs: Vec<[Vec<u32>; 3]>,
    prompts: Vec<usize>,
}

impl Golden {
    fn open(case: &str) -> Self {
        let file = Mapped::open(&folder(case).join("golden.safetensors")).unwrap();
        let ids = |name: String| -> Vec<u32> {
            Vec::<i64>::try_from(file.read(&name).unwrap()).unwrap().into_iter().map(|id| id as u32).collect()
        };
        let (mut pairs, mut prompts) = (Vec::new(), Vec::new());
        while file.names().contains(&format!("pair{}.prompt", pairs.len())) {
            let index = pairs.len();
            let prompt = ids(format!("pair{index}.prompt"));
            let [chosen, rejected] =
                ["chosen", "rejected"].map(|side| [prompt.clone(), ids(format!("pair{index}.{side}"))].concat());
            let common = chosen.iter().zip(&rejected).take_while(|(left, right)| left == right).count();
            let common = common.min(chosen.len() - 1).min(rejected.len() - 1);
            prompts.push(prompt.len());
            pairs.push([chosen[..common].to_vec(), chosen[common..].to_vec(), rejected[common..].to_vec()]);
        }
        Self { file, pairs, prompts }
    }

    fn floats(&self, name: &str) -> Vec<f64> {
        Vec::try_from(self.file.read(name).unwrap().to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    fn loss(&self) -> LossConfig {
        let about: serde_json::Value = serde_json::from_str(&self.file.metadata()["golden"]).unwrap();
        serde_json::from_value(about["loss"].clone()).unwrap()
    }

    fn batch(&self, from: usize, to: usize, packing: Packing) -> PackedBatch {
        let items = (from..to).map(|index| {
            let [prefix, chosen, rejected] = &self.pairs[index];
            let reference = self.floats(&format!("pair{index}.reference_logps"));
            let (start, reference) = (self.prompts[index], [reference[0] as f32, reference[1] as f32]);
            let pair = TokenPair {
                prefix,
                chosen,
                rejected,
                spans: AnswerSpan::of_pair(start, prefix.len(), chosen.len(), rejected.len()),
                margin: 0.0,
                tied: false,
                domain: 0,
                prompt_hash: index as u64,
            };
            PairToPack { index, pair, reference }
        });
        PackedBatch::new(items, packing, Device::Cpu)
    }
}

fn distance(mine: &Tensor, golden: &Tensor) -> f64 {
    ((mine - golden).norm() / golden.norm()).double_value(&[])
}

/// Largest relative distance of a loss or a gradient from PEFT's.
fn farthest(golden: &Golden, engine: &mut Engine, packing: Packing, per_batch: usize) -> f64 {
    let (loss, count) = (golden.loss(), golden.pairs.len());
    let objective = Objective { config: &loss, reward_weight: 1.0, alpha: loss.alpha, log_probs: true };
    let (mut sums, mut buckets) = ([0.0; 2], Buckets::of(&engine.model).unwrap());
    for from in (0..count).step_by(per_batch) {
        let batch = golden.batch(from, count.min(from + per_batch), packing);
        for losses in engine.forward_backward(&batch, &objective, &mut buckets).unwrap().read().unwrap() {
            sums[0] += losses.reward_loss;
            sums[1] += losses.policy_loss.unwrap();
        }
    }
    let expected = golden.floats("losses");
    let mut far = (0..2).map(|index| (sums[index] / count as f64 / expected[index] - 1.0).abs()).fold(0.0, f64::max);
    let mut compared = 0;
    for (segment, bucket) in buckets.iter() {
        for (sum, parameter) in bucket.views().iter().zip(engine.model.segments[segment].parameters().iter()) {
            let expected = golden.file.read(&format!("grad.{PREFIX}{}", parameter.name)).unwrap();
            let mine = sum / count as f64;
            far = far.max(distance(&parameter.rows.to_file(&mine), &expected));
            compared += 1;
        }
    }
    let expected = golden.file.names().iter().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(compared, expected, "every adapter and the head, and nothing else");
    far
}

#[test]
fn losses_and_every_gradient_equal_pefts_in_every_packing() {
    let mut largest = 0f64;
    for (case, lora) in cases() {
        let golden = Golden::open(case);
        for (packing, per_batch) in [(Packing::Shared, 5), (Packing::Shared, 2), (Packing::Separate, 1)] {
            for checkpointing in [false, true] {
                let mut engine = Engine::new(load(case, Kind::Float, &lora), checkpointing).unwrap();
                let far = farthest(&golden, &mut engine, packing, per_batch);
                assert!(
                    far < 1e-5,
                    "{case}, {packing:?}, {per_batch} a batch, checkpointing {checkpointing}: {far:.1e}"
                );
                largest = largest.max(far);
            }
        }
    }
    println!("largest relative distance of a loss or gradient: {largest:.1e}");
    // The control: another alpha is noticed.
    let (case, lora) = &cases()[0];
    let mut model = load(case, Kind::Float, lora);
    model.lora.as_mut().unwrap().alpha = 15.0;
    assert!(farthest(&Golden::open(case), &mut Engine::new(model, false).unwrap(), Packing::Shared, 5) > 1e-3);
}

#[test]
fn scores_equal_pefts_and_without_adapters_the_bases() {
    for (case, lora) in cases() {
        let golden = Golden::open(case);
        // In bf16 rounding sends some tokens to other experts: `experts.rs` counts them.
        let rounded = if case == "lora-qwen3-moe" { 3e-1 } else { 5e-2 };
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, rounded)] {
            let mut engine = Engine::new(load(case, kind, &lora), false).unwrap();
            let batch = golden.batch(0, golden.pairs.len(), Packing::Shared);
            let with = engine.score(&batch, true).unwrap();
            let without = engine.without_adapters(|base| base.score(&batch, true)).unwrap();
            let again = engine.score(&batch, true).unwrap();
            for index in 0..golden.pairs.len() {
                let far = |mine: [f64; 2], name: &str| {
                    let golden = golden.floats(&format!("pair{index}.{name}"));
                    mine.iter()
                        .zip(golden)
                        .map(|(mine, golden)| (mine - golden).abs() / golden.abs().max(1.0))
                        .fold(0.0, f64::max)
                };
                assert!(far(with[index].rewards, "rewards") < bound, "{case} {kind:?}");
                assert!(far(with[index].log_probs, "logps") < bound, "{case} {kind:?}");
                assert!(far(without[index].log_probs, "reference_logps") < bound, "{case} {kind:?}");
                assert!(kind != Kind::Float || far(without[index].log_probs, "logps") > 1e-3, "they differ");
                assert_eq!(with[index].log_probs, again[index].log_probs, "adapters come back");
            }
        }
    }
}

#[test]
fn merged_weights_are_pefts() {
    for case in ["lora-all", "lora-phi3", "lora-neox", "lora-gemma3", "lora-olmo3", "lora-glm4", "lora-qwen3-moe"] {
        let golden = Mapped::open(&folder(case).join("merged.safetensors")).unwrap();
        let origin = Origin::of(&folder(case), None).unwrap();
        let architecture = Architecture::open(&origin.base).unwrap();
        let base = Mapped::open(&origin.base.join("model.safetensors")).unwrap();
        let changes = adapter::changes(&folder(case), &origin.base, &architecture).unwrap();
        // The head besides.
        assert_eq!(golden.names().len(), changes.weights.len() + 1, "{case}");
        for (name, change) in &changes.weights {
            let (before, expected) = (base.read(name).unwrap(), golden.read(name).unwrap());
            let far = |value: &Tensor| ((value - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(far(&(&before + change.make())) < 1e-6, "{case}: {name}");
            assert!(far(&before) > 1e-3, "{case}: {name} would pass without its adapter");
        }
        let (head, bias) = changes.head.unwrap();
        assert!(head.equal(&golden.read("score.weight").unwrap()) && bias == 0.0, "{case}");
    }
}

#[test]
fn a_target_is_a_projection_of_every_block_and_a_base_is_an_adapters() {
    let architecture = Architecture::open(&folder("llama-tied")).unwrap();
    let lora = Lora::new(&settings(2, 2.0, false, &["mlp.up_proj"]), &architecture).unwrap();
    assert_eq!(lora.targets(&architecture), ["up_proj"]);
    for target in ["layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj", "proj"] {
        let error = Lora::new(&settings(2, 2.0, false, &[target]), &architecture).unwrap_err();
        assert!(error.message.contains(target) && error.hint.unwrap().contains("gate_proj"), "{target}");
    }
    let error = Origin::of(&folder("llama-tied"), Some(&folder("llama-untied"))).unwrap_err();
    assert!(error.exit_code() == 2 && error.message.contains("is not an adapter"), "{error}");
}

#[test]
fn adapters_and_head_are_f32_and_alone_have_masters_gradients_and_moments() {
    let config = config("llama-tied", &LORA);
    let origin = Origin::of(&config.model.path, None).unwrap();
    let mut model = adapter::load(&origin, options(Kind::BFloat16, Use::Train), config.lora.as_ref()).unwrap();
    let a = &model.architecture;
    let (width, heads, mlp) = (a.width, a.blocks[0].heads, a.blocks[0].mlp.width);
    let (key, query) = (heads.key * heads.width, heads.query * heads.width);
    let adapters = 4 * ((width + query) + (width + key) + (mlp + width)) * a.blocks.len();
    haf_dist::update::optim::AdamW::new(&config.train, &mut model).unwrap();
    let mut trained = 0;
    for (part, segment) in model.parts.iter().zip(&model.segments) {
        let of_adapter = matches!(part, Part::Adapter(_) | Part::RewardHead);
        assert_eq!(segment.trains(), of_adapter, "{part:?}");
        let moments = segment.state.as_ref().is_some_and(|state| state.moments.is_some());
        assert_eq!(moments, of_adapter, "{part:?}");
        assert_eq!(segment.weights.flat.kind(), if of_adapter { Kind::Float } else { Kind::BFloat16 }, "{part:?}");
        trained += if of_adapter { segment.length() } else { 0 };
    }
    assert_eq!(trained, adapters + width);
    assert!(matches!(model.parts.last(), Some(Part::Adapter(2))), "after all others");
}

/// Losses of five steps, the trained values at their end, and whether the base is as it was.
fn run(config: &Config, world_size: usize) -> (Vec<f64>, Vec<Tensor>) {
    const STEPS: usize = 5;
    let rank = |seat: threads::Seat| {
        let comm = CommThread::start(move || Ok(seat.communicator())).unwrap();
        let engine = engine(config);
        let frozen = |engine: &Engine| -> Vec<Tensor> {
            let segments = engine.model.segments.iter().filter(|segment| !segment.trains());
            segments.map(|segment| segment.weights.flat.copy()).collect()
        };
        let before = frozen(&engine);
        let mut trainer = steps::trainer(config, &comm, engine);
        let losses = (0..STEPS).map(|_| trainer.step(STEPS).unwrap().0.loss).collect();
        check_replicas(&trainer.engine, trainer.state.step, &comm).unwrap();
        for (before, after) in before.iter().zip(frozen(&trainer.engine)) {
            assert!(before.equal(&after), "the base is untouched");
        }
        let trained = trainer.engine.model.segments.iter().filter(|segment| segment.trains());
        (losses, trained.map(|segment| segment.weights.flat.copy()).collect())
    };
    std::thread::scope(|scope| {
        let seats = threads::world(world_size).into_iter();
        let ranks: Vec<_> = seats.map(|seat| scope.spawn(move || rank(seat))).collect();
        let mut outcomes: Vec<(Vec<f64>, Vec<Tensor>)> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        outcomes.swap_remove(0)
    })
}

fn difference(left: &(Vec<f64>, Vec<Tensor>), right: &(Vec<f64>, Vec<Tensor>)) -> f64 {
    let losses = left.0.iter().zip(&right.0).map(|(left, right)| (left - right).abs() / right.abs());
    let values = left.1.iter().zip(&right.1).map(|(left, right)| distance(left, right));
    losses.chain(values).fold(0.0, f64::max)
}

#[test]
fn one_two_and_eight_ranks_train_the_same_adapters_and_leave_the_base_alone() {
    for case in ["llama-tied", "llama-untied"] {
        let config = config(case, &LORA);
        let one = run(&config, 1);
        // The third batch has 7 pairs: with 8 ranks one of them holds none.
        for world_size in [2, 8] {
            let far = difference(&run(&config, world_size), &one);
            assert!(far < 2e-5, "{case}, {world_size} ranks: {far:.1e}");
        }
        assert!(one.0.first() != one.0.last() && one.1.iter().all(|values| values.abs().max().double_value(&[]) > 0.0));
    }
}

#[test]
fn activation_checkpointing_and_a_second_run_change_no_bit_and_another_seed_does() {
    let with = |line: &'static str| run(&config("llama-untied", &[&LORA[..], &[line]].concat()), 1);
    let kept = with("lora.seed=0");
    assert_eq!(difference(&with("train.activation_checkpointing=true"), &kept), 0.0);
    assert_eq!(difference(&with("lora.use_rslora=false"), &kept), 0.0);
    for line in ["lora.seed=1", "lora.use_rslora=true", "lora.alpha=9"] {
        assert!(difference(&with(line), &kept) > 1e-3, "{line}");
    }
}

#[test]
fn an_adapter_starts_as_pefts_do_whatever_other_adapters_there_are() {
    let value = |targets: &[&str], name: &str| {
        let lora = settings(4, 8.0, false, targets);
        let origin = Origin::of(&folder("llama-tied"), None).unwrap();
        let model = adapter::load(&origin, options(Kind::Float, Use::Train), Some(&lora)).unwrap();
        model.named_values().into_iter().find(|(found, _)| found == name).unwrap().1
    };
    let down = "model.layers.1.mlp.down_proj.lora_A.weight";
    let first = value(&MLP, down);
    assert!(first.equal(&value(&["down_proj", "q_proj"], down)));
    assert!(!first.equal(&value(&MLP, "model.layers.2.mlp.down_proj.lora_A.weight")));
    // Uniform within 1 / sqrt(12), the 12 being the width of the MLP.
    let bound = 1.0 / 12f64.sqrt();
    let largest = first.abs().max().double_value(&[]);
    assert!(largest <= bound && largest > 0.9 * bound, "{largest} {bound}");
    assert_eq!(value(&MLP, "model.layers.1.mlp.down_proj.lora_B.weight").abs().max().double_value(&[]), 0.0);
}

#[test]
fn what_does_not_fit_is_refused_with_what_there_is() {
    let load = |case: &str, lora: Option<&LoraConfig>| {
        let origin = Origin::of(&folder(case), None).unwrap();
        let error = adapter::load(&origin, options(Kind::Float, Use::Train), lora).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let told = load("llama-tied", Some(&settings(4, 8.0, false, &["up_proj", "qkv_proj"])));
    assert!(told.contains("\"qkv_proj\"") && told.contains(&ALL.join(", ")), "{told}");
    for (lora, part) in [
        (None, "there is no [lora]"),
        (Some(settings(8, 16.0, false, &MLP)), "differs from the settings"),
        (Some(settings(4, 8.0, false, &MLP)), "differs from the settings"),
        (Some(settings(4, 16.0, true, &MLP)), "differs from the settings"),
        (Some(settings(4, 16.0, false, &ALL)), "differs from the settings"),
    ] {
        let told = load("lora-mlp", lora.as_ref());
        assert!(told.contains(part) && told.contains("rank = 4, alpha = 16"), "{told}");
    }
    // An adapter of another base; for evaluation no [lora] is needed.
    let origin = |base: &str| Origin { base: folder(base), adapter: Some(folder("lora-mlp")) };
    adapter::load(&origin("llama-tied"), options(Kind::Float, Use::Evaluate), None).unwrap();
    let error = adapter::load(&origin("llama-untied"), options(Kind::Float, Use::Evaluate), None).err().unwrap();
    assert!(error.message.contains("has shape"), "{error}");
    let missing = tempfile::tempdir().unwrap();
    std::fs::copy(folder("lora-mlp").join("adapter_config.json"), missing.path().join("adapter_config.json")).unwrap();
    let error = Origin::of(missing.path(), None).unwrap_err();
    assert!(
        error.message.contains("\"../llama-tied\"") && error.hint.unwrap().contains("lora.base"),
        "{}",
        error.message
    );
}

#[test]
fn the_lora_file_is_the_papers_recipe_for_mistral_and_the_table_may_be_left_out() {
    let parsed = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|set| set.to_string()).collect();
        Config::parse("test", "model.path = 'm'\ndata.train = [{ path = 'd' }]\noutput.dir = 'o'\n", &set)
    };
    let config = Config::load(Path::new("configs/lora.toml"), &[]).unwrap();
    let lora = config.lora.unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.use_rslora), (64, 16.0, false));
    assert_eq!(lora.targets, ["gate_proj", "up_proj", "down_proj"]);
    assert_eq!((config.train.learning_rate, config.train.pairs_per_step, config.train.steps), (3e-5, 16, Some(3200)));
    assert_eq!(parsed(&[]).unwrap().lora, None);
    // Rank and alpha have the paper's values as their defaults; targets have none.
    let small = parsed(&["lora.targets=['q_proj']"]).unwrap().lora.unwrap();
    assert_eq!((small.rank, small.alpha, small.seed), (64, 16.0, 0));
    assert!(parsed(&["lora.rank=8"]).unwrap_err().message.contains("`lora.targets` is missing"));
    for wrong in ["lora.rank=0", "lora.rank=100000", "lora.alpha=0", "lora.alpha=inf", "lora.base="] {
        assert!(parsed(&["lora.targets=['q_proj']", wrong]).is_err(), "{wrong}");
    }
    assert!(parsed(&["lora.targets=[]"]).unwrap_err().message.contains("`lora.targets` is empty"));
    assert!(parsed(&["lora.target=['q_proj']"]).unwrap_err().message.contains("unknown key `lora.target`"));
}
