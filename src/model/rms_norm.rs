//! Root-mean-square norm (Zhang and Sennrich, arXiv 1910.07467), forward and backward, with the residual additions
//! around it.
//!
//! Legend: T tokens, D width. Statistics are computed in f32 whatever the compute kind, as Transformers does. On CPUs the
//! fused loops of `kernels/norm.rs` run; elsewhere the same formulas as tensor operations.

use crate::error::Result;
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Kind, Tensor};

/// What normed rows are multiplied by: `[D]`, or 1 + that.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// The numbers.
    pub values: &'a Tensor,
    /// Whether 1 is added to them.
    pub plus_one: bool,
}

impl<'a> Weight<'a> {
    /// The numbers themselves.
    pub fn plain(values: &'a Tensor) -> Self {
        Self { values, plus_one: false }
    }

    fn slice<E: Number>(self) -> Result<kernels::norm::Weight<'a, E>> {
        Ok(kernels::norm::Weight { values: slice(self.values)?, plus_one: self.plus_one })
    }

    /// f32.
    fn factor(self) -> Tensor {
        let values = self.values.to_kind(Kind::Float);
        if self.plus_one { values + 1.0 } else { values }
    }
}

/// `output` = x / rms(x) * weight, with x [T, D]; `scale` = 1 / rms(x), `[T]` f32.
pub fn forward(x: &Tensor, weight: Weight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
    fn on_cpu<E: Element + Number>(
        x: &Tensor,
        weight: Weight,
        epsilon: f64,
        output: &Tensor,
        scale: &Tensor,
    ) -> Result<()> {
        let (mut output, mut scale) = (output.shallow_clone(), scale.shallow_clone());
        let (output, scale) = (slice_mut::<E>(&mut output)?, slice_mut(&mut scale)?);
        kernels::norm::forward(slice::<E>(x)?, weight.slice()?, epsilon as f32, output, scale);
        Ok(())
    }
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>(x, weight, epsilon, output, scale),
        Some(Kind::BFloat16) => on_cpu::<bf16>(x, weight, epsilon, output, scale),
        _ => {
            let squares = x.to_kind(Kind::Float).square().mean_dim(-1, false, Kind::Float);
            scale.shallow_clone().copy_(&(squares + epsilon).rsqrt());
            apply_with_tensors(x, weight, scale, output)
        }
    }
}

/// `sum` = x + change, then [`forward`] of it.
pub fn add_forward(
    (x, change): (&Tensor, &Tensor),
    weight: Weight,
    epsilon: f64,
    sum: &Tensor,
    output: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    fn on_cpu<E: Element + Number>(
        (x, change): (&Tensor, &Tensor),
        weight: Weight,
        epsilon: f64,
        [sum, output, scale]: [&Tensor; 3],
    ) -> Result<()> {
        let [mut sum, mut output, mut scale] = [sum, output, scale].map(Tensor::shallow_clone);
        kernels::norm::add_forward(
            (slice::<E>(x)?, slice(change)?),
            weight.slice()?,
            epsilon as f32,
            slice_mut(&mut sum)?,
            slice_mut(&mut output)?,
            slice_mut(&mut scale)?,
        );
        Ok(())
    }
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>((x, change), weight, epsilon, [sum, output, scale]),
        Some(Kind::BFloat16) => on_cpu::<bf16>((x, change), weight, epsilon, [sum, output, scale]),
        _ => {
            let _ = x.add_out(sum, change);
            forward(sum, weight, epsilon, output, scale)
        }
    }
}

/// The output of [`forward`] again, from its scale: cheaper to recompute than to keep.
pub fn apply(x: &Tensor, weight: Weight, scale: &Tensor, output: &Tensor) -> Result<()> {
    fn on_cpu<E: Element + Number>(x: &Tensor, weight: Weight, scale: &Tensor, output: &Tensor) -> Result<()> {
        let mut output = output.shallow_clone();
        kernels::norm::apply(slice::<E>(x)?, weight.slice()?, slice(scale)?, slice_mut(&mut output)?);
        Ok(())
    }
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>(x, weight, scale, output),
        Some(Kind::BFloat16) => on_cpu::<bf16>(x, weight, scale, output),
        _ => apply_with_tensors(x, weight, scale, output),
    }
}

fn apply_with_tensors(x: &Tensor, weight: Weight, scale: &Tensor, output: &Tensor) -> Result<()> {
    let normed = x.to_kind(Kind::Float) * scale.unsqueeze(-1);
    if weight.plus_one {
        output.shallow_clone().copy_(&(normed * weight.factor()));
    } else {
        let _ = normed.to_kind(x.kind()).f_mul_out(output, weight.values)?;
    }
    Ok(())
}

