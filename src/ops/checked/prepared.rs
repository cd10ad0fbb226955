//! Every operation with its inputs for a trial, ready to be called.
//!
//! Not here: comparing and timing (`trials.rs`).
//!
//! Legend: as in `ops/mod.rs`.

use super::super::{
    AdamWConstants, AdamWPart, AdamWStep, Affine, AffineSums, Direction, LayerStatistics, Logits, NormGradients,
    NormWeight, Ops, Place, Places, Scratch, Tensors, Verdict,
};
use super::inputs::{BlockWidths, Widths};
use crate::error::Result;
use crate::tensor::on_device;
use tch::{Kind, Tensor};

const EPSILON: f64 = 1e-5;

/// Most experts in a trial, and most columns of each: the model's own matrices could take gigabytes.
const EXPERTS: usize = 4;
const EXPERT_COLUMNS: usize = 512;

/// Rows of logits in a trial.
const LOGIT_ROWS: usize = 16;

type Call = Box<dyn FnMut(&dyn Ops) -> Result<Vec<Tensor>>>;

/// A call of one operation.
pub(crate) struct Prepared {
    /// Bytes of its inputs and outputs.
    pub(crate) bytes: usize,
    call: Call,
}

impl Prepared {
    pub(super) fn new(bytes: usize, call: impl FnMut(&dyn Ops) -> Result<Vec<Tensor>> + 'static) -> Self {
        Self { bytes, call: Box::new(call) }
    }

    /// Calls it and returns its outputs. Sums and tensors that it changes in place differ by the next call.
    pub(crate) fn run(&mut self, ops: &dyn Ops) -> Result<Vec<Tensor>> {
        (self.call)(ops)
    }
}

pub(super) fn bytes(tensors: &[&Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
}

/// Further handles of the same tensors.
pub(super) fn same(tensors: &[&Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.shallow_clone()).collect()
}

pub(crate) fn rotate(widths: &Widths, block: &BlockWidths) -> Prepared {
    let heads = block.heads;
    let rows = widths.waves(&[widths.rows, heads.query + 2 * heads.key, heads.width], 1.0);
    let angles = widths.angles(block.rotated);
    Prepared::new(bytes(&[&rows, &rows, &angles.cosine, &angles.sine]), move |ops| {
        ops.rotate(&rows, heads.query + heads.key, &angles, Direction::Forward)?;
        Ok(same(&[&rows]))
    })
}

/// x, a change and a gradient [T, D], a weight `[D]`, and the scale of x by the formula.
struct Norm {
    x: Tensor,
    change: Tensor,
    gradient: Tensor,
    weight: Tensor,
    scale: Tensor,
    output: Tensor,
    plus_one: bool,
}

impl Norm {
    fn of(widths: &Widths) -> Self {
        let shape = [widths.rows, widths.width];
        let [x, change, gradient] = [1.0, 2.0, 3.0].map(|phase| widths.waves(&shape, phase));
        let weight = widths.waves(&[widths.width], 4.0);
        let scale = (x.to_kind(Kind::Float).square().mean_dim(-1, false, Kind::Float) + EPSILON).rsqrt();
        Self { x, change, gradient, weight, scale, output: widths.empty(&shape), plus_one: widths.plus_one }
    }

    fn weight(&self) -> NormWeight<'_> {
        NormWeight { values: &self.weight, plus_one: self.plus_one }
    }
}

pub(crate) fn rms_norm(widths: &Widths, _: &BlockWidths) -> Prepared {
    let norm = Norm::of(widths);
    Prepared::new(bytes(&[&norm.x, &norm.output]), move |ops| {
        ops.rms_norm(&norm.x, norm.weight(), EPSILON, &norm.output, &norm.scale)?;
        Ok(same(&[&norm.output, &norm.scale]))
    })
}

