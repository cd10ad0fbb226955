//! Layer norm as tensor operations. Statistics are f32 whatever the compute kind, as in Transformers.

use crate::error::Result;
use crate::ops::{Affine, AffineSums, LayerStatistics, NormGradients};
use tch::{Kind, Tensor};

/// See [`Ops::layer_norm`](crate::ops::Ops::layer_norm).
pub(crate) fn forward(
    x: &Tensor,
    affine: Affine,
    epsilon: f64,
    output: &Tensor,
    statistics: LayerStatistics,
) -> Result<()> {
    let wide = x.to_kind(Kind::Float);
    let means = wide.mean_dim(-1, true, Kind::Float);
    let variance = (wide - &means).square().mean_dim(-1, false, Kind::Float);
    statistics.mean.shallow_clone().copy_(&means.squeeze_dim(-1));
    statistics.scale.shallow_clone().copy_(&(variance + epsilon).rsqrt());
    apply(x, affine, statistics, output)
}

/// See [`Ops::apply_layer_norm`](crate::ops::Ops::apply_layer_norm).
pub(crate) fn apply(x: &Tensor, affine: Affine, statistics: LayerStatistics, output: &Tensor) -> Result<()> {
    let scaled = normalized(x, statistics) * affine.weight.to_kind(Kind::Float);
    let shifted = match affine.bias {
        Some(bias) => scaled + bias.to_kind(Kind::Float),
        None => scaled,
    };
    output.shallow_clone().copy_(&shifted);
    Ok(())
}

/// See [`Ops::layer_norm_backward`](crate::ops::Ops::layer_norm_backward).
pub(crate) fn backward(
    gradients: NormGradients,
    x: &Tensor,
    weight: &Tensor,
    statistics: LayerStatistics,
    sums: AffineSums,
) -> Result<()> {
    let normed = normalized(x, statistics);
    let wide = gradients.output.to_kind(Kind::Float);
    let add = |sum: Option<&Tensor>, part: &dyn Fn() -> Tensor| -> Result<()> {
        if let Some(sum) = sum {
            let _ = sum.shallow_clone().f_add_(&part().sum_dim_intlist(0, false, Kind::Float))?;
        }
        Ok(())
    };
    add(sums.weight, &|| &wide * &normed)?;
    add(sums.bias, &|| wide.shallow_clone())?;
    let upstream = wide * weight.to_kind(Kind::Float);
    let plain = upstream.mean_dim(-1, true, Kind::Float);
    let along = (&upstream * &normed).mean_dim(-1, true, Kind::Float);
    let own = (upstream - plain - normed * along) * statistics.scale.unsqueeze(-1);
    let all = match gradients.residual {
        Some(residual) => own + residual,
        None => own,
    };
    gradients.input.shallow_clone().copy_(&all);
    Ok(())
}

/// (x - mean) * scale [T, D], f32.
fn normalized(x: &Tensor, statistics: LayerStatistics) -> Tensor {
    (x.to_kind(Kind::Float) - statistics.mean.unsqueeze(-1)) * statistics.scale.unsqueeze(-1)
}