/// From the gradient of [`forward`]'s output [T, D]: `input_gradient` = residual + gradient of x, and the gradient of
/// the weight added to `weight_gradient` `[D]` f32, where there is one.
pub fn backward(
    (gradient, residual): (&Tensor, Option<&Tensor>),
    x: &Tensor,
    weight: Weight,
    scale: &Tensor,
    input_gradient: &Tensor,
    weight_gradient: Option<&Tensor>,
) -> Result<()> {
    fn on_cpu<E: Element + Number>(
        (gradient, residual): (&Tensor, &Tensor),
        weight: Weight,
        [x, scale]: [&Tensor; 2],
        input_gradient: &Tensor,
        weight_gradient: &Tensor,
    ) -> Result<()> {
        let [mut input_gradient, mut weight_gradient] = [input_gradient, weight_gradient].map(Tensor::shallow_clone);
        kernels::norm::backward(
            (slice::<E>(gradient)?, slice(residual)?),
            slice(x)?,
            weight.slice()?,
            slice(scale)?,
            slice_mut(&mut input_gradient)?,
            slice_mut(&mut weight_gradient)?,
        );
        Ok(())
    }
    let (nothing, unused);
    let residual = match residual {
        Some(residual) => residual,
        None => {
            nothing = gradient.zeros_like();
            &nothing
        }
    };
    let weight_gradient = match weight_gradient {
        Some(weight_gradient) => weight_gradient,
        None => {
            unused = weight.values.zeros_like().to_kind(Kind::Float);
            &unused
        }
    };
    let gradients = (gradient, residual);
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>(gradients, weight, [x, scale], input_gradient, weight_gradient),
        Some(Kind::BFloat16) => on_cpu::<bf16>(gradients, weight, [x, scale], input_gradient, weight_gradient),
        _ => {
            backward_with_tensors(gradients, weight, [x, scale], input_gradient, weight_gradient);
            Ok(())
        }
    }
}

fn backward_with_tensors(
    (gradient, residual): (&Tensor, &Tensor),
    weight: Weight,
    [x, scale]: [&Tensor; 2],
    input_gradient: &Tensor,
    weight_gradient: &Tensor,
) {
    let scale = scale.unsqueeze(-1);
    let normalised = x.to_kind(Kind::Float) * &scale;
    let wide = gradient.to_kind(Kind::Float);
    let along = (&wide * &normalised).sum_dim_intlist(0, false, Kind::Float);
    let _ = weight_gradient.shallow_clone().g_add_(&along);
    let upstream = wide * weight.factor();
    let projection = (&upstream * &normalised).mean_dim(-1, true, Kind::Float);
    let own = (upstream - normalised * projection) * scale;
    input_gradient.shallow_clone().copy_(&(residual.to_kind(Kind::Float) + own));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;
    use tch::Device;

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        let (left, right) = (left.to_kind(Kind::Double), right.to_kind(Kind::Double));
        ((left - &right).norm() / right.norm()).double_value(&[])
    }

    #[test]
    fn the_fused_loops_equal_the_tensor_formulas() {
        // 130 rows make three blocks; 37 columns leave a rest after whole lanes.
        for (kind, bound, plus_one) in [
            (Kind::Float, 1e-6, false),
            (Kind::BFloat16, 4e-3, false),
            (Kind::Float, 1e-6, true),
            (Kind::BFloat16, 4e-3, true),
        ] {
            let [x, change, gradient] = [1.0, 2.0, 3.0].map(|phase| waves(&[130, 37], phase).to_kind(kind));
            let values = waves(&[37], 4.0).to_kind(kind);
            let weight = Weight { values: &values, plus_one };
            let new = || x.empty_like();
            let (sum, output, scale) = (new(), new(), Tensor::empty([130], (Kind::Float, Device::Cpu)));
            add_forward((&x, &change), weight, 1e-5, &sum, &output, &scale).unwrap();
            let plain_sum = &x + &change;
            assert!(distance(&sum, &plain_sum) < bound);
            let squares = plain_sum.to_kind(Kind::Float).square().mean_dim(-1, false, Kind::Float);
            assert!(distance(&scale, &(squares + 1e-5).rsqrt()) < bound);
            let (again, plain) = (new(), new());
            apply(&sum, weight, &scale, &again).unwrap();
            apply_with_tensors(&sum, weight, &scale, &plain).unwrap();
            assert_eq!(again, output);
            assert!(distance(&again, &plain) < bound);

            let ones = || Tensor::ones([37], (Kind::Float, Device::Cpu));
            let (fused, plain) = ((new(), ones()), (new(), ones()));
            backward((&gradient, Some(&change)), &sum, weight, &scale, &fused.0, Some(&fused.1)).unwrap();
            backward_with_tensors((&gradient, &change), weight, [&sum, &scale], &plain.0, &plain.1);
            assert!(distance(&fused.0, &plain.0) < bound);
            assert!(distance(&fused.1, &plain.1) < 1e-6);
        }
    }
}
