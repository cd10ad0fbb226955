//! How far a reward follows length: the accuracy of length alone, accuracy on pairs whose better answer is the longer or the
//! shorter one, and accuracy controlled for length.
//!
//! Pure functions. Not here: choosing answers and counting their tokens.

use crate::loss::hit;
use serde::Serialize;

/// Most Newton steps.
const STEPS: usize = 50;
/// A smaller step ends them.
const ENOUGH: f64 = 1e-12;

/// Larger coefficients mean that length separates the outcomes, so that there is no finite fit.
const SEPARATED: f64 = 1e3;

/// A pair's rewards and lengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Rewards of the chosen and the rejected answer.
    pub rewards: [f64; 2],
    /// Their lengths in tokens, 1 or more.
    pub lengths: [usize; 2],
}

/// The effect of length on some pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LengthReport {
    /// Accuracy of always preferring the longer answer; equal lengths count as one half.
    pub longer_accuracy: f64,
    /// Pearson's correlation of reward and log length over all answers; `None` if one of them does not vary.
    pub correlation: Option<f64>,
    /// Pairs whose chosen answer is the longer one.
    pub chosen_longer: usize,
    /// Accuracy on them.
    pub accuracy_chosen_longer: Option<f64>,
    /// Pairs whose chosen answer is the shorter one.
    pub chosen_shorter: usize,
    /// Accuracy on them.
    pub accuracy_chosen_shorter: Option<f64>,
    /// sigmoid(a) from the logistic regression P(right) = sigmoid(a + b (log chosen length - log rejected length)): the accuracy
    /// predicted between answers of equal length, as in length-controlled AlpacaEval (arXiv 2404.04475). `None` if there is no
    /// finite fit.
    pub length_controlled_accuracy: Option<f64>,
}

impl LengthReport {
    /// `None` without pairs.
    pub fn of(pairs: &[Measured]) -> Option<Self> {
        if pairs.is_empty() {
            return None;
        }
        let outcome = |pair: &Measured| hit(pair.rewards[0] - pair.rewards[1]);
        let longer = |pair: &Measured| hit(pair.lengths[0] as f64 - pair.lengths[1] as f64);
        let of = |which: f64| -> Vec<f64> { pairs.iter().filter(|pair| longer(pair) == which).map(outcome).collect() };
        let (chosen_longer, chosen_shorter) = (of(1.0), of(0.0));
        let difference = |pair: &Measured| log(pair.lengths[0]) - log(pair.lengths[1]);
        let points: Vec<(f64, f64)> = pairs.iter().map(|pair| (difference(pair), outcome(pair))).collect();
        let answers = |pair: &Measured| [0, 1].map(|side| (pair.rewards[side], log(pair.lengths[side])));
        Some(Self {
            longer_accuracy: pairs.iter().map(longer).sum::<f64>() / pairs.len() as f64,
            correlation: correlation(&pairs.iter().flat_map(answers).collect::<Vec<_>>()),
            chosen_longer: chosen_longer.len(),
            accuracy_chosen_longer: mean(&chosen_longer),
            chosen_shorter: chosen_shorter.len(),
            accuracy_chosen_shorter: mean(&chosen_shorter),
            length_controlled_accuracy: intercept(&points).map(|a| 1.0 / (1.0 + (-a).exp())),
        })
    }
}

fn log(length: usize) -> f64 {
    (length.max(1) as f64).ln()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn correlation(points: &[(f64, f64)]) -> Option<f64> {
    // The rounded mean of equal numbers may differ from them and give a spread.
    let varies = |of: fn(&(f64, f64)) -> f64| points.iter().any(|point| of(point) != of(&points[0]));
    if !(varies(|point| point.0) && varies(|point| point.1)) {
        return None;
    }
    let count = points.len() as f64;
    let center = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x0, y0) = (center(|point| point.0), center(|point| point.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|(x, y)| of(x - x0, y - y0)).sum::<f64>();
    let product = sum(&|x, _| x * x).sqrt() * sum(&|_, y| y * y).sqrt();
    (product > 0.0).then(|| sum(&|x, y| x * y) / product).filter(|value| value.is_finite())
}

/// The a of the logistic regression P(y) = sigmoid(a + b x) on points (x, y), by Newton's method. `None` if that does not
/// converge: x does not vary, or separates the outcomes.
fn intercept(points: &[(f64, f64)]) -> Option<f64> {
    let (mut a, mut b) = (0.0f64, 0.0f64);
    for _ in 0..STEPS {
        // Gradient and Hessian of the log-likelihood.
        let (mut g0, mut g1, mut h00, mut h01, mut h11) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &(x, y) in points {
            let p = 1.0 / (1.0 + (-(a + b * x)).exp());
            let weight = p * (1.0 - p);
            (g0, g1) = (g0 + y - p, g1 + (y - p) * x);
            (h00, h01, h11) = (h00 + weight, h01 + weight * x, h11 + weight * x * x);
        }
        let determinant = h00 * h11 - h01 * h01;
        if determinant <= 1e-12 * h00 * h11 {
            return None;
        }
        let step = ((h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant);
        (a, b) = (a + step.0, b + step.1);
        if !(a.abs() < SEPARATED && b.abs() < SEPARATED) {
            return None;
        }
        if step.0.abs() + step.1.abs() < ENOUGH {
            return Some(a);
        }
    }
    None
}
