//! One step, queued: gradients of a global batch, their reduction, the verdict on them and the update. On a GPU nothing here
//! waits for the device.
//!
//! Not here: what is reported of a step (`report.rs`), the loop over steps (`mod.rs`), and how buckets are reduced and
//! weights updated (`update/`).

use super::replicas::Hashes;
use super::report::{Report, Times};
use super::{Trainer, objective_of_step};
use crate::config::TrainConfig;
use crate::data::prefetch::{MicroBatch, Prefetch};
use crate::engine::head::{Losses, Objective};
use crate::error::{Error, Result};
use crate::machine::backend;
use crate::metrics::StepMetrics;
use crate::tensor::queue_to_host;
use crate::update::optim::{self, Clipping, Decided, Update};
use crate::update::reducer::Reducer;
use crate::update::sharding::{self, Gathers};
use std::time::Instant;
use tracing::trace_span;

/// What computing a step's gradients yields, apart from the buckets.
struct Computed<'o> {
    /// Losses of each of this rank's micro-batches, which a GPU may still be computing, and its tokens.
    losses: Vec<(Losses<'o>, usize)>,
    /// Pairs of the global batch.
    pairs: f64,
    /// When everything was computed, or on a GPU queued, but not yet reduced.
    computed: Instant,
    /// When all buckets were reduced.
    reduced: Instant,
}

/// Learning rates of one step.
pub(super) struct Rates {
    /// Of everything but the reward head.
    pub(crate) rate: f64,
    /// Of the reward head.
    pub(crate) head: f64,
}

impl Rates {
    /// Of the step after `done` of `total` updates.
    fn of(train: &TrainConfig, done: usize, total: usize) -> Self {
        let share = optim::schedule(train.schedule, done, train.warmup_steps, total);
        let head = if train.head_learning_rate > 0.0 { train.head_learning_rate } else { train.learning_rate };
        Self { rate: share * train.learning_rate, head: share * head }
    }
}

impl<'a> Trainer<'a> {
    /// Queues one update and reads it at once. Returns its metrics, and whether the update was made (or skipped: gradients
    /// not finite).
    ///
    /// # Errors
    /// A lost rank, or a device out of memory.
    pub fn step(&mut self, total: usize) -> Result<(StepMetrics, bool)> {
        self.queue_step(total)?;
        let last = self.read_steps(0)?.pop();
        last.ok_or_else(|| Error::runtime("a step was queued, but none can be read"))
    }

    /// Queues one update of `total`, and the copies of its results to the host.
    ///
    /// # Errors
    /// A lost rank, or a device out of memory.
    pub fn queue_step(&mut self, total: usize) -> Result<()> {
        let started = Instant::now();
        let number = self.state.step + 1;
        let _span = trace_span!("step", number).entered();
        self.comm.set_stage(format!("step {number}"));
        let objective = objective_of_step(self.config, self.state.step);
        let sharded = sharding::is_sharded(&self.engine.model);
        let Computed { losses, pairs, computed, reduced } = self.compute_gradients(total, &objective, sharded)?;
        let rates = Rates::of(&self.config.train, self.state.step, total);
        let Decided { verdict, outcome } = trace_span!("gradient norm").in_scope(|| self.decide(pairs, sharded))?;
        let update = Update { learning_rate: rates.rate, head_learning_rate: rates.head, verdict };
        self.update(&update)?;
        self.buckets.clear();
        self.state.step = number;
        let hashes = self.hashes_if_due()?;
        let on_host = |(losses, tokens): (Losses<'a>, usize)| Ok((losses.on_host()?, tokens));
        self.unread.push_back(Report {
            number,
            losses: losses.into_iter().map(on_host).collect::<Result<_>>()?,
            objective,
            pairs,
            rate: rates.rate,
            outcome: queue_to_host(&outcome)?,
            hashes: hashes.map(Hashes::on_host).transpose()?,
            times: Times { started, computed, reduced, queued: Instant::now() },
            mark: self.queue.mark()?,
        });
        Ok(())
    }

    /// Sums the gradients of the global batch over all ranks in the buckets.
    fn compute_gradients(&mut self, total: usize, objective: &Objective<'a>, sharded: bool) -> Result<Computed<'a>> {
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
            if !last {
                let computed = self.engine.forward_backward(&batch, objective, &mut self.buckets)?;
                losses.push((computed, batch.token_count()));
                continue;
            }
            let mut reducer = Reducer::new(self.comm, &mut self.buckets, self.engine.order.reductions.clone())
                .summing_in(backend::sum_kind(&self.config.parallel))
                .scattering(sharded);
            let last = self.engine.forward_backward(&batch, objective, &mut reducer)?;
            losses.push((last, batch.token_count()));
            let computed = Instant::now();
            trace_span!("wait for reductions").in_scope(|| reducer.finish())?;
            return Ok(Computed { losses, pairs: global_pairs as f64, computed, reduced: Instant::now() });
        }
    }

    /// The verdict on the gradients, the same on every rank.
    fn decide(&mut self, pairs: f64, sharded: bool) -> Result<Decided> {
        let squares = optim::gradient_squares(&self.engine.model, &self.buckets)?;
        // Steps that are not read yet may have been skipped: only the device knows.
        let number = self.state.step + 1 - self.state.updates_skipped;
        let corrections: Vec<_> =
            (0..=self.unread.len()).map(|skipped| self.optimizer.corrections(number - skipped)).collect();
        let clip_norm = self.config.train.clip_norm;
        let clipping = Clipping { pairs, clip_norm, sharded, corrections: &corrections };
        self.judge.decide(&squares, &clipping, self.comm)
    }

    /// Updates the weights on every rank, if the verdict is that the update is made.
    fn update(&mut self, update: &Update) -> Result<()> {
        trace_span!("update").in_scope(|| {
            let mut gathers = Gathers::new(self.comm);
            let Self { optimizer, engine, buckets, .. } = self;
            optimizer.step(&mut engine.model, buckets, update, |number, segment| gathers.updated(number, segment))?;
            gathers.finish()
        })
    }

    /// Hashes of the weights every `train.check_every` steps, to be compared over ranks when the step is read.
    fn hashes_if_due(&self) -> Result<Option<Hashes>> {
        if self.comm.world_size() == 1 || self.state.step.checked_rem(self.config.train.check_every) != Some(0) {
            return Ok(None);
        }
        trace_span!("hash weights").in_scope(|| Hashes::of_weights(&self.engine, self.state.step)).map(Some)
    }
}
