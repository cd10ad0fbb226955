//! The losses of one pair as pure scalar functions. Their derivatives are in `tensors.rs`.
//!
//! Sources: Bradley-Terry and the hybrid sum, HaF-RM (arXiv 2407.04185); DPO (2305.18290), hinge and IPO as in HaF-RM's
//! reference code (SLiC 2305.10425, IPO 2310.12036), SimPO (2405.14734), label smoothing as in conservative DPO.
//! Distributions other than the logistic are in `prior.rs`.

mod prior;
pub(crate) mod tensors;

use crate::config::{LossConfig, PolicyLoss};

/// The input of a policy loss for one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct AnswerLogProb {
    /// Sum of its tokens' log-probs under the trained model.
    pub(crate) policy: f64,
    /// The same under the starting model; 0 for losses without a reference.
    pub(crate) reference: f64,
    /// Its number of tokens.
    pub(crate) tokens: usize,
}

/// The cost of a preference z under label noise s: (1 - s) * -log F(z) + s * -log F(-z), with F the prior's.
fn preference(config: &LossConfig, z: f64) -> f64 {
    let smoothing = config.label_smoothing;
    (1.0 - smoothing) * prior::cost(config, z) + smoothing * prior::cost(config, -z)
}

/// Bradley-Terry on rewards: -log F(chosen - rejected - margin), smoothed; F is the logistic function, or the prior's.
pub(crate) fn bradley_terry(config: &LossConfig, chosen: f64, rejected: f64, margin: f64) -> f64 {
    preference(config, chosen - rejected - margin)
}

/// weight * (chosen + rejected)^2: keeps rewards around zero.
pub(crate) fn centering(chosen: f64, rejected: f64, weight: f64) -> f64 {
    let sum = chosen + rejected;
    weight * sum * sum
}

/// The policy loss.
pub(crate) fn policy(config: &LossConfig, chosen: AnswerLogProb, rejected: AnswerLogProb) -> f64 {
    let margin = implicit_margin(config, chosen, rejected);
    match config.policy {
        PolicyLoss::Dpo => preference(config, margin),
        PolicyLoss::Hinge => (1.0 - margin).max(0.0),
        PolicyLoss::Ipo => (margin / config.beta - 1.0 / (2.0 * config.beta)).powi(2),
        PolicyLoss::Simpo => preference(config, margin - config.simpo_gamma),
        PolicyLoss::Sft => -chosen.policy,
    }
}

/// The policy's implicit reward of the chosen answer minus that of the rejected one.
///
/// beta * (policy - reference) log-probs for the losses with a reference; beta * average log-prob for simpo; the summed
/// log-prob for sft.
pub(crate) fn implicit_margin(config: &LossConfig, chosen: AnswerLogProb, rejected: AnswerLogProb) -> f64 {
    implicit_reward(config, chosen) - implicit_reward(config, rejected)
}

/// The policy's implicit reward of one answer; see [`implicit_margin`].
pub(crate) fn implicit_reward(config: &LossConfig, answer: AnswerLogProb) -> f64 {
    match config.policy {
        PolicyLoss::Dpo | PolicyLoss::Hinge | PolicyLoss::Ipo => config.beta * (answer.policy - answer.reference),
        PolicyLoss::Simpo => config.beta * answer.policy / answer.tokens.max(1) as f64,
        PolicyLoss::Sft => answer.policy,
    }
}

/// 1 if the margin is positive, 1/2 if it is zero: a tie is half a hit.
pub(crate) fn hit(margin: f64) -> f64 {
    match margin.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Equal) => 0.5,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_costs_ln_2_and_the_hybrid_starts_at_1_2_ln_2() {
        let config = LossConfig::default();
        let answer = AnswerLogProb { policy: -7.0, reference: -7.0, tokens: 4 };
        let total = bradley_terry(&config, 0.0, 0.0, 0.0) + config.alpha * policy(&config, answer, answer);
        assert!((total - 0.831_777).abs() < 1e-6);
    }

    #[test]
    fn extreme_rewards_stay_finite() {
        let config = LossConfig::default();
        assert_eq!([-1e4, 1e4].map(|z| bradley_terry(&config, z, 0.0, 0.0)), [1e4, 0.0]);
    }

    /// Promise: with the logistic prior the losses are bit for bit those of the formulas without priors.
    #[test]
    fn the_logistic_prior_changes_no_bit() {
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        let before = |z: f64, smoothing: f64| (1.0 - smoothing) * softplus(-z) + smoothing * softplus(z);
        for label_smoothing in [0.0, 0.1] {
            let logistic = LossConfig { label_smoothing, ..LossConfig::default() };
            let normal = LossConfig { prior: crate::config::Prior::Normal, ..logistic.clone() };
            for z in (-400..=400).map(|step| 0.137 * f64::from(step)).chain([-1e4, 1e4]) {
                let found = bradley_terry(&logistic, z + 0.25, 0.0, 0.25);
                let z = z + 0.25 - 0.25;
                assert_eq!(found.to_bits(), before(z, label_smoothing).to_bits(), "{z}");
                if z.abs() > 0.1 && z < 30.0 {
                    assert_ne!(bradley_terry(&normal, z, 0.0, 0.0), before(z, label_smoothing), "the control: {z}");
                }
            }
        }
    }

    #[test]
    fn a_tie_is_half_a_hit() {
        assert_eq!([hit(0.2), hit(0.0), hit(-0.2), hit(f64::NAN)], [1.0, 0.5, 0.0, 0.0]);
    }
}
