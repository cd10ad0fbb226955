//! Warnings about runs that do not fail but learn nothing, and about the rank and segment that a non-finite gradient comes
//! from.
//!
//! Not here: doubts about the data (`data/doubts.rs`).

use super::Trainer;
use crate::config::Config;
use crate::data::prefetch::MicroBatch;
use crate::engine::head::Objective;
use crate::error::Result;
use crate::metrics::{EvaluationMetrics, StepMetrics};
use crate::model::layout::Part;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use tracing::warn;

/// Learning rates at which models of any size have been trained: all weights, adapters, the reward head alone.
const ALL_WEIGHTS: RangeInclusive<f64> = 1e-8..=1e-3;
const ADAPTERS: RangeInclusive<f64> = 1e-7..=1e-2;
const HEAD: RangeInclusive<f64> = 1e-8..=1e-1;

/// Steps whose mean loss is compared with the first one's; half of a shorter run.
const WINDOW: usize = 8;

/// Multiple of its first value above which a loss diverges.
const RISE: f64 = 2.0;

/// Settings that are probably mistakes in a run on `pairs` training pairs.
pub(crate) fn doubts(config: &Config, pairs: usize) -> Vec<String> {
    let train = &config.train;
    let mut doubts = Vec::new();
    if train.pairs_per_step > pairs {
        doubts.push(format!(
            "train.pairs_per_step = {} is more than the {pairs} training pairs: every step is a whole epoch",
            train.pairs_per_step
        ));
    }
    let usual = if config.lora.is_some() { ADAPTERS } else { ALL_WEIGHTS };
    let rates = [
        ("train.learning_rate", train.learning_rate, usual, true),
        ("train.head_learning_rate", train.head_learning_rate, HEAD, train.head_learning_rate > 0.0),
    ];
    for (key, rate, usual, set) in rates {
        if set && !usual.contains(&rate) {
            let side = if rate > *usual.end() { "above" } else { "below" };
            let (low, high) = (usual.start(), usual.end());
            doubts.push(format!(
                "{key} = {rate:e} is far {side} the usual values for reward models ({low:e} to {high:e})"
            ));
        }
    }
    doubts
}

/// Steps in a row without a token after which an expert is called dead.
const DEAD_AFTER: usize = 50;

