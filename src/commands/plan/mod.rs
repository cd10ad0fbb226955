//! `haf-dist plan`: predicts memory, step time and scaling, and prints them with the assumptions behind them.
//!
//! Not here: the predictions (`plan/`).

mod tables;

use super::setup;
use crate::cli::Planning;
use crate::comm::CommThread;
use crate::config::{Config, Dtype};
use crate::data::batch::Packing;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::model::architecture::Architecture;
use crate::plan::Job;
use crate::plan::hardware::{self, Hardware};
use crate::plan::memory::Memory;
use crate::plan::scaling::{Inputs, Row};
use crate::plan::workload::{self, PairTokens, Shape, largest, sum};
use crate::terminal;
use crate::train::total_steps;
use serde::Serialize;
use std::path::Path;
use tch::Kind;

/// Everything that is predicted.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// Ranks asked for.
    ranks: usize,
    /// Their devices.
    hardware: Hardware,
    /// Precision of the computation.
    dtype: &'static str,
    /// Parameters, and how many of them are trained.
    parameters: [usize; 2],
    /// The largest micro-batch; without the data an upper bound.
    largest: Shape,
    /// Memory of a rank by part, in bytes.
    memory: Memory,
    /// Their sum at the worst moment.
    memory_total: usize,
    /// The sum where masters and moments are sharded over the ranks.
    memory_total_if_sharded: usize,
    /// Whether the config shards them.
    sharded: bool,
    /// What a rank may fill.
    memory_usable: f64,
    /// Whether what the config needs is at most that.
    fits: bool,
    /// A step of the config's global batch on the ranks asked for.
    step: Row,
    /// Steps of the run, where the data or the config says how many.
    steps: Option<usize>,
    /// The same pairs a rank on more and more ranks.
    weak: Vec<Row>,
    /// The config's global batch on more and more ranks.
    strong: Vec<Row>,
    /// What was assumed, in words.
    assumptions: Vec<String>,
}

/// The lengths of pairs that the run meets.
struct Lengths {
    /// Pairs in training order, used round and round.
    order: Vec<PairTokens>,
    /// The largest micro-batch of any rank.
    largest: Shape,
    /// Steps of the run, where known.
    steps: Option<usize>,
    /// Where the lengths come from, in words.
    source: String,
}

/// Runs the command; rank 0 prints.
///
/// # Errors
/// A bad config, an unknown GPU, more ranks than pairs in a global batch, or data that is there but broken.
pub fn run(planning: &Planning, comm: &CommThread) -> Result<()> {
    let plan = plan(planning, comm)?;
    if comm.rank() == 0 {
        terminal::out(match planning.json {
            true => serde_json::to_string(&plan).unwrap_or_default(),
            false => tables::render(&plan),
        })?;
    }
    Ok(())
}

fn plan(planning: &Planning, comm: &CommThread) -> Result<Plan> {
    let config = comm.agree(Config::load(&planning.config, &planning.set))?;
    let ranks = planning.gpus;
    if ranks > config.train.pairs_per_step {
        return Err(Error::input(format!(
            "--gpus {ranks} share train.pairs_per_step = {}: some would never hold a pair",
            config.train.pairs_per_step
        ))
        .hint("plan for fewer ranks, or add --set train.pairs_per_step=N (the global batch)"));
    }
    let origin = comm.agree(setup::origin(&config))?;
    let architecture = comm.agree(Architecture::open(&origin.base))?;
    let (hardware, kind) = hardware(planning, &config, comm)?;
    let job = comm.agree(Job::new(&config, architecture, kind))?;
    let lengths = lengths(planning, (&config, origin.tokenizer()), &job, comm)?;
    let inputs = Inputs { job: &job, hardware: &hardware, order: &lengths.order };
    let pairs = config.train.pairs_per_step;
    let memory = Memory::of(&job, &lengths.largest, hardware.cpu);
    Ok(Plan {
        ranks,
        dtype: if kind == Kind::BFloat16 { "bf16" } else { "f32" },
        parameters: [job.buckets().iter().map(|bucket| bucket.elements).sum(), job.trained()],
        largest: lengths.largest,
        memory,
        memory_total: memory.total(),
        memory_total_if_sharded: memory.total_if_sharded(ranks),
        sharded: job.sharded,
        memory_usable: hardware.usable_memory(),
        fits: memory.needed(&job, ranks) as f64 <= hardware.usable_memory(),
        step: inputs.step(ranks, pairs),
        steps: lengths.steps,
        weak: inputs.weak(pairs.div_ceil(ranks)),
        strong: inputs.strong(pairs),
        assumptions: assumptions(&lengths.source, &hardware, ranks),
        hardware,
    })
}

/// The device with what the command line changes of it, and the precision on it.
fn hardware(planning: &Planning, config: &Config, comm: &CommThread) -> Result<(Hardware, Kind)> {
    let on_cpu = planning.gpu == hardware::CPU;
    let (mut found, kind) = if on_cpu {
        let machine = Machine::pick(config.model.dtype, config.parallel.threads, comm)?;
        let threads = match config.parallel.threads {
            0 => (machine.threads / planning.gpus).max(1),
            threads => threads,
        };
        let bf16 = machine.kind == Kind::BFloat16;
        (hardware::cpu(planning.gpus, threads, memory_of_this_computer()?, bf16), machine.kind)
    } else {
        let bf16 = config.model.dtype != Dtype::F32;
        (hardware::gpu(&planning.gpu, bf16)?, if bf16 { Kind::BFloat16 } else { Kind::Float })
    };
    found.attainable = planning.mfu.unwrap_or(found.attainable);
    found.peak = planning.flops.map_or(found.peak, |teraflops| 1e12 * teraflops);
    found.network = planning.network.map_or(found.network, |gigabytes| 1e9 * gigabytes);
    Ok((found, kind))
}

