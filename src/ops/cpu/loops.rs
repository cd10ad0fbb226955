//! The operations of a CPU: the loops of this folder, for f32 and bf16. Other kinds, such as f64 in tests, go through the
//! plain formulas.
//!
//! Not here: tensors' memory (`slices.rs`).

use super::gated::{GeluTanh, Silu};
use super::{accumulate, adamw, slices, squares, weight_gradient};
use crate::error::Result;
use crate::ops::{
    Activation, AdamWStep, Affine, AffineSums, Angles, AttentionPlan, Columns, Direction, LayerStatistics, Logits,
    MlpKind, NormGradients, NormWeight, Ops, Places, Scratch, Tensors,
};
use crate::packing::{AttentionRules, Group, HeadCounts};
use crate::tensor::{bytes, slice, slice_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

/// The operations of a CPU.
pub struct Cpu;

/// The loop of an operation for a kind, else the formula.
macro_rules! by_kind {
    ($kind:expr, $operation:ident($($argument:expr),*)) => {
        match $kind {
            Kind::Float => slices::$operation::<f32>($($argument),*),
            Kind::BFloat16 => slices::$operation::<bf16>($($argument),*),
            _ => Tensors.$operation($($argument),*),
        }
    };
}

impl Ops for Cpu {
    fn rotate(&self, rows: &Tensor, heads: usize, angles: &Angles, direction: Direction) -> Result<()> {
        by_kind!(rows.kind(), rotate(rows, heads, angles, direction))
    }

    fn rms_norm(&self, x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
        by_kind!(x.kind(), rms_norm(x, weight, epsilon, output, scale))
    }

    fn add_rms_norm(
        &self,
        addends: (&Tensor, &Tensor),
        weight: NormWeight,
        epsilon: f64,
        sum: &Tensor,
        output: &Tensor,
        scale: &Tensor,
    ) -> Result<()> {
        by_kind!(addends.0.kind(), add_rms_norm(addends, weight, epsilon, sum, output, scale))
    }

    fn apply_rms_norm(&self, x: &Tensor, weight: NormWeight, scale: &Tensor, output: &Tensor) -> Result<()> {
        by_kind!(x.kind(), apply_rms_norm(x, weight, scale, output))
    }

    fn rms_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: NormWeight,
        scale: &Tensor,
        weight_sum: Option<&Tensor>,
    ) -> Result<()> {
        by_kind!(x.kind(), rms_norm_backward(gradients, x, weight, scale, weight_sum))
    }

    fn layer_norm(
        &self,
        x: &Tensor,
        affine: Affine,
        epsilon: f64,
        output: &Tensor,
        statistics: LayerStatistics,
    ) -> Result<()> {
        by_kind!(x.kind(), layer_norm(x, affine, epsilon, output, statistics))
    }

    fn apply_layer_norm(&self, x: &Tensor, affine: Affine, statistics: LayerStatistics, output: &Tensor) -> Result<()> {
        by_kind!(x.kind(), apply_layer_norm(x, affine, statistics, output))
    }

    fn layer_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: &Tensor,
        statistics: LayerStatistics,
        sums: AffineSums,
    ) -> Result<()> {
        by_kind!(x.kind(), layer_norm_backward(gradients, x, weight, statistics, sums))
    }

    fn add(&self, x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
        by_kind!(x.kind(), add(x, change, sum))
    }

    fn activate(&self, kind: MlpKind, inner: &Tensor, output: &Tensor) -> Result<()> {
        match (kind.activation, kind.gated, inner.kind()) {
            (Activation::Silu, true, Kind::Float) => slices::activate::<f32>(Silu, inner, output),
            (Activation::Silu, true, Kind::BFloat16) => slices::activate::<bf16>(Silu, inner, output),
            (Activation::GeluTanh, true, Kind::Float) => slices::activate::<f32>(GeluTanh, inner, output),
            (Activation::GeluTanh, true, Kind::BFloat16) => slices::activate::<bf16>(GeluTanh, inner, output),
            _ => Tensors.activate(kind, inner, output),
        }
    }

    fn activate_backward(
        &self,
        kind: MlpKind,
        inner: &Tensor,
        gradient: &Tensor,
        output: &Tensor,
        inner_gradient: &Tensor,
    ) -> Result<()> {
        match (kind.activation, kind.gated, inner.kind()) {
            (Activation::Silu, true, Kind::Float) => {
                slices::activate_backward::<f32>(Silu, inner, gradient, output, inner_gradient)
            }
            (Activation::Silu, true, Kind::BFloat16) => {
                slices::activate_backward::<bf16>(Silu, inner, gradient, output, inner_gradient)
            }
            (Activation::GeluTanh, true, Kind::Float) => {
                slices::activate_backward::<f32>(GeluTanh, inner, gradient, output, inner_gradient)
            }
            (Activation::GeluTanh, true, Kind::BFloat16) => {
                slices::activate_backward::<bf16>(GeluTanh, inner, gradient, output, inner_gradient)
            }
            _ => Tensors.activate_backward(kind, inner, gradient, output, inner_gradient),
        }
    }

    fn plan_attention(
        &self,
        groups: &[Group],
        heads: HeadCounts,
        rules: AttentionRules,
        place: (Kind, Device),
    ) -> AttentionPlan {
        match place.0 {
            Kind::Float | Kind::BFloat16 => {
                AttentionPlan { groups: groups.to_vec(), heads, rules, calls: Vec::new(), varlen: None }
            }
            _ => Tensors.plan_attention(groups, heads, rules, place),
        }
    }

    /// One tensor of log-sum-exps, [T, H].
    fn attention(&self, plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        by_kind!(rows.kind(), attention(plan, rows, output))
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
        by_kind!(rows.kind(), attention_backward(plan, gradient, rows, output, log_sums, rows_gradient))
    }

    fn log_sum_exp(&self, logits: &Tensor, soft_cap: Option<f64>) -> Result<Tensor> {
        by_kind!(logits.kind(), log_sum_exp(logits, soft_cap))
    }

    fn log_probs(&self, logits: &Logits, at: &Places) -> Result<Tensor> {
        by_kind!(logits.values.kind(), log_probs(logits, at))
    }

    /// Written over the logits.
    fn log_probs_backward(&self, logits: Logits, at: &Places, slopes: &Tensor) -> Result<Tensor> {
        by_kind!(logits.values.kind(), log_probs_backward(logits, at, slopes))
    }

    fn add_column_sums(&self, rows: &Tensor, sum: &Tensor) -> Result<()> {
        by_kind!(rows.kind(), add_column_sums(rows, sum))
    }

    /// bf16 factors are summed in f32 on matrix tiles if the processor has them. libtorch has no such product: without tiles
    /// it is rounded to bf16 once and added by a loop.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor, scratch: &mut Scratch) -> Result<()> {
        if left.kind() != Kind::BFloat16 {
            return Tensors.add_product(left, right, sum, scratch);
        }
        if left.is_contiguous() && right.is_contiguous() {
            let size = (left.size()[1] as usize, right.size()[1] as usize);
            if weight_gradient::add_product(&slice(left)?, &slice(right)?, size, &mut slice_mut(sum)?) {
                return Ok(());
            }
        }
        let product = scratch.matrix(left.size()[1], right.size()[1], left.kind(), Device::Cpu);
        let _ = left.tr().mm_out(&product, right);
        accumulate::add::<bf16>(&slice(&product)?, &mut slice_mut(sum)?);
        Ok(())
    }

    fn add_low_rank(&self, inner: &Tensor, factor: &Tensor, columns: Columns) -> Result<()> {
        by_kind!(columns.rows.kind(), add_low_rank(inner, factor, columns))
    }

    fn adamw(&self, step: &AdamWStep) -> Result<()> {
        adamw::step(step)
    }

    fn hash(&self, values: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from(xxh3_64(&bytes(values)?) as i64))
    }

    fn sum_of_squares(&self, tensors: &[Tensor]) -> Result<Tensor> {
        let each = tensors.iter().map(|values| Ok(squares::sum(&slice(values)?)));
        Ok(Tensor::from_slice(&[each.sum::<Result<f64>>()?]))
    }
}
