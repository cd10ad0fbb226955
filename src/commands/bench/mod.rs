//! `haf-dist bench`: pairs per second and memory of whole training steps, as `benches/peer.py` measures its peers.
//!
//! Loading, tokenizing, reference log-probs and a first step are not timed; every other step is, to the end of the
//! optimizer's update (packing runs ahead on a thread of its own).
//! Under mpirun each rank adds 16 pairs to a step. Not here: benchmarks of parts (`benches/`).
//!
//! Legend: P tokens of a pair's common prefix, A and B further tokens of its two sequences, D width, V vocabulary, N parameters
//! of the blocks and the final norm.

mod planned;

use super::{alike, setup};
use crate::cli::Bench;
use crate::comm::CommThread;
use crate::config::{Config, TemplateKind, Truncation};
use crate::data::batch::Packing;
use crate::data::prepared::PreparedData;
use crate::data::sampler::Sampler;
use crate::data::tokenize::{Encoder, Rules};
use crate::data::verbatim;
use crate::engine::Engine;
use crate::error::{Error, Result, expect_folder};
use crate::evaluate::reference;
use crate::machine::{self, Machine, backend, kernels, wait_for};
use crate::model::adapter::Origin;
use crate::model::architecture::{Architecture, Mlp};
use crate::model::layout::{Part, active_elements};
use crate::model::segment::{Segment, Use};
use crate::model::weights::{LoadOptions, Model};
use crate::packing::HeadCounts;
use crate::terminal;
use crate::train::{Split, Trainer};
use crate::update::reducer;
use planned::Planned;
use serde::Serialize;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Pairs that each rank adds to a step.
const PAIRS_PER_STEP: usize = 16;
/// Seconds for which each shape of matrix product is timed.
const PRODUCT_SECONDS: f64 = 0.2;
/// The keys that a config requires; `config` below sets those that matter.
const MINIMAL: &str = "model.path = 'unused'\ndata.train = [{ path = 'unused' }]\noutput.dir = 'unused'\n";

/// The command's output; with `--json` in one line.
#[derive(Debug, Serialize)]
struct Report {
    program: &'static str,
    objective: String,
    pairs: usize,
    ranks: usize,
    threads: usize,
    dtype: &'static str,
    /// Of the first rank.
    device: String,
    /// The same in words.
    #[serde(skip)]
    place: String,
    shared_prefix: bool,
    tokens_per_micro_batch: usize,
    pairs_per_s: f64,
    /// Duration of all timed steps.
    seconds: f64,
    /// Tokens per second that a trainer without sharing would compute, 2P + A + B per pair (more with padding).
    sequence_tokens_per_s: f64,
    /// Tokens computed per second: P + A + B per pair if the prefix is shared.
    tokens_per_s: f64,
    /// Without recomputation or padding. Every token counts in every block, although the last block computes only the rows
    /// that are read: 1% to 3% more than is computed.
    useful_flops_per_s: f64,
    /// Rate of libtorch's matrix products with this model's shapes, in this process, weighted by their share of the work. On
    /// processors with matrix tiles a step uses libtorch for two thirds of them: weight gradients have code of their own.
    matmul_flops_per_s: f64,
    useful_share_of_matmul: f64,
    /// The largest possible gain from sharing the prefix: linear work and head for 2P + A + B over that for P + A + B.
    sharing_formula: f64,
    /// Peak memory of the rank with the most, in 10^9 bytes.
    peak_rss_gb: f64,
    /// The predictions of `haf-dist plan`, on CPUs and with the prefix shared.
    planned_peak_gb: Option<f64>,
    planned_pairs_per_s: Option<f64>,
    /// Mean losses of the timed steps.
    losses: Vec<f64>,
}

/// Counts of some pairs that determine the floating-point operations of a forward and a backward pass.
#[derive(Debug, Default, Clone, Copy)]
struct Work {
    tokens: f64,
    sequence_tokens: f64,
    answer_tokens: f64,
    /// Sum over query rows of the number of rows they see.
    seen: f64,
}

