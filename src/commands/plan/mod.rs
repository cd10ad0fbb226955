//! `haf-dist plan`: predicts memory, step time and scaling, and prints them with the assumptions behind them.
//!
//! Not here: the predictions (`plan/`).

mod lengths;
mod subject;
mod tables;

use crate::cli::Planning;
use crate::error::{Error, Result};
use crate::plan::Job;
use crate::plan::assumptions::assumptions;
use crate::plan::hardware::Hardware;
use crate::plan::here;
use crate::plan::memory::Memory;
use crate::plan::scaling::{Inputs, Row};
use crate::plan::stages::{Stage, more_ranks, stages};
use crate::plan::workload::Shape;
use crate::terminal;
use lengths::lengths;
use serde::Serialize;
use subject::subject;
use tch::Kind;

/// The largest global batch that is dealt out pair by pair in about a second.
const MOST_PAIRS: usize = 1 << 16;

/// All predictions.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Number of ranks.
    ranks: usize,
    /// Their devices.
    hardware: Hardware,
    /// Precision of the computation: `bf16` or `f32`.
    dtype: &'static str,
    /// Parameters, and how many of them are trained.
    parameters: [usize; 2],
    /// The largest micro-batch; without the data an upper bound.
    largest: Shape,
    /// Memory of a rank by part, in bytes, with whole masters and moments.
    memory: Memory,
    /// The same if each rank holds a share of them.
    memory_if_sharded: Memory,
    /// Bytes at the worst moment with whole masters and moments.
    memory_total: usize,
    /// The same with shares.
    memory_total_if_sharded: usize,
    /// Whether the config shards them.
    sharded: bool,
    /// Bytes that a rank may fill.
    memory_usable: f64,
    /// Whether the config needs at most that.
    fits: bool,
    /// Other ways to run it, and the memory that each needs.
    stages: Vec<Stage>,
    /// The first of them that fits, as keys to set; None if the config fits, or if none does.
    nearest: Option<Vec<&'static str>>,
    /// If none does: the smallest number of ranks, doubled again and again, on which the leanest of them fits.
    more_ranks: Option<usize>,
    /// A step with the config's global batch on these ranks.
    step: Row,
    /// Steps of the run, if the data or the config determines them.
    steps: Option<usize>,
    /// The same number of pairs per rank on more and more ranks.
    weak: Vec<Row>,
    /// The config's global batch on more and more ranks.
    strong: Vec<Row>,
    /// The assumptions, in words.
    assumptions: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A bad config, an unknown GPU, more ranks than pairs in a global batch, broken data; a job that does not fit, after the plan is
/// printed.
pub(crate) fn run(planning: &Planning) -> Result<()> {
    let plan = plan(planning)?;
    terminal::out(match planning.json {
        true => serde_json::to_string(&plan).unwrap_or_default(),
        false => tables::render(&plan),
    })?;
    if plan.fits {
        return Ok(());
    }
    let (moment, bytes) = worst_moment(if plan.sharded { &plan.memory_if_sharded } else { &plan.memory });
    let error = Error::runtime(format!(
        "the job does not fit: a rank needs {:.2} GB {moment} and may fill {:.2} GB",
        bytes as f64 / 1e9,
        plan.memory_usable / 1e9
    ));
    Err(error.hint(match (&plan.nearest, plan.more_ranks) {
        (Some(keys), _) if keys.is_empty() => "lower train.tokens_per_micro_batch".to_owned(),
        (Some(keys), _) => format!("it fits with --set {}", keys.join(" --set ")),
        (None, Some(ranks)) => {
            // Without a config, a step has at least a pair for each rank.
            let few = planning.run.is_given() && ranks > plan.step.pairs_per_step;
            let more = if few { format!(", and train.pairs_per_step of at least {ranks}") } else { String::new() };
            format!("it fits on {ranks} GPUs of this kind, with parallel.shard_optimizer and train.activation_checkpointing{more}")
        }
        (None, None) => {
            // Without a micro-batch that fits, shorter sequences do not help either.
            let shorter = plan.stages.iter().any(|stage| stage.largest_micro_batch > 0);
            let shorter = if shorter { "shorter sequences (data.max_length), " } else { "" };
            format!(
                "parallel.shard_optimizer and train.activation_checkpointing are not enough: take {shorter}an adapter ([lora]), or \
                 GPUs with more memory"
            )
        }
    }))
}

/// When a rank needs most memory, in words, and how much.
fn worst_moment(memory: &Memory) -> (&'static str, usize) {
    match memory.at_start() > memory.in_a_step() {
        true => ("when the model is loaded", memory.at_start()),
        false => ("in a step", memory.in_a_step()),
    }
}

fn plan(planning: &Planning) -> Result<Plan> {
    let subject = subject(planning)?;
    let config = &subject.config;
    let ranks = planning.gpus;
    // Without a config the global batch is free to grow.
    let pairs =
        if planning.run.is_given() { config.train.pairs_per_step } else { config.train.pairs_per_step.max(ranks) };
    if ranks > pairs {
        return Err(Error::input(format!(
            "--gpus {ranks} share train.pairs_per_step = {pairs}: some ranks would never get a pair"
        ))
        .hint("plan for fewer ranks, or add --set train.pairs_per_step=N (the global batch)"));
    }
    if pairs > MOST_PAIRS {
        return Err(Error::input(format!(
            "train.pairs_per_step = {pairs}; a plan looks at up to {MOST_PAIRS} pairs a step"
        ))
        .hint("plan for fewer pairs: memory does not depend on them, and time grows in proportion"));
    }
    let (mut hardware, kind) = here::named(&planning.gpu, ranks, config)?;
    hardware.attainable = planning.mfu.unwrap_or(hardware.attainable);
    hardware.peak = planning.flops.map_or(hardware.peak, |teraflops| 1e12 * teraflops);
    hardware.network = planning.network.map_or(hardware.network, |gigabytes| 1e9 * gigabytes);
    let job = Job::new(config, subject.architecture.clone(), kind)?;
    let lengths = lengths(planning, &subject, &job)?;
    let inputs = Inputs { job: &job, hardware: &hardware, order: &lengths.order };
    let [memory, memory_if_sharded] =
        [false, true].map(|sharded| Memory::on(&hardware, &Job { sharded, ..job.clone() }, &lengths.largest, ranks));
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
        more_ranks: stages
            .iter()
            .all(|stage| !stage.fits)
            .then(|| more_ranks(&job, &lengths.largest, &hardware, ranks))
            .flatten(),
        stages,
        step: inputs.step(ranks, pairs),
        steps: lengths.steps.filter(|_| planning.run.is_given()),
        weak: inputs.weak(pairs.div_ceil(ranks)),
        strong: inputs.strong(pairs),
        assumptions: [vec![lengths.source], assumptions(&job, &hardware, ranks)].concat(),
        hardware,
    })
}
