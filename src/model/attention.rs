//! Attention over a packed row of tokens, forward and backward, group by group.
//!
//! A group is `[prefix | suffix | suffix ...]`: every suffix sees the prefix and itself, and no other suffix. Nothing
//! outside the group is read, so scores do not depend on what else is packed. On CPUs the loops of
//! `kernels/attention.rs` run. Elsewhere it is calls of tensor operations: the prefix and the first suffix are one causal
//! call; each further suffix is one call whose keys are the prefix's and its own under a lower-right mask.
//!
//! Legend: T tokens, Q query rows of a call, K its key rows, H query heads, G key/value heads, E head width.

use crate::error::{Error, Result};
use crate::kernels::attention as kernel;
use crate::kernels::tile::Packed;
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};

pub use crate::kernels::attention::{Group, Heads};

/// Which rows see which; made once a batch and used by every block.
pub struct AttentionPlan {
    groups: Vec<Group>,
    heads: Heads,
    /// What tensor operations need; empty on CPUs.
    calls: Vec<Call>,
}

struct Call {
    /// First query row, and how many.
    query: (i64, i64),
    /// First row of a prefix whose keys come before the queries' own, and how many; none in a plainly causal call.
    prefix: Option<(i64, i64)>,
    /// Additive mask [Q, K] of a call with a prefix.
    mask: Option<Tensor>,
}

impl AttentionPlan {
    /// A plan for the given groups.
    pub fn new(groups: &[Group], heads: Heads, kind: Kind, device: Device) -> Self {
        let calls = if device == Device::Cpu { Vec::new() } else { Self::calls(groups, kind, device) };
        Self { groups: groups.to_vec(), heads, calls }
    }

    /// Calls for the given groups; masks are made in the compute kind.
    fn calls(groups: &[Group], kind: Kind, device: Device) -> Vec<Call> {
        let mut calls = Vec::new();
        for group in groups {
            let (start, prefix) = (group.start as i64, group.prefix as i64);
            let mut row = start;
            for (index, &suffix) in group.suffixes.iter().enumerate() {
                let suffix = suffix as i64;
                if index == 0 {
                    calls.push(Call { query: (row, prefix + suffix), prefix: None, mask: None });
                    row += prefix + suffix;
                } else {
                    let mask = (prefix > 0).then(|| lower_right_mask(suffix, prefix, kind, device));
                    let prefix = (prefix > 0).then_some((start, prefix));
                    calls.push(Call { query: (row, suffix), prefix, mask });
                    row += suffix;
                }
            }
        }
        calls
    }

    /// Queries, keys and values `rows` [T, H + 2 G, E] -> `output` [T, H, E]; returns log-sum-exps, which the backward
    /// pass takes: on CPUs one tensor [T, H].
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn forward(&self, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        match tensor::cpu_kind(rows) {
            Some(Kind::Float) => self.forward_on_cpu::<f32>(rows, output),
            Some(Kind::BFloat16) => self.forward_on_cpu::<bf16>(rows, output),
            Some(kind) => Err(unknown(kind)),
            None => {
                let [query, key, value] = self.split(rows);
                Ok(self.calls.iter().map(|call| call.forward([&query, &key, &value], output)).collect())
            }
        }
    }

    /// Gradient of [`AttentionPlan::forward`]'s output [T, H, E] -> `rows_gradient` [T, H + 2 G, E].
    ///
    /// # Errors
    /// As [`AttentionPlan::forward`].
    pub fn backward(
        &self,
        gradient: &Tensor,
        rows: &Tensor,
        output: &Tensor,
        log_sums: &[Tensor],
        rows_gradient: &Tensor,
    ) -> Result<()> {
        match (tensor::cpu_kind(rows), log_sums) {
            (Some(Kind::Float), [sums]) => self.backward_on_cpu::<f32>([gradient, rows, output, sums], rows_gradient),
            (Some(Kind::BFloat16), [sums]) => {
                self.backward_on_cpu::<bf16>([gradient, rows, output, sums], rows_gradient)
            }
            (Some(kind), _) => Err(unknown(kind)),
            (None, _) => {
                let ([query, key, value], sums) = (self.split(rows), self.split(rows_gradient));
                // Queries are set; keys and values are added to by every call that sees them.
                let _ = rows_gradient.shallow_clone().zero_();
                for (call, log_sum) in self.calls.iter().zip(log_sums) {
                    call.backward(gradient, [&query, &key, &value], output, log_sum, &sums);
                }
                Ok(())
            }
        }
    }

