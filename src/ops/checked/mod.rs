//! The operations of a device; those that were found wrong there, or all of them, can be replaced by the plain formulas.
//!
//! Nothing is replaced until [`Checked::replace`] is called, once, before a model is placed on the device. Not here: how an
//! operation is found wrong (`trials.rs`), and when it is tried (`machine/kernels.rs`).

mod adapters;
mod inputs;
mod prepared;
mod trials;

pub use inputs::{BlockWidths, Widths};
pub use trials::{faults, timings};

use super::{
    AdamWStep, Affine, AffineSums, Angles, AttentionPlan, Columns, Direction, LayerStatistics, Logits, MlpKind,
    NormGradients, NormWeight, Ops, Places, Scratch, Tensors,
};
use crate::error::Result;
use crate::packing::{AttentionRules, Group, HeadCounts};
use std::sync::atomic::{AtomicU64, Ordering};
use tch::{Device, Kind, Tensor};

/// The unit of replacement: a method of [`Ops`], or several that read each other's results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each has its method's name")]
pub enum Operation {
    Rotate,
    RmsNorm,
    AddRmsNorm,
    ApplyRmsNorm,
    RmsNormBackward,
    LayerNorm,
    ApplyLayerNorm,
    LayerNormBackward,
    Add,
    Activate,
    ActivateBackward,
    Route,
    GroupedProduct,
    GroupedInputGradient,
    AddGroupedProduct,
    /// `plan_attention`, `attention` and `attention_backward`: each reads what the one before made.
    Attention,
    LogSumExp,
    LogProbs,
    LogProbsBackward,
    AddColumnSums,
    AddProduct,
    LowRank,
    AddLowRank,
    AddLowRankGradient,
    AdamW,
    Hash,
    SumOfSquares,
}

impl Operation {
    /// All of them, ordered by discriminant.
    pub const ALL: [Self; 27] = [
        Self::Rotate,
        Self::RmsNorm,
        Self::AddRmsNorm,
        Self::ApplyRmsNorm,
        Self::RmsNormBackward,
        Self::LayerNorm,
        Self::ApplyLayerNorm,
        Self::LayerNormBackward,
        Self::Add,
        Self::Activate,
        Self::ActivateBackward,
        Self::Route,
        Self::GroupedProduct,
        Self::GroupedInputGradient,
        Self::AddGroupedProduct,
        Self::Attention,
        Self::LogSumExp,
        Self::LogProbs,
        Self::LogProbsBackward,
        Self::AddColumnSums,
        Self::AddProduct,
        Self::LowRank,
        Self::AddLowRank,
        Self::AddLowRankGradient,
        Self::AdamW,
        Self::Hash,
        Self::SumOfSquares,
    ];

    /// The name of the method of [`Ops`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::RmsNorm => "rms_norm",
            Self::AddRmsNorm => "add_rms_norm",
            Self::ApplyRmsNorm => "apply_rms_norm",
            Self::RmsNormBackward => "rms_norm_backward",
            Self::LayerNorm => "layer_norm",
            Self::ApplyLayerNorm => "apply_layer_norm",
            Self::LayerNormBackward => "layer_norm_backward",
            Self::Add => "add",
            Self::Activate => "activate",
            Self::ActivateBackward => "activate_backward",
            Self::Route => "route",
            Self::GroupedProduct => "grouped_product",
            Self::GroupedInputGradient => "grouped_input_gradient",
            Self::AddGroupedProduct => "add_grouped_product",
            Self::Attention => "attention",
            Self::LogSumExp => "log_sum_exp",
            Self::LogProbs => "log_probs",
            Self::LogProbsBackward => "log_probs_backward",
            Self::AddColumnSums => "add_column_sums",
            Self::AddProduct => "add_product",
            Self::LowRank => "low_rank",
            Self::AddLowRank => "add_low_rank",
            Self::AddLowRankGradient => "add_low_rank_gradient",
            Self::AdamW => "adamw",
            Self::Hash => "hash",
            Self::SumOfSquares => "sum_of_squares",
        }
    }

    fn bit(self) -> u64 {
        1 << self as u64
    }
}