/// Runs the command on every rank.
///
/// # Errors
/// A folder without a model, or a file with too few pairs.
pub(crate) fn run(bench: &Bench, comm: &CommThread) -> Result<()> {
    comm.agree(expect_folder(&bench.model).map_err(|error| error.at("--model")))?;
    alike::model(&Origin { base: bench.model.clone(), adapter: None }, comm)?;
    let config = config(bench, comm.world_size())?;
    let machine = Machine::pick(bench.dtype, bench.threads, comm)?;
    backend::connect(&config.parallel, machine.device, comm)?;
    let architecture = comm.agree(Architecture::open(&bench.model))?;
    kernels::settle(config.parallel.kernels, &architecture, &machine, comm)?;
    let per_step = config.train.pairs_per_step;
    let data = comm.agree(prepare(bench, &config, &architecture, per_step))?;
    let options = LoadOptions {
        kind: machine.kind,
        device: machine.device,
        purpose: Use::Train,
        log_probs: config.loss.needs_policy(),
    };
    alike::data("timed", &data, comm)?;
    let mut model = comm.agree(Model::load(&bench.model, options))?;
    setup::share_weights(&mut model, comm)?;
    let buckets = reducer::buckets(&model, comm)?;
    let mut engine = Engine::new(model, false)?;
    let all: Vec<usize> = (0..data.len()).collect();
    let references = match config.loss.needs_reference() {
        true => reference::log_probs(&mut engine, (&data, &all), comm, None, bench.tokens_per_micro_batch, "bench")?,
        false => Vec::new(),
    };
    let work = work(&data, per_step..data.len());
    let planned = match bench.unshared {
        true => None,
        false => planned::planned(&config, &architecture, &machine, &data, comm.world_size())?,
    };
    let sampler = Sampler::new(data.source_ranges(), &[1.0], per_step, false, 0)?;
    let steps = sampler.steps_per_epoch();
    let train = Split { name: "bench", data, references };
    let mut trainer = Trainer::new(&config, comm, (engine, buckets), sampler, train, None, machine.threads)?;
    if bench.unshared {
        trainer.packing = Packing::Separate;
    }

    let timed = timed_steps(&mut trainer, steps)?;
    let parameters = backbone_parameters(&trainer.engine.model);
    let setting =
        Setting { config: &config, machine: &machine, architecture: &architecture, work, parameters, planned };
    let report = report(bench, &setting, timed, comm)?;
    if comm.rank() == 0 {
        print(&report, bench.json)?;
    }
    Ok(())
}

/// The work of the timed steps, and the machine and model that did it.
struct Setting<'a> {
    config: &'a Config,
    machine: &'a Machine,
    architecture: &'a Architecture,
    work: Work,
    /// N.
    parameters: f64,
    planned: Option<Planned>,
}

/// The report on the timed steps. All ranks must call it.
fn report(bench: &Bench, setting: &Setting, Timed { losses, seconds }: Timed, comm: &CommThread) -> Result<Report> {
    let Setting { config, machine, architecture, work, parameters, planned } = setting;
    let needs_head = config.loss.needs_policy();
    let flops = work.flops(architecture, *parameters, needs_head);
    // Before the matrix products below, which are not part of a step's memory.
    let peak_rss_gb = largest_peak(comm)?;
    let mut rate = [matmul_rate(architecture, machine, work.response_share().filter(|_| needs_head))];
    comm.sum_f64(&mut rate)?;
    let tokens = if bench.unshared { work.sequence_tokens } else { work.tokens };
    Ok(Report {
        program: "haf-dist",
        objective: format!("{:?}", bench.objective).to_lowercase(),
        pairs: bench.count,
        ranks: comm.world_size(),
        threads: machine.threads,
        dtype: machine.dtype_name(),
        device: format!("{:?}", machine.device),
        place: machine.place(),
        shared_prefix: !bench.unshared,
        tokens_per_micro_batch: bench.tokens_per_micro_batch,
        pairs_per_s: bench.count as f64 / seconds,
        seconds,
        sequence_tokens_per_s: work.sequence_tokens / seconds,
        tokens_per_s: tokens / seconds,
        useful_flops_per_s: flops / seconds,
        matmul_flops_per_s: rate[0],
        useful_share_of_matmul: flops / seconds / rate[0],
        sharing_formula: work.sharing_formula(architecture, *parameters, needs_head),
        peak_rss_gb,
        planned_peak_gb: planned.as_ref().map(|planned| planned.peak_gb),
        planned_pairs_per_s: planned.as_ref().map(|planned| planned.pairs_per_s),
        losses,
    })
}

/// Steps that were timed.
struct Timed {
    losses: Vec<f64>,
    /// Of all steps together.
    seconds: f64,
}

