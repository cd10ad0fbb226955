//! `haf-dist plan`: predicts memory, step time and scaling, and prints them with the assumptions behind them.
//!
//! Not here: the predictions (`plan/`).

mod lengths;
mod subject;
mod tables;

use crate::cli::Planning;
use crate::config::{Config, Dtype};
use crate::error::{Error, Result};
use crate::machine::{self, look};
use crate::model::architecture::Architecture;
use crate::plan::Job;
use crate::plan::hardware::{self, Hardware};
use crate::plan::memory::Memory;
use crate::plan::scaling::{Inputs, Row};
use crate::plan::stages::{Stage, stages};
use crate::plan::time::launches;
use crate::plan::workload::Shape;
use crate::terminal;
use lengths::lengths;
use serde::Serialize;
use subject::subject;
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
    /// Memory of a rank by part, in bytes, with whole masters and moments.
    memory: Memory,
    /// The same where each rank holds a share of them.
    memory_if_sharded: Memory,
    /// The sum at the worst moment with whole ones.
    memory_total: usize,
    /// The same with shares.
    memory_total_if_sharded: usize,
    /// Whether the config shards them.
    sharded: bool,
    /// What a rank may fill.
    memory_usable: f64,
    /// Whether what the config needs is at most that.
    fits: bool,
    /// Other ways to run it, and what each needs.
    stages: Vec<Stage>,
    /// The first of them that fits, as keys to set; none where the config fits, or none does.
    nearest: Option<Vec<&'static str>>,
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

/// Runs the command.
///
/// # Errors
/// A bad config, an unknown GPU, more ranks than pairs in a global batch, data that is there but broken; a job that does not
/// fit, once the plan is printed.
pub fn run(planning: &Planning) -> Result<()> {
    let plan = plan(planning)?;
    terminal::out(match planning.json {
        true => serde_json::to_string(&plan).unwrap_or_default(),
        false => tables::render(&plan),
    })?;
    if plan.fits {
        return Ok(());
    }
    let error = Error::runtime(format!(
        "does not fit: a rank needs {:.2} GB and may fill {:.2} GB",
        tables::needed(&plan) as f64 / 1e9,
        plan.memory_usable / 1e9
    ));
    Err(error.hint(match (&plan.nearest, plan.stages.last()) {
        (Some(keys), _) if keys.is_empty() => "lower train.tokens_per_micro_batch".to_owned(),
        (Some(keys), _) => format!("it fits with --set {}", keys.join(" --set ")),
        (None, Some(leanest)) => {
            let (moment, bytes) = match leanest.at_start > leanest.in_a_step {
                true => ("when the model is loaded", leanest.at_start),
                false => ("in a step", leanest.in_a_step),
            };
            format!(
                "with parallel.shard_optimizer and train.activation_checkpointing it still needs {:.2} GB {moment}: take shorter \
                 sequences (data.max_length), an adapter ([lora]), or GPUs with more memory",
                bytes as f64 / 1e9
            )
        }
        (None, None) => "GPUs with more memory".to_owned(),
    }))
}

fn plan(planning: &Planning) -> Result<Plan> {
    let subject = subject(planning)?;
    let config = &subject.config;
    let ranks = planning.gpus;
    // Without a config there is no global batch to keep to.
    let pairs =
        if planning.run.is_given() { config.train.pairs_per_step } else { config.train.pairs_per_step.max(ranks) };
    if ranks > pairs {
        return Err(Error::input(format!(
            "--gpus {ranks} share train.pairs_per_step = {pairs}: some would never hold a pair"
        ))
        .hint("plan for fewer ranks, or add --set train.pairs_per_step=N (the global batch)"));
    }
    let (hardware, kind) = hardware(planning, config)?;
    let job = Job::new(config, subject.architecture.clone(), kind)?;
    let lengths = lengths(planning, &subject, &job)?;
    let inputs = Inputs { job: &job, hardware: &hardware, order: &lengths.order };
    let [memory, memory_if_sharded] =
        [false, true].map(|sharded| Memory::of(&Job { sharded, ..job.clone() }, &lengths.largest, hardware.cpu, ranks));
    let needed = if job.sharded { memory_if_sharded } else { memory }.total();
    let fits = needed as f64 <= hardware.usable_memory();
    let stages = stages(&job, &lengths.largest, &hardware, ranks);
    Ok(Plan {
        ranks,
        dtype: if kind == Kind::BFloat16 { "bf16" } else { "f32" },
        parameters: [job.buckets().iter().map(|bucket| bucket.elements).sum(), job.trained()],
        largest: lengths.largest,
        memory,
        memory_if_sharded,
        memory_total: memory.total(),
        memory_total_if_sharded: memory_if_sharded.total(),
        sharded: job.sharded,
        memory_usable: hardware.usable_memory(),
        fits,
        nearest: stages.iter().find(|stage| !fits && stage.fits).map(|stage| stage.changes(&job)),
        stages,
        step: inputs.step(ranks, pairs),
        steps: lengths.steps.filter(|_| planning.run.is_given()),
        weak: inputs.weak(pairs.div_ceil(ranks)),
        strong: inputs.strong(pairs),
        assumptions: assumptions(&job, &lengths.source, &hardware, ranks),
        hardware,
    })
}