    fn forward_on_cpu<E: Packed + Number>(&self, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        let mut sums = Tensor::empty([rows.size()[0], self.heads.query as i64], (Kind::Float, Device::Cpu));
        let mut output = output.shallow_clone();
        let (output, log_sums) = (slice_mut::<E>(&mut output)?, slice_mut(&mut sums)?);
        kernel::forward(&self.groups, self.heads, slice(rows)?, output, log_sums);
        Ok(vec![sums])
    }

    fn backward_on_cpu<E: Packed + Number>(
        &self,
        [gradient, rows, output, log_sums]: [&Tensor; 4],
        rows_gradient: &Tensor,
    ) -> Result<()> {
        let given = (slice::<E>(gradient)?, slice(output)?, slice(log_sums)?);
        let mut rows_gradient = rows_gradient.shallow_clone();
        kernel::backward(&self.groups, self.heads, slice(rows)?, given, slice_mut(&mut rows_gradient)?);
        Ok(())
    }

    /// [T, H + 2 G, E] -> queries [T, H, E], keys and values [T, G, E], views.
    fn split(&self, rows: &Tensor) -> [Tensor; 3] {
        let (query, key) = (self.heads.query as i64, self.heads.key as i64);
        [rows.narrow(1, 0, query), rows.narrow(1, query, key), rows.narrow(1, query + key, key)]
    }
}

impl Call {
    /// Writes the outputs of the rows that ask; returns their log-sum-exps.
    fn forward(&self, [query, key, value]: [&Tensor; 3], output: &Tensor) -> Tensor {
        let query = heads_first(&self.queries(query));
        let (key, value) = (heads_first(&self.keys(key)), heads_first(&self.keys(value)));
        let (key, value) = (repeat_heads(&key, &query), repeat_heads(&value, &query));
        let scores = scores(&query, &key, self.mask.as_ref());
        let log_sum = scores.logsumexp([-1], false);
        let weights = (scores - log_sum.unsqueeze(-1)).exp().to_kind(value.kind());
        self.queries(output).copy_(&weights.matmul(&value).squeeze_dim(0).transpose(0, 1));
        log_sum
    }

    /// Gradients of [`Call::forward`], written to (queries) or added to (keys, values) the sums.
    fn backward(
        &self,
        gradient: &Tensor,
        [query, key, value]: [&Tensor; 3],
        output: &Tensor,
        log_sum: &Tensor,
        [query_sum, key_sum, value_sum]: &[Tensor; 3],
    ) {
        let groups = key.size()[1];
        let query = heads_first(&self.queries(query));
        let (key, value) = (heads_first(&self.keys(key)), heads_first(&self.keys(value)));
        let (key, value) = (repeat_heads(&key, &query), repeat_heads(&value, &query));
        let weights = (scores(&query, &key, self.mask.as_ref()) - log_sum.unsqueeze(-1)).exp();
        let wide = heads_first(&self.queries(gradient)).to_kind(Kind::Float);
        let value_gradient = weights.transpose(-2, -1).matmul(&wide);
        let output = heads_first(&self.queries(output)).to_kind(Kind::Float);
        let along = (&wide * output).sum_dim_intlist(-1, true, Kind::Float);
        let upstream = wide.matmul(&value.to_kind(Kind::Float).transpose(-2, -1)) - along;
        let score_gradient = weights * upstream * scale(&query);
        let query_gradient = score_gradient.matmul(&key.to_kind(Kind::Float));
        let key_gradient = score_gradient.transpose(-2, -1).matmul(&query.to_kind(Kind::Float));
        self.queries(query_sum).copy_(&query_gradient.squeeze_dim(0).transpose(0, 1));
        for (sum, gradient) in [(key_sum, key_gradient), (value_sum, value_gradient)] {
            let gradient = sum_heads(&gradient, groups).to_kind(sum.kind());
            self.add_keys(sum, &gradient.squeeze_dim(0).transpose(0, 1));
        }
    }