/// Times all steps except the first, which allocates the buffers.
fn timed_steps(trainer: &mut Trainer, steps: usize) -> Result<Timed> {
    trainer.step(steps)?;
    trainer.comm.barrier()?;
    let started = Instant::now();
    let mut losses = Vec::with_capacity(steps);
    for step in 1..steps {
        trainer.queue_step(steps)?;
        let unread = if step + 1 == steps { 0 } else { trainer.ahead() };
        losses.extend(trainer.read_steps(unread)?.into_iter().map(|(metrics, _)| metrics.loss));
    }
    wait_for(trainer.engine.model.device);
    trainer.comm.barrier()?;
    Ok(Timed { losses, seconds: started.elapsed().as_secs_f64() })
}

/// Peak memory so far of the rank with the most, in GB.
fn largest_peak(comm: &CommThread) -> Result<f64> {
    let mut peaks = vec![0.0; comm.world_size()];
    peaks[comm.rank()] = machine::peak_memory()? as f64 / 1e9;
    comm.sum_f64(&mut peaks)?;
    Ok(peaks.into_iter().fold(0.0, f64::max))
}

fn config(bench: &Bench, ranks: usize) -> Result<Config> {
    let mut config = Config::parse("bench", MINIMAL, &[])?;
    config.model.path = bench.model.clone();
    config.loss.objective = bench.objective;
    config.train.pairs_per_step = PAIRS_PER_STEP * ranks;
    config.train.tokens_per_micro_batch = bench.tokens_per_micro_batch;
    config.data.max_length = bench.max_length;
    Ok(config)
}

/// One global batch to warm up on, and the pairs to time.
fn prepare(bench: &Bench, config: &Config, architecture: &Architecture, warm_up: usize) -> Result<PreparedData> {
    let length = config.data.max_length;
    if length < 2 {
        return Err(Error::input("--max-length 1 leaves no room for an answer").hint("expected 2 or more"));
    }
    let rules = Rules {
        template: TemplateKind::Plain,
        max_prompt_length: length - 1,
        truncation: Truncation::Drop,
        ..Rules::from(&config.data)
    };
    let encoder = Encoder::open(&bench.model, rules, architecture.vocabulary)?;
    PreparedData::from_pairs(verbatim::first_pairs(&bench.pairs, &encoder, warm_up + bench.count)?)
}

fn work(data: &PreparedData, pairs: std::ops::Range<usize>) -> Work {
    let mut work = Work::default();
    for pair in pairs.map(|index| data.pair(index)) {
        let [prefix, chosen, rejected] = [pair.prefix, pair.chosen, pair.rejected].map(|tokens| tokens.len() as f64);
        work.tokens += prefix + chosen + rejected;
        work.sequence_tokens += 2.0 * prefix + chosen + rejected;
        work.answer_tokens += chosen + rejected;
        let triangle = |rows: f64| rows * (rows + 1.0) / 2.0;
        work.seen += triangle(prefix) + (chosen + rejected) * prefix + triangle(chosen) + triangle(rejected);
    }
    work
}

impl Work {
    /// 6 N (P+A+B) + 6 V D (A+B) + attention: two operations per multiply-add, one forward and two backward products.
    fn flops(&self, architecture: &Architecture, parameters: f64, head: bool) -> f64 {
        let heads = architecture.blocks.iter().map(|block| block.heads.query * block.heads.width).sum::<usize>() as f64;
        6.0 * parameters * self.tokens + self.head(architecture, head) + 12.0 * heads * self.seen
    }

    fn head(&self, architecture: &Architecture, head: bool) -> f64 {
        let matrix = (architecture.vocabulary * architecture.width) as f64;
        if head { 6.0 * matrix * self.answer_tokens } else { 0.0 }
    }

    /// Answer tokens as a share of all tokens.
    fn response_share(&self) -> Option<f64> {
        (self.tokens > 0.0).then(|| self.answer_tokens / self.tokens)
    }

    fn sharing_formula(&self, architecture: &Architecture, parameters: f64, head: bool) -> f64 {
        let head = self.head(architecture, head);
        (6.0 * parameters * self.sequence_tokens + head) / (6.0 * parameters * self.tokens + head)
    }
}

/// Parameters of the blocks and the final norm that are used for a token.
fn backbone_parameters(model: &Model) -> f64 {
    let passed = |(part, segment): (&Part, &Segment)| match *part {
        Part::Block(number) => active_elements(&model.architecture, number) as f64,
        Part::Norm => segment.length() as f64,
        _ => 0.0,
    };
    model.parts.iter().zip(&model.segments).map(passed).sum()
}

