//! The step loop: batch, engine, reduce, clip, update, log, evaluate, save.
//!
//! Every rank runs the same loop on its share of each global batch. Not here: how a run is set up (`commands/train.rs`),
//! and what a checkpoint takes from it (`train/saving.rs`).

mod conflict;
mod doubts;
mod replicas;
mod report;
mod saving;
pub mod signals;
mod step;

pub use crate::data::split::Split;
pub(crate) use doubts::doubts;
pub use saving::check_replicas;
pub(crate) use saving::{Saving, check_resumable};

use crate::checkpoint::TrainState;
use crate::comm::CommThread;
use crate::config::Config;
use crate::data::batch::Packing;
use crate::data::prefetch::{Prefetch, Share};
use crate::data::prepared::PreparedData;
use crate::data::sampler::Sampler;
use crate::engine::head::Objective;
use crate::engine::{Buckets, Engine};
use crate::error::{Error, Result};
use crate::evaluate::scoring::{ToScore, score_pairs};
use crate::evaluate::{self, Reported};
use crate::files;
use crate::machine::late::Queue;
use crate::metrics::{EvaluationMetrics, PairOutcome, Sink};
use crate::update::optim::{AdamW, Judge};
use doubts::LossWatch;
use report::Report;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tracing::{trace_span, warn};

/// Updates that may be skipped one after the other before the run gives up.
const SKIPS_IN_A_ROW: usize = 20;

/// What the steps of a run have shown so far.
struct Seen {
    watch: LossWatch,
    skipped_in_a_row: usize,
}

/// A run under way. All ranks hold one and call the same methods.
pub struct Trainer<'a> {
    /// The run.
    pub(crate) config: &'a Config,
    /// The other ranks.
    pub(crate) comm: &'a CommThread,
    /// The model, with masters and moments.
    pub engine: Engine,
    /// The gradient sums of the step under way.
    pub(crate) buckets: Buckets,
    /// What updates the model.
    pub(crate) optimizer: AdamW,
    /// Which pairs make a global batch.
    pub sampler: Sampler,
    /// The training pairs.
    pub train: Arc<Split>,
    /// The pairs that pick the best checkpoint.
    pub(crate) dev: Option<Split>,
    /// The last evaluation of all dev pairs.
    pub(crate) last_dev: Option<EvaluationMetrics>,
    /// Where metrics go; empty on ranks other than 0.
    pub(crate) sinks: Vec<Box<dyn Sink>>,
    /// Where checkpoints go; without it none are written.
    pub(crate) saving: Option<Saving>,
    /// How pairs are packed: shared, except to measure what sharing gains.
    pub(crate) packing: Packing,
    /// The run's position.
    pub state: TrainState,
    /// Set when this rank is asked to stop: then all ranks stop after the current step, with a checkpoint.
    pub(crate) stop: Arc<AtomicBool>,
    /// Whether any rank had been asked to stop when a step was last read; the same on every rank.
    asked_to_stop: bool,
    /// The device's queue of work.
    queue: Queue,
    /// Decides whether updates are made.
    judge: Judge,
    /// Steps that are queued but not read, the oldest first.
    unread: VecDeque<Report<'a>>,
    /// When a step was last read.
    read_at: Option<Instant>,
    /// Packs the next micro-batches; started by the first step, with the state and packing of that time.
    prefetch: Option<Prefetch>,
}

