//! Attention over a packed row of tokens, forward and backward, group by group.
//!
//! A group is `[prefix | suffix | suffix ...]`: every suffix sees the prefix and itself, and no other suffix; a window
//! hides what lies too far back. Nothing outside the group is read, so scores do not depend on what else is packed. On
//! CPUs the loops of `kernels/attention.rs` run, elsewhere the tensor operations of `attention/calls.rs`.
//!
//! Legend: T tokens, H query heads, G key/value heads, E head width.

mod calls;

use crate::error::{Error, Result};
use crate::kernels::attention as kernel;
use crate::kernels::tile::Packed;
use crate::tensor::{self, Number, slice, slice_mut};
use calls::Call;
use half::bf16;
use tch::{Device, Kind, Tensor};

pub use crate::kernels::attention::{AttentionRules, Group, Heads};

/// Which rows see which; made once a batch and used by every block.
pub struct AttentionPlan {
    groups: Vec<Group>,
    heads: Heads,
    rules: AttentionRules,
    /// What tensor operations need; empty on CPUs.
    calls: Vec<Call>,
}

impl AttentionPlan {
    /// A plan for the given groups.
    pub fn new(groups: &[Group], heads: Heads, rules: AttentionRules, kind: Kind, device: Device) -> Self {
        let calls = if device == Device::Cpu { Vec::new() } else { calls::of_groups(groups, rules, kind, device) };
        Self { groups: groups.to_vec(), heads, rules, calls }
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
        kernel::forward(&self.groups, self.heads, self.rules, slice(rows)?, output, log_sums);
        Ok(vec![sums])
    }

    fn backward_on_cpu<E: Packed + Number>(
        &self,
        [gradient, rows, output, log_sums]: [&Tensor; 4],
        rows_gradient: &Tensor,
    ) -> Result<()> {
        let given = (slice::<E>(gradient)?, slice(output)?, slice(log_sums)?);
        let mut rows_gradient = rows_gradient.shallow_clone();
        kernel::backward(&self.groups, self.heads, self.rules, slice(rows)?, given, slice_mut(&mut rows_gradient)?);
        Ok(())
    }

    /// [T, H + 2 G, E] -> queries [T, H, E], keys and values [T, G, E], views.
    fn split(&self, rows: &Tensor) -> [Tensor; 3] {
        let (query, key) = (self.heads.query as i64, self.heads.key as i64);
        [rows.narrow(1, 0, query), rows.narrow(1, query, key), rows.narrow(1, query + key, key)]
    }
}

