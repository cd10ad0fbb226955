//! The operations: one trait over tensors, whose default bodies are the plain formulas of `tensors/`.
//!
//! The formulas work on every device and are the oracle: the conformance suite compares every implementation with automatic
//! differentiation of them. `cpu/` overrides them with loops over memory, `cuda/` with libtorch's GPU calls. The
//! implementation is chosen once, when a model is placed on a device ([`of`]); nothing else asks which device it is on.
//!
//! Legend: T tokens, D width, F width of the MLP, X experts, A rows that go through them, R rows of logits or the rank of an
//! adapter, V vocabulary, H query heads, G key/value heads, E head width. Values are f32 or bf16, statistics and sums f32.
//! Outputs are written to the caller's buffers, which overlap no input.

pub(crate) mod arguments;
pub mod checked;
pub mod cpu;
pub mod cuda;
pub mod parallel;
mod scatter;
mod scratch;
mod tensors;

pub use arguments::{
    Activation, AdamWConstants, AdamWPart, AdamWStep, Affine, AffineSums, Angles, AttentionPlan, Columns, Direction,
    LayerStatistics, Logits, MlpKind, NormGradients, NormWeight, Place, Places, Verdict,
};
pub use checked::Checked;
pub(crate) use scatter::add_rows;
pub use scratch::Scratch;

use crate::error::Result;
use crate::packing::{AttentionRules, Group, HeadCounts};
use tch::{Device, Kind, Tensor};

/// The operations of a model on one device. Every method fails on buffers that are not what this crate allocates, and if the
/// device is out of memory.
pub trait Ops: Sync {
    /// Rotates the first columns of the first `heads` heads of rows [T, any number of heads, E] in place (RoPE, arXiv
    /// 2104.09864). Its gradient is the rotation backward.
    fn rotate(&self, rows: &Tensor, heads: usize, angles: &Angles, direction: Direction) -> Result<()> {
        tensors::rope::rotate(rows, heads, angles, direction);
        Ok(())
    }

    /// `output` = x / rms(x) * weight, with x [T, D] (arXiv 1910.07467); `scale` = 1 / rms(x), `[T]` f32.
    fn rms_norm(&self, x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
        tensors::rms_norm::forward(x, weight, epsilon, output, scale)
    }

    /// `sum` = x + change, then [`Ops::rms_norm`] of it.
    fn add_rms_norm(
        &self,
        (x, change): (&Tensor, &Tensor),
        weight: NormWeight,
        epsilon: f64,
        sum: &Tensor,
        output: &Tensor,
        scale: &Tensor,
    ) -> Result<()> {
        tensors::add(x, change, sum)?;
        tensors::rms_norm::forward(sum, weight, epsilon, output, scale)
    }

    /// The output of [`Ops::rms_norm`] again, from its scale: cheaper to recompute than to keep.
    fn apply_rms_norm(&self, x: &Tensor, weight: NormWeight, scale: &Tensor, output: &Tensor) -> Result<()> {
        tensors::rms_norm::apply(x, weight, scale, output)
    }