pub(crate) fn add_rms_norm(widths: &Widths, _: &BlockWidths) -> Prepared {
    let (norm, sum) = (Norm::of(widths), widths.empty(&[widths.rows, widths.width]));
    Prepared::new(bytes(&[&norm.x, &norm.change, &sum, &norm.output]), move |ops| {
        ops.add_rms_norm((&norm.x, &norm.change), norm.weight(), EPSILON, &sum, &norm.output, &norm.scale)?;
        Ok(same(&[&sum, &norm.output, &norm.scale]))
    })
}

pub(crate) fn apply_rms_norm(widths: &Widths, _: &BlockWidths) -> Prepared {
    let norm = Norm::of(widths);
    Prepared::new(bytes(&[&norm.x, &norm.output]), move |ops| {
        ops.apply_rms_norm(&norm.x, norm.weight(), &norm.scale, &norm.output)?;
        Ok(same(&[&norm.output]))
    })
}

pub(crate) fn rms_norm_backward(widths: &Widths, _: &BlockWidths) -> Prepared {
    let (norm, sum) = (Norm::of(widths), widths.f32_waves(&[widths.width], 5.0));
    Prepared::new(bytes(&[&norm.x, &norm.change, &norm.gradient, &norm.output]), move |ops| {
        let gradients = NormGradients { output: &norm.gradient, residual: Some(&norm.change), input: &norm.output };
        ops.rms_norm_backward(gradients, &norm.x, norm.weight(), &norm.scale, Some(&sum))?;
        Ok(same(&[&norm.output, &sum]))
    })
}

/// The statistics of rows, `[T]` each.
fn statistics(x: &Tensor) -> [Tensor; 2] {
    let wide = x.to_kind(Kind::Float);
    let mean = wide.mean_dim(-1, true, Kind::Float);
    let variance = (wide - &mean).square().mean_dim(-1, false, Kind::Float);
    [mean.squeeze_dim(-1), (variance + EPSILON).rsqrt()]
}

pub(crate) fn layer_norm(widths: &Widths, _: &BlockWidths) -> Prepared {
    let (norm, bias) = (Norm::of(widths), widths.waves(&[widths.width], 5.0));
    let [mean, scale] = statistics(&norm.x);
    Prepared::new(bytes(&[&norm.x, &norm.output]), move |ops| {
        let affine = Affine { weight: &norm.weight, bias: Some(&bias) };
        ops.layer_norm(&norm.x, affine, EPSILON, &norm.output, LayerStatistics { mean: &mean, scale: &scale })?;
        Ok(same(&[&norm.output, &scale]))
    })
}

pub(crate) fn apply_layer_norm(widths: &Widths, _: &BlockWidths) -> Prepared {
    let norm = Norm::of(widths);
    let [mean, scale] = statistics(&norm.x);
    Prepared::new(bytes(&[&norm.x, &norm.output]), move |ops| {
        let affine = Affine { weight: &norm.weight, bias: None };
        ops.apply_layer_norm(&norm.x, affine, LayerStatistics { mean: &mean, scale: &scale }, &norm.output)?;
        Ok(same(&[&norm.output]))
    })
}

pub(crate) fn layer_norm_backward(widths: &Widths, _: &BlockWidths) -> Prepared {
    let norm = Norm::of(widths);
    let [mean, scale] = statistics(&norm.x);
    let [weight, bias] = [5.0, 6.0].map(|phase| widths.f32_waves(&[widths.width], phase));
    Prepared::new(bytes(&[&norm.x, &norm.change, &norm.gradient, &norm.output]), move |ops| {
        let gradients = NormGradients { output: &norm.gradient, residual: Some(&norm.change), input: &norm.output };
        let sums = AffineSums { weight: Some(&weight), bias: Some(&bias) };
        let statistics = LayerStatistics { mean: &mean, scale: &scale };
        ops.layer_norm_backward(gradients, &norm.x, &norm.weight, statistics, sums)?;
        Ok(same(&[&norm.output, &weight, &bias]))
    })
}

