//! Attention over a packed row of tokens, forward and backward, group by group.
//!
//! A group is `[prefix | suffix | suffix ...]`: every suffix sees the prefix and itself, and no other suffix. The prefix
//! and the first suffix are one causal call; each further suffix is one call whose keys are the prefix's and its own
//! under a lower-right mask. Nothing outside the group is read, so scores do not depend on what else is packed.
//!
//! Legend: T tokens, Q query rows of a call, K its key rows, H query heads, G key/value heads, E head width.

use tch::{Device, Kind, Tensor};

/// Rows of one prompt with its answers in a packed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// First row.
    pub start: usize,
    /// Rows that every suffix sees; may be 0.
    pub prefix: usize,
    /// Rows of each suffix, in order; at least one.
    pub suffixes: Vec<usize>,
}

impl Group {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.prefix + self.suffixes.iter().sum::<usize>()
    }
}

/// The kernel calls that a packed row needs; made once a batch and used by every block.
pub struct AttentionPlan {
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
    /// Calls for the given groups; masks are made in the compute kind.
    pub fn new(groups: &[Group], kind: Kind, device: Device) -> Self {
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
        Self { calls }
    }

    /// Queries [T, H, E], keys and values [T, G, E] -> `output` [T, H, E]; returns each call's log-sum-exp.
    pub fn forward(&self, query: &Tensor, key: &Tensor, value: &Tensor, output: &Tensor) -> Vec<Tensor> {
        let mut log_sums = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            let (rows, log_sum) = kernel_forward(
                &heads_first(&call.queries(query)),
                &heads_first(&call.keys(key)),
                &heads_first(&call.keys(value)),
                call.mask.as_ref(),
            );
            call.queries(output).copy_(&rows.squeeze_dim(0).transpose(0, 1));
            log_sums.push(log_sum);
        }
        log_sums
    }

    /// Gradients of [`AttentionPlan::forward`] with respect to queries, keys and values, written to `sums`.
    pub fn backward(
        &self,
        gradient: &Tensor,
        [query, key, value]: [&Tensor; 3],
        output: &Tensor,
        log_sums: &[Tensor],
        sums: [&Tensor; 3],
    ) {
        let [query_sum, key_sum, value_sum] = sums;
        for sum in [key_sum, value_sum] {
            let _ = sum.shallow_clone().zero_();
        }
        for (call, log_sum) in self.calls.iter().zip(log_sums) {
            let (query_part, key_part, value_part) = kernel_backward(
                &heads_first(&call.queries(gradient)),
                &heads_first(&call.queries(query)),
                &heads_first(&call.keys(key)),
                &heads_first(&call.keys(value)),
                &heads_first(&call.queries(output)),
                log_sum,
                call.mask.as_ref(),
            );
            call.queries(query_sum).copy_(&query_part.squeeze_dim(0).transpose(0, 1));
            call.add_keys(key_sum, &key_part.squeeze_dim(0).transpose(0, 1));
            call.add_keys(value_sum, &value_part.squeeze_dim(0).transpose(0, 1));
        }
    }
}

