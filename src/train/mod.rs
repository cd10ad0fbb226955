//! The step loop: batch, engine, reduce, clip, update, log, evaluate, save.
//!
//! Every rank runs the same loop on its share of each global batch. Not here: how a run is set up (`commands/train.rs`),
//! and what a checkpoint takes from it (`train/saving.rs`).

mod doubts;
mod replicas;
mod saving;
pub mod signals;

pub use crate::data::split::Split;
pub use doubts::doubts;
pub use saving::{Saving, check_replicas, check_resumable};

use crate::checkpoint::TrainState;
use crate::comm::CommThread;
use crate::config::Config;
use crate::data::batch::Packing;
use crate::data::prefetch::{MicroBatch, Prefetch, Share};
use crate::data::prepared::PreparedData;
use crate::data::sampler::Sampler;
use crate::engine::head::{Losses, Objective, PairLosses};
use crate::engine::{Engine, GradientSink};
use crate::error::{Error, Result};
use crate::evaluate::scoring::score_pairs;
use crate::evaluate::{self, Reported};
use crate::files;
use crate::loss::hit;
use crate::machine::backend;
use crate::metrics::{EvaluationMetrics, PairOutcome, Sink, StepMetrics};
use crate::update::optim::{self, AdamW, Update};
use crate::update::reducer::Reducer;
use crate::update::sharding::{self, Spread};
use doubts::LossWatch;
use replicas::Hashes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tracing::{debug, trace_span, warn};

/// Updates that may be skipped one after the other before the run gives up.
const SKIPS_IN_A_ROW: usize = 20;

/// A run under way. All ranks hold one and call the same methods.
pub struct Trainer<'a> {
    /// The run.
    pub config: &'a Config,
    /// The other ranks.
    pub comm: &'a CommThread,
    /// The model.
    pub engine: Engine,
    /// Moments.
    pub optimizer: AdamW,
    /// Which pairs make a global batch.
    pub sampler: Sampler,
    /// What is trained on.
    pub train: Arc<Split>,
    /// What picks the best checkpoint.
    pub dev: Option<Split>,
    /// Where numbers go; empty on ranks other than 0.
    pub sinks: Vec<Box<dyn Sink>>,
    /// Where checkpoints go; none are written without.
    pub saving: Option<Saving>,
    /// How pairs are packed: shared, except to measure what sharing gains.
    pub packing: Packing,
    /// Where the run stands.
    pub state: TrainState,
    /// Raised where this rank was asked to stop: then all ranks do after the step under way, with a checkpoint.
    pub stop: Arc<AtomicBool>,
    /// Whether a rank had been asked by the end of the last step; the same on every rank.
    asked_to_stop: bool,
    /// Hashes of the last step, to be compared where the next one waits anyway.
    unchecked: Option<Hashes>,
    /// Packs what comes next; started by the first step, at the step and with the packing it finds.
    prefetch: Option<Prefetch>,
}

/// What one step's pairs came to, summed over the global batch.
#[derive(Default)]
struct StepSums {
    reward_loss: f64,
    policy_loss: f64,
    hits: f64,
    margin: f64,
    tokens: f64,
    /// Ranks that were asked to stop.
    stops: f64,
}

impl<'a> Trainer<'a> {
    /// A run at its start, without sinks and without checkpoints; `engine` holds the starting weights.
    pub fn new(
        config: &'a Config,
        comm: &'a CommThread,
        engine: Engine,
        sampler: Sampler,
        train: Split,
        dev: Option<Split>,
        threads: usize,
    ) -> Self {
        let data_key = data_key(config, &train.data);
        engine.reserve(likely_tokens(config, &train.data, comm.world_size()));
        Self {
            config,
            comm,
            optimizer: AdamW::new(&config.train, &engine.model),
            packing: Packing::shared(engine.model.architecture.alike()),
            engine,
            sampler,
            train: Arc::new(train),
            dev,
            sinks: Vec::new(),
            saving: None,
            state: TrainState { world_size: comm.world_size(), threads, data_key, ..TrainState::default() },
            stop: Arc::default(),
            asked_to_stop: false,
            unchecked: None,
            prefetch: None,
        }
    }

