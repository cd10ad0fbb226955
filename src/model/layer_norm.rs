//! Layer norm with weight and bias (Ba et al., arXiv 1607.06450), forward and backward, with the residual addition after
//! its gradient.
//!
//! Legend: T tokens, D width. Statistics are computed in f32 whatever the compute kind, as Transformers does. On CPUs the
//! fused loops of `kernels/layer_norm.rs` run; elsewhere the same formulas as tensor operations.

use crate::error::Result;
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Kind, Tensor};

/// `output` = (x - mean(x)) / standard deviation(x) * weight + bias, with x [T, D], weight and bias `[D]`; `mean` and
/// `scale` = 1 / standard deviation, both `[T]` f32, are what the backward pass needs.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn forward(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    epsilon: f64,
    output: &Tensor,
    mean: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    fn on_cpu<E: Element + Number>(
        [x, weight, bias]: [&Tensor; 3],
        epsilon: f64,
        [output, mean, scale]: [&Tensor; 3],
    ) -> Result<()> {
        let [mut output, mut mean, mut scale] = [output, mean, scale].map(Tensor::shallow_clone);
        let (mean, scale) = (slice_mut(&mut mean)?, slice_mut(&mut scale)?);
        let parameters = (slice::<E>(weight)?, slice(bias)?);
        kernels::layer_norm::forward(slice(x)?, parameters, epsilon as f32, slice_mut(&mut output)?, mean, scale);
        Ok(())
    }
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>([x, weight, bias], epsilon, [output, mean, scale]),
        Some(Kind::BFloat16) => on_cpu::<bf16>([x, weight, bias], epsilon, [output, mean, scale]),
        _ => {
            let wide = x.to_kind(Kind::Float);
            let means = wide.mean_dim(-1, true, Kind::Float);
            let variance = (wide - &means).square().mean_dim(-1, false, Kind::Float);
            mean.shallow_clone().copy_(&means.squeeze_dim(-1));
            scale.shallow_clone().copy_(&(variance + epsilon).rsqrt());
            apply(x, (weight, bias), mean, scale, output)
        }
    }
}

/// The output of [`forward`] again, from its mean and scale: cheaper to recompute than to keep.
///
/// # Errors
/// As [`forward`].
pub fn apply(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    mean: &Tensor,
    scale: &Tensor,
    output: &Tensor,
) -> Result<()> {
    fn on_cpu<E: Element + Number>([x, weight, bias, mean, scale]: [&Tensor; 5], output: &Tensor) -> Result<()> {
        let mut output = output.shallow_clone();
        let (parameters, statistics) = ((slice::<E>(weight)?, slice(bias)?), (slice(mean)?, slice(scale)?));
        kernels::layer_norm::apply(slice(x)?, parameters, statistics, slice_mut(&mut output)?);
        Ok(())
    }
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>([x, weight, bias, mean, scale], output),
        Some(Kind::BFloat16) => on_cpu::<bf16>([x, weight, bias, mean, scale], output),
        _ => {
            let [weight, bias] = [weight, bias].map(|parameter| parameter.to_kind(Kind::Float));
            output.shallow_clone().copy_(&(normalised(x, mean, scale) * weight + bias));
            Ok(())
        }
    }
}

/// From the gradient of [`forward`]'s output [T, D]: `input_gradient` = residual + gradient of x, and the gradients of
/// weight and bias added to the sums `[D]` f32, where there are any.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    (gradient, residual): (&Tensor, Option<&Tensor>),
    x: &Tensor,
    weight: &Tensor,
    mean: &Tensor,
    scale: &Tensor,
    input_gradient: &Tensor,
    (weight_gradient, bias_gradient): (Option<&Tensor>, Option<&Tensor>),
) -> Result<()> {
    fn on_cpu<E: Element + Number>(
        (gradient, residual): (&Tensor, Option<&Tensor>),
        [x, weight, mean, scale]: [&Tensor; 4],
        input_gradient: &Tensor,
        [weight_gradient, bias_gradient]: [&Tensor; 2],
    ) -> Result<()> {
        let [mut input_gradient, mut weight_gradient, mut bias_gradient] =
            [input_gradient, weight_gradient, bias_gradient].map(Tensor::shallow_clone);
        kernels::layer_norm::backward(
            (slice::<E>(gradient)?, residual.map(slice).transpose()?),
            slice(x)?,
            slice(weight)?,
            (slice(mean)?, slice(scale)?),
            slice_mut(&mut input_gradient)?,
            (slice_mut(&mut weight_gradient)?, slice_mut(&mut bias_gradient)?),
        );
        Ok(())
    }
    // What is not trained is summed to nowhere.
    let sum =
        |sum: Option<&Tensor>| sum.map_or_else(|| weight.zeros_like().to_kind(Kind::Float), Tensor::shallow_clone);
    let sums = [sum(weight_gradient), sum(bias_gradient)];
    let (given, sums) = ([x, weight, mean, scale], [&sums[0], &sums[1]]);
    match tensor::cpu_kind(x) {
        Some(Kind::Float) => on_cpu::<f32>((gradient, residual), given, input_gradient, sums),
        Some(Kind::BFloat16) => on_cpu::<bf16>((gradient, residual), given, input_gradient, sums),
        _ => {
            backward_with_tensors((gradient, residual), given, input_gradient, sums);
            Ok(())
        }
    }
}