fn unknown(kind: Kind) -> Error {
    Error::runtime(format!(
        "attention on CPUs takes f32 or bf16 and one forward pass before a backward pass, not {kind:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    /// Relative distance that the order of f32 sums explains.
    pub const BOUND: f64 = 1e-5;

    const PLAIN: AttentionRules = AttentionRules { scale: 0.4, window: None, soft_cap: None };

    /// Windows that hide nothing, a part of the prefix, all of it and more, and all but the query itself; a cap that
    /// bends most scores.
    pub const RULES: [AttentionRules; 8] = [
        PLAIN,
        AttentionRules { window: Some(200), ..PLAIN },
        AttentionRules { window: Some(40), ..PLAIN },
        AttentionRules { window: Some(17), ..PLAIN },
        AttentionRules { window: Some(5), ..PLAIN },
        AttentionRules { window: Some(1), ..PLAIN },
        AttentionRules { soft_cap: Some(1.5), ..PLAIN },
        AttentionRules { soft_cap: Some(1.5), window: Some(23), ..PLAIN },
    ];

    const HEADS: Heads = Heads { query: 4, key: 2, width: 8 };
    /// Wide enough for whole matrix tiles.
    const WIDE: Heads = Heads { width: 64, ..HEADS };
    const ROWS: i64 = 99;

    pub fn distance(left: &Tensor, right: &Tensor) -> f64 {
        ((left - right).norm() / right.norm()).double_value(&[])
    }

    /// Groups of odd sizes, one longer than a block of the loops, one without a prefix, one of a single row.
    pub fn groups() -> Vec<Group> {
        vec![
            Group { start: 0, prefix: 37, suffixes: vec![6, 41, 1] },
            Group { start: 85, prefix: 0, suffixes: vec![3, 2] },
            Group { start: 90, prefix: 4, suffixes: vec![4] },
            Group { start: 98, prefix: 0, suffixes: vec![1] },
        ]
    }

    /// Rows, and a gradient of the output.
    pub fn inputs() -> (Tensor, Tensor) {
        (waves(&[ROWS, 8, 8], 1.0) * 2.0, waves(&[ROWS, 4, 8], 4.0))
    }

    pub fn heads_of(rows: &Tensor) -> [Tensor; 3] {
        [rows.narrow(1, 0, 4), rows.narrow(1, 4, 2), rows.narrow(1, 6, 2)]
    }

    /// Whether each row sees each row: said of sequences and positions, not of runs of rows.
    fn visible(groups: &[Group], window: Option<usize>) -> Tensor {
        let seen = Tensor::zeros([ROWS, ROWS], (Kind::Bool, Device::Cpu));
        for group in groups {
            let mut row = group.start + group.prefix;
            for suffix in &group.suffixes {
                let sequence: Vec<usize> = (group.start..group.start + group.prefix).chain(row..row + suffix).collect();
                for (position, &query) in sequence.iter().enumerate() {
                    for (other, &key) in sequence.iter().enumerate() {
                        if other <= position && window.is_none_or(|window| other + window > position) {
                            let _ = seen.get(query as i64).get(key as i64).fill_(1);
                        }
                    }
                }
                row += suffix;
            }
        }
        seen
    }

    /// Output and gradient of the rows: the plain formula over all rows at once, differentiated by libtorch.
    pub fn expected(rows: &Tensor, upstream: &Tensor, rules: AttentionRules) -> (Tensor, Tensor) {
        let leaf = rows.copy().detach().set_requires_grad(true);
        let [query, key, value] = heads_of(&leaf).map(|part| part.transpose(0, 1));
        let [key, value] = [key, value].map(|part| part.repeat_interleave_self_int(2, 0, None));
        let scores = query.matmul(&key.transpose(-2, -1)) * rules.scale;
        let scores = match rules.soft_cap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        let scores = scores.masked_fill(&visible(&groups(), rules.window).logical_not(), f64::NEG_INFINITY);
        let output = scores.softmax(-1, Kind::Float).matmul(&value).transpose(0, 1);
        let gradient = Tensor::run_backward(&[(&output * upstream).sum(Kind::Float)], &[&leaf], false, false).remove(0);
        (output.detach(), gradient)
    }

    /// Output and gradient of the rows by the loops, as f32.
    fn made(rows: &Tensor, upstream: &Tensor, rules: AttentionRules, kind: Kind) -> (Tensor, Tensor) {
        let (rows, upstream) = (rows.to_kind(kind), upstream.to_kind(kind));
        let heads = Heads { width: rows.size()[2] as usize, ..HEADS };
        let plan = AttentionPlan::new(&groups(), heads, rules, kind, Device::Cpu);
        let (output, gradient) = (upstream.empty_like(), rows.empty_like());
        let sums = plan.forward(&rows, &output).unwrap();
        plan.backward(&upstream, &rows, &output, &sums, &gradient).unwrap();
        (output.to_kind(Kind::Float), gradient.to_kind(Kind::Float))
    }

    #[test]
    fn the_loops_agree_with_automatic_differentiation() {
        let wide = (waves(&[ROWS, 8, WIDE.width as i64], 1.0), waves(&[ROWS, 4, WIDE.width as i64], 4.0));
        let (rows, upstream) = inputs();
        for (rules, (rows, upstream)) in
            RULES.into_iter().flat_map(|rules| [(rules, (&rows, &upstream)), (rules, (&wide.0, &wide.1))])
        {
            let (expected_output, expected_gradient) = expected(rows, upstream, rules);
            for (kind, bound) in [(Kind::Float, BOUND), (Kind::BFloat16, 1.2e-2)] {
                let (output, gradient) = made(rows, upstream, rules, kind);
                let far = [distance(&output, &expected_output), distance(&gradient, &expected_gradient)];
                assert!(far.iter().all(|far| *far < bound), "{kind:?} {rules:?}: {far:?}");
            }
        }
        // Control: a window of one position less, and another cap, are seen by far.
        let (output, gradient) = made(&rows, &upstream, RULES[7], Kind::Float);
        for other in
            [AttentionRules { window: Some(22), ..RULES[7] }, AttentionRules { soft_cap: Some(1.6), ..RULES[7] }]
        {
            let (expected_output, expected_gradient) = expected(&rows, &upstream, other);
            assert!(distance(&output, &expected_output) > 100.0 * BOUND);
            assert!(distance(&gradient, &expected_gradient) > 100.0 * BOUND);
        }
    }

    #[test]
    fn a_window_that_hides_nothing_changes_no_bit() {
        let (rows, upstream) = inputs();
        for kind in [Kind::Float, Kind::BFloat16] {
            assert_eq!(made(&rows, &upstream, RULES[0], kind), made(&rows, &upstream, RULES[1], kind));
        }
    }

    #[test]
    fn a_window_leaves_out_what_no_row_of_a_block_sees() {
        let (rows, upstream) = inputs();
        let [_, keys, values] = heads_of(&rows);
        let output = |window, kind| {
            let (rows, output) = (rows.to_kind(kind), upstream.to_kind(kind));
            let plan = AttentionPlan::new(&groups(), HEADS, AttentionRules { window, ..PLAIN }, kind, Device::Cpu);
            plan.forward(&rows, &output).unwrap();
            // The second suffix sees rows 33 to 36 of the prefix at most: the first 32 are left out.
            output.narrow(0, 43, 41)
        };
        for kind in [Kind::Float, Kind::BFloat16] {
            let before = [None, Some(5)].map(|window| output(window, kind).copy());
            let poisoned = [&keys, &values].map(|part| (part.narrow(0, 0, 32), part.narrow(0, 0, 32).copy()));
            // Whatever is multiplied by what is not a number shows, even where its weight is 0.
            poisoned.iter().for_each(|(part, _)| drop(part.shallow_clone().fill_(f64::NAN)));
            assert_eq!(output(Some(5), kind), before[1]);
            // Control: without a window it shows.
            assert_ne!(output(None, kind), before[0]);
            poisoned.iter().for_each(|(part, kept)| part.shallow_clone().copy_(kept));
        }
    }

    #[test]
    fn a_suffix_sees_its_prefix_and_itself_only() {
        let group = Group { start: 0, prefix: 4, suffixes: vec![3, 2] };
        let plan = AttentionPlan::new(std::slice::from_ref(&group), HEADS, PLAIN, Kind::Float, Device::Cpu);
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