    /// The rows of [T, ...] that ask.
    fn queries(&self, rows: &Tensor) -> Tensor {
        rows.narrow(0, self.query.0, self.query.1)
    }

    /// The rows of [T, ...] that are seen.
    fn keys(&self, rows: &Tensor) -> Tensor {
        match self.prefix {
            Some((start, length)) => Tensor::cat(&[&rows.narrow(0, start, length), &self.queries(rows)], 0),
            None => self.queries(rows),
        }
    }

    /// Adds the gradient of [`Call::keys`] to that of its rows.
    fn add_keys(&self, sum: &Tensor, gradient: &Tensor) {
        match self.prefix {
            Some((start, length)) => {
                let _ = sum.narrow(0, start, length).g_add_(&gradient.narrow(0, 0, length));
                let _ = self.queries(sum).g_add_(&gradient.narrow(0, length, self.query.1));
            }
            None => {
                let _ = self.queries(sum).g_add_(gradient);
            }
        }
    }
}

fn unknown(kind: Kind) -> Error {
    Error::runtime(format!(
        "attention on CPUs takes f32 or bf16 and one forward pass before a backward pass, not {kind:?}"
    ))
}

/// [rows, H, E] -> [1, H, rows, E], a view.
fn heads_first(rows: &Tensor) -> Tensor {
    rows.transpose(0, 1).unsqueeze(0)
}

/// 0 where suffix row i may see column j of `[prefix | suffix]`, minus infinity elsewhere: j <= prefix + i.
fn lower_right_mask(suffix: i64, prefix: i64, kind: Kind, device: Device) -> Tensor {
    Tensor::full([suffix, prefix + suffix], f64::NEG_INFINITY, (kind, device)).triu(prefix + 1)
}

fn scale(query: &Tensor) -> f64 {
    1.0 / (query.size()[3] as f64).sqrt()
}

/// Masked, scaled scores [1, H, Q, K] in f32.
fn scores(query: &Tensor, key: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let scores = query.to_kind(Kind::Float).matmul(&key.to_kind(Kind::Float).transpose(-2, -1)) * scale(query);
    let causal;
    let mask = match mask {
        Some(mask) => mask,
        None => {
            causal = lower_right_mask(query.size()[2], 0, Kind::Float, query.device());
            &causal
        }
    };
    scores + mask
}

/// [1, G, K, E] -> [1, H, K, E]: each key/value head serves H / G query heads.
fn repeat_heads(heads: &Tensor, query: &Tensor) -> Tensor {
    heads.repeat_interleave_self_int(query.size()[1] / heads.size()[1], 1, None)
}

