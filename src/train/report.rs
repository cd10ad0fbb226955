//! The results of a step: its metrics, whether its update was made, and hashes that must be equal on all ranks.
//!
//! On CPUs they are read at once, since the step is done. On GPUs they are read after the next step is queued, so that the
//! device always has work; before an evaluation, a checkpoint or a comparison of gradients, and at the end, all are read. The
//! limit of skipped updates, a signal and `train.check_every` take effect when a step is read.
//!
//! Not here: what is queued (`step.rs`).

use super::Trainer;
use super::replicas::Hashes;
use crate::comm::CommThread;
use crate::engine::head::{Losses, Objective, PairLosses};
use crate::error::{Error, Result};
use crate::evaluate::Reported;
use crate::loss::hit;
use crate::machine::late::Mark;
use crate::metrics::{RouterMetrics, StepMetrics};
use crate::model::balance::Routing;
use crate::tensor;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use tracing::{debug, trace_span, warn};

/// A step that is queued.
pub(super) struct Report<'a> {
    /// Its number, from 1.
    pub(crate) number: usize,
    /// Losses and tokens of each micro-batch of this rank.
    pub(crate) losses: Vec<(Losses<'a>, usize)>,
    pub(crate) objective: Objective<'a>,
    /// Pairs of the global batch.
    pub(crate) pairs: f64,
    /// Learning rate of everything but the reward head.
    pub(crate) rate: f64,
    /// See [`Decided`](crate::update::optim::Decided).
    pub(crate) outcome: Tensor,
    /// Hashes of the weights after the step, if they are to be compared.
    pub(crate) hashes: Option<Hashes>,
    pub(crate) times: Times,
    /// The tensors above are on the host; their values are valid once the device has reached this mark.
    pub(crate) mark: Mark,
}

/// Times at which the host reached the stages of the step.
pub(super) struct Times {
    pub(crate) started: Instant,
    /// The passes were computed (on a GPU: queued).
    pub(crate) computed: Instant,
    /// All buckets were reduced.
    pub(crate) reduced: Instant,
    /// The update was made.
    pub(crate) queued: Instant,
}

/// Sums over the pairs of the global batch.
#[derive(Default)]
struct StepSums {
    reward_loss: f64,
    policy_loss: f64,
    hits: f64,
    margin: f64,
    tokens: f64,
    /// Tokens of each expert, block after block; empty without experts.
    load: Vec<f64>,
    /// Weighted balance losses of the routers.
    balance: f64,
    /// Number of ranks that were asked to stop.
    stops: f64,
}

impl Trainer<'_> {
    /// Reads queued steps, oldest first, until only this many are unread. Returns their metrics, and whether each made its update.
    /// All ranks must call it.
    ///
    /// # Errors
    /// A lost rank, ranks that have drifted apart, or a failed device.
    pub fn read_steps(&mut self, unread: usize) -> Result<Vec<(StepMetrics, bool)>> {
        let mut read = Vec::new();
        while self.unread.len() > unread
            && let Some(report) = self.unread.pop_front()
        {
            read.push(self.read(report)?);
        }
        Ok(read)
    }

    /// How many steps may be unread while the next one is queued.
    pub fn ahead(&self) -> usize {
        self.queue.ahead()
    }

    fn read(&mut self, report: Report) -> Result<(StepMetrics, bool)> {
        let Report { number, losses, objective, pairs, rate, outcome, hashes, times, mark } = report;
        let _span = trace_span!("read step", number).entered();
        self.comm.set_stage(format!("step {number}"));
        mark.wait()?;
        let [norm, made] = *tensor::slice::<f64>(&outcome)? else {
            return Err(Error::runtime(format!("expected a norm and a verdict, not {outcome:?}")));
        };
        let updated = made == 1.0;
        let sums = trace_span!("sum metrics").in_scope(|| self.sums(losses))?;
        self.asked_to_stop = sums.stops > 0.0;
        if let Some(hashes) = hashes {
            let losses = [("reward loss", sums.reward_loss), ("policy loss", sums.policy_loss)];
            let others = [("hits", sums.hits), ("margin", sums.margin), ("tokens", sums.tokens), ("norm", norm)];
            hashes.and_metrics(&losses).and_metrics(&others).compare(self.comm)?;
        }
        if !updated {
            self.name_not_finite(number, &objective)?;
            self.state.updates_skipped += 1;
            self.judge.skip_was_read()?;
            warn!("step {number}: gradients are not finite; the update is skipped on all ranks");
        }
        // Steps overlap on a GPU: each is timed from when the one before it was read.
        let seconds = self.read_at.map_or(times.started, |before| before.max(times.started)).elapsed().as_secs_f64();
        self.read_at = Some(Instant::now());
        debug!(
            "step {number}: {:.3} s computing (on a GPU: queueing), {:.3} s waiting for reductions, {:.3} s updating, {:.3} s \
             until it was read",
            (times.computed - times.started).as_secs_f64(),
            (times.reduced - times.computed).as_secs_f64(),
            (times.queued - times.reduced).as_secs_f64(),
            times.queued.elapsed().as_secs_f64()
        );
        let (reward_loss, policy_loss) = (sums.reward_loss / pairs, sums.policy_loss / pairs);
        let balance = sums.balance / pairs;
        let reported = Reported::of_run(&self.config.loss);
        let metrics = StepMetrics {
            step: number,
            loss: objective.reward_weight * reward_loss + objective.alpha * policy_loss + balance,
            reward_loss: reported.reward.then_some(reward_loss),
            policy_loss: reported.policy.then_some(policy_loss),
            accuracy: reported.reward.then_some(sums.hits / pairs),
            margin: reported.reward.then_some(sums.margin / pairs),
            router: self.router_metrics(&sums.load, balance),
            grad_norm: norm,
            lr: rate,
            pairs_per_s: pairs / seconds,
            tokens_per_s: sums.tokens / seconds,
            seconds,
        };
        Ok((metrics, updated))
    }

    /// Sums over all ranks, and whether one of them was asked to stop.
    fn sums(&self, losses: Vec<(Losses, usize)>) -> Result<StepSums> {
        let stops = f64::from(u8::from(self.stop.load(Ordering::Relaxed)));
        // A rank without pairs adds a zero for each expert.
        let experts = self.engine.model.architecture.blocks.iter().filter_map(|block| block.mlp.experts);
        let load = vec![0.0; experts.map(|experts| experts.count).sum()];
        StepSums { stops, load, ..StepSums::default() }.read(losses)?.over_all_ranks(self.comm)
    }

    /// Metrics of the routers, in models with experts; `balance` is the weighted balance loss per pair.
    fn router_metrics(&self, load: &[f64], balance: f64) -> Option<RouterMetrics> {
        let blocks = self.engine.model.architecture.blocks.iter().enumerate();
        let routed: Vec<usize> = blocks.filter_map(|(number, block)| block.mlp.experts.map(|_| number)).collect();
        let weight = self.config.loss.router_balance;
        (!routed.is_empty()).then(|| RouterMetrics::of(load, &routed, (weight > 0.0).then(|| balance / weight)))
    }
}

impl StepSums {
    /// Sums over the micro-batches, whose losses are on the host.
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
            // A tied pair cannot be ranked rightly or wrongly.
            self.hits += if loss.tied { 0.5 } else { hit(margin) };
            self.margin += if loss.tied { 0.0 } else { margin };
        }
        self.tokens += tokens as f64;
    }

    /// Reduces all metrics of a step at once.
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
