//! The derivatives of the losses over whole batches as tensor operations, so that nothing has to leave a GPU before the
//! backward pass. Tests compare them with finite differences of the values in `mod.rs`.
//!
//! Legend: B pairs. All tensors are f64; the second place is the answer, chosen before rejected.

use super::prior::{CUTOFF, Node, RULE};
use crate::config::{LossConfig, PolicyLoss, Prior};
use crate::tensor::on_device;
use std::f64::consts::LN_2;
use tch::{Kind, Tensor};

/// Derivative with respect to z `[B]` of a preference's cost under label noise s: (1 - s) g(z) - s g(-z), with g the
/// derivative of -log F.
fn smoothed_slope(config: &LossConfig, z: &Tensor) -> Tensor {
    let smoothing = config.label_smoothing;
    match config.prior {
        Prior::Logistic => z.sigmoid() - (1.0 - smoothing),
        _ if smoothing == 0.0 => cost_slope(config, z),
        _ => cost_slope(config, z) * (1.0 - smoothing) - cost_slope(config, &z.neg()) * smoothing,
    }
}

/// Derivative with respect to z `[B]` of -log F(z): minus the hazard if z < 0, else that times Q / (1 - Q) (see `prior.rs`).
fn cost_slope(config: &LossConfig, z: &Tensor) -> Tensor {
    let x = z.abs();
    let (log_tail, hazard) = match config.prior {
        Prior::Logistic => return z.sigmoid() - 1.0,
        Prior::Laplace => (&x * -0.5 - LN_2, x.full_like(0.5)),
        Prior::Normal => {
            let start = mills(&x.zeros_like());
            let x = x * &start * 0.5;
            let ratio = mills(&x) / start;
            (ratio.log() - LN_2 - x.square() * 0.5, ratio.reciprocal() * 0.5)
        }
        Prior::Student => {
            let degrees = config.prior_degrees;
            let start = student_ratio(degrees, &x.zeros_like());
            let a = (x * &start * 0.5).asinh();
            let ratio = student_ratio(degrees, &a) / start;
            (ratio.log() - LN_2 - log_cosh(&a) * degrees, (ratio * a.cosh()).reciprocal() * 0.5)
        }
    };
    let tail = log_tail.exp();
    let odds = &tail / (tail.neg() + 1.0);
    (hazard * odds.ones_like().where_self(&z.lt(0.0), &odds)).neg()
}

/// Integrals `[B]` over 0..`end` `[B]` of a function, which is evaluated at places [B, points].
fn integral(end: &Tensor, integrand: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let (nodes, weights): (Vec<f64>, Vec<f64>) = RULE.iter().map(|Node { at, weight }| (at, weight)).unzip();
    let [nodes, weights] = [nodes, weights].map(|values| on_device(&values, end.device()));
    integrand(&(end.unsqueeze(-1) * nodes)).matmul(&weights) * end
}

fn mills(x: &Tensor) -> Tensor {
    let end = (x + (x.square() + 2.0 * CUTOFF).sqrt()).reciprocal() * (2.0 * CUTOFF);
    integral(&end, |s| (x.unsqueeze(-1) * s + s.square() * 0.5).neg().exp())
}

fn student_ratio(degrees: f64, a: &Tensor) -> Tensor {
    let log = log_cosh(a) + CUTOFF / degrees;
    let end = &log + (&log * -2.0).expm1().neg().sqrt().log1p() - a;
    let (a, at) = (a.unsqueeze(-1), (a * -2.0).exp().log1p().unsqueeze(-1));
    integral(&end, |s| ((s + ((&a + s) * -2.0).exp().log1p() - &at) * -degrees).exp())
}

fn log_cosh(a: &Tensor) -> Tensor {
    a + (a * -2.0).exp().log1p() - LN_2
}

/// Chosen and rejected side by side [B, 2].
fn pair(chosen: Tensor, rejected: Tensor) -> Tensor {
    Tensor::stack(&[chosen, rejected], -1)
}

/// Derivatives `[B]` with respect to differences `[B]` of a loss with the derivative `slope`; for the pairs in `ties` `[B]`,
/// of its mean over both orders.
fn both_if(ties: Option<&Tensor>, differences: &Tensor, slope: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let ours = slope(differences);
    match ties {
        Some(ties) => ((&ours - slope(&differences.neg())) * 0.5).where_self(ties, &ours),
        None => ours,
    }
}