// As many as `Checked` has bits for.
const _: () = assert!(Operation::ALL.len() <= 64);

/// The operations of a device, each either the device's own or the formula.
pub struct Checked {
    own: &'static dyn Ops,
    /// One bit for each [`Operation`] that is replaced.
    replaced: AtomicU64,
}

impl Checked {
    /// A device's operations, none of them replaced.
    pub const fn over(own: &'static dyn Ops) -> Self {
        Self { own, replaced: AtomicU64::new(0) }
    }

    /// The device's own operations, replaced or not.
    pub fn own(&self) -> &'static dyn Ops {
        self.own
    }

    /// Replaces these by the formulas from now on. Call it before a model is placed on the device: one implementation cannot read
    /// what the other has made.
    pub(crate) fn replace(&self, operations: &[Operation]) {
        let bits = operations.iter().fold(0, |bits, operation| bits | operation.bit());
        self.replaced.fetch_or(bits, Ordering::Relaxed);
    }

    /// Whether this one is replaced.
    pub fn is_replaced(&self, operation: Operation) -> bool {
        self.replaced.load(Ordering::Relaxed) & operation.bit() != 0
    }

    fn of(&self, operation: Operation) -> &dyn Ops {
        if self.is_replaced(operation) { &Tensors } else { self.own }
    }
}

impl Ops for Checked {
    fn rotate(&self, rows: &Tensor, heads: usize, angles: &Angles, direction: Direction) -> Result<()> {
        self.of(Operation::Rotate).rotate(rows, heads, angles, direction)
    }

    fn rms_norm(&self, x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
        self.of(Operation::RmsNorm).rms_norm(x, weight, epsilon, output, scale)
    }

    fn add_rms_norm(
        &self,
        added: (&Tensor, &Tensor),
        weight: NormWeight,
        epsilon: f64,
        sum: &Tensor,
        output: &Tensor,
        scale: &Tensor,
    ) -> Result<()> {
        self.of(Operation::AddRmsNorm).add_rms_norm(added, weight, epsilon, sum, output, scale)
    }

    fn apply_rms_norm(&self, x: &Tensor, weight: NormWeight, scale: &Tensor, output: &Tensor) -> Result<()> {
        self.of(Operation::ApplyRmsNorm).apply_rms_norm(x, weight, scale, output)
    }