/// A product of [rows, inputs] with a weight [outputs, inputs], and how often a forward pass has it.
struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
    times: usize,
}

/// The products of a forward pass; `head`: response rows as a share of all rows, if the language-model head is used.
fn products(architecture: &Architecture, head: Option<f64>) -> Vec<Product> {
    let Architecture { width, vocabulary, ref blocks, .. } = *architecture;
    let (HeadCounts { query, key, width: head_width }, layers) = (blocks[0].heads, blocks.len());
    let mut mlps: Vec<(Mlp, usize)> = Vec::new();
    for mlp in blocks.iter().map(|block| block.mlp) {
        match mlps.iter_mut().find(|(known, _)| *known == mlp) {
            Some((_, count)) => *count += 1,
            None => mlps.push((mlp, 1)),
        }
    }
    let rows = 1536;
    let mut products = vec![
        Product { rows, inputs: width, outputs: (query + 2 * key) * head_width, times: layers },
        Product { rows, inputs: query * head_width, outputs: width, times: layers },
    ];
    for (mlp, layers) in mlps {
        // Experts' rows are shared out among their products.
        let (rows, times) = (rows * mlp.rows() / mlp.products(), layers * mlp.products());
        products.push(Product { rows, inputs: width, outputs: mlp.inner_width(), times });
        products.push(Product { rows, inputs: mlp.width, outputs: width, times });
    }
    if let Some(share) = head {
        let rows = ((rows as f64 * share) as usize).max(1);
        products.push(Product { rows, inputs: width, outputs: vocabulary, times: 1 });
    }
    products
}

/// Operations per second of one training step's [`products`]: each forward, and its two backward.
fn matmul_rate(architecture: &Architecture, machine: &Machine, head: Option<f64>) -> f64 {
    let (mut operations, mut seconds) = (0.0, 0.0);
    for Product { rows, inputs, outputs, times } in products(architecture, head) {
        let random = |shape: [usize; 2]| {
            Tensor::rand(shape.map(|size| size as i64), (Kind::Float, machine.device)).to_kind(machine.kind)
        };
        let (x, weight, gradient) = (random([rows, inputs]), random([outputs, inputs]), random([rows, outputs]));
        let passes: [&dyn Fn() -> Tensor; 3] =
            [&|| x.linear(&weight, None::<&Tensor>), &|| gradient.mm(&weight), &|| gradient.tr().mm(&x)];
        for pass in passes {
            operations += (2 * rows * inputs * outputs * times) as f64;
            seconds += time(pass, machine.device) * times as f64;
        }
    }
    operations / seconds
}

/// Mean seconds of a call, after a first one that is not timed.
fn time(product: &dyn Fn() -> Tensor, device: Device) -> f64 {
    let _ = product();
    wait_for(device);
    let (started, mut calls) = (Instant::now(), 0.0);
    while started.elapsed().as_secs_f64() < PRODUCT_SECONDS {
        let _ = product();
        wait_for(device);
        calls += 1.0;
    }
    started.elapsed().as_secs_f64() / calls
}

fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        let line = serde_json::to_string(report).map_err(|error| Error::runtime(format!("report: {error}")))?;
        return terminal::out(line);
    }
    let mut table = terminal::Table::new(["objective", &report.objective]);
    let giga = |value: f64| format!("{:.1} GFLOP/s", value / 1e9);
    for (name, value) in [
        (
            "ranks x threads, dtype",
            format!("{} x {}, {} on {}", report.ranks, report.threads, report.dtype, report.place),
        ),
        ("pairs per second", format!("{:.3}", report.pairs_per_s)),
        ("tokens per second", format!("{:.0}", report.tokens_per_s)),
        ("useful work", giga(report.useful_flops_per_s)),
        ("matrix products", giga(report.matmul_flops_per_s)),
        ("useful share", format!("{:.0}%", 100.0 * report.useful_share_of_matmul)),
        ("peak memory", format!("{:.2} GB a rank", report.peak_rss_gb)),
    ] {
        table.row([name.to_string(), value]);
    }
    if let (Some(peak), Some(rate)) = (report.planned_peak_gb, report.planned_pairs_per_s) {
        table.row(["planned peak memory".to_string(), format!("{peak:.2} GB a rank")]);
        table.row(["planned pairs per second".to_string(), format!("{rate:.3}")]);
    }
    terminal::out(format_args!("Whole training steps, timed on {} pairs\n{table}", report.pairs))
}