pub(crate) fn add(widths: &Widths, _: &BlockWidths) -> Prepared {
    let norm = Norm::of(widths);
    Prepared::new(bytes(&[&norm.x, &norm.change, &norm.output]), move |ops| {
        ops.add(&norm.x, &norm.change, &norm.output)?;
        Ok(same(&[&norm.output]))
    })
}

pub(crate) fn activate(widths: &Widths, block: &BlockWidths) -> Prepared {
    let mlp = block.mlp;
    let columns = if mlp.gated { 2 * block.inner } else { block.inner };
    let inner = widths.waves(&[widths.rows, columns], 1.0) * 3.0;
    let output = widths.empty(&[widths.rows, block.inner]);
    Prepared::new(bytes(&[&inner, &output]), move |ops| {
        ops.activate(mlp, &inner, &output)?;
        Ok(same(&[&output]))
    })
}

pub(crate) fn activate_backward(widths: &Widths, block: &BlockWidths) -> Prepared {
    let mlp = block.mlp;
    let columns = if mlp.gated { 2 * block.inner } else { block.inner };
    let inner = widths.waves(&[widths.rows, columns], 1.0) * 3.0;
    let gradient = widths.waves(&[widths.rows, block.inner], 2.0);
    let (output, inner_gradient) = (gradient.empty_like(), inner.empty_like());
    Prepared::new(bytes(&[&inner, &gradient, &output, &inner_gradient]), move |ops| {
        ops.activate_backward(mlp, &inner, &gradient, &output, &inner_gradient)?;
        Ok(same(&[&output, &inner_gradient]))
    })
}

pub(crate) fn route(widths: &Widths, block: &BlockWidths) -> Prepared {
    let x = widths.waves(&[widths.rows, widths.width], 1.0);
    let weight = widths.waves(&[block.experts, widths.width], 2.0);
    let shares = widths.empty_of(&[widths.rows, block.experts], Kind::Float);
    Prepared::new(bytes(&[&x, &weight, &shares]), move |ops| {
        ops.route(&x, &weight, &shares)?;
        Ok(same(&[&shares]))
    })
}

/// Inputs of grouped products.
struct Grouped {
    /// [T, D].
    x: Tensor,
    /// [T, M].
    gradient: Tensor,
    /// [X, M, D].
    weights: Tensor,
    /// Rows of each expert: the second has none.
    counts: Vec<i64>,
}

fn grouped(widths: &Widths, block: &BlockWidths) -> Grouped {
    let (count, columns) = (block.experts.min(EXPERTS), block.inner.min(EXPERT_COLUMNS));
    let x = widths.waves(&[widths.rows, widths.width], 1.0);
    let gradient = widths.waves(&[widths.rows, columns], 2.0);
    let weights = widths.waves(&[count, columns, widths.width], 3.0);
    let mut counts = vec![0; count];
    counts[0] = widths.rows as i64;
    if let [first, _, .., last] = counts.as_mut_slice() {
        (*first, *last) = (*first / 3, *first - *first / 3);
    }
    Grouped { x, gradient, weights, counts }
}

pub(crate) fn grouped_product(widths: &Widths, block: &BlockWidths) -> Prepared {
    let Grouped { x, gradient, weights, counts } = grouped(widths, block);
    let output = gradient.empty_like();
    Prepared::new(bytes(&[&x, &weights, &output]), move |ops| {
        ops.grouped_product(&x, &weights, &counts, &output)?;
        Ok(same(&[&output]))
    })
}

pub(crate) fn grouped_input_gradient(widths: &Widths, block: &BlockWidths) -> Prepared {
    let Grouped { x, gradient, weights, counts } = grouped(widths, block);
    let x_gradient = x.empty_like();
    Prepared::new(bytes(&[&gradient, &weights, &x_gradient]), move |ops| {
        ops.grouped_input_gradient(&gradient, &weights, &counts, &x_gradient)?;
        Ok(same(&[&x_gradient]))
    })
}