fn backward_with_tensors(
    (gradient, residual): (&Tensor, Option<&Tensor>),
    [x, weight, mean, scale]: [&Tensor; 4],
    input_gradient: &Tensor,
    [weight_gradient, bias_gradient]: [&Tensor; 2],
) {
    let normed = normalised(x, mean, scale);
    let wide = gradient.to_kind(Kind::Float);
    let add = |sum: &Tensor, part: &Tensor| {
        let _ = sum.shallow_clone().g_add_(&part.sum_dim_intlist(0, false, Kind::Float));
    };
    add(weight_gradient, &(&wide * &normed));
    add(bias_gradient, &wide);
    let upstream = wide * weight.to_kind(Kind::Float);
    let plain = upstream.mean_dim(-1, true, Kind::Float);
    let along = (&upstream * &normed).mean_dim(-1, true, Kind::Float);
    let own = (upstream - plain - normed * along) * scale.unsqueeze(-1);
    let all = match residual {
        Some(residual) => own + residual,
        None => own,
    };
    input_gradient.shallow_clone().copy_(&all);
}

/// (x - mean) * scale [T, D], f32.
fn normalised(x: &Tensor, mean: &Tensor, scale: &Tensor) -> Tensor {
    (x.to_kind(Kind::Float) - mean.unsqueeze(-1)) * scale.unsqueeze(-1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;
    use tch::Device;

    const EPSILON: f64 = 1e-5;

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        let (left, right) = (left.to_kind(Kind::Double), right.to_kind(Kind::Double));
        ((left - &right).norm() / right.norm()).double_value(&[])
    }

    /// Output, and gradients of x, weight and bias, by libtorch in doubles.
    fn expected(given: [&Tensor; 3], upstream: &Tensor) -> Vec<Tensor> {
        let leaves = given.map(|leaf| leaf.to_kind(Kind::Double).copy().detach().set_requires_grad(true));
        let [x, weight, bias] = &leaves;
        let output = x.layer_norm([x.size()[1]], Some(weight), Some(bias), EPSILON, false);
        let loss = (&output * upstream.to_kind(Kind::Double)).sum(Kind::Double);
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        std::iter::once(output.detach()).chain(gradients).collect()
    }

    #[test]
    fn both_ways_agree_with_automatic_differentiation() {
        // 130 rows make three blocks; 37 columns leave a rest after whole lanes. Doubles have no loops of their own: they
        // go through the tensor operations.
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 6e-3), (Kind::Double, 1e-5)] {
            // A mean far from 0 is where a bad variance shows.
            let x = (waves(&[130, 37], 1.0) + 3.0).to_kind(kind);
            let [gradient, residual] = [2.0, 3.0].map(|phase| waves(&[130, 37], phase).to_kind(kind));
            let [weight, bias] = [4.0, 5.0].map(|phase| waves(&[37], phase).to_kind(kind));
            let wanted = expected([&x, &weight, &bias], &gradient);
            let statistic = || Tensor::empty([130], (Kind::Float, Device::Cpu));
            let (output, again, mean, scale) = (x.empty_like(), x.empty_like(), statistic(), statistic());
            forward(&x, (&weight, &bias), EPSILON, &output, &mean, &scale).unwrap();
            apply(&x, (&weight, &bias), &mean, &scale, &again).unwrap();
            assert!(distance(&output, &wanted[0]) < bound, "{kind:?}");
            assert_eq!(output, again);

            let ones = || Tensor::ones([37], (Kind::Float, Device::Cpu));
            let (input_gradient, weight_sum, bias_sum) = (x.empty_like(), ones(), ones());
            let back = |residual, sums| {
                backward((&gradient, residual), &x, &weight, &mean, &scale, &input_gradient, sums).unwrap();
                &input_gradient
            };
            let alone = back(None, (None, None)).copy();
            assert!(distance(&alone, &wanted[1]) < bound, "{kind:?}");
            let all = back(Some(&residual), (Some(&weight_sum), Some(&bias_sum)));
            assert!(distance(all, &(&wanted[1] + &residual)) < bound, "{kind:?}");
            // Sums are added to.
            assert!(distance(&(weight_sum - 1.0), &wanted[2]) < bound, "{kind:?}");
            assert!(distance(&(bias_sum - 1.0), &wanted[3]) < bound, "{kind:?}");
            // Control: the residual is not the gradient of x.
            assert!(distance(all, &wanted[1]) > 0.1);
        }
    }
}
