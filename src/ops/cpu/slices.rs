//! Here alone tensors become slices for the loops: outputs are checked to overlap no input first.
//!
//! Not here: which loop is for which kind (`loops.rs`).

use super::low_rank::{self, Span};
use super::tile::Packed;
use super::{Element, accumulate, attention, gated, layer_norm, norm, rope, softmax};
use crate::error::{Error, Result};
use crate::ops::{
    Affine, AffineSums, Angles, AttentionPlan, Columns, Direction, LayerStatistics, Logits, NormGradients, NormWeight,
    Places,
};
use crate::tensor::{self, Number, slice, slice_mut};
use gated::Curve;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Fails where an output shares memory with an input or another output.
pub fn distinct(outputs: &[&Tensor], inputs: &[&Tensor]) -> Result<()> {
    let range = |tensor: &Tensor| {
        let start = tensor.data_ptr() as usize;
        start..start + tensor::count(tensor) * tensor.kind().elt_size_in_bytes()
    };
    for (number, output) in outputs.iter().enumerate() {
        let output = range(output);
        let others = outputs[number + 1..].iter().chain(inputs);
        if others.map(|other| range(other)).any(|other| output.start < other.end && other.start < output.end) {
            return Err(Error::runtime("an output of an operation shares memory with another of its tensors"));
        }
    }
    Ok(())
}

fn weights<'a, E: Number>(weight: NormWeight<'a>) -> Result<norm::Weight<'a, E>> {
    Ok(norm::Weight { values: slice(weight.values)?, plus_one: weight.plus_one })
}

/// A sum that is trained, or memory for one that nobody reads.
fn sum_or_unused(sum: Option<&Tensor>, like: &Tensor) -> Tensor {
    sum.map_or_else(|| like.zeros_like().to_kind(Kind::Float), Tensor::shallow_clone)
}

/// See [`Ops`](crate::ops::Ops) for this and what follows.
pub fn rotate<E: Element + Number>(rows: &Tensor, heads: usize, angles: &Angles, direction: Direction) -> Result<()> {
    distinct(&[rows], &[&angles.cosine, &angles.sine])?;
    let (stride, width) = ((rows.size()[1] * rows.size()[2]) as usize, rows.size()[2] as usize);
    let mut rows = rows.shallow_clone();
    let (cosine, sine) = (slice(&angles.cosine)?, slice(&angles.sine)?);
    rope::rotate(slice_mut::<E>(&mut rows)?, stride, (heads, width), cosine, sine, direction.sign());
    Ok(())
}

pub fn rms_norm<E: Element + Number>(
    x: &Tensor,
    weight: NormWeight,
    epsilon: f64,
    output: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    distinct(&[output, scale], &[x, weight.values])?;
    let [mut output, mut scale] = [output, scale].map(Tensor::shallow_clone);
    let (output, scale) = (slice_mut::<E>(&mut output)?, slice_mut(&mut scale)?);
    norm::forward(slice(x)?, weights(weight)?, epsilon as f32, output, scale);
    Ok(())
}

pub fn add_rms_norm<E: Element + Number>(
    (x, change): (&Tensor, &Tensor),
    weight: NormWeight,
    epsilon: f64,
    sum: &Tensor,
    output: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    distinct(&[sum, output, scale], &[x, change, weight.values])?;
    let [mut sum, mut output, mut scale] = [sum, output, scale].map(Tensor::shallow_clone);
    norm::add_forward(
        (slice::<E>(x)?, slice(change)?),
        weights(weight)?,
        epsilon as f32,
        slice_mut(&mut sum)?,
        slice_mut(&mut output)?,
        slice_mut(&mut scale)?,
    );
    Ok(())
}

pub fn apply_rms_norm<E: Element + Number>(
    x: &Tensor,
    weight: NormWeight,
    scale: &Tensor,
    output: &Tensor,
) -> Result<()> {
    distinct(&[output], &[x, weight.values, scale])?;
    let mut output = output.shallow_clone();
    norm::apply(slice::<E>(x)?, weights(weight)?, slice(scale)?, slice_mut(&mut output)?);
    Ok(())
}

pub fn rms_norm_backward<E: Element + Number>(
    gradients: NormGradients,
    x: &Tensor,
    weight: NormWeight,
    scale: &Tensor,
    weight_sum: Option<&Tensor>,
) -> Result<()> {
    let NormGradients { output, residual, input } = gradients;
    let residual = residual.map_or_else(|| output.zeros_like(), Tensor::shallow_clone);
    let mut weight_sum = sum_or_unused(weight_sum, weight.values);
    distinct(&[input, &weight_sum], &[output, &residual, x, weight.values, scale])?;
    let mut input = input.shallow_clone();
    norm::backward(
        (slice::<E>(output)?, slice(&residual)?),
        slice(x)?,
        weights(weight)?,
        slice(scale)?,
        slice_mut(&mut input)?,
        slice_mut(&mut weight_sum)?,
    );
    Ok(())
}

