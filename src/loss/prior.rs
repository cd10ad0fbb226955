//! How likely the better answer is to be chosen, given how much better it is: F(z), the symmetric distribution function that
//! `loss.prior` names, and the cost -log F(z). Every F is scaled so that F'(0) = 1/4, as for the logistic one: at the start
//! all cost ln 2 a pair, with the same gradient. The derivatives over whole batches are in `tensors.rs`.
//!
//! With Q(x) = F(-x), x >= 0, everything follows from -log Q and from the hazard -Q' / Q, neither of which overflows or
//! cancels: -log F(-x) = -log Q(x), and -log F(x) = -log(1 - Q(x)).
//!
//! If Q has no closed form, it is the density times R(x), the integral over the tail beyond x of the density divided by that
//! at x. The integrand's logarithm is concave, so the Gauss-Legendre rule is exact to rounding up to where the integrand is
//! below e^-40:
//! - normal: R(x) = integral over s > 0 of exp(-x s - s^2 / 2), Mills' ratio;
//! - student, n degrees of freedom, with t = sqrt(n) sinh(a): R(a) = integral over s > 0 of (cosh a / cosh(a + s))^n.
//!
//! In units of R(0) the constants of the densities cancel.

use crate::config::{LossConfig, Prior};
use std::f64::consts::LN_2;
use std::sync::LazyLock;

/// Points of the quadrature.
const POINTS: usize = 64;

/// An integral ends where its integrand has fallen to exp(-CUTOFF).
pub(super) const CUTOFF: f64 = 40.0;

/// A point of a quadrature rule.
pub(super) struct Node {
    pub(crate) at: f64,
    pub(crate) weight: f64,
}

/// The Gauss-Legendre rule on 0..1.
pub(super) static RULE: LazyLock<Vec<Node>> = LazyLock::new(|| (0..POINTS).map(node).collect());

/// A node by Newton's method on the Legendre polynomial of degree [`POINTS`].
fn node(index: usize) -> Node {
    let n = POINTS as f64;
    let mut x = (std::f64::consts::PI * (index as f64 + 0.75) / (n + 0.5)).cos();
    let mut slope = 1.0;
    for _ in 0..10 {
        let (mut before, mut value) = (1.0, x);
        for degree in 2..=POINTS {
            let degree = degree as f64;
            (before, value) = (value, ((2.0 * degree - 1.0) * x * value - (degree - 1.0) * before) / degree);
        }
        slope = n * (x * value - before) / (x * x - 1.0);
        x -= value / slope;
    }
    Node { at: (1.0 + x) / 2.0, weight: 1.0 / ((1.0 - x * x) * slope * slope) }
}

/// -log F(z).
pub(super) fn cost(config: &LossConfig, z: f64) -> f64 {
    match config.prior {
        // log(1 + exp(-z)), exact for large |z|.
        Prior::Logistic => (-z).max(0.0) + (-z.abs()).exp().ln_1p(),
        _ if z < 0.0 => -log_tail(config, -z),
        _ => -(-log_tail(config, z).exp()).ln_1p(),
    }
}

/// log Q(x), x >= 0.
fn log_tail(config: &LossConfig, x: f64) -> f64 {
    match config.prior {
        Prior::Logistic => -x - (-x).exp().ln_1p(),
        Prior::Laplace => -LN_2 - x / 2.0,
        Prior::Normal => {
            let start = mills(0.0);
            // F'(0) = 1/4: x in standard deviations.
            let x = x * start / 2.0;
            (mills(x) / start).ln() - LN_2 - x * x / 2.0
        }
        Prior::Student => {
            let degrees = config.prior_degrees;
            let start = student_ratio(degrees, 0.0);
            let a = (x * start / 2.0).asinh();
            (student_ratio(degrees, a) / start).ln() - LN_2 - degrees * log_cosh(a)
        }
    }
}

/// Integral over 0..`end`.
fn integral(end: f64, integrand: impl Fn(f64) -> f64) -> f64 {
    end * RULE.iter().map(|Node { at, weight }| weight * integrand(end * at)).sum::<f64>()
}

/// R(x) of the normal distribution, in standard deviations.
fn mills(x: f64) -> f64 {
    let end = 2.0 * CUTOFF / (x + (x * x + 2.0 * CUTOFF).sqrt());
    integral(end, |s| (-x * s - s * s / 2.0).exp())
}

