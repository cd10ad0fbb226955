//! Figures of a device that launch/gpu-check.sh prints: each operation compared with its formula and a plain copy, and whole steps
//! at the shapes of common models, their memory compared with `plan`'s. The printing code runs with small sizes on a CPU too.
//!
//! Not here: checks of NCCL and of numbers (`gpu.rs`).

use crate::device::gpu_of_a_run as gpu;
use crate::steps;
use haf_dist::comm::{CommThread, solo::Solo};
use haf_dist::data::AnswerSpan;
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::prepared::{LabeledPair, PreparedData};
use haf_dist::data::sampler::Sampler;
use haf_dist::data::sequence::OwnedPair;
use haf_dist::engine::head::Objective;
use haf_dist::engine::{Buckets, Engine};
use haf_dist::machine::{kernels, wait_for};
use haf_dist::model::architecture::Architecture;
use haf_dist::model::layout::Part;
use haf_dist::model::segment::{Segment, Use};
use haf_dist::model::weights::Model;
use haf_dist::ops;
use haf_dist::ops::checked::{Widths, faults, timings};
use haf_dist::ops::cuda::launches::BLOCK;
use haf_dist::plan::memory::Memory;
use haf_dist::plan::time::useful_flops;
use haf_dist::plan::workload::{PairTokens, Shape, sum};
use haf_dist::plan::{Job, hardware, shapes};
use haf_dist::train::{Split, Trainer};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Calls that are timed together.
const REPEATS: usize = 20;
/// Steps that are not timed, and steps that are.
const STEPS: [usize; 2] = [3, 10];

/// Seconds of one call, after a first.
fn seconds(device: Device, mut call: impl FnMut()) -> f64 {
    call();
    wait_for(device);
    let started = Instant::now();
    (0..REPEATS).for_each(|_| call());
    wait_for(device);
    started.elapsed().as_secs_f64() / REPEATS as f64
}

/// GB/s of a copy of so many bytes: read once, written once.
fn copy_rate(device: Device, bytes: usize) -> f64 {
    let from = Tensor::ones([bytes as i64 / 4], (Kind::Float, device));
    let mut to = from.empty_like();
    2.0 * bytes as f64 / seconds(device, || to.copy_(&from)) / 1e9
}

/// FLOP/s of a bf16 product of square matrices.
fn product_rate(device: Device, kind: Kind, width: i64) -> f64 {
    let [left, right] = [0, 1].map(|_| Tensor::ones([width, width], (kind, device)));
    2.0 * (width as f64).powi(3) / seconds(device, || drop(left.matmul(&right)))
}

/// One line an operation; the names of those that are wrong.
fn operations(widths: &Widths, copied: usize) -> Vec<String> {
    let device = widths.device;
    let own = ops::checked(device).expect("a device with operations of its own").own();
    let found = faults(own, widths).unwrap();
    let copy = copy_rate(device, copied);
    println!("device copy: {copy:.0} GB/s");
    for timing in timings(own, widths, || wait_for(device)).unwrap() {
        let name = timing.operation.name();
        let rate = timing.bytes as f64 / timing.own / 1e9;
        let fault = found.iter().find(|fault| fault.operation == timing.operation);
        println!(
            "operation {name:<24} {:>9.1} us {rate:>7.0} GB/s {:>4.0}% of a copy, formula {:>9.1} us: {}",
            1e6 * timing.own,
            100.0 * rate / copy,
            1e6 * timing.formula,
            fault.map_or("agrees", |fault| &fault.why)
        );
    }
    found.into_iter().map(|fault| fault.operation.name().to_owned()).collect()
}

#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn each_operation_agrees_and_its_rate() {
    let mut architecture = shapes::architecture("llama-3.1-8b").unwrap();
    architecture.blocks.truncate(1);
    let mut widths = kernels::widths(&architecture, Kind::BFloat16, gpu(0));
    widths.rows = 4096;
    let wrong = operations(&widths, 1 << 28);
    assert!(wrong.is_empty(), "wrong: {}", wrong.join(", "));
}

/// What a run does at its start, at the widths of a model of 8 B: under two seconds.
#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn the_check_at_the_start_takes_under_two_seconds() {
    let gpu = gpu(0);
    let widths = kernels::widths(&shapes::architecture("llama-3.1-8b").unwrap(), Kind::BFloat16, gpu);
    // Whatever libtorch loads once is no part of the check.
    let _ = Tensor::ones([8, 8], (Kind::BFloat16, gpu)).mm(&Tensor::ones([8, 8], (Kind::BFloat16, gpu)));
    wait_for(gpu);
    let started = Instant::now();
    let found = faults(ops::checked(gpu).unwrap().own(), &widths).unwrap();
    wait_for(gpu);
    let took = started.elapsed().as_secs_f64();
    println!("start check: {took:.2} s, {} operations replaced", found.len());
    assert!(took < 2.0 && found.is_empty(), "{took:.2} s, {found:?}");
}