/// Notices experts that get no tokens, and losses that rise far above their first value.
pub(super) struct LossWatch {
    window: usize,
    watched: [(&'static str, Course); 2],
    /// For how many steps in a row each expert took no token: by block and number.
    idle: BTreeMap<(usize, usize), usize>,
    warned_of_idle: bool,
    /// False under LoRA, which freezes routers.
    routers_learn: bool,
}

/// The course of one loss.
#[derive(Default)]
struct Course {
    first: Option<f64>,
    recent: VecDeque<f64>,
    warned: bool,
}

impl LossWatch {
    /// For a run with this many steps left.
    pub(crate) fn new(steps: usize, routers_learn: bool) -> Self {
        Self {
            window: WINDOW.min(steps / 2).max(1),
            watched: ["reward loss", "policy loss"].map(|name| (name, Course::default())),
            idle: BTreeMap::new(),
            warned_of_idle: false,
            routers_learn,
        }
    }

    /// Adds a step and returns its warnings: one in all about each loss, and one about experts without tokens.
    pub(crate) fn add(&mut self, metrics: &StepMetrics) -> Vec<String> {
        let mut doubts: Vec<String> = self.dead_experts(metrics).into_iter().collect();
        let losses = [metrics.reward_loss, metrics.policy_loss];
        for ((name, course), loss) in self.watched.iter_mut().zip(losses) {
            let Some(loss) = loss else { continue };
            let Some(first) = course.first else {
                course.first = Some(loss);
                continue;
            };
            course.recent.push_back(loss);
            if course.recent.len() > self.window {
                course.recent.pop_front();
            }
            let mean = course.recent.iter().sum::<f64>() / self.window as f64;
            let full = course.recent.len() == self.window;
            if full && !course.warned && first > 0.0 && mean > RISE * first {
                course.warned = true;
                doubts.push(format!(
                    "step {}: the {name} has risen from {first:.4} at first to {mean:.4}: training diverges; try a lower \
                     train.learning_rate",
                    metrics.step
                ));
            }
        }
        doubts
    }

    fn dead_experts(&mut self, metrics: &StepMetrics) -> Option<String> {
        let idle = &metrics.router.as_ref()?.idle_experts;
        self.idle = idle.iter().map(|expert| (*expert, self.idle.get(expert).unwrap_or(&0) + 1)).collect();
        let dead: Vec<_> = self.idle.iter().filter(|(_, steps)| **steps >= DEAD_AFTER).collect();
        let ((block, expert), _) = dead.first().filter(|_| !self.warned_of_idle)?;
        self.warned_of_idle = true;
        let experts = if dead.len() == 1 { "expert" } else { "experts" };
        let advice = if self.routers_learn {
            "they do not learn; loss.router_balance (1e-4, say) spreads tokens"
        } else {
            "LoRA freezes the routers, so this is how the base model routes these pairs"
        };
        Some(format!(
            "step {}: {} {experts} took no token for {DEAD_AFTER} steps, for example expert {expert} of block {block}: \
             {advice}",
            metrics.step,
            dead.len()
        ))
    }
}

impl Trainer<'_> {
    /// Warns if a trained reward head gives both answers of every dev pair the same reward.
    pub(super) fn doubt_ties(&self, dev: &EvaluationMetrics) {
        let loss = &self.config.loss;
        let trained = loss.effective_reward_weight() > 0.0 && self.state.step > loss.alternate_every;
        if self.comm.rank() == 0 && trained && dev.accuracy == Some(0.5) && dev.margin == Some(0.0) {
            warn!(
                "after step {} the reward head gives both answers of every dev pair the same reward: it has learned nothing \
                 useful; are the learning rates right, and do the answers reach the model (data.max_length)?",
                self.state.step
            );
        }
    }

    /// At the first skipped update, that of step `step_number`: logs which ranks' pairs give gradients that are not finite,
    /// and in which segment these first appear in the backward pass. For this it computes the step's gradients again, without
    /// reducing them, with the current weights: a GPU may have made one more update meanwhile. All ranks must call it.
    ///
    /// # Errors
    /// A lost rank.
    pub(super) fn name_not_finite(&mut self, step_number: usize, objective: &Objective) -> Result<()> {
        if self.state.updates_skipped > 0 {
            return Ok(());
        }
        self.buckets.clear();
        let mut share = self.share();
        let (engine, buckets) = (&mut self.engine, &mut self.buckets);
        let computed = share.of_step(&self.train, step_number - 1).try_for_each(|MicroBatch { batch, .. }| {
            engine.forward_backward(&batch, objective, buckets)?.read().map(drop)
        });
        self.comm.agree(computed)?;
        let mut completions = self.engine.order.completions.iter().copied();
        let bad = completions.find(|&segment| self.buckets.get(segment).is_some_and(|bucket| !bucket.is_finite()));
        self.buckets.clear();
        // For each rank the segment's number plus one, or 0.
        let mut of_ranks = vec![0.0; self.comm.world_size()];
        of_ranks[self.comm.rank()] = bad.map_or(0.0, |segment| (segment + 1) as f64);
        self.comm.sum_f64(&mut of_ranks)?;
        if self.comm.rank() == 0 {
            let named = of_ranks.iter().enumerate().filter_map(|(rank, &place)| {
                let index = (place as usize).checked_sub(1)?;
                Some(format!("rank {rank} in {}", name(&self.engine.model.parts[index])))
            });
            let named: Vec<_> = named.collect();
            let later = self.state.step - step_number;
            match (named.is_empty(), later) {
                (false, _) => {
                    warn!("step {step_number}: the first gradients that are not finite: {}", named.join(", "))
                }
                (true, 0) => warn!("step {step_number}: every rank's own gradients are finite, but their sum is not"),
                (true, _) => {
                    warn!("step {step_number}: with the weights of {later} steps later its gradients are finite again")
                }
            }
        }
        Ok(())
    }
}

fn name(part: &Part) -> String {
    match part {
        Part::RewardHead => "the reward head".into(),
        Part::LanguageModelHead => "the language-model head".into(),
        Part::Norm => "the final norm".into(),
        Part::Block(number) => format!("block {number}"),
        Part::Adapter(number) => format!("the adapters of block {number}"),
        Part::Embedding => "the embedding".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::RouterMetrics;

    fn config(keys: &str) -> Config {
        let text = format!("model.path = 'm'\ndata.train = [{{ path = 'p' }}]\noutput.dir = 'run'\n{keys}");
        Config::parse("test", &text, &[]).unwrap()
    }

    #[test]
    fn unusual_settings_are_named_in_a_warning() {
        for (keys, pairs, expected) in [
            ("train.pairs_per_step = 64", 63, "more than the 63 training pairs"),
            ("train.learning_rate = 0.05", 100, "train.learning_rate = 5e-2 is far above"),
            ("train.learning_rate = 1e-12", 100, "train.learning_rate = 1e-12 is far below"),
            ("train.head_learning_rate = 3.0", 100, "train.head_learning_rate = 3e0 is far above"),
            ("train.learning_rate = 0.05\n[lora]\ntargets = ['q_proj']", 100, "far above"),
        ] {
            let found = doubts(&config(keys), pairs);
            assert!(found.len() == 1 && found[0].contains(expected), "{keys}: {found:?}");
        }
        for keys in ["", "train.learning_rate = 1e-3", "train.learning_rate = 5e-3\n[lora]\ntargets = ['q_proj']"] {
            assert_eq!(doubts(&config(keys), 100), Vec::<String>::new(), "{keys}");
        }
    }

    fn step(number: usize, reward: f64, policy: Option<f64>) -> StepMetrics {
        StepMetrics {
            step: number,
            loss: reward,
            reward_loss: Some(reward),
            policy_loss: policy,
            accuracy: None,
            margin: None,
            router: None,
            grad_norm: 1.0,
            lr: 1.0,
            pairs_per_s: 1.0,
            tokens_per_s: 1.0,
            seconds: 1.0,
        }
    }

    /// A step in which `idle` of the experts 1 and 3 of block 2, in this order, took no token.
    fn routed(number: usize, idle: usize) -> StepMetrics {
        let load = [[2.0, 1.0, 2.0, 1.0], [3.0, 0.0, 2.0, 1.0], [3.0, 0.0, 3.0, 0.0]][idle];
        StepMetrics { router: Some(RouterMetrics::of(&load, &[2], None)), ..step(number, 0.7, None) }
    }

    #[test]
    fn experts_without_a_token_for_fifty_steps_in_a_row_are_warned_of_once() {
        let mut watch = LossWatch::new(1000, true);
        let mut warnings = |steps: RangeInclusive<usize>, idle: usize| -> Vec<String> {
            steps.flat_map(|number| watch.add(&routed(number, idle))).collect()
        };
        assert_eq!(warnings(1..=49, 2), Vec::<String>::new());
        // A token starts an expert's count again, separately for each expert.
        assert_eq!(warnings(50..=50, 0), Vec::<String>::new());
        assert_eq!(warnings(51..=80, 1), Vec::<String>::new());
        assert_eq!(warnings(81..=99, 2), Vec::<String>::new());
        let found = warnings(100..=100, 2);
        let begin = "step 100: 1 expert took no token for 50 steps, for example expert 1 of block 2";
        assert!(found.len() == 1 && found[0].starts_with(begin), "{found:?}");
        assert_eq!(warnings(101..=400, 2), Vec::<String>::new());

        let mut both = LossWatch::new(1000, true);
        let found: Vec<String> = (1..=50).flat_map(|number| both.add(&routed(number, 2))).collect();
        assert!(found.len() == 1 && found[0].starts_with("step 50: 2 experts"), "{found:?}");
        // Nothing is advised that would change nothing.
        let mut frozen = LossWatch::new(1000, false);
        let found: Vec<String> = (1..=50).flat_map(|number| frozen.add(&routed(number, 2))).collect();
        assert!(found.len() == 1 && !found[0].contains("router_balance"), "{found:?}");
        // Models without experts have none that idle.
        let mut none = LossWatch::new(1000, true);
        assert!((1..=200).all(|number| none.add(&step(number, 0.7, None)).is_empty()));
    }

    #[test]
    fn a_loss_over_twice_its_first_value_is_warned_of_once_and_one_bad_batch_is_not() {
        let mut watch = LossWatch::new(100, true);
        assert!(
            (1..20).all(|number| watch.add(&step(number, if number == 9 { 3.0 } else { 0.7 }, Some(0.7))).is_empty())
        );
        let found: Vec<String> = (20..60).flat_map(|number| watch.add(&step(number, 2.0, Some(0.7)))).collect();
        assert!(found.len() == 1 && found[0].contains("reward loss has risen"), "{found:?}");
        let mut short = LossWatch::new(2, true);
        assert!(short.add(&step(1, 0.7, None)).is_empty() && short.add(&step(2, 1.5, None)).len() == 1);
    }
}