pub fn layer_norm<E: Element + Number>(
    x: &Tensor,
    Affine { weight, bias }: Affine,
    epsilon: f64,
    output: &Tensor,
    LayerStatistics { mean, scale }: LayerStatistics,
) -> Result<()> {
    let bias = bias.map_or_else(|| weight.zeros_like(), Tensor::shallow_clone);
    distinct(&[output, mean, scale], &[x, weight, &bias])?;
    let [mut output, mut mean, mut scale] = [output, mean, scale].map(Tensor::shallow_clone);
    let (mean, scale) = (slice_mut(&mut mean)?, slice_mut(&mut scale)?);
    let parameters = (slice::<E>(weight)?, slice(&bias)?);
    layer_norm::forward(slice(x)?, parameters, epsilon as f32, slice_mut(&mut output)?, mean, scale);
    Ok(())
}

pub fn apply_layer_norm<E: Element + Number>(
    x: &Tensor,
    Affine { weight, bias }: Affine,
    LayerStatistics { mean, scale }: LayerStatistics,
    output: &Tensor,
) -> Result<()> {
    let bias = bias.map_or_else(|| weight.zeros_like(), Tensor::shallow_clone);
    distinct(&[output], &[x, weight, &bias, mean, scale])?;
    let mut output = output.shallow_clone();
    let (parameters, statistics) = ((slice::<E>(weight)?, slice(&bias)?), (slice(mean)?, slice(scale)?));
    layer_norm::apply(slice(x)?, parameters, statistics, slice_mut(&mut output)?);
    Ok(())
}

pub fn layer_norm_backward<E: Element + Number>(
    gradients: NormGradients,
    x: &Tensor,
    weight: &Tensor,
    LayerStatistics { mean, scale }: LayerStatistics,
    sums: AffineSums,
) -> Result<()> {
    let NormGradients { output, residual, input } = gradients;
    let [mut weight_sum, mut bias_sum] = [sums.weight, sums.bias].map(|sum| sum_or_unused(sum, weight));
    let inputs: Vec<&Tensor> = [output, x, weight, mean, scale].into_iter().chain(residual).collect();
    distinct(&[input, &weight_sum, &bias_sum], &inputs)?;
    let mut input = input.shallow_clone();
    layer_norm::backward(
        (slice::<E>(output)?, residual.map(slice).transpose()?),
        slice(x)?,
        slice(weight)?,
        (slice(mean)?, slice(scale)?),
        slice_mut(&mut input)?,
        (slice_mut(&mut weight_sum)?, slice_mut(&mut bias_sum)?),
    );
    Ok(())
}

pub fn add<E: Element + Number>(x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
    distinct(&[sum], &[x, change])?;
    norm::add(slice::<E>(x)?, slice(change)?, slice_mut(&mut sum.shallow_clone())?);
    Ok(())
}

pub fn activate<E: Element + Number>(curve: impl Curve, inner: &Tensor, output: &Tensor) -> Result<()> {
    distinct(&[output], &[inner])?;
    let width = output.size()[1] as usize;
    gated::forward(curve, slice::<E>(inner)?, width, slice_mut(&mut output.shallow_clone())?);
    Ok(())
}

pub fn activate_backward<E: Element + Number>(
    curve: impl Curve,
    inner: &Tensor,
    gradient: &Tensor,
    output: &Tensor,
    inner_gradient: &Tensor,
) -> Result<()> {
    distinct(&[output, inner_gradient], &[inner, gradient])?;
    let width = gradient.size()[1] as usize;
    let [mut output, mut inner_gradient] = [output, inner_gradient].map(Tensor::shallow_clone);
    let (output, inner_gradient) = (slice_mut(&mut output)?, slice_mut(&mut inner_gradient)?);
    gated::backward(curve, slice::<E>(inner)?, slice(gradient)?, width, output, inner_gradient);
    Ok(())
}

pub fn attention<E: Packed + Number>(plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
    distinct(&[output], &[rows])?;
    let mut sums = Tensor::empty([rows.size()[0], plan.heads.query as i64], (Kind::Float, Device::Cpu));
    let mut output = output.shallow_clone();
    let (output, log_sums) = (slice_mut::<E>(&mut output)?, slice_mut(&mut sums)?);
    attention::forward(&plan.groups, plan.heads, plan.rules, slice(rows)?, output, log_sums);
    Ok(vec![sums])
}

pub fn attention_backward<E: Packed + Number>(
    plan: &AttentionPlan,
    gradient: &Tensor,
    rows: &Tensor,
    output: &Tensor,
    log_sums: &[Tensor],
    rows_gradient: &Tensor,
) -> Result<()> {
    let [log_sums] = log_sums else {
        return Err(Error::runtime("attention's backward pass came before its forward pass"));
    };
    distinct(&[rows_gradient], &[gradient, rows, output, log_sums])?;
    let given = (slice::<E>(gradient)?, slice(output)?, slice(log_sums)?);
    let mut rows_gradient = rows_gradient.shallow_clone();
    let written = slice_mut(&mut rows_gradient)?;
    attention::backward(&plan.groups, plan.heads, plan.rules, slice(rows)?, given, written);
    Ok(())
}

