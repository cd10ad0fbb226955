//! One step: gradients of a global batch, their reduction, the vote, the update, and what is reported of it.
//!
//! Not here: the loop over steps (`mod.rs`), and how buckets are reduced and weights updated (`update/`).

use super::replicas::Hashes;
use super::{Trainer, objective_of_step};
use crate::comm::CommThread;
use crate::config::TrainConfig;
use crate::data::prefetch::{MicroBatch, Prefetch};
use crate::engine::head::{Losses, Objective, PairLosses};
use crate::error::{Error, Result};
use crate::evaluate::Reported;
use crate::loss::hit;
use crate::machine::backend;
use crate::metrics::{RouterMetrics, StepMetrics};
use crate::model::balance::Routing;
use crate::update::optim::{self, Update};
use crate::update::reducer::Reducer;
use crate::update::sharding::{self, Spread};
use std::sync::atomic::Ordering;
use std::time::Instant;
use tch::{Device, Kind};
use tracing::{debug, trace_span, warn};

/// What the gradients of a step leave besides the buckets.
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

/// Sums over the pairs of the global batch.
#[derive(Default)]
struct StepSums {
    reward_loss: f64,
    policy_loss: f64,
    hits: f64,
    margin: f64,
    tokens: f64,
    /// Tokens of each expert, block after block; and their weighted balance losses. Empty without experts.
    load: Vec<f64>,
    balance: f64,
    /// Ranks that were asked to stop.
    stops: f64,
}

/// Learning rates of one step.
struct Rates {
    /// Of everything but the reward head.
    rate: f64,
    /// Of the reward head.
    head: f64,
}

impl Rates {
    /// Of the step after `done` of `total` updates.
    fn of(train: &TrainConfig, done: usize, total: usize) -> Self {
        let share = optim::schedule(train.schedule, done, train.warmup_steps, total);
        let head = if train.head_learning_rate > 0.0 { train.head_learning_rate } else { train.learning_rate };
        Self { rate: share * train.learning_rate, head: share * head }
    }
}

impl Trainer<'_> {
    /// One update. Returns its metrics and whether it was made (or skipped: gradients not finite).
    ///
    /// # Errors
    /// A lost rank, or a device without memory.
    pub fn step(&mut self, total: usize) -> Result<(StepMetrics, bool)> {
        let started = Instant::now();
        let _span = trace_span!("step", number = self.state.step + 1).entered();
        self.comm.set_stage(format!("step {}", self.state.step + 1));
        let objective = objective_of_step(self.config, self.state.step);
        let sharded = sharding::is_sharded(&self.engine.model);
        let Computed { losses, pairs, computed, reduced } = self.compute_gradients(total, &objective, sharded)?;
        let sums = trace_span!("sum metrics").in_scope(|| self.sums(losses))?;
        self.asked_to_stop = sums.stops > 0.0;

        let norm = trace_span!("gradient norm").in_scope(|| self.gradient_norm(sharded))? / pairs;
        let finite = self.comm.all_true(norm.is_finite())?;
        // The norm has waited for all that a GPU had to do, so that nobody waits for hashes alone.
        self.unchecked.take().map_or(Ok(()), |hashes| hashes.compare(self.comm))?;
        let rates = Rates::of(&self.config.train, self.state.step, total);
        match finite {
            true => self.update(&rates, norm, pairs)?,
            false => self.skip(&objective)?,
        }
        self.buckets.clear();
        self.state.step += 1;
        self.hash_if_due(&sums, norm)?;

        let seconds = started.elapsed().as_secs_f64();
        debug!(
            "step {}: {:.3} s computing (on a GPU: queueing), {:.3} s waiting for reductions, {:.3} s updating",
            self.state.step,
            (computed - started).as_secs_f64(),
            (reduced - computed).as_secs_f64(),
            reduced.elapsed().as_secs_f64()
        );
        let (reward_loss, policy_loss) = (sums.reward_loss / pairs, sums.policy_loss / pairs);
        let balance = sums.balance / pairs;
        let reported = Reported::of_run(&self.config.loss);
        let metrics = StepMetrics {
            step: self.state.step,
            loss: objective.reward_weight * reward_loss + objective.alpha * policy_loss + balance,
            reward_loss: reported.reward.then_some(reward_loss),
            policy_loss: reported.policy.then_some(policy_loss),
            accuracy: reported.reward.then_some(sums.hits / pairs),
            margin: reported.reward.then_some(sums.margin / pairs),
            router: self.router_metrics(&sums.load, balance),
            grad_norm: norm,
            lr: rates.rate,
            pairs_per_s: pairs / seconds,
            tokens_per_s: sums.tokens / seconds,
            seconds,
        };
        Ok((metrics, finite))
    }

    /// Sums the gradients of the global batch over all ranks in the buckets.
    fn compute_gradients<'o>(
        &mut self,
        total: usize,
        objective: &Objective<'o>,
        sharded: bool,
    ) -> Result<Computed<'o>> {
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
            let mut reducer = Reducer::new(self.comm, &mut self.buckets)
                .summing_in(backend::sum_kind(&self.config.parallel))
                .scattering(sharded);
            let last = self.engine.forward_backward(&batch, objective, &mut reducer)?;
            losses.push((last, batch.token_count()));
            let computed = Instant::now();
            trace_span!("wait for reductions").in_scope(|| reducer.finish())?;
            return Ok(Computed { losses, pairs: global_pairs as f64, computed, reduced: Instant::now() });
        }
    }

    /// Sums over all ranks, and whether one of them was asked to stop.
    fn sums(&self, losses: Vec<(Losses, usize)>) -> Result<StepSums> {
        let stops = f64::from(u8::from(self.stop.load(Ordering::Relaxed)));
        // A rank without pairs adds zeros of the same number.
        let experts = self.engine.model.architecture.blocks.iter().filter_map(|block| block.mlp.experts);
        let load = vec![0.0; experts.map(|experts| experts.count).sum()];
        StepSums { stops, load, ..StepSums::default() }.read(losses)?.over_all_ranks(self.comm)
    }

    /// What routers did, in models with experts; `balance` is the weighted loss of a pair.
    fn router_metrics(&self, load: &[f64], balance: f64) -> Option<RouterMetrics> {
        let blocks = self.engine.model.architecture.blocks.iter().enumerate();
        let routed: Vec<usize> = blocks.filter_map(|(number, block)| block.mlp.experts.map(|_| number)).collect();
        let weight = self.config.loss.router_balance;
        (!routed.is_empty()).then(|| RouterMetrics::of(load, &routed, (weight > 0.0).then(|| balance / weight)))
    }

    /// Global L2 norm of all gradient sums, the same bits on every rank.
    fn gradient_norm(&self, sharded: bool) -> Result<f64> {
        let mut squares = [optim::gradient_squares(&self.engine.model, &self.buckets)?];
        if sharded {
            self.comm.sum_f64(&mut squares)?;
        }
        Ok(squares[0].sqrt())
    }

    /// Clips gradients of this norm, which are sums over so many pairs, and updates the weights on every rank.
    fn update(&mut self, rates: &Rates, norm: f64, pairs: f64) -> Result<()> {
        let clip = self.config.train.clip_norm;
        let clip_scale = if clip > 0.0 && norm > clip { clip / norm } else { 1.0 };
        let update = Update {
            number: self.state.step + 1 - self.state.updates_skipped,
            learning_rate: rates.rate,
            head_learning_rate: rates.head,
            gradient_scale: clip_scale / pairs,
        };
        trace_span!("update").in_scope(|| {
            let mut spread = Spread::new(self.comm);
            let Self { optimizer, engine, buckets, .. } = self;
            optimizer.step(&mut engine.model, buckets, &update, |number, segment| spread.updated(number, segment))?;
            spread.finish()
        })
    }

    /// Leaves the weights as they are, since a gradient is not finite, and says so.
    fn skip(&mut self, objective: &Objective) -> Result<()> {
        self.name_not_finite(objective)?;
        self.state.updates_skipped += 1;
        warn!("step {}: gradients are not finite; the update is skipped on all ranks", self.state.step + 1);
        Ok(())
    }

    /// Every so many steps: hashes of weights and metrics, to be compared over ranks where the next step waits anyway.
    fn hash_if_due(&mut self, sums: &StepSums, norm: f64) -> Result<()> {
        if self.comm.world_size() == 1 || self.state.step.checked_rem(self.config.train.check_every) != Some(0) {
            return Ok(());
        }
        let hashes = trace_span!("hash weights").in_scope(|| Hashes::of_weights(&self.engine, self.state.step))?;
        let losses = [("reward loss", sums.reward_loss), ("policy loss", sums.policy_loss)];
        let others = [("hits", sums.hits), ("margin", sums.margin), ("tokens", sums.tokens), ("norm", norm)];
        self.unchecked = Some(hashes.and_metrics(&losses).and_metrics(&others));
        Ok(())
    }
}

