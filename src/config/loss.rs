//! `[loss]`: what is minimized.
//!
//! Not here: the formulas (`loss/`), defaults and ranges.

use serde::{Deserialize, Serialize};

/// `[loss]`: total = reward_weight * Bradley-Terry + alpha * policy, means over the global batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Both losses, or one of them.
    pub objective: Objective,
    /// Weight of the policy loss (the paper's dpo_ratio).
    pub alpha: f64,
    /// Weight of the reward loss.
    pub reward_weight: f64,
    /// The policy loss.
    pub policy: PolicyLoss,
    /// Scale of the implicit reward.
    pub beta: f64,
    /// SimPO's target margin.
    pub simpo_gamma: f64,
    /// Assumed share of pairs with a wrong label; for Bradley-Terry, dpo and simpo.
    pub label_smoothing: f64,
    /// Weight of (chosen reward + rejected reward)^2, which keeps rewards around zero.
    pub centering: f64,
    /// Weight of the loss that balances the load of experts, in models that have them; 0: none.
    pub router_balance: f64,
    /// The distribution function F in the preference loss -log F; for Bradley-Terry and dpo.
    pub prior: Prior,
    /// Degrees of freedom of `prior = "student"`.
    pub prior_degrees: f64,
    /// Policy only for this many steps, then reward only, and so on; 0: both at once.
    pub alternate_every: usize,
}

/// Both losses, or one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// reward_weight * Bradley-Terry + alpha * policy.
    #[default]
    Hybrid,
    /// Bradley-Terry alone: no policy forward, no reference.
    #[value(alias = "rm")]
    Reward,
    /// The policy loss alone.
    #[value(alias = "dpo")]
    Policy,
}

/// How likely the better answer is to be chosen, given how much better it is. All are symmetric and scaled so that the density
/// at 0 is 1/4, as for the logistic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Prior {
    /// sigmoid(z): the usual Bradley-Terry and dpo.
    #[default]
    Logistic,
    /// The normal distribution function (Thurstone): a wrongly ranked pair's gradient grows in proportion to its margin.
    Normal,
    /// Laplace's: a wrongly ranked pair's gradient is the same at every margin; the logistic reaches that only far out.
    Laplace,
    /// Student's with `prior_degrees`: the gradient shrinks for pairs ranked far wrong, whose label is doubtful.
    Student,
}

/// The policy loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PolicyLoss {
    /// -log sigmoid(beta * margin).
    #[default]
    Dpo,
    /// max(0, 1 - beta * margin).
    Hinge,
    /// (margin - 1/(2 beta))^2, on summed log-probs.
    Ipo,
    /// -log sigmoid(beta * difference of average log-probs - gamma); no reference.
    Simpo,
    /// Negative log-prob of the chosen answer; no reference.
    Sft,
}

impl LossConfig {
    /// Weight of the policy loss under the objective: 0 with `objective = "reward"`.
    pub fn effective_alpha(&self) -> f64 {
        if self.objective == Objective::Reward { 0.0 } else { self.alpha }
    }

    /// Weight of the reward loss under the objective: 0 with `objective = "policy"`.
    pub fn effective_reward_weight(&self) -> f64 {
        if self.objective == Objective::Policy { 0.0 } else { self.reward_weight }
    }

    /// Whether the policy loss counts, so that answer log-probs are computed in training.
    pub fn needs_policy(&self) -> bool {
        self.effective_alpha() > 0.0
    }

    /// Whether the policy loss compares with the starting model, so that its log-probs are computed before training.
    pub fn needs_reference(&self) -> bool {
        let compares = match self.policy {
            PolicyLoss::Dpo | PolicyLoss::Hinge | PolicyLoss::Ipo => true,
            PolicyLoss::Simpo | PolicyLoss::Sft => false,
        };
        compares && self.needs_policy()
    }
}
