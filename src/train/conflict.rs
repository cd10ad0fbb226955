//! Whether the gradients of the two losses agree: every `train.conflict_every` updates both gradients of the same sixteen
//! pairs are computed separately, and their cosine and norms go into `metrics.jsonl`, for the model and for each of its parts.
//!
//! This costs two forward and backward passes over those pairs and, while it runs, two f32 numbers for each trained one. The
//! gradients are summed over ranks into buckets of their own, so training's state does not change.

use super::Trainer;
use crate::config::LossConfig;
use crate::data::batch::Packing;
use crate::data::sampler;
use crate::data::split::Split;
use crate::engine::Buckets;
use crate::engine::head::Objective;
use crate::error::Result;
use crate::metrics::{Conflict, PartConflict};
use crate::model::layout::Part;
use crate::update::reducer::Reducer;
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Kind, Tensor};
use tracing::trace_span;

/// Pairs whose gradients are compared.
const PAIRS: usize = 16;

/// Products of the two losses' gradients, summed over some parameters.
#[derive(Default, Clone, Copy)]
struct Products {
    reward_squares: f64,
    policy_squares: f64,
    mixed: f64,
}

impl Products {
    fn add(&mut self, other: Self) {
        self.reward_squares += other.reward_squares;
        self.policy_squares += other.policy_squares;
        self.mixed += other.mixed;
    }

    /// Whether neither gradient is 0.
    fn has_both(&self) -> bool {
        self.reward_squares > 0.0 && self.policy_squares > 0.0
    }

    fn cosine(self) -> Option<f64> {
        // A root of each: the product of two small squares may be 0.
        self.has_both().then(|| self.mixed / (self.reward_squares.sqrt() * self.policy_squares.sqrt()))
    }

    /// The figures for the mean over `pairs`, whose sum these are.
    fn part(self, name: String, pairs: f64) -> PartConflict {
        PartConflict {
            part: name,
            cosine: self.cosine(),
            reward_norm: self.reward_squares.sqrt() / pairs,
            policy_norm: self.policy_squares.sqrt() / pairs,
        }
    }
}

impl Trainer<'_> {
    /// Whether to compare the two losses' gradients after the queued step.
    pub(super) fn conflict_is_due(&self) -> bool {
        self.state.step.checked_rem(self.config.train.conflict_every) == Some(0)
    }

    /// Compares the two losses' gradients. All ranks must call it.
    ///
    /// # Errors
    /// A lost rank, or a device out of memory.
    pub(super) fn conflict(&mut self) -> Result<Conflict> {
        let _span = trace_span!("conflict").entered();
        let started = Instant::now();
        // The loss that balances experts belongs to neither: in both gradients it would make them similar.
        let loss = LossConfig { router_balance: 0.0, ..self.config.loss.clone() };
        let pairs = fixed_pairs(&self.train);
        let reward = self.gradients(&pairs, &loss, [loss.effective_reward_weight(), 0.0])?;
        let policy = self.gradients(&pairs, &loss, [0.0, loss.effective_alpha()])?;
        let mut parts: BTreeMap<(usize, String), Products> = BTreeMap::new();
        let mut all = Products::default();
        for ((segment, reward), (_, policy)) in reward.iter().zip(policy.iter()) {
            let (reward, policy) = (reward.flat(), policy.flat());
            let products = Products {
                reward_squares: dot(reward, reward)?,
                policy_squares: dot(policy, policy)?,
                mixed: dot(reward, policy)?,
            };
            all.add(products);
            parts.entry(place(self.engine.model.parts[segment])).or_default().add(products);
        }
        let mut shared = Products::default();
        parts.values().filter(|part| part.has_both()).for_each(|part| shared.add(*part));
        let count = pairs.len() as f64;
        let parts = parts.into_iter().map(|((_, name), products)| products.part(name, count)).collect();
        let PartConflict { cosine, reward_norm, policy_norm, .. } = all.part(String::new(), count);
        Ok(Conflict {
            conflict: pairs.len(),
            step: self.state.step,
            cosine,
            shared_cosine: shared.cosine(),
            reward_norm,
            policy_norm,
            parts,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Sums over all ranks of the gradients of these pairs, with these weights of the two losses.
    fn gradients(&mut self, pairs: &[usize], loss: &LossConfig, [reward_weight, alpha]: [f64; 2]) -> Result<Buckets> {
        // Without the policy loss no logits are needed; without the reward loss its slopes are 0.
        let objective = Objective { config: loss, reward_weight, alpha, log_probs: alpha > 0.0 };
        let mut buckets = Buckets::of(&self.engine.model)?;
        let (rank, ranks) = (self.comm.rank(), self.comm.world_size());
        let mine: Vec<usize> = pairs.iter().copied().skip(rank).step_by(ranks).collect();
        let packing = Packing::shared(self.engine.model.architecture.alike());
        let tokens: Vec<usize> = mine.iter().map(|&pair| self.train.tokens(pair, packing)).collect();
        let mut batches: Vec<Vec<usize>> = sampler::micro_batches(&tokens, self.config.train.tokens_per_micro_batch)
            .into_iter()
            .map(|places| places.into_iter().map(|place| mine[place]).collect())
            .collect();
        // A rank without pairs still takes part in the sums.
        let last = batches.pop().unwrap_or_default();
        let device = self.engine.model.device;
        for batch in batches {
            self.engine.forward_backward(&self.train.pack(&batch, packing, device), &objective, &mut buckets)?;
        }
        let mut reducer = Reducer::new(self.comm, &mut buckets, self.engine.order.reductions.clone());
        self.engine.forward_backward(&self.train.pack(&last, packing, device), &objective, &mut reducer)?;
        reducer.finish()?;
        Ok(buckets)
    }
}

/// The same pairs every time, spread evenly over those whose references are known, or over all if there are no references.
fn fixed_pairs(train: &Split) -> Vec<usize> {
    let known = |pair: &usize| train.references.get(*pair).is_none_or(|[chosen, _]| !chosen.is_nan());
    let known: Vec<usize> = (0..train.data.len()).filter(known).collect();
    let count = PAIRS.min(known.len());
    (0..count).map(|place| known[place * known.len() / count]).collect()
}

fn dot(one: &Tensor, other: &Tensor) -> Result<f64> {
    Ok((one * other).f_sum(Kind::Double)?.double_value(&[]))
}

/// A part's place in the output, and its name.
fn place(part: Part) -> (usize, String) {
    match part {
        Part::Embedding => (0, "embedding".to_owned()),
        Part::Block(number) | Part::Adapter(number) => (1 + number, format!("block {}", number + 1)),
        Part::Norm => (usize::MAX - 2, "norm".to_owned()),
        Part::LanguageModelHead => (usize::MAX - 1, "language-model head".to_owned()),
        Part::RewardHead => (usize::MAX, "reward head".to_owned()),
    }
}