    /// Trains from where the state stands to the end; evaluates and saves on the way and after the last update.
    ///
    /// # Errors
    /// A lost rank, a failed write, gradients that stay non-finite, or a signal that asked to stop.
    pub fn run(&mut self) -> Result<()> {
        let total = total_steps(self.config, &self.sampler);
        let mut skipped_in_a_row = 0;
        let mut watch = LossWatch::new(total.saturating_sub(self.state.step));
        while self.state.step < total {
            let (metrics, updated) = self.step(total)?;
            skipped_in_a_row = if updated { 0 } else { skipped_in_a_row + 1 };
            if skipped_in_a_row >= SKIPS_IN_A_ROW {
                return Err(Error::runtime(format!("gradients were not finite in {SKIPS_IN_A_ROW} steps in a row"))
                    .hint("try a lower train.learning_rate, model.dtype = \"f32\", or --debug to see which gradient"));
            }
            watch.add(&metrics).iter().filter(|_| self.comm.rank() == 0).for_each(|doubt| warn!("{doubt}"));
            let logged = self.sinks.step(&metrics);
            self.comm.agree(logged)?;
            let saves = due(self.state.step, self.config.checkpoint.every, total);
            let evaluates = due(self.state.step, self.config.eval.every, total) || saves;
            let stops = self.asked_to_stop && self.state.step < total;
            let dev = if evaluates { self.evaluate_dev()? } else { None };
            if saves || stops {
                self.save(dev)?;
            }
            if stops {
                return Err(Error::stopped(format!("stopped by a signal after step {} of {total}", self.state.step))
                    .hint("a checkpoint of that step is saved: the same command with --resume goes on from it"));
            }
        }
        Ok(())
    }

    /// One update. Returns its metrics and whether it was made (or skipped: gradients not finite).
    ///
    /// # Errors
    /// A lost rank.
    pub fn step(&mut self, total: usize) -> Result<(StepMetrics, bool)> {
        let started = Instant::now();
        let _span = trace_span!("step", number = self.state.step + 1).entered();
        self.comm.set_stage(format!("step {}", self.state.step + 1));
        let config = self.config;
        let objective = objective_of_step(config, self.state.step);

        let sharded = sharding::is_sharded(&self.engine.model);
        let mut reducer = Reducer::new(self.comm).summing_in(backend::sum_kind(&config.parallel)).scattering(sharded);
        let (losses, count) = self.compute_gradients(total, &objective, &mut reducer)?;
        let computed = started.elapsed();
        trace_span!("wait for reductions").in_scope(|| reducer.finish())?;
        let reduced = started.elapsed();
        let sums = trace_span!("sum metrics").in_scope(|| self.sums(losses))?;
        self.asked_to_stop = sums.stops > 0.0;

        let norm = trace_span!("gradient norm").in_scope(|| self.gradient_norm(sharded))? / count;
        let finite = self.comm.all_true(norm.is_finite())?;
        // The norm has waited for all that a GPU had to do, so that nobody waits for hashes alone.
        self.unchecked.take().map_or(Ok(()), |hashes| hashes.compare(self.comm))?;
        let clip = config.train.clip_norm;
        let clip_scale = if clip > 0.0 && norm > clip { clip / norm } else { 1.0 };
        let train = &config.train;
        let rate = optim::schedule(train.schedule, self.state.step, train.warmup_steps, total);
        let head_rate = if train.head_learning_rate > 0.0 { train.head_learning_rate } else { train.learning_rate };
        if finite {
            let update = Update {
                number: self.state.step + 1 - self.state.updates_skipped,
                learning_rate: rate * train.learning_rate,
                head_learning_rate: rate * head_rate,
                gradient_scale: clip_scale / count,
            };
            trace_span!("update").in_scope(|| {
                let mut spread = Spread::new(self.comm);
                self.optimizer
                    .step(&mut self.engine.model, &update, |number, segment| spread.updated(number, segment))?;
                spread.finish()
            })?;
        } else {
            self.name_not_finite(&objective)?;
            self.state.updates_skipped += 1;
            warn!("step {}: gradients are not finite; the update is skipped on all ranks", self.state.step + 1);
        }
        self.engine.model.segments.iter_mut().for_each(|segment| segment.clear_gradient());
        self.state.step += 1;
        if self.comm.world_size() > 1 && self.state.step.checked_rem(train.check_every) == Some(0) {
            let hashes = trace_span!("hash weights").in_scope(|| Hashes::of_weights(&self.engine, self.state.step))?;
            let losses = [("reward loss", sums.reward_loss), ("policy loss", sums.policy_loss)];
            let others = [("hits", sums.hits), ("margin", sums.margin), ("tokens", sums.tokens), ("norm", norm)];
            self.unchecked = Some(hashes.and_metrics(&losses).and_metrics(&others));
        }

        let seconds = started.elapsed().as_secs_f64();
        debug!(
            "step {}: {:.3} s computing (on a GPU: queueing), {:.3} s waiting for reductions, {:.3} s updating",
            self.state.step,
            computed.as_secs_f64(),
            (reduced - computed).as_secs_f64(),
            seconds - reduced.as_secs_f64()
        );
        let (reward_loss, policy_loss) = (sums.reward_loss / count, sums.policy_loss / count);
        let reported = Reported::of_run(&config.loss);
        let metrics = StepMetrics {
            step: self.state.step,
            loss: objective.reward_weight * reward_loss + objective.alpha * policy_loss,
            reward_loss: reported.reward.then_some(reward_loss),
            policy_loss: reported.policy.then_some(policy_loss),
            accuracy: reported.reward.then_some(sums.hits / count),
            margin: reported.reward.then_some(sums.margin / count),
            grad_norm: norm,
            lr: rate * train.learning_rate,
            pairs_per_s: count / seconds,
            tokens_per_s: sums.tokens / seconds,
            seconds,
        };
        Ok((metrics, finite))
    }

