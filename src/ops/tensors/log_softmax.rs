//! Log-softmax of logits at places, and its gradient, as tensor operations.

use crate::error::Result;
use crate::ops::{Logits, Places, add_rows};
use tch::{Kind, Tensor};

/// The argument of the softmax, f32.
fn capped(logits: &Tensor, soft_cap: Option<f64>) -> Tensor {
    let logits = logits.to_kind(Kind::Float);
    match soft_cap {
        Some(cap) => (logits / cap).tanh() * cap,
        None => logits,
    }
}

/// Derivatives of the [`capped`] logits with respect to the logits, if there is a cap.
fn cap_slopes(capped: &Tensor, soft_cap: Option<f64>) -> Option<Tensor> {
    soft_cap.map(|cap| 1.0 - (capped / cap).square())
}

/// See [`Ops::log_sum_exp`](crate::ops::Ops::log_sum_exp).
pub(crate) fn log_sum_exp(logits: &Tensor, soft_cap: Option<f64>) -> Tensor {
    capped(logits, soft_cap).logsumexp([-1], false)
}

/// See [`Ops::log_probs`](crate::ops::Ops::log_probs).
pub(crate) fn log_probs(logits: &Logits, at: &Places) -> Tensor {
    let values = logits.values.index(&[Some(&at.rows), Some(&at.tokens)]);
    capped(&values, logits.soft_cap) - logits.sums.index_select(0, &at.rows)
}

/// See [`Ops::log_probs_backward`](crate::ops::Ops::log_probs_backward).
pub(crate) fn backward(logits: &Logits, Places { rows, tokens }: &Places, slopes: &Tensor) -> Result<Tensor> {
    let values = capped(&logits.values, logits.soft_cap);
    let cap_slopes = cap_slopes(&values, logits.soft_cap);
    let row_slopes = logits.sums.zeros_like();
    add_rows(&row_slopes, rows, slopes)?;
    let softmax = (values - logits.sums.unsqueeze(-1)).exp();
    let gradient = softmax * row_slopes.neg().unsqueeze(-1);
    // A token may be the target of both answers: slopes add up.
    add_rows(&gradient.view([-1]), &(rows * gradient.size()[1] + tokens), slopes)?;
    let gradient = match cap_slopes {
        Some(cap_slopes) => gradient * cap_slopes,
        None => gradient,
    };
    Ok(gradient.to_kind(logits.values.kind()))
}
