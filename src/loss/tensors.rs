//! The derivatives of the losses over whole batches as tensor operations, so that nothing has to leave a GPU before the
//! backward pass. The formulas are those of the scalar functions one floor up in this file's parent, which the tests
//! hold them to.
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

    const PLACES: [[f64; 2]; 4] = [[0.3, -0.7], [-2.0, 1.5], [8.0, 8.5], [-20.0, -35.0]];
    const REFERENCES: [[f64; 2]; 4] = [[-1.0, -2.5], [-3.0, 0.5], [7.5, 9.0], [-21.0, -20.0]];
    const TOKENS: [[usize; 2]; 4] = [[3, 5], [1, 0], [7, 2], [4, 4]];
    const MARGINS: [f64; 4] = [0.4, 0.0, 1.5, 0.1];

    fn matrix(values: [[f64; 2]; 4]) -> Tensor {
        Tensor::from_slice(values.as_flattened()).view([4, 2])
    }

    fn assert_same(found: &Tensor, expected: &[[f64; 2]], what: &str) {
        let distance = (found - Tensor::from_slice(expected.as_flattened()).view([-1, 2])).abs().max();
        assert!(distance.double_value(&[]) < 1e-12, "{what}: {distance}");
    }

    #[test]
    fn whole_batches_have_the_slopes_of_the_scalar_functions() {
        for (label_smoothing, centering) in [(0.0, 0.0), (0.1, 0.01)] {
            let config = LossConfig { label_smoothing, centering, ..LossConfig::default() };
            let scalar = |place: usize| {
                let [chosen, rejected] = PLACES[place];
                let ranking = loss::bradley_terry(chosen, rejected, MARGINS[place], label_smoothing);
                let centering = loss::centering(chosen, rejected, centering);
                [ranking.chosen + centering.chosen, ranking.rejected + centering.rejected]
            };
            let found = reward_slopes(&config, &matrix(PLACES), &Tensor::from_slice(&MARGINS));
            assert_same(&found, &[0, 1, 2, 3].map(scalar), "rewards");
            for policy in [PolicyLoss::Dpo, PolicyLoss::Hinge, PolicyLoss::Ipo, PolicyLoss::Simpo, PolicyLoss::Sft] {
                let config = LossConfig { policy, simpo_gamma: 0.5, ..config.clone() };
                let scalar = |place: usize| {
                    let answer = |which: usize| AnswerLogProb {
                        policy: PLACES[place][which],
                        reference: REFERENCES[place][which],
                        tokens: TOKENS[place][which],
                    };
                    let value = loss::policy(&config, answer(0), answer(1));
                    [value.chosen, value.rejected]
                };
                let tokens = matrix(TOKENS.map(|tokens| tokens.map(|count| count as f64)));
                let found = policy_slopes(&config, &matrix(PLACES), &matrix(REFERENCES), &tokens);
                assert_same(&found, &[0, 1, 2, 3].map(scalar), &format!("{policy:?}"));
            }
        }
    }
}