/// Bytes of physical memory.
fn memory_of_this_computer() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    total.map(|kib: f64| 1024.0 * kib).ok_or_else(|| {
        Error::runtime("/proc/meminfo does not say how much memory there is").hint("plan for a GPU with --gpu NAME")
    })
}

/// The data's own lengths where it and the tokenizer are there, else those asked for, else a guess.
fn lengths(planning: &Planning, (config, model): (&Config, &Path), job: &Job, comm: &CommThread) -> Result<Lengths> {
    let tokenizer = model.join("tokenizer.json");
    let mut needed = config.data.train.iter().map(|source| &source.path).chain([&tokenizer]);
    let missing = needed.find(|path| !path.exists());
    // Every rank must take the same way.
    let here = comm.all_true(missing.is_none())?;
    match (planning.pair_tokens, here) {
        (None, true) => of_data(planning.gpus, (config, model), job, comm),
        (Some(pair), _) => {
            Ok(assumed(pair, format!("every pair has {} (--pair-tokens)", words(pair)), config, planning.gpus))
        }
        (None, false) => {
            let data = &config.data;
            let answer = (data.max_length - data.max_prompt_length).div_ceil(2);
            let pair =
                PairTokens { prefix: data.max_prompt_length / 2, chosen: answer, rejected: answer, apart: false };
            let missing = missing.map_or("a file".into(), |path| path.display().to_string());
            let source = format!("{missing} is not there: every pair has {}, half of what fits", words(pair));
            Ok(assumed(pair, source, config, planning.gpus))
        }
    }
}

fn words(pair: PairTokens) -> String {
    format!("{} + {} + {} tokens (common prefix, chosen, rejected)", pair.prefix, pair.chosen, pair.rejected)
}

/// The pairs of the run, batch by batch, as the sampler draws them.
fn of_data(ranks: usize, (config, model): (&Config, &Path), job: &Job, comm: &CommThread) -> Result<Lengths> {
    let encoder = comm.agree(setup::encoder(config, model, &job.architecture))?;
    let data = setup::prepared(&config.data.train, "train", config, &encoder, comm)?;
    let mut sampler = comm.agree(setup::sampler(config, &data))?;
    let steps = total_steps(config, &sampler);
    let packing = Packing::shared(job.architecture.alike());
    let lengths = |pair: usize| workload::lengths(&data.pair(pair), packing);
    let batches: Vec<Vec<PairTokens>> =
        (0..steps).map(|step| sampler.global_batch(step).into_iter().map(lengths).collect()).collect();
    let order: Vec<PairTokens> = batches.iter().flatten().copied().take(sampler.pairs_per_epoch()).collect();
    let mean = sum(order.iter().copied()).tokens as f64 / order.len().max(1) as f64;
    Ok(Lengths {
        largest: largest(&batches, ranks, job.tokens_per_micro_batch),
        steps: Some(steps),
        source: format!("lengths of the data's pairs, {mean:.0} tokens on average; the largest micro-batch of the run"),
        order,
    })
}

/// Equal pairs; the largest micro-batch is full, or is one pair as long as it may be with nothing in common.
fn assumed(pair: PairTokens, source: String, config: &Config, ranks: usize) -> Lengths {
    let longest =
        PairTokens { prefix: 0, chosen: config.data.max_length, rejected: config.data.max_length, apart: false };
    let full = config.train.tokens_per_micro_batch.div_ceil(pair.total());
    let mine = config.train.pairs_per_step.div_ceil(ranks);
    let bound = sum([longest]).or_larger(sum(std::iter::repeat_n(pair, full.min(mine))));
    Lengths {
        order: vec![pair],
        largest: bound,
        steps: config.train.steps,
        source: format!("{source}; memory for that and for a pair of twice data.max_length"),
    }
}

fn assumptions(lengths: &str, hardware: &Hardware, ranks: usize) -> Vec<String> {
    let device = if hardware.cpu { "rank" } else { "GPU" };
    let mut said = vec![
        lengths.to_string(),
        format!(
            "a {device} computes at {:.0}% of {} TFLOP/s and reads its memory at {:.0}% of {:.0} GB/s",
            100.0 * hardware.attainable,
            hardware.peak / 1e12,
            100.0 * hardware::BANDWIDTH_SHARE,
            hardware.memory_bandwidth / 1e9
        ),
        format!(
            "links reach {:.0}% of {:.0} GB/s within a node of {} and of {} GB/s a {device} between nodes, one direction",
            100.0 * hardware::BANDWIDTH_SHARE,
            hardware.link / 1e9,
            hardware.per_node,
            hardware.network / 1e9
        ),
        format!("{:.0}% of the memory stays free", 100.0 * hardware::RESERVE),
    ];
    if hardware.cpu {
        said.push("ranks share this computer's memory, and reductions take the cores that would compute".into());
    } else {
        said.push(format!("kernels start {:.0} us apart at best", 1e6 * hardware.launch));
    }
    if !hardware.cpu && ranks > 1 {
        said.push("several ranks on GPUs: gradients through NCCL, as far as this build has it".into());
    }
    said
}