impl<'a> Trainer<'a> {
    /// A run at its start, without sinks and without checkpoints; `engine` holds the starting weights, `buckets` are the
    /// model's.
    ///
    /// # Errors
    /// A device out of memory for the moments.
    pub fn new(
        config: &'a Config,
        comm: &'a CommThread,
        (mut engine, buckets): (Engine, Buckets),
        sampler: Sampler,
        train: Split,
        dev: Option<Split>,
        threads: usize,
    ) -> Result<Self> {
        let data_key = data_key(config, &train.data);
        engine.reserve(likely_tokens(config, &train.data, comm.world_size()));
        Ok(Self {
            config,
            comm,
            optimizer: AdamW::new(&config.train, &mut engine.model)?,
            packing: Packing::shared(engine.model.architecture.alike()),
            queue: Queue::of(engine.model.device, comm)?,
            judge: Judge::new(engine.model.device),
            engine,
            buckets,
            sampler,
            train: Arc::new(train),
            dev,
            last_dev: None,
            sinks: Vec::new(),
            saving: None,
            state: TrainState { world_size: comm.world_size(), threads, data_key, ..TrainState::default() },
            stop: Arc::default(),
            asked_to_stop: false,
            unread: VecDeque::new(),
            read_at: None,
            prefetch: None,
        })
    }

    /// Trains from the state's position to the end; evaluates and saves on the way and after the last update.
    ///
    /// # Errors
    /// A lost rank, a failed write, gradients that stay non-finite, or a signal that asked to stop.
    pub(crate) fn run(&mut self) -> Result<()> {
        let total = total_steps(self.config, &self.sampler);
        let steps_left = total.saturating_sub(self.state.step);
        let watch = LossWatch::new(steps_left, self.config.lora.is_none());
        let mut seen = Seen { watch, skipped_in_a_row: 0 };
        while self.state.step < total {
            self.queue_step(total)?;
            let saves = due(self.state.step, self.config.checkpoint.every, total);
            let evaluates = due(self.state.step, self.config.eval.every, total) || saves;
            let compares = self.conflict_is_due();
            self.log_steps(if evaluates || compares { 0 } else { self.ahead() }, &mut seen)?;
            let stops = self.asked_to_stop && self.state.step < total;
            if stops {
                self.log_steps(0, &mut seen)?;
            }
            if compares {
                let conflict = self.conflict()?;
                let logged = self.sinks.conflict(&conflict);
                self.comm.agree(logged)?;
            }
            let dev = if evaluates { self.evaluate_dev()? } else { None };
            if saves || stops {
                self.save(dev)?;
            }
            if stops {
                return Err(Error::stopped(format!("stopped by a signal after step {} of {total}", self.state.step))
                    .hint("a checkpoint of that step is saved: the same command with --resume continues from it"));
            }
        }
        Ok(())
    }

    /// Reads steps until `unread` are left, and logs their metrics and warnings.
    fn log_steps(&mut self, unread: usize, seen: &mut Seen) -> Result<()> {
        for (metrics, updated) in self.read_steps(unread)? {
            seen.skipped_in_a_row = if updated { 0 } else { seen.skipped_in_a_row + 1 };
            if seen.skipped_in_a_row >= SKIPS_IN_A_ROW {
                return Err(Error::runtime(format!("gradients were not finite in {SKIPS_IN_A_ROW} steps in a row"))
                    .hint("try a lower train.learning_rate, model.dtype = \"f32\", or --debug to see which gradient"));
            }
            seen.watch.add(&metrics).iter().filter(|_| self.comm.rank() == 0).for_each(|doubt| warn!("{doubt}"));
            let logged = self.sinks.step(&metrics);
            self.comm.agree(logged)?;
        }
        Ok(())
    }

    fn share(&self) -> Share {
        Share {
            sampler: self.sampler.clone(),
            rank: self.comm.rank(),
            world_size: self.comm.world_size(),
            tokens_per_micro_batch: self.config.train.tokens_per_micro_batch,
            packing: self.packing,
            device: self.engine.model.device,
        }
    }

    /// Metrics of the dev pairs, logged; none without dev pairs.
    fn evaluate_dev(&mut self) -> Result<Option<EvaluationMetrics>> {
        let Some(dev) = self.dev.take() else { return Ok(None) };
        let evaluated = self.evaluate_pairs(&dev);
        self.dev = Some(dev);
        let (rows, outcomes) = evaluated?;
        let fitted = evaluate::fitting::fit(&outcomes);
        let total = rows.into_iter().next().map(|total| EvaluationMetrics { fitted, ..total });
        total.iter().for_each(|total| self.doubt_ties(total));
        self.last_dev = total.clone();
        Ok(total)
    }