    /// What the step came to over all ranks, and whether one of them was asked to stop.
    fn sums(&self, losses: Vec<(Losses, usize)>) -> Result<StepSums> {
        let stops = f64::from(u8::from(self.stop.load(Ordering::Relaxed)));
        StepSums { stops, ..StepSums::read(losses)? }.over_all_ranks(self.comm)
    }

    /// Global L2 norm of all gradient sums, the same bits on every rank.
    fn gradient_norm(&self, sharded: bool) -> Result<f64> {
        let mut squares = [optim::gradient_squares(&self.engine.model)?];
        if sharded {
            self.comm.sum_f64(&mut squares)?;
        }
        Ok(squares[0].sqrt())
    }

    /// Adds the gradients of this rank's share of the global batch to the buckets and starts their reduction. Returns
    /// the losses and tokens of each micro-batch, which a GPU may still be computing, and the pairs of the global batch.
    fn compute_gradients<'o>(
        &mut self,
        total: usize,
        objective: &Objective<'o>,
        sink: &mut dyn GradientSink,
    ) -> Result<(Vec<(Losses<'o>, usize)>, f64)> {
        let prefetch = match self.prefetch.take() {
            Some(prefetch) => prefetch,
            None => Prefetch::start(self.train.clone(), self.share(), self.state.step..total)?,
        };
        let prefetch = self.prefetch.insert(prefetch);
        let mut losses = Vec::new();
        loop {
            let MicroBatch { step, last, global_pairs, batch } = prefetch.next()?;
            if step != self.state.step {
                return Err(Error::runtime(format!("step {} was given the pairs of step {step}", self.state.step)));
            }
            let sink: Option<&mut dyn GradientSink> = if last { Some(&mut *sink) } else { None };
            losses.push((self.engine.forward_backward(&batch, objective, sink)?, batch.token_count()));
            if last {
                return Ok((losses, global_pairs as f64));
            }
        }
    }

    fn share(&self) -> Share {
        Share {
            sampler: self.sampler.clone(),
            place: (self.comm.rank(), self.comm.world_size()),
            tokens_per_micro_batch: self.config.train.tokens_per_micro_batch,
            packing: self.packing,
            device: self.engine.model.device,
        }
    }

    /// Metrics of the dev pairs, logged; none without dev pairs.
    fn evaluate_dev(&mut self) -> Result<Option<EvaluationMetrics>> {
        let Some(dev) = self.dev.take() else { return Ok(None) };
        let rows = self.evaluate(&dev);
        self.dev = Some(dev);
        let total = rows?.into_iter().next();
        total.iter().for_each(|total| self.doubt_ties(total));
        Ok(total)
    }

    /// Metrics of a split under the model as it stands: the total first, then each domain. They go to the sinks.
    ///
    /// # Errors
    /// A lost rank or a failed write.
    pub fn evaluate(&mut self, split: &Split) -> Result<Vec<EvaluationMetrics>> {
        self.evaluate_pairs(split).map(|(rows, _)| rows)
    }

    /// [`evaluate`](Self::evaluate), and what each pair came to.
    ///
    /// # Errors
    /// A lost rank or a failed write.
    pub fn evaluate_pairs(&mut self, split: &Split) -> Result<(Vec<EvaluationMetrics>, Vec<PairOutcome>)> {
        let _span = trace_span!("evaluate", split = split.name).entered();
        let reported = Reported::of_run(&self.config.loss);
        let budget = self.config.train.tokens_per_micro_batch;
        let all: Vec<usize> = (0..split.data.len()).collect();
        let scores = score_pairs(&self.engine, (&split.data, &all), self.comm, budget, reported.policy, split.name)?;
        let rows = evaluate::metrics(split.name, self.state.step, &split.data, &scores, &split.references, reported);
        let logged = rows.iter().try_for_each(|row| self.sinks.evaluation(row));
        self.comm.agree(logged)?;
        Ok((rows, evaluate::outcomes(&split.data, &scores, &split.references, reported)))
    }
}

