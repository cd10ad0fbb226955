//! The losses of one pair: value and derivative, pure scalar functions.
//!
//! Sources: Bradley-Terry and the hybrid sum, HaF-RM (arXiv 2407.04185); DPO (2305.18290), hinge and IPO as in HaF-RM's
//! reference code (SLiC 2305.10425, IPO 2310.12036), SimPO (2405.14734), label smoothing as in conservative DPO.

pub mod tensors;

use crate::config::{LossConfig, PolicyLoss};

/// A loss and its derivatives by the chosen and the rejected quantity (rewards or log-probs).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Value {
    /// The loss, not weighted.
    pub loss: f64,
    /// Derivative by the chosen answer's quantity.
    pub chosen: f64,
    /// Derivative by the rejected answer's quantity.
    pub rejected: f64,
}

/// What a policy loss sees of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AnswerLogProb {
    /// Sum of its tokens' log-probs under the trained model.
    pub policy: f64,
    /// The same under the starting model; 0 for losses without a reference.
    pub reference: f64,
    /// Its number of tokens.
    pub tokens: usize,
}

/// log(1 + exp(x)), exact for large |x|.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Smoothed -log sigmoid(z): (1 - s) * -log sigmoid(z) + s * -log sigmoid(-z), and its derivative by z.
fn smoothed_log_sigmoid(z: f64, smoothing: f64) -> (f64, f64) {
    let loss = (1.0 - smoothing) * softplus(-z) + smoothing * softplus(z);
    (loss, sigmoid(z) - (1.0 - smoothing))
}

/// Bradley-Terry on rewards: -log sigmoid(chosen - rejected - margin), smoothed.
pub fn bradley_terry(chosen: f64, rejected: f64, margin: f64, smoothing: f64) -> Value {
    let (loss, slope) = smoothed_log_sigmoid(chosen - rejected - margin, smoothing);
    Value { loss, chosen: slope, rejected: -slope }
}

/// weight * (chosen + rejected)^2: keeps rewards around zero.
pub fn centering(chosen: f64, rejected: f64, weight: f64) -> Value {
    let sum = chosen + rejected;
    Value { loss: weight * sum * sum, chosen: 2.0 * weight * sum, rejected: 2.0 * weight * sum }
}

/// The policy loss and its derivatives by the two summed log-probs.
pub fn policy(config: &LossConfig, chosen: AnswerLogProb, rejected: AnswerLogProb) -> Value {
    let beta = config.beta;
    let margin = implicit_margin(config, chosen, rejected);
    match config.policy {
        PolicyLoss::Dpo => {
            let (loss, slope) = smoothed_log_sigmoid(margin, config.label_smoothing);
            Value { loss, chosen: beta * slope, rejected: -beta * slope }
        }
        PolicyLoss::Hinge => {
            let slope = if margin < 1.0 { -1.0 } else { 0.0 };
            Value { loss: (1.0 - margin).max(0.0), chosen: beta * slope, rejected: -beta * slope }
        }
        PolicyLoss::Ipo => {
            let distance = margin / beta - 1.0 / (2.0 * beta);
            Value { loss: distance * distance, chosen: 2.0 * distance, rejected: -2.0 * distance }
        }
        PolicyLoss::Simpo => {
            let (loss, slope) = smoothed_log_sigmoid(margin - config.simpo_gamma, config.label_smoothing);
            Value {
                loss,
                chosen: beta * slope / chosen.tokens.max(1) as f64,
                rejected: -beta * slope / rejected.tokens.max(1) as f64,
            }
        }
        PolicyLoss::Sft => Value { loss: -chosen.policy, chosen: -1.0, rejected: 0.0 },
    }
}

