//! Attention as tensor operations: one call for each run of query rows.
//!
//! The prefix and the first suffix are one causal call; each further suffix is one call whose keys are the prefix's and
//! its own. A call's last query sees its last key, so that the mask is a lower-right one.
//!
//! Without a soft cap libtorch picks a fused kernel, which is run once more for its gradients. No kernel supports a cap:
//! with one the formulas are written out, in f32.
//!
//! Legend: Q query rows of a call, K its key rows, H query heads, G key/value heads, E head width.

use crate::ops::AttentionPlan;
use crate::packing::{AttentionRules, Group};
use tch::{Device, Kind, Tensor};

/// See [`Ops::attention`](crate::ops::Ops::attention): one tensor of log-sum-exps a call.
pub(crate) fn forward(plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Vec<Tensor> {
    let [query, key, value] = split(plan, rows);
    plan.calls.iter().map(|call| call.forward([&query, &key, &value], output)).collect()
}

/// See [`Ops::attention_backward`](crate::ops::Ops::attention_backward).
pub(crate) fn backward(
    plan: &AttentionPlan,
    gradient: &Tensor,
    rows: &Tensor,
    output: &Tensor,
    log_sums: &[Tensor],
    rows_gradient: &Tensor,
) {
    let ([query, key, value], sums) = (split(plan, rows), split(plan, rows_gradient));
    // Queries are set; keys and values are added to by every call that sees them.
    let _ = rows_gradient.shallow_clone().zero_();
    for (call, log_sum) in plan.calls.iter().zip(log_sums) {
        call.backward(gradient, [&query, &key, &value], output, log_sum, &sums);
    }
}

/// [T, H + 2 G, E] -> queries [T, H, E], keys and values [T, G, E], views.
fn split(plan: &AttentionPlan, rows: &Tensor) -> [Tensor; 3] {
    let (query, key) = (plan.heads.query as i64, plan.heads.key as i64);
    [rows.narrow(1, 0, query), rows.narrow(1, query, key), rows.narrow(1, query + key, key)]
}

/// Query rows, and the keys that some of them see.
pub(crate) struct Call {
    /// First query row, and number of rows.
    query: (i64, i64),
    /// First row, and number of rows, of a prefix whose keys come before the queries' own; none in a plainly causal call.
    prefix: Option<(i64, i64)>,
    /// Additive mask [Q, K] of a call with a prefix or a window; a plainly causal one is made when needed.
    mask: Option<Tensor>,
    rules: AttentionRules,
}

/// Calls for the given groups; masks are made in the compute kind.
pub(crate) fn of_groups(groups: &[Group], rules: AttentionRules, kind: Kind, device: Device) -> Vec<Call> {
    let mut calls = Vec::new();
    for group in groups {
        let (start, shared) = (group.start as i64, group.prefix as i64);
        let mut row = start;
        for (index, &suffix) in group.suffixes.iter().enumerate() {
            let suffix = suffix as i64;
            let (rows, prefix) = if index == 0 { (shared + suffix, 0) } else { (suffix, shared) };
            let masked = prefix > 0 || rules.window.is_some();
            calls.push(Call {
                query: (row, rows),
                prefix: (prefix > 0).then_some((start, prefix)),
                mask: masked.then(|| mask(rows, prefix, rules.window, kind, device)),
                rules,
            });
            row += rows;
        }
    }
    calls
}

/// 0 where query i may see column j of `[prefix | own]`, minus infinity elsewhere: j <= prefix + i, and not before the
/// window, which ends there.
fn mask(queries: i64, prefix: i64, window: Option<usize>, kind: Kind, device: Device) -> Tensor {
    let hidden = || Tensor::full([queries, prefix + queries], f64::NEG_INFINITY, (kind, device));
    let ahead = hidden().triu(prefix + 1);
    match window {
        Some(window) => ahead + hidden().tril(prefix - window as i64),
        None => ahead,
    }
}

impl Call {
    /// Writes the outputs of the query rows; returns their log-sum-exps if the formulas are written out.
    pub(crate) fn forward(&self, [query, key, value]: [&Tensor; 3], output: &Tensor) -> Tensor {
        if self.rules.soft_cap.is_none() {
            let attended =
                self.fused(&[self.queries(query), self.keys(key), self.keys(value)].map(|it| heads_first(&it)));
            self.queries(output).copy_(&attended.squeeze_dim(0).transpose(0, 1));
            return Tensor::new();
        }
        let query = heads_first(&self.queries(query));
        let (key, value) = (heads_first(&self.keys(key)), heads_first(&self.keys(value)));
        let (key, value) = (repeat_heads(&key, &query), repeat_heads(&value, &query));
        let scores = self.masked(self.scores(&query, &key));
        let log_sum = scores.logsumexp([-1], false);
        let weights = (scores - log_sum.unsqueeze(-1)).exp().to_kind(value.kind());
        self.queries(output).copy_(&weights.matmul(&value).squeeze_dim(0).transpose(0, 1));
        log_sum
    }

    /// Gradients of [`Call::forward`], written to (queries) or added to (keys, values) the sums.
    pub(crate) fn backward(
        &self,
        gradient: &Tensor,
        [query, key, value]: [&Tensor; 3],
        output: &Tensor,
        log_sum: &Tensor,
        [query_sum, key_sum, value_sum]: &[Tensor; 3],
    ) {
        if self.rules.soft_cap.is_none() {
            let leaf = |rows: Tensor| heads_first(&rows).detach().copy().set_requires_grad(true);
            let leaves = [self.queries(query), self.keys(key), self.keys(value)].map(leaf);
            let upstream = heads_first(&self.queries(gradient));
            // The gradient of this sum with respect to the output is `upstream`.
            let sum = tch::with_grad(|| (self.fused(&leaves) * upstream).sum(Kind::Float));
            let gradients = Tensor::run_backward(&[sum], &leaves, false, false);
            let rows_first = |gradient: &Tensor| gradient.squeeze_dim(0).transpose(0, 1);
            self.queries(query_sum).copy_(&rows_first(&gradients[0]));
            self.add_keys(key_sum, &rows_first(&gradients[1]));
            self.add_keys(value_sum, &rows_first(&gradients[2]));
            return;
        }
        let groups = key.size()[1];
        let query = heads_first(&self.queries(query));
        let (key, value) = (heads_first(&self.keys(key)), heads_first(&self.keys(value)));
        let (key, value) = (repeat_heads(&key, &query), repeat_heads(&value, &query));
        let scores = self.scores(&query, &key);
        let slopes = self.rules.soft_cap.map(|cap| 1.0 - (&scores / cap).square());
        let weights = (self.masked(scores) - log_sum.unsqueeze(-1)).exp();
        let wide = heads_first(&self.queries(gradient)).to_kind(Kind::Float);
        let value_gradient = weights.transpose(-2, -1).matmul(&wide);
        let output = heads_first(&self.queries(output)).to_kind(Kind::Float);
        let along = (&wide * output).sum_dim_intlist(-1, true, Kind::Float);
        let upstream = wide.matmul(&value.to_kind(Kind::Float).transpose(-2, -1)) - along;
        let score_gradient = weights * upstream * self.rules.scale;
        let score_gradient = match slopes {
            Some(slopes) => score_gradient * slopes,
            None => score_gradient,
        };
        let query_gradient = score_gradient.matmul(&key.to_kind(Kind::Float));
        let key_gradient = score_gradient.transpose(-2, -1).matmul(&query.to_kind(Kind::Float));
        self.queries(query_sum).copy_(&query_gradient.squeeze_dim(0).transpose(0, 1));
        for (sum, gradient) in [(key_sum, key_gradient), (value_sum, value_gradient)] {
            let gradient = sum_heads(&gradient, groups).to_kind(sum.kind());
            self.add_keys(sum, &gradient.squeeze_dim(0).transpose(0, 1));
        }
    }

    /// Attention by the kernel that libtorch picks: queries [1, H, Q, E], keys and values [1, G, K, E] -> [1, H, Q, E].
    fn fused(&self, [query, key, value]: &[Tensor; 3]) -> Tensor {
        let (key, value) = (repeat_heads(key, query), repeat_heads(value, query));
        let (mask, causal) = (self.mask.as_ref(), self.mask.is_none());
        Tensor::scaled_dot_product_attention(query, &key, &value, mask, 0.0, causal, Some(self.rules.scale), false)
    }

    /// Scaled and capped scores [1, H, Q, K] in f32, before the mask.
    fn scores(&self, query: &Tensor, key: &Tensor) -> Tensor {
        let [query, key] = [query, key].map(|rows| rows.to_kind(Kind::Float));
        let scores = query.matmul(&key.transpose(-2, -1)) * self.rules.scale;
        match self.rules.soft_cap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        }
    }

    fn masked(&self, scores: Tensor) -> Tensor {
        match &self.mask {
            Some(mask) => scores + mask,
            None => &scores + mask(self.query.1, 0, None, Kind::Float, scores.device()),
        }
    }

    /// The query rows of [T, ...].
    fn queries(&self, rows: &Tensor) -> Tensor {
        rows.narrow(0, self.query.0, self.query.1)
    }

    /// The key rows of [T, ...].
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

/// [1, G, K, E] -> [1, H, K, E]: each key/value head serves H / G query heads.
fn repeat_heads(heads: &Tensor, query: &Tensor) -> Tensor {
    heads.repeat_interleave_self_int(query.size()[1] / heads.size()[1], 1, None)
}

/// Gradient of [`repeat_heads`]: [1, H, K, E] -> [1, G, K, E].
fn sum_heads(gradient: &Tensor, groups: i64) -> Tensor {
    let size = gradient.size();
    gradient.view([1, groups, size[1] / groups, size[2], size[3]]).sum_dim_intlist(2, false, Kind::Float)
}