impl StepSums {
    /// Waits for the losses of all micro-batches.
    fn read(losses: Vec<(Losses, usize)>) -> Result<Self> {
        let mut sums = Self::default();
        for (losses, tokens) in losses {
            sums.add(&losses.read()?, tokens);
        }
        Ok(sums)
    }

    fn add(&mut self, losses: &[PairLosses], tokens: usize) {
        for loss in losses {
            let margin = loss.scores.rewards[0] - loss.scores.rewards[1];
            self.reward_loss += loss.reward_loss;
            self.policy_loss += loss.policy_loss.unwrap_or(0.0);
            self.hits += hit(margin);
            self.margin += margin;
        }
        self.tokens += tokens as f64;
    }

    /// The metrics' one reduction a step.
    fn over_all_ranks(self, comm: &CommThread) -> Result<Self> {
        let mut packed = [self.reward_loss, self.policy_loss, self.hits, self.margin, self.tokens, self.stops];
        comm.sum_f64(&mut packed)?;
        let [reward_loss, policy_loss, hits, margin, tokens, stops] = packed;
        Ok(Self { reward_loss, policy_loss, hits, margin, tokens, stops })
    }
}

/// Tokens that a rank's micro-batches will hardly exceed: the budget, or half as much again as a mean share of a global
/// batch where the budget takes it whole.
fn likely_tokens(config: &Config, data: &PreparedData, ranks: usize) -> usize {
    let all: usize = (0..data.len()).map(|pair| data.tokens(pair)).sum();
    let share = all * config.train.pairs_per_step.div_ceil(ranks) / data.len().max(1);
    config.train.tokens_per_micro_batch.min(share + share / 2)
}

/// Hash of all that the order of the training pairs depends on.
pub fn data_key(config: &Config, train: &PreparedData) -> String {
    let data = &config.data;
    let weights: Vec<f64> = data.train.iter().map(|source| source.weight).collect();
    let batch = config.train.pairs_per_step;
    let order = format!("{:032x} {weights:?} {batch} {} {}", train.key(), data.shuffle, data.seed);
    format!("{:032x}", files::fingerprint_parts([order.as_bytes()]))
}

/// The most checkpoints that a run of `total` updates has on the disk at a time: the newest `keep`, the best on the dev
/// pairs, and the one being written, but no more than it writes.
pub fn checkpoints_at_once(config: &Config, total: usize) -> usize {
    let written = if config.checkpoint.every == 0 { 1 } else { total.div_ceil(config.checkpoint.every) };
    written.min(config.checkpoint.keep + usize::from(!config.data.dev.is_empty()) + 1)
}

/// Updates of a whole run.
pub fn total_steps(config: &Config, sampler: &Sampler) -> usize {
    let train = &config.train;
    train.steps.unwrap_or_else(|| train.epochs.unwrap_or(1) * sampler.steps_per_epoch())
}

/// Which losses count in the step after `done` updates.
pub fn objective_of_step(config: &Config, done: usize) -> Objective<'_> {
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