impl Call {
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

/// [rows, H, E] -> [1, H, rows, E], a view.
fn heads_first(rows: &Tensor) -> Tensor {
    rows.transpose(0, 1).unsqueeze(0)
}

/// 0 where suffix row i may see column j of `[prefix | suffix]`, minus infinity elsewhere: j <= prefix + i.
fn lower_right_mask(suffix: i64, prefix: i64, kind: Kind, device: Device) -> Tensor {
    Tensor::full([suffix, prefix + suffix], f64::NEG_INFINITY, (kind, device)).triu(prefix + 1)
}

/// One call: [1, H, Q, E] against [1, G, K, E]; causal where there is no mask (then Q = K).
fn kernel_forward(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> (Tensor, Tensor) {
    if query.device() == Device::Cpu {
        return Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
            query,
            key,
            value,
            0.0,
            mask.is_none(),
            mask,
            None,
        );
    }
    let (key, value) = (repeat_heads(key, query), repeat_heads(value, query));
    let scores = scores(query, &key, mask);
    let log_sum = scores.logsumexp([-1], false);
    let weights = (scores - log_sum.unsqueeze(-1)).exp().to_kind(value.kind());
    (weights.matmul(&value), log_sum)
}

/// Gradients of [`kernel_forward`] with respect to query, key and value.
fn kernel_backward(
    gradient: &Tensor,
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    output: &Tensor,
    log_sum: &Tensor,
    mask: Option<&Tensor>,
) -> (Tensor, Tensor, Tensor) {
    if query.device() == Device::Cpu {
        return Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
            gradient,
            query,
            key,
            value,
            output,
            log_sum,
            0.0,
            mask.is_none(),
            mask,
            None,
        );
    }
    let groups = key.size()[1];
    let (key, value) = (repeat_heads(key, query), repeat_heads(value, query));
    let weights = (scores(query, &key, mask) - log_sum.unsqueeze(-1)).exp();
    let wide = gradient.to_kind(Kind::Float);
    let value_gradient = weights.transpose(-2, -1).matmul(&wide);
    let along = (&wide * output.to_kind(Kind::Float)).sum_dim_intlist(-1, true, Kind::Float);
    let upstream = wide.matmul(&value.to_kind(Kind::Float).transpose(-2, -1)) - along;
    let score_gradient = weights * upstream * scale(query);
    let query_gradient = score_gradient.matmul(&key.to_kind(Kind::Float));
    let key_gradient = score_gradient.transpose(-2, -1).matmul(&query.to_kind(Kind::Float));
    let kind = query.kind();
    (
        query_gradient.to_kind(kind),
        sum_heads(&key_gradient, groups).to_kind(kind),
        sum_heads(&value_gradient, groups).to_kind(kind),
    )
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

    #[test]
    fn both_kernels_agree_with_automatic_differentiation() {
        for prefix in [None, Some(5)] {
            let rows = 7;
            let keys = rows + prefix.unwrap_or(0);
            let mask = prefix.map(|prefix| lower_right_mask(rows, prefix, Kind::Float, Device::Cpu));
            let (query, key, value) =
                (waves(&[1, 4, rows, 8], 1.0), waves(&[1, 2, keys, 8], 2.0), waves(&[1, 2, keys, 8], 3.0));
            let upstream = waves(&[1, 4, rows, 8], 4.0);
            let expected = autograd(&query, &key, &value, mask.as_ref(), &upstream);
            let (output, log_sum) = kernel_forward(&query, &key, &value, mask.as_ref());
            let (q, k, v) = kernel_backward(&upstream, &query, &key, &value, &output, &log_sum, mask.as_ref());
            for (mine, theirs) in [output, q, k, v].iter().zip(&expected) {
                assert!(distance(mine, theirs) < 1e-5, "{}", distance(mine, theirs));
            }
        }
    }

    #[test]
    fn a_suffix_sees_its_prefix_and_itself_only() {
        let group = Group { start: 0, prefix: 4, suffixes: vec![3, 2] };
        let plan = AttentionPlan::new(std::slice::from_ref(&group), Kind::Float, Device::Cpu);
        let (query, key, value) = (waves(&[9, 4, 8], 1.0), waves(&[9, 2, 8], 2.0), waves(&[9, 2, 8], 3.0));
        let forward = |query: &Tensor, key: &Tensor, value: &Tensor| {
            let output = query.empty_like();
            let _ = plan.forward(query, key, value, &output);
            output
        };
        let before = forward(&query, &key, &value);
        // The first suffix's keys change: the second suffix's rows must not.
        let _ = key.narrow(0, 4, 3).fill_(3.0);
        let after = forward(&query, &key, &value);
        assert_eq!(distance(&after.narrow(0, 7, 2), &before.narrow(0, 7, 2)), 0.0);
        assert!(distance(&after.narrow(0, 4, 3), &before.narrow(0, 4, 3)) > 1e-3);
        // Control: the prefix's keys change, and every suffix must notice.
        let _ = key.narrow(0, 0, 4).fill_(-2.0);
        let control = forward(&query, &key, &value);
        assert!(distance(&control.narrow(0, 7, 2), &before.narrow(0, 7, 2)) > 1e-3);
    }
}