    fn rms_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: NormWeight,
        scale: &Tensor,
        weight_sum: Option<&Tensor>,
    ) -> Result<()> {
        self.of(Operation::RmsNormBackward).rms_norm_backward(gradients, x, weight, scale, weight_sum)
    }

    fn layer_norm(
        &self,
        x: &Tensor,
        affine: Affine,
        epsilon: f64,
        output: &Tensor,
        statistics: LayerStatistics,
    ) -> Result<()> {
        self.of(Operation::LayerNorm).layer_norm(x, affine, epsilon, output, statistics)
    }

    fn apply_layer_norm(&self, x: &Tensor, affine: Affine, statistics: LayerStatistics, output: &Tensor) -> Result<()> {
        self.of(Operation::ApplyLayerNorm).apply_layer_norm(x, affine, statistics, output)
    }

    fn layer_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: &Tensor,
        statistics: LayerStatistics,
        sums: AffineSums,
    ) -> Result<()> {
        self.of(Operation::LayerNormBackward).layer_norm_backward(gradients, x, weight, statistics, sums)
    }

    fn add(&self, x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
        self.of(Operation::Add).add(x, change, sum)
    }

    fn activate(&self, kind: MlpKind, inner: &Tensor, output: &Tensor) -> Result<()> {
        self.of(Operation::Activate).activate(kind, inner, output)
    }

    fn activate_backward(
        &self,
        kind: MlpKind,
        inner: &Tensor,
        gradient: &Tensor,
        output: &Tensor,
        inner_gradient: &Tensor,
    ) -> Result<()> {
        self.of(Operation::ActivateBackward).activate_backward(kind, inner, gradient, output, inner_gradient)
    }

    fn route(&self, x: &Tensor, weight: &Tensor, shares: &Tensor) -> Result<()> {
        self.of(Operation::Route).route(x, weight, shares)
    }

    fn grouped_product(&self, x: &Tensor, weights: &Tensor, counts: &[i64], output: &Tensor) -> Result<()> {
        self.of(Operation::GroupedProduct).grouped_product(x, weights, counts, output)
    }

    fn grouped_input_gradient(
        &self,
        gradient: &Tensor,
        weights: &Tensor,
        counts: &[i64],
        x_gradient: &Tensor,
    ) -> Result<()> {
        self.of(Operation::GroupedInputGradient).grouped_input_gradient(gradient, weights, counts, x_gradient)
    }

    fn add_grouped_product(
        &self,
        factors: [&Tensor; 2],
        counts: &[i64],
        sums: &Tensor,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.of(Operation::AddGroupedProduct).add_grouped_product(factors, counts, sums, scratch)
    }

    fn plan_attention(
        &self,
        groups: &[Group],
        heads: HeadCounts,
        rules: AttentionRules,
        place: (Kind, Device),
    ) -> AttentionPlan {
        self.of(Operation::Attention).plan_attention(groups, heads, rules, place)
    }

    fn attention(&self, plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        self.of(Operation::Attention).attention(plan, rows, output)
    }

    fn attention_backward(
        &self,
        plan: &AttentionPlan,
        gradient: &Tensor,
        rows: &Tensor,
        output: &Tensor,
        log_sums: &[Tensor],
        rows_gradient: &Tensor,
    ) -> Result<()> {
        let operations = self.of(Operation::Attention);
        operations.attention_backward(plan, gradient, rows, output, log_sums, rows_gradient)
    }

    fn log_sum_exp(&self, logits: &Tensor, soft_cap: Option<f64>) -> Result<Tensor> {
        self.of(Operation::LogSumExp).log_sum_exp(logits, soft_cap)
    }

    fn log_probs(&self, logits: &Logits, at: &Places) -> Result<Tensor> {
        self.of(Operation::LogProbs).log_probs(logits, at)
    }

    fn log_probs_backward(&self, logits: Logits, at: &Places, slopes: &Tensor) -> Result<Tensor> {
        self.of(Operation::LogProbsBackward).log_probs_backward(logits, at, slopes)
    }

    fn add_column_sums(&self, rows: &Tensor, sum: &Tensor) -> Result<()> {
        self.of(Operation::AddColumnSums).add_column_sums(rows, sum)
    }

    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor, scratch: &mut Scratch) -> Result<()> {
        self.of(Operation::AddProduct).add_product(left, right, sum, scratch)
    }

    fn low_rank(&self, columns: Columns, factor: &Tensor) -> Result<Tensor> {
        self.of(Operation::LowRank).low_rank(columns, factor)
    }

    fn add_low_rank(&self, inner: &Tensor, factor: &Tensor, columns: Columns) -> Result<()> {
        self.of(Operation::AddLowRank).add_low_rank(inner, factor, columns)
    }

    fn add_low_rank_gradient(&self, inner: &Tensor, columns: Columns, sum: &Tensor) -> Result<()> {
        self.of(Operation::AddLowRankGradient).add_low_rank_gradient(inner, columns, sum)
    }

    fn adamw(&self, step: &AdamWStep) -> Result<()> {
        self.of(Operation::AdamW).adamw(step)
    }

    fn hash(&self, values: &Tensor) -> Result<Tensor> {
        self.of(Operation::Hash).hash(values)
    }

    fn sum_of_squares(&self, tensors: &[Tensor]) -> Result<Tensor> {
        self.of(Operation::SumOfSquares).sum_of_squares(tensors)
    }
}
