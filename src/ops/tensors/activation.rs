//! Activations of the MLP, gated and plain, as tensor operations.

use crate::error::Result;
use crate::ops::{Activation, MlpKind};
use tch::Tensor;

/// The factor of [`Activation::QuickGelu`].
const QUICK: f64 = 1.702;

/// libtorch's names for the two forms of the GELU.
fn approximate(activation: Activation) -> &'static str {
    if activation == Activation::GeluTanh { "tanh" } else { "none" }
}

fn value_out(activation: Activation, x: &Tensor, output: &Tensor) -> Result<()> {
    let _ = match activation {
        Activation::Silu => x.f_silu_out(output)?,
        Activation::GeluTanh | Activation::Gelu => x.f_gelu_out(output, approximate(activation))?,
        Activation::QuickGelu => x.f_mul_scalar(QUICK)?.f_sigmoid()?.f_mul_out(output, x)?,
        Activation::Relu => x.f_clamp_min_out(output, 0.0)?,
    };
    Ok(())
}

fn value(activation: Activation, x: &Tensor) -> Result<Tensor> {
    let value = x.f_empty_like()?;
    value_out(activation, x, &value)?;
    Ok(value)
}

/// Gradient of x from that of [`value`].
fn gradient_out(activation: Activation, x: &Tensor, gradient: &Tensor, output: &Tensor) -> Result<()> {
    let _ = match activation {
        Activation::Silu => x.f_silu_backward_grad_input(output, gradient)?,
        Activation::GeluTanh | Activation::Gelu => {
            x.f_gelu_backward_grad_input(output, gradient, approximate(activation))?
        }
        // With s = sigmoid(c x): s + c x s (1 - s), which is silu'(c x).
        Activation::QuickGelu => x.f_mul_scalar(QUICK)?.f_silu_backward_grad_input(output, gradient)?,
        Activation::Relu => x.f_threshold_backward_grad_input(output, gradient, 0.0)?,
    };
    Ok(())
}

/// See [`Ops::activate`](crate::ops::Ops::activate).
pub(crate) fn forward(kind: MlpKind, inner: &Tensor, output: &Tensor) -> Result<()> {
    if !kind.gated {
        return value_out(kind.activation, inner, output);
    }
    let halves = inner.chunk(2, -1);
    let _ = value(kind.activation, &halves[0])?.f_mul_out(output, &halves[1])?;
    Ok(())
}

/// See [`Ops::activate_backward`](crate::ops::Ops::activate_backward).
pub(crate) fn backward(
    kind: MlpKind,
    inner: &Tensor,
    gradient: &Tensor,
    output: &Tensor,
    inner_gradient: &Tensor,
) -> Result<()> {
    let activation = kind.activation;
    if !kind.gated {
        value_out(activation, inner, output)?;
        return gradient_out(activation, inner, gradient, inner_gradient);
    }
    let [halves, gradients] = [inner, inner_gradient].map(|side_by_side| side_by_side.chunk(2, -1));
    let activated = value(activation, &halves[0])?;
    gradient_out(activation, &halves[0], &gradient.f_mul(&halves[1])?, &gradients[0])?;
    let _ = gradient.f_mul_out(&gradients[1], &activated)?;
    let _ = activated.f_mul_out(output, &halves[1])?;
    Ok(())
}