pub(crate) fn add_grouped_product(widths: &Widths, block: &BlockWidths) -> Prepared {
    let Grouped { x, gradient, weights, counts } = grouped(widths, block);
    let sums = weights.zeros_like().to_kind(Kind::Float);
    let mut scratch = Scratch::default();
    Prepared::new(bytes(&[&x, &gradient, &sums]), move |ops| {
        ops.add_grouped_product([&gradient, &x], &counts, &sums, &mut scratch)?;
        Ok(same(&[&sums]))
    })
}

/// Forward and backward together.
pub(crate) fn attention(widths: &Widths, block: &BlockWidths) -> Prepared {
    let heads = block.heads;
    let rows = widths.waves(&[widths.rows, heads.query + 2 * heads.key, heads.width], 1.0) * 2.0;
    let gradient = widths.waves(&[widths.rows, heads.query, heads.width], 2.0);
    let (output, rows_gradient) = (gradient.empty_like(), rows.empty_like());
    let (groups, rules, place) = (widths.groups(), block.narrowed(widths.rows), (widths.kind, widths.device));
    Prepared::new(bytes(&[&rows, &output, &gradient, &rows_gradient]), move |ops| {
        let plan = ops.plan_attention(&groups, heads, rules, place);
        let log_sums = ops.attention(&plan, &rows, &output)?;
        ops.attention_backward(&plan, &gradient, &rows, &output, &log_sums, &rows_gradient)?;
        Ok(same(&[&output, &rows_gradient]))
    })
}

/// Logits with the log-sum-exps of the formula, and a place or two in each row.
fn logits(widths: &Widths) -> Result<(Logits, Places)> {
    let values = widths.waves(&[LOGIT_ROWS, widths.vocabulary], 1.0) * 4.0;
    let sums = Tensors.log_sum_exp(&values, widths.soft_cap)?;
    let place = |at: usize| Place { row: at % LOGIT_ROWS, token: 7 * at % widths.vocabulary };
    let places: Vec<_> = (0..LOGIT_ROWS + 4).map(place).collect();
    let places = Places::new(&places, &values)?;
    Ok((Logits { values, sums, soft_cap: widths.soft_cap }, places))
}

pub(crate) fn log_sum_exp(widths: &Widths, _: &BlockWidths) -> Prepared {
    let (values, cap) = (widths.waves(&[LOGIT_ROWS, widths.vocabulary], 1.0) * 4.0, widths.soft_cap);
    Prepared::new(bytes(&[&values]), move |ops| Ok(vec![ops.log_sum_exp(&values, cap)?]))
}

pub(crate) fn log_probs(widths: &Widths, _: &BlockWidths) -> Prepared {
    let made = logits(widths);
    Prepared::new(bytes(&[]), move |ops| {
        let (logits, places) = made.as_ref().map_err(Clone::clone)?;
        Ok(vec![ops.log_probs(logits, places)?])
    })
}

pub(crate) fn log_probs_backward(widths: &Widths, _: &BlockWidths) -> Prepared {
    let made = logits(widths);
    let slopes = widths.f32_waves(&[LOGIT_ROWS + 4], 2.0);
    let shape = widths.empty(&[LOGIT_ROWS, widths.vocabulary]);
    Prepared::new(bytes(&[&shape, &shape]), move |ops| {
        let (logits, places) = made.as_ref().map_err(Clone::clone)?;
        let [values, sums] = [&logits.values, &logits.sums].map(Tensor::shallow_clone);
        let logits = Logits { values, sums, soft_cap: logits.soft_cap };
        Ok(vec![ops.log_probs_backward(logits, places, &slopes)?])
    })
}