/// Bytes that a rank of `ranks` on this computer needs at most, and those that it may fill: for a micro-batch of the config's
/// budget, and for a pair of twice its longest sequence.
///
/// # Errors
/// An adapter that the model has no place for; a system without Linux's /proc.
pub fn memory_here(config: &Config, architecture: &Architecture, ranks: usize) -> Result<(f64, f64)> {
    let kind = kind_here(config);
    let job = Job::new(config, architecture.clone(), kind)?;
    let hardware = hardware::cpu(ranks, 1, memory_of_this_computer()?, kind == Kind::BFloat16);
    let longest = lengths::longest(config);
    Ok((Memory::of(&job, &longest, true, ranks).total() as f64, hardware.usable_memory()))
}

/// What a rank needs here and may fill, in bytes, and of what.
pub struct Room {
    /// At the worst moment.
    pub needed: f64,
    /// What a rank may fill.
    pub usable: f64,
    /// A GPU's name, or "this computer".
    device: String,
}

impl Room {
    /// `a rank needs 1.2 GB and may fill 7.6 GB of this computer`.
    pub fn described(&self) -> String {
        let Self { needed, usable, device } = self;
        format!("a rank needs {:.1} GB and may fill {:.1} GB of {device}", needed / 1e9, usable / 1e9)
    }
}

/// As [`memory_here`] for one rank, on the first GPU where there is one; none where the machine does not say what it has.
///
/// # Errors
/// An adapter that the model has no place for.
pub fn room_here(config: &Config, architecture: &Architecture) -> Result<Option<Room>> {
    let Some(cards) = look::gpus() else {
        let kind = kind_here(config);
        // Asked first for its errors, which those of the system must not hide.
        Job::new(config, architecture.clone(), kind)?;
        let room = memory_here(config, architecture, 1).ok();
        return Ok(room.map(|(needed, usable)| Room { needed, usable, device: "this computer".to_owned() }));
    };
    let kind = if config.model.dtype == Dtype::F32 { Kind::Float } else { Kind::BFloat16 };
    let job = Job::new(config, architecture.clone(), kind)?;
    let needed = Memory::of(&job, &lengths::longest(config), false, 1).total() as f64;
    // "NVIDIA H100 80GB HBM3, 81559 MiB, 580.65".
    let mut fields = cards.first().map(String::as_str).unwrap_or_default().split(", ");
    let (name, memory) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    let mebibytes = memory.strip_suffix(" MiB").and_then(|number| number.parse::<f64>().ok());
    Ok(mebibytes.map(|mebibytes| {
        let usable = mebibytes * (1 << 20) as f64 * (1.0 - hardware::RESERVE);
        Room { needed, usable, device: name.to_owned() }
    }))
}

/// The precision that `model.dtype` means on this processor.
fn kind_here(config: &Config) -> Kind {
    match config.model.dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::Auto if machine::processor_has_bf16() => Kind::BFloat16,
        Dtype::F32 | Dtype::Auto => Kind::Float,
    }
}

/// The device with what the command line changes of it, and the precision on it.
fn hardware(planning: &Planning, config: &Config) -> Result<(Hardware, Kind)> {
    let on_cpu = planning.gpu == hardware::CPU;
    let bf16 = if on_cpu { kind_here(config) == Kind::BFloat16 } else { config.model.dtype != Dtype::F32 };
    let mut found = if on_cpu {
        let threads = match config.parallel.threads {
            0 => (machine::usable_cores() / planning.gpus).max(1),
            threads => threads,
        };
        hardware::cpu(planning.gpus, threads, memory_of_this_computer()?, bf16)
    } else {
        hardware::gpu(&planning.gpu, bf16)?
    };
    found.attainable = planning.mfu.unwrap_or(found.attainable);
    found.peak = planning.flops.map_or(found.peak, |teraflops| 1e12 * teraflops);
    found.network = planning.network.map_or(found.network, |gigabytes| 1e9 * gigabytes);
    Ok((found, if bf16 { Kind::BFloat16 } else { Kind::Float }))
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

fn assumptions(job: &Job, lengths: &str, hardware: &Hardware, ranks: usize) -> Vec<String> {
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
        let [forward, backward] = launches(job, 1.0);
        said.push(format!(
            "kernels start {:.0} us apart at best, {forward:.0} in a block's forward pass and {backward:.0} in its backward \
             pass{}",
            1e6 * hardware.launch,
            if launches(job, 2.0) == [forward, backward] { "" } else { " for one pair, more for several" }
        ));
    }
    if !hardware.cpu && ranks > 1 {
        said.push("several ranks on GPUs: gradients through NCCL, as far as this build has it".into());
    }
    said
}