/// Gradient of [`repeat_heads`]: [1, H, K, E] -> [1, G, K, E].
fn sum_heads(gradient: &Tensor, groups: i64) -> Tensor {
    let size = gradient.size();
    gradient.view([1, groups, size[1] / groups, size[2], size[3]]).sum_dim_intlist(2, false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        ((left - right).norm() / right.norm()).double_value(&[])
    }

    /// The plain formula, differentiated by libtorch, in one call.
    fn autograd(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>, upstream: &Tensor) -> Vec<Tensor> {
        let leaves: Vec<Tensor> =
            [query, key, value].iter().map(|leaf| leaf.copy().detach().set_requires_grad(true)).collect();
        let (keys, values) = (repeat_heads(&leaves[1], query), repeat_heads(&leaves[2], query));
        let output = scores(&leaves[0], &keys, mask).softmax(-1, Kind::Float).matmul(&values);
        let gradients = Tensor::run_backward(&[(&output * upstream).sum(Kind::Float)], &leaves, false, false);
        std::iter::once(output.detach()).chain(gradients).collect()
    }

    /// Two groups of odd sizes, one longer than a block of the loops, one without a prefix.
    fn groups() -> Vec<Group> {
        vec![
            Group { start: 0, prefix: 37, suffixes: vec![6, 41, 1] },
            Group { start: 85, prefix: 0, suffixes: vec![3, 2] },
            Group { start: 90, prefix: 4, suffixes: vec![5] },
        ]
    }

    /// Output and gradient of the rows, by one of the two ways.
    fn both(plan: &AttentionPlan, rows: &Tensor, upstream: &Tensor) -> (Tensor, Tensor) {
        let (output, gradient) = (upstream.empty_like(), rows.empty_like());
        let sums = plan.forward(rows, &output).unwrap();
        plan.backward(upstream, rows, &output, &sums, &gradient).unwrap();
        (output, gradient)
    }

    #[test]
    fn both_ways_agree_with_automatic_differentiation() {
        let heads = Heads { query: 4, key: 2, width: 8 };
        let (rows, upstream) = (waves(&[99, 8, 8], 1.0) * 2.0, waves(&[99, 4, 8], 4.0));
        let plan = AttentionPlan::new(&groups(), heads, Kind::Float, Device::Cpu);
        // One call at a time, the plain formula differentiated by libtorch.
        let calls = AttentionPlan::calls(&groups(), Kind::Float, Device::Cpu);
        let (expected, expected_gradient) = (upstream.empty_like(), rows.zeros_like());
        let [query, key, value] = plan.split(&rows);
        let sums = plan.split(&expected_gradient);
        for call in &calls {
            let parts = [call.queries(&query), call.keys(&key), call.keys(&value)].map(|part| heads_first(&part));
            let upstream = heads_first(&call.queries(&upstream));
            let made = autograd(&parts[0], &parts[1], &parts[2], call.mask.as_ref(), &upstream);
            let made: Vec<Tensor> = made.iter().map(|part| part.squeeze_dim(0).transpose(0, 1)).collect();
            call.queries(&expected).copy_(&made[0]);
            call.queries(&sums[0]).copy_(&made[1]);
            call.add_keys(&sums[1], &made[2]);
            call.add_keys(&sums[2], &made[3]);
        }
        let (output, gradient) = both(&plan, &rows, &upstream);
        assert!(distance(&output, &expected) < 1e-5, "{}", distance(&output, &expected));
        assert!(distance(&gradient, &expected_gradient) < 1e-5, "{}", distance(&gradient, &expected_gradient));
        // In bf16 up to rounding; and the calls of tensor operations, which GPUs use.
        let (output, gradient) = both(&plan, &rows.to_kind(Kind::BFloat16), &upstream.to_kind(Kind::BFloat16));
        assert!(distance(&output.to_kind(Kind::Float), &expected) < 1e-2);
        assert!(distance(&gradient.to_kind(Kind::Float), &expected_gradient) < 1e-2);
        let (output, gradient) = (upstream.empty_like(), rows.zeros_like());
        let sums = plan.split(&gradient);
        for call in &calls {
            let log_sum = call.forward([&query, &key, &value], &output);
            call.backward(&upstream, [&query, &key, &value], &output, &log_sum, &sums);
        }
        assert!(distance(&output, &expected) < 1e-5);
        assert!(distance(&gradient, &expected_gradient) < 1e-5);
    }

    #[test]
    fn a_suffix_sees_its_prefix_and_itself_only() {
        let group = Group { start: 0, prefix: 4, suffixes: vec![3, 2] };
        let heads = Heads { query: 4, key: 2, width: 8 };
        let plan = AttentionPlan::new(std::slice::from_ref(&group), heads, Kind::Float, Device::Cpu);
        let rows = waves(&[9, 8, 8], 1.0);
        let [_, key, _] = plan.split(&rows);
        let forward = || {
            let output = Tensor::empty([9, 4, 8], (Kind::Float, Device::Cpu));
            plan.forward(&rows, &output).unwrap();
            output
        };
        let before = forward();
        // The first suffix's keys change: the second suffix's rows must not.
        let _ = key.narrow(0, 4, 3).fill_(3.0);
        let after = forward();
        assert_eq!(distance(&after.narrow(0, 7, 2), &before.narrow(0, 7, 2)), 0.0);
        assert!(distance(&after.narrow(0, 4, 3), &before.narrow(0, 4, 3)) > 1e-3);
        // Control: the prefix's keys change, and every suffix must notice.
        let _ = key.narrow(0, 0, 4).fill_(-2.0);
        let control = forward();
        assert!(distance(&control.narrow(0, 7, 2), &before.narrow(0, 7, 2)) > 1e-3);
    }
}