impl StepSums {
    /// Waits for the losses of all micro-batches.
    fn read(mut self, losses: Vec<(Losses, usize)>) -> Result<Self> {
        for (losses, tokens) in losses {
            let experts = (self.load.len() / losses.routing.len().max(1)).max(1);
            for (sums, Routing { load, balance, .. }) in self.load.chunks_mut(experts).zip(&losses.routing) {
                let load: Vec<f64> = Vec::try_from(load.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?;
                sums.iter_mut().zip(load).for_each(|(sum, tokens)| *sum += tokens);
                self.balance += balance.as_ref().map_or(0.0, |balance| balance.double_value(&[]));
            }
            self.add(&losses.read()?, tokens);
        }
        Ok(self)
    }

    fn add(&mut self, losses: &[PairLosses], tokens: usize) {
        for loss in losses {
            let margin = loss.scores.rewards[0] - loss.scores.rewards[1];
            self.reward_loss += loss.reward_loss;
            self.policy_loss += loss.policy_loss.unwrap_or(0.0);
            // A pair of which neither answer is better can be ranked neither rightly nor wrongly.
            self.hits += if loss.tied { 0.5 } else { hit(margin) };
            self.margin += if loss.tied { 0.0 } else { margin };
        }
        self.tokens += tokens as f64;
    }

    /// The metrics' one reduction a step.
    fn over_all_ranks(self, comm: &CommThread) -> Result<Self> {
        let Self { reward_loss, policy_loss, hits, margin, tokens, balance, stops, load } = self;
        let mut packed = vec![reward_loss, policy_loss, hits, margin, tokens, balance, stops];
        packed.extend(load);
        comm.sum_f64(&mut packed)?;
        let load = packed.split_off(7);
        let mut sums = packed.into_iter();
        let mut next = || sums.next().unwrap_or(f64::NAN);
        let [reward_loss, policy_loss, hits, margin, tokens, balance, stops] = std::array::from_fn(|_| next());
        Ok(Self { reward_loss, policy_loss, hits, margin, tokens, load, balance, stops })
    }
}