    /// From the gradient of [`Ops::rms_norm`]'s output to that of x; the gradient of the weight is added to `weight_sum`
    /// `[D]` f32, if there is one.
    fn rms_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: NormWeight,
        scale: &Tensor,
        weight_sum: Option<&Tensor>,
    ) -> Result<()> {
        tensors::rms_norm::backward(gradients, x, weight, scale, weight_sum)
    }

    /// `output` = (x - mean(x)) / standard deviation(x) * weight + bias, with x [T, D] (arXiv 1607.06450).
    fn layer_norm(
        &self,
        x: &Tensor,
        affine: Affine,
        epsilon: f64,
        output: &Tensor,
        statistics: LayerStatistics,
    ) -> Result<()> {
        tensors::layer_norm::forward(x, affine, epsilon, output, statistics)
    }

    /// The output of [`Ops::layer_norm`] again, from its statistics: cheaper to recompute than to keep.
    fn apply_layer_norm(&self, x: &Tensor, affine: Affine, statistics: LayerStatistics, output: &Tensor) -> Result<()> {
        tensors::layer_norm::apply(x, affine, statistics, output)
    }

    /// From the gradient of [`Ops::layer_norm`]'s output to that of x; the gradients of weight and bias are added to `sums`.
    fn layer_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: &Tensor,
        statistics: LayerStatistics,
        sums: AffineSums,
    ) -> Result<()> {
        tensors::layer_norm::backward(gradients, x, weight, statistics, sums)
    }

    /// `sum` = x + change, of any shape.
    fn add(&self, x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
        tensors::add(x, change, sum)
    }

    /// `inner` [T, 2 F] (gated: gate and up side by side) or [T, F] (plain) -> `output` [T, F].
    fn activate(&self, kind: MlpKind, inner: &Tensor, output: &Tensor) -> Result<()> {
        tensors::activation::forward(kind, inner, output)
    }

    /// From the gradient of [`Ops::activate`]'s output [T, F]: the `output` again, and the gradient of `inner`.
    fn activate_backward(
        &self,
        kind: MlpKind,
        inner: &Tensor,
        gradient: &Tensor,
        output: &Tensor,
        inner_gradient: &Tensor,
    ) -> Result<()> {
        tensors::activation::backward(kind, inner, gradient, output, inner_gradient)
    }

    /// Shares of experts: `shares` [T, X] f32 = softmax(x weight^T), with x [T, D] and weight [X, D], in f32 whatever their
    /// kind.
    fn route(&self, x: &Tensor, weight: &Tensor, shares: &Tensor) -> Result<()> {
        tensors::experts::route(x, weight, shares)
    }

    /// `output` [A, M] = x [A, N], each row times its expert's matrix of `weights` [X, M, N]. Rows are sorted by expert;
    /// `counts` has the number of rows of each.
    fn grouped_product(&self, x: &Tensor, weights: &Tensor, counts: &[i64], output: &Tensor) -> Result<()> {
        tensors::experts::product(x, weights, counts, output)
    }

    /// Gradient of [`Ops::grouped_product`]'s output [A, M] -> `x_gradient` [A, N].
    fn grouped_input_gradient(
        &self,
        gradient: &Tensor,
        weights: &Tensor,
        counts: &[i64],
        x_gradient: &Tensor,
    ) -> Result<()> {
        tensors::experts::input_gradient(gradient, weights, counts, x_gradient)
    }

    /// Adds to `sums` [X, M, N] f32 the [`Ops::add_product`] of each expert's rows of left [A, M] and right [A, N].
    fn add_grouped_product(
        &self,
        [left, right]: [&Tensor; 2],
        counts: &[i64],
        sums: &Tensor,
        scratch: &mut Scratch,
    ) -> Result<()> {
        tensors::experts::each(counts, |expert, rows| {
            let part = |factor: &Tensor| factor.narrow(0, rows.start, rows.end - rows.start);
            self.add_product(&part(left), &part(right), &sums.get(expert), scratch)
        })
    }

    /// Which rows see which, made once a micro-batch and used by every block with these rules.
    fn plan_attention(
        &self,
        groups: &[Group],
        heads: HeadCounts,
        rules: AttentionRules,
        (kind, device): (Kind, Device),
    ) -> AttentionPlan {
        let calls = tensors::attention::of_groups(groups, rules, kind, device);
        AttentionPlan { groups: groups.to_vec(), heads, rules, calls, varlen: None }
    }

    /// Queries, keys and values `rows` [T, H + 2 G, E] -> `output` [T, H, E]; returns `log_sums` for the backward pass.
    fn attention(&self, plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        Ok(tensors::attention::forward(plan, rows, output))
    }

    /// Gradient of [`Ops::attention`]'s output [T, H, E] -> `rows_gradient` [T, H + 2 G, E].
    fn attention_backward(
        &self,
        plan: &AttentionPlan,
        gradient: &Tensor,
        rows: &Tensor,
        output: &Tensor,
        log_sums: &[Tensor],
        rows_gradient: &Tensor,
    ) -> Result<()> {
        tensors::attention::backward(plan, gradient, rows, output, log_sums, rows_gradient);
        Ok(())
    }

    /// Log-sum-exp of each row of logits [R, V], capped first if there is a cap: `[R]` f32.
    fn log_sum_exp(&self, logits: &Tensor, soft_cap: Option<f64>) -> Result<Tensor> {
        Ok(tensors::log_softmax::log_sum_exp(logits, soft_cap))
    }

    /// Log-probs `[places]` f32 at places of logits.
    fn log_probs(&self, logits: &Logits, at: &Places) -> Result<Tensor> {
        Ok(tensors::log_softmax::log_probs(logits, at))
    }

    /// Gradient with respect to logits [R, V], in their kind, of the sum over places of slope * log-prob: at (row, token)
    /// the slopes of that place, minus the sum of the row's slopes times its softmax. Slopes are `[places]` f32. May be
    /// written over the logits.
    fn log_probs_backward(&self, logits: Logits, at: &Places, slopes: &Tensor) -> Result<Tensor> {
        tensors::log_softmax::backward(&logits, at, slopes)
    }

    /// Adds the column sums of rows [R, N] to `sum` `[N]` f32: the gradient of a bias.
    fn add_column_sums(&self, rows: &Tensor, sum: &Tensor) -> Result<()> {
        tensors::add_column_sums(rows, sum);
        Ok(())
    }

    /// Adds left^T right to `sum` [M, N] f32, with left [T, M], right [T, N]: the gradient of a weight.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor, scratch: &mut Scratch) -> Result<()> {
        tensors::add_product(left, right, sum, scratch);
        Ok(())
    }

    /// Product of columns [T, C] of rows with a thin matrix: `[T, R]` f32 = columns factor^T, with factor [R, C] f32. Columns
    /// may be narrower than f32: they are widened.
    fn low_rank(&self, columns: Columns, factor: &Tensor) -> Result<Tensor> {
        tensors::low_rank::product(columns, factor)
    }

    /// Adds inner factor to columns [T, C] of rows, rounded once, with inner [T, R] f32, factor [R, C] f32.
    fn add_low_rank(&self, inner: &Tensor, factor: &Tensor, columns: Columns) -> Result<()> {
        tensors::low_rank::add(inner, factor, columns)
    }

    /// Adds inner^T columns to `sum` [R, C] f32, with inner [T, R] f32: the gradient of a thin matrix.
    fn add_low_rank_gradient(&self, inner: &Tensor, columns: Columns, sum: &Tensor) -> Result<()> {
        tensors::low_rank::add_gradient(inner, columns, sum)
    }

    /// One update of AdamW (arXiv 1711.05101) of masters, moments and compute values from gradient sums. If the verdict is
    /// against it, all of them keep their bits. The caller does not wait for the verdict.
    fn adamw(&self, step: &AdamWStep) -> Result<()> {
        tensors::adamw::step(step);
        Ok(())
    }

    /// A hash of a tensor's bits, one i64 on its device: the same on every device of one kind.
    fn hash(&self, values: &Tensor) -> Result<Tensor> {
        tensors::hash::hash(values)
    }

    /// Sum of the squares of all values of f32 tensors, summed in f64, `[1]` on their device; not finite if any value is not.
    fn sum_of_squares(&self, tensors: &[Tensor]) -> Result<Tensor> {
        tensors::sum_of_squares(tensors)
    }
}

/// The plain formulas on every device.
pub struct Tensors;

impl Ops for Tensors {}

static CPU: Checked = Checked::over(&cpu::Cpu);
static CUDA: Checked = Checked::over(&cuda::Cuda(cuda::Libtorch));

/// The operations of a device: its own, except those that were replaced by their formulas ([`Checked`]).
pub fn of(device: Device) -> &'static dyn Ops {
    match checked(device) {
        Some(checked) => checked,
        None => &Tensors,
    }
}

/// The same, if a device has operations of its own.
pub fn checked(device: Device) -> Option<&'static Checked> {
    match device {
        Device::Cpu => Some(&CPU),
        Device::Cuda(_) => Some(&CUDA),
        _ => None,
    }
}