/// A model of random weights: norms 1, matrices as a fresh model has them.
fn random(architecture: Architecture, kind: Kind, device: Device) -> Model {
    let parts = Part::all(&architecture);
    let segment = |part: &Part| {
        let kind = if *part == Part::RewardHead { Kind::Float } else { kind };
        let mut segment = Segment::new(part.parameters(&architecture), kind, device, Use::Train);
        for index in 0..segment.parameters().len() {
            let shape = segment.parameters()[index].shape.clone();
            let value = match shape.len() {
                1 => Tensor::ones(shape.as_slice(), (kind, device)),
                _ => Tensor::randn(shape.as_slice(), (kind, device)) * 0.02,
            };
            segment.set(index, &value);
        }
        segment
    };
    let segments = parts.iter().map(segment).collect();
    let (had_reward_head, reward_bias, lora, shares_read) = (false, 0.0, None, None);
    Model { architecture, parts, segments, kind, device, had_reward_head, reward_bias, lora, shares_read }
}

/// Pairs of random tokens: half prompt, a quarter each answer.
fn pairs(count: usize, tokens: usize, vocabulary: usize) -> PreparedData {
    let answer = tokens / 4;
    let prefix = tokens - 2 * answer;
    let pair = |index: usize| LabeledPair {
        pair: OwnedPair {
            tokens: (0..tokens).map(|at| ((index * 7919 + at * 104_729) % (vocabulary - 3) + 3) as u32).collect(),
            prefix,
            chosen: answer,
            rejected: answer,
            spans: AnswerSpan::of_pair(prefix, prefix, answer, answer),
            prompt_hash: index as u64,
            prompt_cut: false,
            answer_cut: false,
            special_in_text: 0,
        },
        margin: 0.0,
        tied: false,
        domain: "random".into(),
    };
    PreparedData::from_pairs((0..count).map(pair).collect()).unwrap()
}

/// Bytes of the first visible GPU's memory that are taken, its name, and the data sheet's FLOP/s where it is known.
fn card() -> Option<(f64, String, Option<f64>)> {
    // A number or a UUID; nvidia-smi takes both.
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let first = visible.split(',').next().filter(|first| !first.is_empty()).unwrap_or("0");
    let query = ["--query-gpu=memory.used,name", "--format=csv,noheader,nounits", "-i", first];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (used, name) = text.split_once(", ")?;
    let known = hardware::names().into_iter().find(|known| name.to_lowercase().contains(known));
    let peak = known.and_then(|known| hardware::gpu(known, true).ok()).map(|hardware| hardware.peak);
    Some((used.parse::<f64>().ok()? * (1u64 << 20) as f64, name.to_owned(), peak))
}

/// Full training with all losses.
fn job(architecture: Architecture, kind: Kind, tokens_per_micro_batch: usize) -> Job {
    let (policy, checkpointing, sharded, deterministic, lora) = (true, false, false, true, None);
    Job { architecture, kind, policy, checkpointing, tokens_per_micro_batch, sharded, deterministic, lora }
}

