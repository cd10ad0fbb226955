//! Activations of the MLP, gated and plain, forward and backward.
//!
//! Gated: gate and up lie side by side, and the output is activation(gate) * up (Shazeer, arXiv 2002.05202). On CPUs the
//! fused loops of `kernels/gated.rs` run for the two gates that families have; the rest is tensor operations.
//!
//! Legend: T tokens, F width of the MLP.

use crate::error::Result;
use crate::kernels::gated::{Curve, GeluTanh, Silu};
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Kind, Tensor};

/// A function of one number (Hendrycks and Gimpel, arXiv 1606.08415).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x): Llama's, Mistral's, Qwen's and Phi-3's `silu`.
    Silu,
    /// GELU by tanh: Gemma's `gelu_pytorch_tanh` and Phi-2's `gelu_new`.
    GeluTanh,
    /// GELU by the error function: GPT-NeoX's `gelu`.
    Gelu,
}

impl Activation {
    /// What libtorch calls the two ways of the GELU.
    fn approximate(self) -> &'static str {
        if self == Self::GeluTanh { "tanh" } else { "none" }
    }

    fn value(self, x: &Tensor) -> Result<Tensor> {
        let value = x.empty_like();
        self.value_out(x, &value)?;
        Ok(value)
    }

    fn value_out(self, x: &Tensor, output: &Tensor) -> Result<()> {
        let _ = match self {
            Self::Silu => x.f_silu_out(output)?,
            Self::GeluTanh | Self::Gelu => x.f_gelu_out(output, self.approximate())?,
        };
        Ok(())
    }

    /// Gradient of x from that of [`Activation::value`].
    fn gradient(self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.f_silu_backward(gradient)?,
            Self::GeluTanh | Self::Gelu => x.f_gelu_backward(gradient, self.approximate())?,
        })
    }
}

/// `inner` [T, 2 F] (gated: gate and up) or [T, F] (plain) -> `output` [T, F].
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn forward(activation: Activation, gated: bool, inner: &Tensor, output: &Tensor) -> Result<()> {
    fn on_cpu<E: Element + Number>(curve: impl Curve, inner: &Tensor, output: &Tensor) -> Result<()> {
        let width = output.size()[1] as usize;
        kernels::gated::forward(curve, slice::<E>(inner)?, width, slice_mut(&mut output.shallow_clone())?);
        Ok(())
    }
    match (activation, gated, tensor::cpu_kind(inner)) {
        (Activation::Silu, true, Some(Kind::Float)) => on_cpu::<f32>(Silu, inner, output),
        (Activation::Silu, true, Some(Kind::BFloat16)) => on_cpu::<bf16>(Silu, inner, output),
        (Activation::GeluTanh, true, Some(Kind::Float)) => on_cpu::<f32>(GeluTanh, inner, output),
        (Activation::GeluTanh, true, Some(Kind::BFloat16)) => on_cpu::<bf16>(GeluTanh, inner, output),
        _ => forward_with_tensors(activation, gated, inner, output),
    }
}

fn forward_with_tensors(activation: Activation, gated: bool, inner: &Tensor, output: &Tensor) -> Result<()> {
    if gated {
        let halves = inner.chunk(2, -1);
        let _ = activation.value(&halves[0])?.f_mul_out(output, &halves[1])?;
    } else {
        activation.value_out(inner, output)?;
    }
    Ok(())
}

/// From the gradient of [`forward`]'s output [T, F]: the `output` again, and the gradient of `inner`, of its shape.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    activation: Activation,
    gated: bool,
    inner: &Tensor,
    gradient: &Tensor,
    output: &Tensor,
    inner_gradient: &Tensor,
) -> Result<()> {
    fn on_cpu<E: Element + Number>(
        curve: impl Curve,
        [inner, gradient, output, inner_gradient]: [&Tensor; 4],
    ) -> Result<()> {
        let width = gradient.size()[1] as usize;
        let [mut output, mut inner_gradient] = [output, inner_gradient].map(Tensor::shallow_clone);
        let (output, inner_gradient) = (slice_mut(&mut output)?, slice_mut(&mut inner_gradient)?);
        kernels::gated::backward(curve, slice::<E>(inner)?, slice(gradient)?, width, output, inner_gradient);
        Ok(())
    }
    let tensors = [inner, gradient, output, inner_gradient];
    match (activation, gated, tensor::cpu_kind(inner)) {
        (Activation::Silu, true, Some(Kind::Float)) => on_cpu::<f32>(Silu, tensors),
        (Activation::Silu, true, Some(Kind::BFloat16)) => on_cpu::<bf16>(Silu, tensors),
        (Activation::GeluTanh, true, Some(Kind::Float)) => on_cpu::<f32>(GeluTanh, tensors),
        (Activation::GeluTanh, true, Some(Kind::BFloat16)) => on_cpu::<bf16>(GeluTanh, tensors),
        _ => backward_with_tensors(activation, gated, tensors),
    }
}

