//! The only place where tensors become slices for the loops. An output that shares memory with another tensor of its
//! operation is an error, before anything is written.
//!
//! Not here: which loop is for which kind (`loops.rs`).

use super::low_rank::{self, Span};
use super::tile::Packed;
use super::{Element, accumulate, attention, gated, layer_norm, norm, rope, softmax};
use crate::error::{Error, Result};
use crate::ops::{
    Affine, AffineSums, Angles, AttentionPlan, Columns, Direction, LayerStatistics, Logits, NormGradients, NormWeight,
    Place, Places,
};
use crate::tensor::{Number, slice, slice_mut};
use gated::Curve;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fn weights<'a, E>(values: &'a [E], weight: NormWeight) -> norm::Weight<'a, E> {
    norm::Weight { values, plus_one: weight.plus_one }
}

/// The sum, or if there is none memory for one that nobody reads.
fn sum_or_unused(sum: Option<&Tensor>, like: &Tensor) -> Tensor {
    sum.map_or_else(|| like.zeros_like().to_kind(Kind::Float), Tensor::shallow_clone)
}

/// See [`Ops`](crate::ops::Ops) for this and what follows.
pub(crate) fn rotate<E: Element + Number>(
    rows: &Tensor,
    heads: usize,
    angles: &Angles,
    direction: Direction,
) -> Result<()> {
    let (stride, width) = ((rows.size()[1] * rows.size()[2]) as usize, rows.size()[2] as usize);
    let (cosine, sine) = (&slice(&angles.cosine)?, &slice(&angles.sine)?);
    rope::rotate(&mut slice_mut::<E>(rows)?, stride, (heads, width), cosine, sine, direction.sign());
    Ok(())
}

pub(crate) fn rms_norm<E: Element + Number>(
    x: &Tensor,
    weight: NormWeight,
    epsilon: f64,
    output: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    norm::forward(
        &slice::<E>(x)?,
        weights(&slice(weight.values)?, weight),
        epsilon as f32,
        &mut slice_mut(output)?,
        &mut slice_mut(scale)?,
    );
    Ok(())
}

pub(crate) fn add_rms_norm<E: Element + Number>(
    (x, change): (&Tensor, &Tensor),
    weight: NormWeight,
    epsilon: f64,
    sum: &Tensor,
    output: &Tensor,
    scale: &Tensor,
) -> Result<()> {
    norm::add_forward(
        (&slice::<E>(x)?, &slice(change)?),
        weights(&slice(weight.values)?, weight),
        epsilon as f32,
        &mut slice_mut(sum)?,
        &mut slice_mut(output)?,
        &mut slice_mut(scale)?,
    );
    Ok(())
}

pub(crate) fn apply_rms_norm<E: Element + Number>(
    x: &Tensor,
    weight: NormWeight,
    scale: &Tensor,
    output: &Tensor,
) -> Result<()> {
    norm::apply(&slice::<E>(x)?, weights(&slice(weight.values)?, weight), &slice(scale)?, &mut slice_mut(output)?);
    Ok(())
}

pub(crate) fn rms_norm_backward<E: Element + Number>(
    gradients: NormGradients,
    x: &Tensor,
    weight: NormWeight,
    scale: &Tensor,
    weight_sum: Option<&Tensor>,
) -> Result<()> {
    let NormGradients { output, residual, input } = gradients;
    let residual = residual.map_or_else(|| output.zeros_like(), Tensor::shallow_clone);
    let weight_sum = sum_or_unused(weight_sum, weight.values);
    norm::backward(
        (&slice::<E>(output)?, &slice(&residual)?),
        &slice(x)?,
        weights(&slice(weight.values)?, weight),
        &slice(scale)?,
        &mut slice_mut(input)?,
        &mut slice_mut(&weight_sum)?,
    );
    Ok(())
}

pub(crate) fn layer_norm<E: Element + Number>(
    x: &Tensor,
    Affine { weight, bias }: Affine,
    epsilon: f64,
    output: &Tensor,
    LayerStatistics { mean, scale }: LayerStatistics,
) -> Result<()> {
    let bias = bias.map_or_else(|| weight.zeros_like(), Tensor::shallow_clone);
    layer_norm::forward(
        &slice::<E>(x)?,
        (&slice(weight)?, &slice(&bias)?),
        epsilon as f32,
        &mut slice_mut(output)?,
        &mut slice_mut(mean)?,
        &mut slice_mut(scale)?,
    );
    Ok(())
}

pub(crate) fn apply_layer_norm<E: Element + Number>(
    x: &Tensor,
    Affine { weight, bias }: Affine,
    LayerStatistics { mean, scale }: LayerStatistics,
    output: &Tensor,
) -> Result<()> {
    let bias = bias.map_or_else(|| weight.zeros_like(), Tensor::shallow_clone);
    layer_norm::apply(
        &slice::<E>(x)?,
        (&slice(weight)?, &slice(&bias)?),
        (&slice(mean)?, &slice(scale)?),
        &mut slice_mut(output)?,
    );
    Ok(())
}

pub(crate) fn layer_norm_backward<E: Element + Number>(
    gradients: NormGradients,
    x: &Tensor,
    weight: &Tensor,
    LayerStatistics { mean, scale }: LayerStatistics,
    sums: AffineSums,
) -> Result<()> {
    let NormGradients { output, residual, input } = gradients;
    let [weight_sum, bias_sum] = [sums.weight, sums.bias].map(|sum| sum_or_unused(sum, weight));
    let residual = residual.map(slice).transpose()?;
    layer_norm::backward(
        (&slice::<E>(output)?, residual.as_deref()),
        &slice(x)?,
        &slice(weight)?,
        (&slice(mean)?, &slice(scale)?),
        &mut slice_mut(input)?,
        (&mut slice_mut(&weight_sum)?, &mut slice_mut(&bias_sum)?),
    );
    Ok(())
}

