//! The operations of a CUDA device: libtorch's own GPU calls, and the plain formulas for the rest.
//!
//! GPU calls go through [`Library`]. Its second implementation, [`Plain`], computes the same with tensor operations on any
//! device, so the conformance suite runs everything around those calls on CPUs.
//!
//! Nothing here has run on a GPU. What each call expects was read in the headers and the library of libtorch 2.13.

mod attention;
mod experts;
pub mod launches;
mod library;
mod plain;
mod plan;

pub(crate) use library::Libtorch;
pub use library::{Library, VarlenCall};
pub use plain::Plain;
pub(crate) use plan::{VarlenPlan, takes};

use super::{AttentionPlan, Ops, Scratch, Tensors};
use crate::error::Result;
use crate::packing::{AttentionRules, Group, HeadCounts};
use tch::{Device, Kind, Tensor};

/// A CUDA device, with the calls of a library.
pub struct Cuda<L>(pub L);

impl<L: Library> Ops for Cuda<L> {
    fn plan_attention(
        &self,
        groups: &[Group],
        heads: HeadCounts,
        rules: AttentionRules,
        place: (Kind, Device),
    ) -> AttentionPlan {
        let formulas = || Tensors.plan_attention(groups, heads, rules, place);
        if !takes(&self.0, place.0, heads, &rules) {
            return formulas();
        }
        match VarlenPlan::of(groups, &rules, place.1) {
            Some(plan) => AttentionPlan { heads, rules, groups: Vec::new(), calls: Vec::new(), varlen: Some(plan) },
            None => formulas(),
        }
    }

    /// Returns one tensor of log-sum-exps, [H, T], if the library computes attention.
    fn attention(&self, plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        match &plan.varlen {
            Some(varlen) => attention::forward(&self.0, (plan.heads, varlen), rows, output),
            None => Tensors.attention(plan, rows, output),
        }
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
        match &plan.varlen {
            Some(varlen) => {
                attention::backward(&self.0, (plan.heads, varlen), gradient, rows, (output, log_sums), rows_gradient)
            }
            None => Tensors.attention_backward(plan, gradient, rows, output, log_sums, rows_gradient),
        }
    }

    /// Products of bf16 factors are added in f32, directly to the sum.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor, scratch: &mut Scratch) -> Result<()> {
        match left.kind() {
            Kind::BFloat16 => self.0.add_product(left, right, sum),
            _ => Tensors.add_product(left, right, sum, scratch),
        }
    }

    /// One grouped product, if libtorch takes the factors.
    fn grouped_product(&self, x: &Tensor, weights: &Tensor, counts: &[i64], output: &Tensor) -> Result<()> {
        match experts::product(x, &weights.transpose(1, 2), counts, output)? {
            true => Ok(()),
            false => Tensors.grouped_product(x, weights, counts, output),
        }
    }

    fn grouped_input_gradient(
        &self,
        gradient: &Tensor,
        weights: &Tensor,
        counts: &[i64],
        x_gradient: &Tensor,
    ) -> Result<()> {
        match experts::product(gradient, weights, counts, x_gradient)? {
            true => Ok(()),
            false => Tensors.grouped_input_gradient(gradient, weights, counts, x_gradient),
        }
    }
}