pub(crate) fn add_column_sums(widths: &Widths, _: &BlockWidths) -> Prepared {
    let (rows, sum) = (widths.waves(&[widths.rows, widths.width], 1.0), widths.f32_waves(&[widths.width], 2.0));
    Prepared::new(bytes(&[&rows]), move |ops| {
        ops.add_column_sums(&rows, &sum)?;
        Ok(same(&[&sum]))
    })
}

/// For the weight of attention's output.
pub(crate) fn add_product(widths: &Widths, block: &BlockWidths) -> Prepared {
    let columns = block.heads.query * block.heads.width;
    let left = widths.waves(&[widths.rows, widths.width], 1.0);
    let right = widths.waves(&[widths.rows, columns], 2.0);
    let sum = widths.f32_waves(&[widths.width, columns], 3.0);
    let mut scratch = Scratch::default();
    Prepared::new(bytes(&[&left, &right, &sum, &sum]), move |ops| {
        ops.add_product(&left, &right, &sum, &mut scratch)?;
        Ok(same(&[&sum]))
    })
}

pub(crate) fn adamw(widths: &Widths, _: &BlockWidths) -> Prepared {
    let length = widths.rows * widths.width;
    let [gradient, master, first, second] = [1.0, 2.0, 3.0, 4.0].map(|phase| widths.f32_waves(&[length], phase));
    let moments = [first, second.square()];
    let compute = (widths.kind != Kind::Float).then(|| master.to_kind(widths.kind));
    let constants = AdamWConstants {
        learning_rate: 0.1,
        decay: 0.9,
        beta1: 0.9,
        beta2: 0.99,
        complements: [0.1, 0.01],
        epsilon: 1e-5,
    };
    let (scales, made) = (on_device(&[0.5f32, 2.0, 3.0], widths.device), on_device(&[true], widths.device));
    let verdict = Verdict { scales, made };
    let middle = length / 2;
    let all = [&gradient, &master, &master, &moments[0], &moments[0], &moments[1], &moments[1]];
    Prepared::new(bytes(&all), move |ops| {
        ops.adamw(&AdamWStep {
            gradient: gradient.shallow_clone(),
            moments: &moments,
            master: &master,
            compute: compute.as_ref().map(Tensor::shallow_clone),
            parts: vec![
                AdamWPart { range: 0..middle, decays: true },
                AdamWPart { range: middle..length, decays: false },
            ],
            constants,
            verdict: &verdict,
        })?;
        // The bf16 copy is compared with its own master, rounded: masters that differ by rounding in f32 can give copies that
        // are a whole bf16 step apart.
        let rounded = compute.as_ref().map(|compute| master.to_kind(compute.kind()).eq_tensor(compute));
        let rounded = rounded.map(|same| same.to_kind(Kind::Float));
        Ok(same(&[&master, &moments[0], &moments[1]]).into_iter().chain(rounded).collect())
    })
}

/// Two devices may hash differently. Each must give equal hashes for equal bits, and another for one changed bit.
pub(crate) fn hash(widths: &Widths, _: &BlockWidths) -> Prepared {
    let values = widths.waves(&[widths.rows * widths.width], 1.0);
    let other = values.copy();
    let _ = other.narrow(0, 7, 1).neg_();
    Prepared::new(bytes(&[&values]), move |ops| {
        let [one, again, different] = [&values, &values.copy(), &other].map(|values| ops.hash(values));
        let (one, again, different) = (one?, again?, different?);
        let seen = [one.eq_tensor(&again), one.eq_tensor(&different).logical_not()];
        Ok(seen.map(|seen| seen.view([1]).to_kind(Kind::Float)).into_iter().collect())
    })
}

pub(crate) fn sum_of_squares(widths: &Widths, _: &BlockWidths) -> Prepared {
    let tensors = [1.0, 2.0].map(|phase| widths.f32_waves(&[widths.rows * widths.width], phase));
    Prepared::new(bytes(&[&tensors[0], &tensors[1]]), move |ops| Ok(vec![ops.sum_of_squares(&tensors)?]))
}