/// Steps of one micro-batch of so many tokens through a few blocks of a shape: their rate, and memory beside the plan's.
/// Returns how many times the planned memory was taken, where that is known.
fn steps_of(
    name: &str,
    mut architecture: Architecture,
    blocks: usize,
    tokens: usize,
    place: (Kind, Device),
) -> Option<f64> {
    let (kind, device) = place;
    architecture.blocks.truncate(blocks);
    // What the process takes without a model is there from the first kernel on: neither counted here nor planned below.
    let _ = Tensor::ones([1], (kind, device));
    wait_for(device);
    let before = if device == Device::Cpu { None } else { card() };
    let product = product_rate(device, kind, if device == Device::Cpu { 256 } else { 8192 });
    let each = tokens / 8;
    let length = each / 4;
    let pair = PairTokens { prefix: each - 2 * length, chosen: length, rejected: length, apart: false };
    let shape: Shape = sum([pair; 8]);
    let job = job(architecture.clone(), kind, tokens);
    let gpu = before.as_ref().map(|(_, name, _)| hardware::multiprocessors(name));
    let memory = Memory::of(&job, &shape, gpu, 1);
    let (flops, planned) = (useful_flops(&job, &shape), memory.total() - memory.base);
    let config = steps::config("llama-tied", &[&format!("train.tokens_per_micro_batch={tokens}")]);
    let comm = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
    let model = random(architecture, kind, device);
    let parameters = model.parameter_count();
    let (engine, data) = (Engine::new(model, false).unwrap(), pairs(64, each, job.architecture.vocabulary));
    let buckets = Buckets::of(&engine.model).unwrap();
    let references = vec![[-500.0, -510.0]; 64];
    let sampler = Sampler::new(data.source_ranges(), &[1.0], 8, true, 0).unwrap();
    let train = Split { name: "train", data, references };
    let mut trainer = Trainer::new(&config, &comm, (engine, buckets), sampler, train, None, 1).unwrap();
    let total = STEPS[0] + STEPS[1];
    (0..STEPS[0]).for_each(|_| drop(trainer.step(total).unwrap()));
    wait_for(device);
    let started = Instant::now();
    for _ in 0..STEPS[1] {
        let loss = trainer.step(total).unwrap().0.loss;
        assert!(loss.is_finite(), "{name}: the loss is {loss}");
    }
    wait_for(device);
    let rate = flops * STEPS[1] as f64 / started.elapsed().as_secs_f64();
    let after = before.as_ref().and_then(|_| card());
    let peak = after.as_ref().and_then(|(_, _, peak)| *peak);
    println!(
        "shape {name} with {blocks} of its blocks and random weights, {:.2} B parameters, {} tokens a step: {:.0} tokens/s, \
         {:.1} TFLOP/s, {:.0}% of a large product{}",
        parameters as f64 / 1e9,
        8 * each,
        rate / flops * (8 * each) as f64,
        rate / 1e12,
        100.0 * rate / product,
        peak.map_or(String::new(), |peak| format!(", MFU {:.1}%", 100.0 * rate / peak))
    );
    let taken = before.zip(after).map(|(before, after)| after.0 - before.0)?;
    println!("shape {name}: {:.2} GB of the GPU's memory taken, {:.2} GB planned", taken / 1e9, planned as f64 / 1e9);
    Some(taken / planned as f64)
}

#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn steps_at_the_shape_of_a_1b_model() {
    let taken =
        steps_of("llama-3.2-1b", shapes::architecture("llama-3.2-1b").unwrap(), 8, 4096, (Kind::BFloat16, gpu(0)));
    assert!(taken.is_none_or(|taken| taken < 1.1), "{taken:?} of the planned memory");
}

#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn steps_at_the_shape_of_an_8b_model() {
    let taken =
        steps_of("llama-3.1-8b", shapes::architecture("llama-3.1-8b").unwrap(), 4, 4096, (Kind::BFloat16, gpu(0)));
    assert!(taken.is_none_or(|taken| taken < 1.1), "{taken:?} of the planned memory");
}

/// A pass of one block and a pass of two, each between kernels that no pass starts: in a trace, a block's are the difference.
fn passes_apart_by_a_block(architecture: &Architecture, tokens: usize, (kind, device): (Kind, Device)) {
    let config = steps::config("llama-tied", &[]);
    let objective = Objective { config: &config.loss, reward_weight: 1.0, alpha: 0.0, log_probs: false };
    let data = pairs(1, tokens, architecture.vocabulary);
    let item = PairToPack { index: 0, pair: data.pair(0), reference: [0.0; 2] };
    let batch = PackedBatch::new([item], Packing::Shared, device);
    let mut engines = [1, 2].map(|count| {
        let blocks = vec![architecture.blocks[0].clone(); count];
        let model = random(Architecture { blocks, ..architecture.clone() }, kind, device);
        (Buckets::of(&model).unwrap(), Engine::new(model, false).unwrap())
    });
    let mark = Tensor::ones([4, 4], (kind, device));
    // Once for what libtorch loads and allocates the first time.
    for marked in [false, true] {
        for (buckets, engine) in &mut engines {
            let _ = marked.then(|| mark.triu(0));
            let losses = engine.forward_backward(&batch, &objective, buckets).unwrap().read().unwrap();
            assert_eq!(losses.len(), 1);
        }
    }
    let _ = mark.triu(0);
    wait_for(device);
    println!("a block is {} kernels in the table", BLOCK.iter().sum::<usize>());
}

/// Under nsys.
#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn the_kernels_of_a_block() {
    passes_apart_by_a_block(&shapes::architecture("llama-3.2-1b").unwrap(), 2048, (Kind::BFloat16, gpu(0)));
}

/// What a GPU will be asked for, in small.
#[test]
fn the_figures_can_be_printed_on_a_cpu() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-untied");
    let architecture = Architecture::open(&folder).unwrap();
    let widths = kernels::widths(&architecture, Kind::Float, Device::Cpu);
    assert_eq!(operations(&widths, 1 << 20), Vec::<String>::new());
    passes_apart_by_a_block(&architecture, 64, (Kind::Float, Device::Cpu));
    assert_eq!(steps_of("llama-untied", architecture, 1, 256, (Kind::Float, Device::Cpu)), None);
}