    /// Metrics of a split with the current weights: the total first, then each domain, which go to the sinks; and the result of each
    /// pair.
    ///
    /// # Errors
    /// A lost rank or a failed write.
    pub(crate) fn evaluate_pairs(&mut self, split: &Split) -> Result<(Vec<EvaluationMetrics>, Vec<PairOutcome>)> {
        let _span = trace_span!("evaluate", split = split.name).entered();
        let reported = Reported::of_run(&self.config.loss);
        let budget = self.config.train.tokens_per_micro_batch;
        let all: Vec<usize> = (0..split.data.len()).collect();
        let to_score =
            ToScore { data: &split.data, pairs: &all, tokens_per_micro_batch: budget, log_probs: reported.policy };
        let scores = score_pairs(&mut self.engine, to_score, self.comm, split.name)?;
        let rows = evaluate::metrics(split.name, self.state.step, &split.data, &scores, &split.references, reported);
        let logged = rows.iter().try_for_each(|row| self.sinks.evaluation(row));
        self.comm.agree(logged)?;
        Ok((rows, evaluate::outcomes(&split.data, &scores, &split.references, reported)))
    }
}

/// Tokens that a rank's micro-batches will rarely exceed: the budget, or 1.5 times a rank's mean share of a global batch if
/// that is less.
fn likely_tokens(config: &Config, data: &PreparedData, ranks: usize) -> usize {
    let all: usize = (0..data.len()).map(|pair| data.tokens(pair)).sum();
    let share = all * config.train.pairs_per_step.div_ceil(ranks) / data.len().max(1);
    config.train.tokens_per_micro_batch.min(share + share / 2)
}

/// Hash of everything that the order of the training pairs depends on.
pub(crate) fn data_key(config: &Config, train: &PreparedData) -> String {
    let data = &config.data;
    let weights: Vec<f64> = data.train.iter().map(|source| source.weight).collect();
    let batch = config.train.pairs_per_step;
    let order = format!("{:032x} {weights:?} {batch} {} {}", train.key(), data.shuffle, data.seed);
    format!("{:032x}", files::fingerprint_parts([order.as_bytes()]))
}

/// The most checkpoints that a run of `total` updates has on disk at a time: the newest `keep`, the best on the dev pairs,
/// and the one being written, but no more than it writes.
pub fn checkpoints_at_once(config: &Config, total: usize) -> usize {
    let written = if config.checkpoint.every == 0 { 1 } else { total.div_ceil(config.checkpoint.every) };
    written.min(config.checkpoint.keep + usize::from(!config.data.dev.is_empty()) + 1)
}

/// Updates of a whole run.
pub(crate) fn total_steps(config: &Config, sampler: &Sampler) -> usize {
    let train = &config.train;
    train.steps.unwrap_or_else(|| train.epochs.unwrap_or(1) * sampler.steps_per_epoch())
}

/// Which losses count in the step after `done` updates.
pub(crate) fn objective_of_step(config: &Config, done: usize) -> Objective<'_> {
    let loss = &config.loss;
    let (mut reward_weight, mut alpha) = (loss.effective_reward_weight(), loss.effective_alpha());
    if let Some(phase) = done.checked_div(loss.alternate_every) {
        // Policy first, then reward; the idle loss is still computed and reported.
        let idle = if phase.is_multiple_of(2) { &mut reward_weight } else { &mut alpha };
        *idle = 0.0;
    }
    Objective { config: loss, reward_weight, alpha, log_probs: loss.needs_policy() }
}

fn due(step: usize, every: usize, total: usize) -> bool {
    step == total || (every > 0 && step.is_multiple_of(every))
}