/// Derivatives [B, 2] of Bradley-Terry plus centering with respect to rewards [B, 2]; margins `[B]`. Pairs whose `ties`
/// `[B]`, bool, is true have the mean loss of both orders.
pub(crate) fn reward_slopes(config: &LossConfig, rewards: &Tensor, margins: &Tensor, ties: Option<&Tensor>) -> Tensor {
    let (chosen, rejected) = (rewards.select(1, 0), rewards.select(1, 1));
    let slope = both_if(ties, &(&chosen - &rejected), |difference| smoothed_slope(config, &(difference - margins)));
    let centering = (chosen + rejected) * (2.0 * config.centering);
    pair(&slope + &centering, centering - slope)
}

/// The inputs of a policy loss for both answers of each pair, [B, 2] each.
pub(crate) struct PolicyInputs {
    /// Summed log-probs under the trained model.
    pub(crate) log_probs: Tensor,
    /// The same under the starting model.
    pub(crate) references: Tensor,
    /// Numbers of tokens.
    pub(crate) tokens: Tensor,
}

/// Derivatives [B, 2] of the policy loss with respect to the summed log-probs; `ties` as in [`reward_slopes`].
pub(crate) fn policy_slopes(config: &LossConfig, inputs: &PolicyInputs, ties: Option<&Tensor>) -> Tensor {
    let PolicyInputs { log_probs, references, tokens } = inputs;
    let beta = config.beta;
    let tokens = tokens.clamp_min(1.0);
    let implicit = match config.policy {
        PolicyLoss::Dpo | PolicyLoss::Hinge | PolicyLoss::Ipo => (log_probs - references) * beta,
        PolicyLoss::Simpo => log_probs * beta / &tokens,
        PolicyLoss::Sft => log_probs.shallow_clone(),
    };
    let margin = implicit.select(1, 0) - implicit.select(1, 1);
    // With respect to the margin, in either order.
    let slope = |margin: &Tensor| match config.policy {
        PolicyLoss::Dpo => smoothed_slope(config, margin) * beta,
        PolicyLoss::Hinge => margin.lt(1.0).to_kind(Kind::Double) * -beta,
        PolicyLoss::Ipo => (margin / beta - 1.0 / (2.0 * beta)) * 2.0,
        PolicyLoss::Simpo => smoothed_slope(config, &(margin - config.simpo_gamma)) * beta,
        PolicyLoss::Sft => margin.zeros_like(),
    };
    let slopes = both_if(ties, &margin, slope);
    match config.policy {
        PolicyLoss::Simpo => pair(slopes.shallow_clone(), slopes.neg()) / tokens,
        // The chosen answer alone; if tied, half of each.
        PolicyLoss::Sft => {
            let one = margin.full_like(-1.0);
            let share =
                |ours: f64| ties.map_or_else(|| &one * ours, |ties| (&one * 0.5).where_self(ties, &(&one * ours)));
            pair(share(1.0), share(0.0))
        }
        _ => pair(slopes.shallow_clone(), slopes.neg()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{self, AnswerLogProb};
    use clap::ValueEnum;

    const STEP: f64 = 1e-6;
    const PLACES: [[f64; 2]; 4] = [[0.3, -0.7], [-2.0, 1.5], [8.0, 8.5], [-20.0, -35.0]];
    const REFERENCES: [[f64; 2]; 4] = [[-1.0, -2.5], [-3.0, 0.5], [7.5, 9.0], [-21.0, -20.0]];
    const TOKENS: [[usize; 2]; 4] = [[3, 5], [1, 0], [7, 2], [4, 4]];
    const MARGINS: [f64; 4] = [0.4, 0.0, 1.5, 0.1];
    const TIES: [bool; 4] = [false, true, false, true];

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

    /// Promise: with the logistic prior the gradients are bit for bit those of the formulas without priors.
    #[test]
    fn the_logistic_prior_changes_no_bit_of_a_gradient() {
        let bits = |slopes: &Tensor| -> Vec<u64> {
            Vec::<f64>::try_from(slopes.select(1, 0)).unwrap().into_iter().map(f64::to_bits).collect()
        };
        for label_smoothing in [0.0, 0.1] {
            let logistic = LossConfig { label_smoothing, ..LossConfig::default() };
            let z = matrix(PLACES).select(1, 0) - matrix(PLACES).select(1, 1) - Tensor::from_slice(&MARGINS);
            let before = (z.sigmoid() - (1.0 - label_smoothing)).unsqueeze(1);
            let of = |config: &LossConfig| {
                bits(&reward_slopes(config, &matrix(PLACES), &Tensor::from_slice(&MARGINS), None))
            };
            assert_eq!(of(&logistic), bits(&before));
            assert_ne!(of(&LossConfig { prior: Prior::Normal, ..logistic }), bits(&before), "the control");
        }
    }

    #[test]
    fn every_derivative_equals_a_finite_difference() {
        let priors = Prior::value_variants().iter().map(|prior| (*prior, 4.0));
        let priors = priors.chain([(Prior::Student, 1.0), (Prior::Student, 200.0)]);
        for ((prior, prior_degrees), (label_smoothing, centering)) in
            priors.flat_map(|prior| [(prior, (0.0, 0.0)), (prior, (0.1, 0.01))])
        {
            let config = LossConfig { prior, prior_degrees, label_smoothing, centering, ..LossConfig::default() };
            let ties = Tensor::from_slice(&TIES);
            let found = reward_slopes(&config, &matrix(PLACES), &Tensor::from_slice(&MARGINS), Some(&ties));
            check(&format!("rewards, {prior:?}"), &found, |pair, [chosen, rejected]| {
                let loss = |one, other| loss::bradley_terry(&config, one, other, MARGINS[pair]);
                let tied = (loss(chosen, rejected) + loss(rejected, chosen)) / 2.0;
                let preference = if TIES[pair] { tied } else { loss(chosen, rejected) };
                preference + loss::centering(chosen, rejected, centering)
            });
            for &policy in PolicyLoss::value_variants() {
                let config = LossConfig { policy, simpo_gamma: 0.5, ..config.clone() };
                let tokens = matrix(TOKENS.map(|tokens| tokens.map(|count| count as f64)));
                let inputs = PolicyInputs { log_probs: matrix(PLACES), references: matrix(REFERENCES), tokens };
                let found = policy_slopes(&config, &inputs, Some(&ties));
                check(&format!("{policy:?}, {prior:?}"), &found, |pair, place| {
                    let answer = |which: usize| AnswerLogProb {
                        policy: place[which],
                        reference: REFERENCES[pair][which],
                        tokens: TOKENS[pair][which],
                    };
                    let loss = |one, other| loss::policy(&config, answer(one), answer(other));
                    if TIES[pair] { (loss(0, 1) + loss(1, 0)) / 2.0 } else { loss(0, 1) }
                });
            }
        }
    }

    #[test]
    fn slopes_of_every_prior_start_at_one_half_and_are_stable_to_ten_thousand() {
        let places = [-1e4, -5e3, -300.0, -1.0, 0.0, 1.0, 300.0, 1e4];
        let priors = Prior::value_variants().iter().map(|prior| (*prior, 4.0));
        for (prior, prior_degrees) in priors.chain([(Prior::Student, 1.0), (Prior::Student, 1000.0)]) {
            let config = LossConfig { prior, prior_degrees, ..LossConfig::default() };
            let slopes: Vec<f64> = cost_slope(&config, &Tensor::from_slice(&places)).try_into().unwrap();
            assert!(slopes.iter().all(|slope| slope.is_finite() && *slope <= 0.0), "{prior:?}: {slopes:?}");
            assert!((slopes[4] + 0.5).abs() < 1e-14, "{prior:?}: {}", slopes[4]);
            // In the tails: the logistic and Laplace's are constant, the normal's linear, Student's (n + 1) / |z| without the
            // one.
            let expected = match prior {
                Prior::Logistic => -1.0,
                Prior::Normal => -1e4 * std::f64::consts::PI / 8.0,
                Prior::Laplace => -0.5,
                Prior::Student => -prior_degrees / 1e4,
            };
            let near = (slopes[0] / expected - 1.0).abs();
            assert!(near < 1e-2, "{prior:?} {prior_degrees}: {} is not {expected}", slopes[0]);
            assert!(slopes[7].abs() < 1e-7, "{prior:?}: {}", slopes[7]);
        }
    }

    #[test]
    fn extreme_rewards_have_finite_slopes() {
        let rewards = Tensor::from_slice(&[1e4, 0.0, -1e4, 0.0]).view([2, 2]);
        let slopes = reward_slopes(
            &LossConfig::default(),
            &rewards,
            &Tensor::zeros([2], (Kind::Double, tch::Device::Cpu)),
            None,
        );
        assert_eq!(Vec::<f64>::try_from(slopes.view([-1])).unwrap(), [0.0, 0.0, -1.0, 1.0]);
    }
}