pub fn log_sum_exp<E: Element + Number>(logits: &Tensor, soft_cap: Option<f64>) -> Result<Tensor> {
    let (rows, width) = (logits.size()[0], logits.size()[1] as usize);
    let mut sums = Tensor::empty([rows], (Kind::Float, Device::Cpu));
    let soft_cap = soft_cap.map(|cap| cap as f32);
    softmax::log_sum_exp(slice::<E>(logits)?, width, soft_cap, slice_mut(&mut sums)?);
    Ok(sums)
}

pub fn log_probs<E: Element + Number>(logits: &Logits, at: &Places) -> Result<Tensor> {
    let read: Vec<f32> = read::<E>(logits, at)?.into_iter().map(|read| read.log_prob).collect();
    Ok(Tensor::from_slice(&read))
}

pub fn log_probs_backward<E: Element + Number>(logits: Logits, at: &Places, slopes: &Tensor) -> Result<Tensor> {
    distinct(&[&logits.values], &[&logits.sums, slopes])?;
    let (read, slopes) = (read::<E>(&logits, at)?, slice::<f32>(slopes)?);
    let mut row_slopes = vec![0f32; logits.values.size()[0] as usize];
    for (read, slope) in read.iter().zip(slopes) {
        row_slopes[read.place.0] += slope;
    }
    // A token may be the target of both answers; its entry is set once, exactly.
    let mut entries = BTreeMap::new();
    for (read, slope) in read.iter().zip(slopes) {
        let softmax = || -row_slopes[read.place.0] * read.log_prob.exp() * read.cap_slope;
        *entries.entry(read.place).or_insert_with(softmax) += slope * read.cap_slope;
    }
    let Logits { mut values, sums, soft_cap } = logits;
    let width = values.size()[1] as usize;
    let written = slice_mut::<E>(&mut values)?;
    softmax::negative_softmax(written, width, soft_cap.map(|cap| cap as f32), slice(&sums)?, &row_slopes);
    for ((row, token), value) in entries {
        written[row * width + token] = E::narrow(value);
    }
    Ok(values)
}

pub fn add_column_sums<E: Element + Number>(rows: &Tensor, sum: &Tensor) -> Result<()> {
    distinct(&[sum], &[rows])?;
    accumulate::add_rows(slice::<E>(rows)?, slice_mut(&mut sum.shallow_clone())?);
    Ok(())
}

fn span(columns: Columns) -> Span {
    let [stride, first, count] = [columns.rows.size()[1], columns.first, columns.count].map(|number| number as usize);
    Span { stride, first, count }
}

pub fn low_rank<E: Element + Number>(columns: Columns, factor: &Tensor) -> Result<Tensor> {
    let factor = factor.contiguous();
    let mut inner = Tensor::f_empty([columns.rows.size()[0], factor.size()[0]], (Kind::Float, Device::Cpu))?;
    low_rank::product(slice::<E>(columns.rows)?, span(columns), slice(&factor)?, slice_mut(&mut inner)?);
    Ok(inner)
}

pub fn add_low_rank<E: Element + Number>(inner: &Tensor, factor: &Tensor, columns: Columns) -> Result<()> {
    distinct(&[columns.rows], &[inner, factor])?;
    let [inner, factor] = [inner, factor].map(Tensor::contiguous);
    low_rank::add(slice(&inner)?, slice(&factor)?, slice_mut::<E>(&mut columns.rows.shallow_clone())?, span(columns));
    Ok(())
}

pub fn add_low_rank_gradient<E: Element + Number>(inner: &Tensor, columns: Columns, sum: &Tensor) -> Result<()> {
    let inner = inner.contiguous();
    let rank = inner.size()[1];
    let gradient = low_rank::gradient(slice(&inner)?, rank as usize, slice::<E>(columns.rows)?, span(columns));
    // The sum may be that of a matrix the other way round.
    let gradient = Tensor::from_slice(&gradient).view([rank, columns.count]);
    let _ = sum.shallow_clone().f_add_(&gradient)?;
    Ok(())
}

/// What is read at a place of logits.
struct Read {
    place: (usize, usize),
    log_prob: f32,
    cap_slope: f32,
}

fn read<E: Element + Number>(logits: &Logits, at: &Places) -> Result<Vec<Read>> {
    let (values, sums) = (slice::<E>(&logits.values)?, slice::<f32>(&logits.sums)?);
    let (width, soft_cap) = (logits.values.size()[1] as usize, logits.soft_cap.map(|cap| cap as f32));
    let read = |(&row, &token): (&i64, &i64)| {
        let (row, token) = (row as usize, token as usize);
        let (value, cap_slope) = softmax::read(values[row * width + token], soft_cap);
        Read { place: (row, token), log_prob: value - sums[row], cap_slope }
    };
    Ok(slice::<i64>(&at.rows)?.iter().zip(slice::<i64>(&at.tokens)?).map(read).collect())
}
