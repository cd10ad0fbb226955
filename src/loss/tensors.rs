//! The derivatives of the losses over whole batches as tensor operations, so that nothing has to leave a GPU before the
//! backward pass. Tests hold them to finite differences of the values in `mod.rs`.
//!
//! Legend: B pairs. All tensors are f64; the second place is the answer, chosen before rejected.

use crate::config::{LossConfig, PolicyLoss};
use tch::{Kind, Tensor};

/// Derivative by z of the smoothed -log sigmoid(z).
fn smoothed_slope(z: &Tensor, smoothing: f64) -> Tensor {
    z.sigmoid() - (1.0 - smoothing)
}

/// Chosen and rejected side by side [B, 2].
fn pair(chosen: Tensor, rejected: Tensor) -> Tensor {
    Tensor::stack(&[chosen, rejected], -1)
}

/// Derivatives [B, 2] of Bradley-Terry plus centering by rewards [B, 2]; margins `[B]`.
pub fn reward_slopes(config: &LossConfig, rewards: &Tensor, margins: &Tensor) -> Tensor {
    let (chosen, rejected) = (rewards.select(1, 0), rewards.select(1, 1));
    let slope = smoothed_slope(&(&chosen - &rejected - margins), config.label_smoothing);
    let centering = (chosen + rejected) * (2.0 * config.centering);
    pair(&slope + &centering, centering - slope)
}

/// Derivatives [B, 2] of the policy loss by summed log-probs [B, 2], with the references' [B, 2] and the numbers of
/// tokens [B, 2].
pub fn policy_slopes(config: &LossConfig, log_probs: &Tensor, references: &Tensor, tokens: &Tensor) -> Tensor {
    let beta = config.beta;
    let tokens = tokens.clamp_min(1.0);
    let implicit = match config.policy {
        PolicyLoss::Dpo | PolicyLoss::Hinge | PolicyLoss::Ipo => (log_probs - references) * beta,
        PolicyLoss::Simpo => log_probs * beta / &tokens,
        PolicyLoss::Sft => log_probs.shallow_clone(),
    };
    let margin = implicit.select(1, 0) - implicit.select(1, 1);
    let both = |slope: Tensor| pair(slope.shallow_clone(), slope.neg());
    match config.policy {
        PolicyLoss::Dpo => both(smoothed_slope(&margin, config.label_smoothing) * beta),
        PolicyLoss::Hinge => both(margin.lt(1.0).to_kind(Kind::Double) * -beta),
        PolicyLoss::Ipo => both((margin / beta - 1.0 / (2.0 * beta)) * 2.0),
        PolicyLoss::Simpo => {
            both(smoothed_slope(&(margin - config.simpo_gamma), config.label_smoothing) * beta) / tokens
        }
        PolicyLoss::Sft => pair(margin.full_like(-1.0), margin.zeros_like()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{self, AnswerLogProb};

    const STEP: f64 = 1e-6;
    const PLACES: [[f64; 2]; 4] = [[0.3, -0.7], [-2.0, 1.5], [8.0, 8.5], [-20.0, -35.0]];
    const REFERENCES: [[f64; 2]; 4] = [[-1.0, -2.5], [-3.0, 0.5], [7.5, 9.0], [-21.0, -20.0]];
    const TOKENS: [[usize; 2]; 4] = [[3, 5], [1, 0], [7, 2], [4, 4]];
    const MARGINS: [f64; 4] = [0.4, 0.0, 1.5, 0.1];

    fn matrix(values: [[f64; 2]; 4]) -> Tensor {
        Tensor::from_slice(values.as_flattened()).view([4, 2])
    }

    /// Compares slopes [4, 2] with finite differences of a loss of (pair, its two quantities).
    fn check(what: &str, slopes: &Tensor, loss: impl Fn(usize, [f64; 2]) -> f64) {
        for (pair, place) in PLACES.into_iter().enumerate() {
            for answer in 0..2 {
                let moved = |step: f64| {
                    let mut place = place;
                    place[answer] += step;
                    loss(pair, place)
                };
                let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let found = slopes.double_value(&[pair as i64, answer as i64]);
                assert!(
                    (found - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                    "{what}, pair {pair}, answer {answer}: {found} is not {expected}"
                );
            }
        }
    }

    #[test]
    fn every_derivative_equals_a_finite_difference() {
        for (label_smoothing, centering) in [(0.0, 0.0), (0.1, 0.01)] {
            let config = LossConfig { label_smoothing, centering, ..LossConfig::default() };
            let found = reward_slopes(&config, &matrix(PLACES), &Tensor::from_slice(&MARGINS));
            check("rewards", &found, |pair, [chosen, rejected]| {
                loss::bradley_terry(chosen, rejected, MARGINS[pair], label_smoothing)
                    + loss::centering(chosen, rejected, centering)
            });
            for policy in [PolicyLoss::Dpo, PolicyLoss::Hinge, PolicyLoss::Ipo, PolicyLoss::Simpo, PolicyLoss::Sft] {
                let config = LossConfig { policy, simpo_gamma: 0.5, ..config.clone() };
                let tokens = matrix(TOKENS.map(|tokens| tokens.map(|count| count as f64)));
                let found = policy_slopes(&config, &matrix(PLACES), &matrix(REFERENCES), &tokens);
                check(&format!("{policy:?}"), &found, |pair, place| {
                    let answer = |which: usize| AnswerLogProb {
                        policy: place[which],
                        reference: REFERENCES[pair][which],
                        tokens: TOKENS[pair][which],
                    };
                    loss::policy(&config, answer(0), answer(1))
                });
            }
        }
    }

    #[test]
    fn extreme_rewards_have_finite_slopes() {
        let rewards = Tensor::from_slice(&[1e4, 0.0, -1e4, 0.0]).view([2, 2]);
        let slopes =
            reward_slopes(&LossConfig::default(), &rewards, &Tensor::zeros([2], (Kind::Double, tch::Device::Cpu)));
        assert_eq!(Vec::<f64>::try_from(slopes.view([-1])).unwrap(), [0.0, 0.0, -1.0, 1.0]);
    }
}