fn backward_with_tensors(
    activation: Activation,
    gated: bool,
    [inner, gradient, output, inner_gradient]: [&Tensor; 4],
) -> Result<()> {
    if gated {
        let [halves, mut gradients] = [inner, inner_gradient].map(|side_by_side| side_by_side.chunk(2, -1));
        let activated = activation.value(&halves[0])?;
        gradients[0].copy_(&activation.gradient(&halves[0], &(gradient * &halves[1]))?);
        let _ = gradient.f_mul_out(&gradients[1], &activated)?;
        let _ = activated.f_mul_out(output, &halves[1])?;
    } else {
        activation.value_out(inner, output)?;
        inner_gradient.shallow_clone().copy_(&activation.gradient(inner, gradient)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    /// The formulas as Transformers has them, in doubles, differentiated by libtorch.
    fn expected(activation: Activation, gated: bool, inner: &Tensor, upstream: &Tensor) -> (Tensor, Tensor) {
        let leaf = inner.to_kind(Kind::Double).copy().detach().set_requires_grad(true);
        let halves = leaf.chunk(2, -1);
        let x = if gated { &halves[0] } else { &leaf };
        let activated = match activation {
            Activation::Silu => x * x.sigmoid(),
            Activation::GeluTanh => {
                let inside: Tensor = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.pow_tensor_scalar(3));
                0.5 * x * (1.0 + inside.tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + (x / std::f64::consts::SQRT_2).erf()),
        };
        let output = if gated { activated * &halves[1] } else { activated };
        let loss = (&output * upstream.to_kind(Kind::Double)).sum(Kind::Double);
        (output.detach(), Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0))
    }

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        ((left.to_kind(Kind::Double) - right).norm() / right.norm()).double_value(&[])
    }

    #[test]
    fn every_activation_agrees_with_automatic_differentiation() {
        use Activation::{Gelu, GeluTanh, Silu};
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
            for (activation, gated) in [Silu, GeluTanh, Gelu].into_iter().flat_map(|a| [(a, true), (a, false)]) {
                // 70 rows make two blocks of the loops.
                let (upstream, width) = (waves(&[70, 37], 2.0).to_kind(kind), if gated { 74 } else { 37 });
                let inner = (waves(&[70, width], 1.0) * 4.0).to_kind(kind);
                let (wanted, wanted_gradient) = expected(activation, gated, &inner, &upstream);
                let new = || (upstream.empty_like(), upstream.empty_like(), inner.empty_like());
                let (alone, output, gradient) = new();
                forward(activation, gated, &inner, &alone).unwrap();
                backward(activation, gated, &inner, &upstream, &output, &gradient).unwrap();
                let (plain_alone, plain_output, plain_gradient) = new();
                forward_with_tensors(activation, gated, &inner, &plain_alone).unwrap();
                let tensors = [&inner, &upstream, &plain_output, &plain_gradient];
                backward_with_tensors(activation, gated, tensors).unwrap();
                assert_eq!((&alone, &plain_alone), (&output, &plain_output));
                for (output, gradient) in [(output, gradient), (plain_output, plain_gradient)] {
                    let far = [distance(&output, &wanted), distance(&gradient, &wanted_gradient)];
                    assert!(far.iter().all(|far| *far < bound), "{kind:?} {activation:?} {gated}: {far:?}");
                    // Control: the two GELUs are told apart.
                    if kind == Kind::Float && activation == Gelu {
                        assert!(distance(&output, &expected(GeluTanh, gated, &inner, &upstream).0) > 2e-5);
                    }
                }
            }
        }
    }
}