/// R(a) of Student's distribution.
fn student_ratio(degrees: f64, a: f64) -> f64 {
    // cosh(a + end) = cosh(a) exp(CUTOFF / degrees).
    let log = log_cosh(a) + CUTOFF / degrees;
    let end = log + (-(-2.0 * log).exp_m1()).sqrt().ln_1p() - a;
    let at = (-2.0 * a).exp().ln_1p();
    integral(end, |s| (-degrees * (s + (-2.0 * (a + s)).exp().ln_1p() - at)).exp())
}

/// log cosh(a), a >= 0.
fn log_cosh(a: f64) -> f64 {
    a + (-2.0 * a).exp().ln_1p() - LN_2
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn with(prior: Prior, prior_degrees: f64) -> LossConfig {
        LossConfig { prior, prior_degrees, ..LossConfig::default() }
    }

    fn all() -> Vec<LossConfig> {
        let priors = Prior::value_variants().iter().map(|prior| with(*prior, 4.0));
        priors.chain([1.0, 1.5, 30.0, 1000.0].map(|degrees| with(Prior::Student, degrees))).collect()
    }

    #[test]
    fn every_prior_starts_at_ln_2_with_slope_one_half_and_is_symmetric() {
        for config in all() {
            let name = format!("{:?} {}", config.prior, config.prior_degrees);
            assert!((cost(&config, 0.0) - LN_2).abs() < 1e-15, "{name}");
            let slope = (cost(&config, 1e-5) - cost(&config, -1e-5)) / 2e-5;
            // Laplace's has a corner in its slope there.
            assert!((slope + 0.5).abs() < 1e-5, "{name}: {slope}");
            for z in [0.1, 1.0, 7.0, 30.0] {
                let sum = (-cost(&config, z)).exp() + (-cost(&config, -z)).exp();
                assert!((sum - 1.0).abs() < 1e-13, "{name} at {z}: F(z) + F(-z) = {sum}");
            }
        }
    }

    #[test]
    fn the_distribution_functions_are_the_textbooks() {
        let pi = std::f64::consts::PI;
        for z in [-1e4, -300.0, -20.0, -3.0, -0.4, 0.0, 0.4, 3.0, 20.0, 300.0] {
            // Cauchy, and two degrees of freedom, in forms that do not cancel in their tail.
            let cauchy = if z < 0.0 { (-4.0 / (pi * z)).atan() / pi } else { 0.5 + (pi * z / 4.0).atan() / pi };
            let t: f64 = z / 2f64.sqrt();
            let root = (2.0 + t * t).sqrt();
            let two = if z < 0.0 { 1.0 / (root * (root - t)) } else { 0.5 + t / (2.0 * root) };
            for (degrees, expected) in [(1.0, cauchy), (2.0, two)] {
                let found = (-cost(&with(Prior::Student, degrees), z)).exp();
                assert!((found / expected - 1.0).abs() < 1e-12, "{degrees} degrees at {z}: {found} is not {expected}");
            }
        }
        // log Phi at some standard deviations, computed elsewhere with 50 digits.
        let deviation = 4.0 / (2.0 * pi).sqrt();
        for (x, expected) in [
            (-40.0, -804.608_442_013_753_8),
            (-10.0, -53.231_285_150_512_47),
            (-1.0, -1.841_021_645_009_263_5),
            (1.0, -0.172_753_779_023_449_9),
            (5.0, -2.866_516_129_637_636e-7),
        ] {
            let found = -cost(&with(Prior::Normal, 4.0), x * deviation);
            assert!((found / expected - 1.0).abs() < 1e-12, "normal at {x}: {found} is not {expected}");
        }
        // Many degrees of freedom are the normal distribution.
        let [many, normal] = [with(Prior::Student, 1000.0), with(Prior::Normal, 4.0)].map(|config| cost(&config, -3.0));
        assert!((many / normal - 1.0).abs() < 2e-3 && many != normal, "{many} {normal}");
    }

    #[test]
    fn ten_thousand_either_way_is_finite_and_falls() {
        for config in all() {
            let places = [-1e4, -5e3, -100.0, -1.0, 0.0, 1.0, 100.0, 5e3, 1e4];
            let costs = places.map(|z| cost(&config, z));
            let falls = costs.windows(2).all(|two| two[0] >= two[1]);
            assert!(falls && costs.iter().all(|cost| cost.is_finite() && *cost >= 0.0), "{config:?}: {costs:?}");
        }
    }
}