/// The policy's implicit reward of the chosen answer minus that of the rejected one.
///
/// beta * (policy - reference) log-probs for the losses with a reference; beta * average log-prob for simpo; the summed
/// log-prob for sft.
pub fn implicit_margin(config: &LossConfig, chosen: AnswerLogProb, rejected: AnswerLogProb) -> f64 {
    implicit_reward(config, chosen) - implicit_reward(config, rejected)
}

/// The policy's implicit reward of one answer; see [`implicit_margin`].
pub fn implicit_reward(config: &LossConfig, answer: AnswerLogProb) -> f64 {
    match config.policy {
        PolicyLoss::Dpo | PolicyLoss::Hinge | PolicyLoss::Ipo => config.beta * (answer.policy - answer.reference),
        PolicyLoss::Simpo => config.beta * answer.policy / answer.tokens.max(1) as f64,
        PolicyLoss::Sft => answer.policy,
    }
}

/// 1 where the margin is positive, 1/2 where it is zero: a tie is half a hit.
pub fn hit(margin: f64) -> f64 {
    match margin.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Equal) => 0.5,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: f64 = 1e-6;

    fn check(name: &str, at: (f64, f64), value: impl Fn(f64, f64) -> Value) {
        let here = value(at.0, at.1);
        let slope = |up: Value, down: Value| (up.loss - down.loss) / (2.0 * STEP);
        let chosen = slope(value(at.0 + STEP, at.1), value(at.0 - STEP, at.1));
        let rejected = slope(value(at.0, at.1 + STEP), value(at.0, at.1 - STEP));
        assert!((chosen - here.chosen).abs() < 1e-5 * (1.0 + chosen.abs()), "{name} chosen at {at:?}");
        assert!((rejected - here.rejected).abs() < 1e-5 * (1.0 + rejected.abs()), "{name} rejected at {at:?}");
    }

    #[test]
    fn every_derivative_equals_a_finite_difference() {
        let points = [(0.3, -0.7), (-2.0, 1.5), (8.0, 8.5), (-20.0, -35.0)];
        for at in points {
            check("bradley-terry", at, |chosen, rejected| bradley_terry(chosen, rejected, 0.4, 0.1));
            check("centering", at, |chosen, rejected| centering(chosen, rejected, 0.01));
            for kind in [PolicyLoss::Dpo, PolicyLoss::Hinge, PolicyLoss::Ipo, PolicyLoss::Simpo, PolicyLoss::Sft] {
                let label_smoothing = if matches!(kind, PolicyLoss::Dpo | PolicyLoss::Simpo) { 0.1 } else { 0.0 };
                let config = LossConfig { policy: kind, label_smoothing, simpo_gamma: 0.5, ..LossConfig::default() };
                check(&format!("{kind:?}"), at, |chosen, rejected| {
                    let answer = |policy, reference, tokens| AnswerLogProb { policy, reference, tokens };
                    policy(&config, answer(chosen, -1.0, 3), answer(rejected, -2.5, 5))
                });
            }
        }
    }

    #[test]
    fn a_tie_costs_ln_2_and_the_hybrid_starts_at_1_2_ln_2() {
        let config = LossConfig::default();
        let answer = AnswerLogProb { policy: -7.0, reference: -7.0, tokens: 4 };
        let total = bradley_terry(0.0, 0.0, 0.0, 0.0).loss + config.alpha * policy(&config, answer, answer).loss;
        assert!((total - 0.831_777).abs() < 1e-6);
    }

    #[test]
    fn extreme_rewards_stay_finite() {
        for z in [-1e4, 1e4] {
            let value = bradley_terry(z, 0.0, 0.0, 0.0);
            assert!(value.loss.is_finite() && value.chosen.is_finite());
        }
        assert_eq!(bradley_terry(-1e4, 0.0, 0.0, 0.0).loss, 1e4);
    }

    #[test]
    fn a_tie_is_half_a_hit() {
        assert_eq!([hit(0.2), hit(0.0), hit(-0.2), hit(f64::NAN)], [1.0, 0.5, 0.0, 0.0]);
    }
}
