//! [`Library`] as tensor operations: for devices without it, and as the reference that it is compared with.
//!
//! Legend: as in `library.rs`; q and k rows of one run.

use super::library::{Library, VarlenCall};
use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// The calls as tensor operations, run by run, in f32.
pub struct Plain;

/// One run: its query rows and its key rows, each as (first row, number of rows).
struct Run {
    queries: (i64, i64),
    keys: (i64, i64),
}

impl VarlenCall {
    /// The runs; waits for the device.
    fn runs(&self) -> Result<Vec<Run>> {
        let [queries, keys] =
            [&self.queries, &self.keys].map(|starts| Vec::<i64>::try_from(starts.to_kind(Kind::Int64)));
        let (queries, keys) = (queries?, keys?);
        let run = |(queries, keys): (&[i64], &[i64])| Run {
            queries: (queries[0], queries[1] - queries[0]),
            keys: (keys[0], keys[1] - keys[0]),
        };
        let runs: Vec<Run> = queries.windows(2).zip(keys.windows(2)).map(run).collect();
        // A kernel would silently ignore the rows beyond.
        let [longest_query, longest_key] = self.longest;
        match runs.iter().all(|run| run.queries.1 <= longest_query && run.keys.1 <= longest_key) {
            true => Ok(runs),
            false => Err(Error::runtime("a run of attention is longer than the maximum that was given")),
        }
    }

    /// Scaled scores [H, q, k] f32 of one run; minus infinity where a query does not see a key.
    fn scores(&self, query: &Tensor, key: &Tensor) -> Tensor {
        let (queries, keys) = (query.size()[1], key.size()[1]);
        let index = |length: i64| Tensor::arange(length, (Kind::Int64, query.device()));
        let own = (index(queries) + (keys - queries)).unsqueeze(1);
        let key_index = index(keys).unsqueeze(0);
        let ahead = key_index.gt_tensor(&own);
        let hidden = match self.before {
            Some(before) => ahead.logical_or(&key_index.lt_tensor(&(own - before))),
            None => ahead,
        };
        (query.matmul(&key.transpose(-2, -1)) * self.scale).masked_fill(&hidden, f64::NEG_INFINITY)
    }
}

/// Takes rows of [rows, heads, E] as [heads, rows, E] f32, with each head repeated for every query head that it serves.
fn heads_first(rows: &Tensor, (start, length): (i64, i64), query_heads: i64) -> Tensor {
    let each = query_heads / rows.size()[1];
    rows.narrow(0, start, length).to_kind(Kind::Float).transpose(0, 1).repeat_interleave_self_int(each, 0, None)
}

impl Library for Plain {
    fn attends(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Float | Kind::BFloat16)
    }

    fn attention(&self, call: &VarlenCall, [query, key, value]: [&Tensor; 3], output: &Tensor) -> Result<Tensor> {
        let heads = query.size()[1];
        let mut log_sums = Vec::new();
        for Run { queries, keys } in call.runs()? {
            let [key, value] = [key, value].map(|rows| heads_first(rows, keys, heads));
            let scores = call.scores(&heads_first(query, queries, heads), &key);
            let log_sum = scores.logsumexp([-1], true);
            let attended = (scores - &log_sum).exp().matmul(&value).transpose(0, 1);
            output.narrow(0, queries.0, queries.1).copy_(&attended);
            log_sums.push(log_sum.squeeze_dim(-1));
        }
        Ok(Tensor::f_cat(&log_sums, 1)?)
    }

    fn attention_backward(
        &self,
        call: &VarlenCall,
        gradient: &Tensor,
        [query, key, value]: [&Tensor; 3],
        output: &Tensor,
        log_sums: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (heads, groups, kind) = (query.size()[1], key.size()[1], query.kind());
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for Run { queries, keys } in call.runs()? {
            let [query, gradient, output] = [query, gradient, output].map(|rows| heads_first(rows, queries, heads));
            let [key, value] = [key, value].map(|rows| heads_first(rows, keys, heads));
            let log_sum = log_sums.narrow(1, queries.0, queries.1).unsqueeze(-1);
            let weights = (call.scores(&query, &key) - log_sum).exp();
            let along = (&gradient * output).sum_dim_intlist(-1, true, Kind::Float);
            let of_scores = &weights * (gradient.matmul(&value.transpose(-2, -1)) - along) * call.scale;
            let rows_first = |heads_first: Tensor| heads_first.transpose(0, 1).to_kind(kind);
            let of_group = |each: Tensor| {
                let [_, rows, width] = [0, 1, 2].map(|dimension| each.size()[dimension]);
                rows_first(each.view([groups, heads / groups, rows, width]).sum_dim_intlist(1, false, Kind::Float))
            };
            parts[0].push(rows_first(of_scores.matmul(&key)));
            parts[1].push(of_group(of_scores.transpose(-2, -1).matmul(&query)));
            parts[2].push(of_group(weights.transpose(-2, -1).matmul(&gradient)));
        }
        let [query, key, value] = parts.map(|parts| Tensor::f_cat(&parts, 0));
        Ok([query?, key?, value?])
    }

    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()> {
        let [left, right] = [left, right].map(|factor| factor.to_kind(Kind::Float));
        let _ = sum.shallow_clone().f_addmm_(&left.tr(), &right)?;
        Ok(())
    }
}