pub(crate) fn add<E: Element + Number>(x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
    norm::add(&slice::<E>(x)?, &slice(change)?, &mut slice_mut(sum)?);
    Ok(())
}

pub(crate) fn activate<E: Element + Number>(curve: impl Curve, inner: &Tensor, output: &Tensor) -> Result<()> {
    let width = output.size()[1] as usize;
    gated::forward(curve, &slice::<E>(inner)?, width, &mut slice_mut(output)?);
    Ok(())
}

pub(crate) fn activate_backward<E: Element + Number>(
    curve: impl Curve,
    inner: &Tensor,
    gradient: &Tensor,
    output: &Tensor,
    inner_gradient: &Tensor,
) -> Result<()> {
    let width = gradient.size()[1] as usize;
    gated::backward(
        curve,
        &slice::<E>(inner)?,
        &slice(gradient)?,
        width,
        &mut slice_mut(output)?,
        &mut slice_mut(inner_gradient)?,
    );
    Ok(())
}

pub(crate) fn attention<E: Packed + Number>(
    plan: &AttentionPlan,
    rows: &Tensor,
    output: &Tensor,
) -> Result<Vec<Tensor>> {
    let sums = Tensor::empty([rows.size()[0], plan.heads.query as i64], (Kind::Float, Device::Cpu));
    attention::forward(
        &plan.groups,
        plan.heads,
        plan.rules,
        &slice::<E>(rows)?,
        &mut slice_mut(output)?,
        &mut slice_mut(&sums)?,
    );
    Ok(vec![sums])
}

pub(crate) fn attention_backward<E: Packed + Number>(
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
    attention::backward(
        &plan.groups,
        plan.heads,
        plan.rules,
        &slice::<E>(rows)?,
        (&slice(gradient)?, &slice(output)?, &slice(log_sums)?),
        &mut slice_mut(rows_gradient)?,
    );
    Ok(())
}

pub(crate) fn log_sum_exp<E: Element + Number>(logits: &Tensor, soft_cap: Option<f64>) -> Result<Tensor> {
    let (rows, width) = (logits.size()[0], logits.size()[1] as usize);
    let sums = Tensor::empty([rows], (Kind::Float, Device::Cpu));
    let soft_cap = soft_cap.map(|cap| cap as f32);
    softmax::log_sum_exp(&slice::<E>(logits)?, width, soft_cap, &mut slice_mut(&sums)?);
    Ok(sums)
}

pub(crate) fn log_probs<E: Element + Number>(logits: &Logits, at: &Places) -> Result<Tensor> {
    let read: Vec<f32> = read::<E>(logits, at)?.into_iter().map(|read| read.log_prob).collect();
    Ok(Tensor::from_slice(&read))
}

pub(crate) fn log_probs_backward<E: Element + Number>(logits: Logits, at: &Places, slopes: &Tensor) -> Result<Tensor> {
    let (read, slopes) = (read::<E>(&logits, at)?, slice::<f32>(slopes)?);
    let mut row_slopes = vec![0f32; logits.values.size()[0] as usize];
    for (read, slope) in read.iter().zip(&*slopes) {
        row_slopes[read.place.row] += slope;
    }
    // A token may be the target of both answers; its entry is set once, exactly.
    let mut entries = BTreeMap::new();
    for (read, slope) in read.iter().zip(&*slopes) {
        let softmax = || -row_slopes[read.place.row] * read.log_prob.exp() * read.cap_slope;
        *entries.entry(read.place).or_insert_with(softmax) += slope * read.cap_slope;
    }
    let Logits { values, sums, soft_cap } = logits;
    let width = values.size()[1] as usize;
    let mut written = slice_mut::<E>(&values)?;
    softmax::negative_softmax(&mut written, width, soft_cap.map(|cap| cap as f32), &slice(&sums)?, &row_slopes);
    for (Place { row, token }, value) in entries {
        written[row * width + token] = E::narrow(value);
    }
    drop(written);
    Ok(values)
}

pub(crate) fn add_column_sums<E: Element + Number>(rows: &Tensor, sum: &Tensor) -> Result<()> {
    accumulate::add_rows(&slice::<E>(rows)?, &mut slice_mut(sum)?);
    Ok(())
}

pub(crate) fn add_low_rank<E: Element + Number>(inner: &Tensor, factor: &Tensor, columns: Columns) -> Result<()> {
    let [inner, factor] = [inner, factor].map(Tensor::contiguous);
    let [stride, first, count] = [columns.rows.size()[1], columns.first, columns.count].map(|number| number as usize);
    let span = Span { stride, first, count };
    low_rank::add(&slice(&inner)?, &slice(&factor)?, &mut slice_mut::<E>(columns.rows)?, span);
    Ok(())
}

/// A place of logits with its log-prob and the derivative of the cap.
struct Read {
    place: Place,
    log_prob: f32,
    cap_slope: f32,
}

fn read<E: Element + Number>(logits: &Logits, at: &Places) -> Result<Vec<Read>> {
    let (values, sums) = (slice::<E>(&logits.values)?, slice::<f32>(&logits.sums)?);
    let (width, soft_cap) = (logits.values.size()[1] as usize, logits.soft_cap.map(|cap| cap as f32));
    let read = |(&row, &token): (&i64, &i64)| {
        let (row, token) = (row as usize, token as usize);
        let (value, cap_slope) = softmax::read(values[row * width + token], soft_cap);
        Read { place: Place { row, token }, log_prob: value - sums[row], cap_slope }
    };
    Ok(slice::<i64>(&at.rows)?.iter().zip(&*slice::<i64>(&at.tokens)?).map(read).collect())
}
