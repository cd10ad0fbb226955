//! Fits each head's temperature and the weights of their sum on the dev pairs, at a checkpoint.
//!
//! The weights a, b maximize the sum over pairs of log sigmoid(a dr + b di), with dr and di the pair's margins by the reward
//! head and by the implicit reward: a logistic regression without intercept, since the two sides of a pair may be exchanged.
//! With margins scaled to a root mean square of 1, a and b have the penalty (a^2 + b^2) / 2, a normal prior of deviation 1. It
//! weighs about as much as one pair; without it few or easy pairs would have no finite fit.
//!
//! Not here: storing the result (`checkpoint/fitted.rs`).

use super::calibration::{log_loss, temperature};
use crate::checkpoint::{Fitted, Weights};
use crate::metrics::PairOutcome;

/// Most Newton steps.
const STEPS: usize = 100;
/// A smaller step ends them.
const ENOUGH: f64 = 1e-12;

/// Fits on the outcomes of dev pairs; `None` without pairs.
pub(crate) fn fit(outcomes: &[PairOutcome]) -> Option<Fitted> {
    if outcomes.is_empty() {
        return None;
    }
    let prompts: Vec<u64> =
        outcomes.iter().filter_map(|outcome| u64::from_str_radix(&outcome.prompt, 16).ok()).collect();
    let of = |margin: fn(&PairOutcome) -> Option<f64>| -> Option<Vec<f64>> {
        outcomes.iter().map(|outcome| margin(outcome).filter(|margin| margin.is_finite())).collect()
    };
    let (reward, implicit) = (of(|outcome| outcome.margin), of(|outcome| outcome.implicit_margin));
    let combined = reward.as_ref().zip(implicit.as_ref()).and_then(|(reward, implicit)| weights(reward, implicit));
    let mut fitted = Fitted::on(&prompts);
    fitted.reward_temperature = reward.as_deref().and_then(temperature);
    fitted.implicit_temperature = implicit.as_deref().and_then(temperature);
    fitted.combined = combined;
    Some(fitted)
}

/// The weights of the two heads' margins; `None` if a head's margins are all 0.
pub fn weights(reward: &[f64], implicit: &[f64]) -> Option<Weights> {
    let scale = |margins: &[f64]| {
        let squares: f64 = margins.iter().map(|margin| margin * margin).sum();
        Some((squares / margins.len() as f64).sqrt()).filter(|scale| *scale > 0.0 && scale.is_finite())
    };
    let (scale_reward, scale_implicit) = (scale(reward)?, scale(implicit)?);
    let pairs: Vec<(f64, f64)> =
        reward.iter().zip(implicit).map(|(r, i)| (r / scale_reward, i / scale_implicit)).collect();
    let cost = |a: f64, b: f64| {
        let loss = |(x, y): &(f64, f64)| log_loss(a * x + b * y);
        pairs.iter().map(loss).sum::<f64>() + (a * a + b * b) / 2.0
    };
    let (mut a, mut b) = (0.0, 0.0);
    for _ in 0..STEPS {
        // Gradient and Hessian of the cost, which is strictly convex.
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (a, b, 1.0, 0.0, 1.0);
        for (x, y) in &pairs {
            let wrong = 1.0 / (1.0 + (a * x + b * y).exp());
            let weight = wrong * (1.0 - wrong);
            (ga, gb) = (ga - wrong * x, gb - wrong * y);
            (haa, hab, hbb) = (haa + weight * x * x, hab + weight * x * y, hbb + weight * y * y);
        }
        let determinant = haa * hbb - hab * hab;
        let step = ((hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant);
        // Halve the step until the cost does not rise.
        let before = cost(a, b);
        let mut share = 1.0;
        while cost(a - share * step.0, b - share * step.1) > before && share > 1e-6 {
            share /= 2.0;
        }
        (a, b) = (a - share * step.0, b - share * step.1);
        if step.0.abs() + step.1.abs() < ENOUGH {
            break;
        }
    }
    Some(Weights { reward: a / scale_reward, implicit: b / scale_implicit })
}
