//! Root-mean-square norm as tensor operations. Statistics are f32 whatever the compute kind, as in Transformers.

use crate::error::Result;
use crate::ops::{NormGradients, NormWeight};
use tch::{Kind, Tensor};

/// Factors of the rows, f32.
fn factor(weight: NormWeight) -> Tensor {
    let values = weight.values.to_kind(Kind::Float);
    if weight.plus_one { values + 1.0 } else { values }
}

/// See [`Ops::rms_norm`](crate::ops::Ops::rms_norm).
pub(crate) fn forward(x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
    let squares = x.to_kind(Kind::Float).square().mean_dim(-1, false, Kind::Float);
    scale.shallow_clone().copy_(&(squares + epsilon).rsqrt());
    apply(x, weight, scale, output)
}

/// See [`Ops::apply_rms_norm`](crate::ops::Ops::apply_rms_norm).
pub(crate) fn apply(x: &Tensor, weight: NormWeight, scale: &Tensor, output: &Tensor) -> Result<()> {
    let normed = x.to_kind(Kind::Float) * scale.unsqueeze(-1);
    if weight.plus_one {
        output.shallow_clone().copy_(&(normed * factor(weight)));
    } else {
        let _ = normed.to_kind(x.kind()).f_mul_out(output, weight.values)?;
    }
    Ok(())
}

/// See [`Ops::rms_norm_backward`](crate::ops::Ops::rms_norm_backward).
pub(crate) fn backward(
    gradients: NormGradients,
    x: &Tensor,
    weight: NormWeight,
    scale: &Tensor,
    weight_sum: Option<&Tensor>,
) -> Result<()> {
    let scale = scale.unsqueeze(-1);
    let normalized = x.to_kind(Kind::Float) * &scale;
    let wide = gradients.output.to_kind(Kind::Float);
    if let Some(sum) = weight_sum {
        let _ = sum.shallow_clone().f_add_(&(&wide * &normalized).sum_dim_intlist(0, false, Kind::Float))?;
    }
    let upstream = wide * factor(weight);
    let projection = (&upstream * &normalized).mean_dim(-1, true, Kind::Float);
    let own = (upstream - normalized * projection) * scale;
    let all = match gradients.residual {
        Some(residual) => own + residual.to_kind(Kind::Float),
        None => own,
    };
    gradients.input.shallow_clone().copy_(&all);
    Ok(())
}
