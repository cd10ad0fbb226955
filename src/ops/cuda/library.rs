//! The calls that libtorch has on CUDA devices only.
//!
//! Not here: what they are asked for (`attention.rs`), and the same on any device (`plain.rs`).
//!
//! Legend: Q query rows in all, K key rows in all, H query heads, G key/value heads, E head width.

use crate::error::Result;
use tch::{Kind, Tensor};

/// Attention over runs of query rows that lie one after the other, each with a run of key rows of its own.
///
/// Query i of a run of q queries and k keys sees the keys up to i + k - q, its own among them: the last query sees the last
/// key. With a window it sees none before i + k - q - `before`.
pub struct VarlenCall {
    /// `[runs + 1]` i32 on the device: where each run of queries starts, and where the last one ends.
    pub queries: Tensor,
    /// Likewise of keys.
    pub keys: Tensor,
    /// No run of queries is longer, and no run of keys.
    pub longest: [i64; 2],
    /// What a product of a query and a key is multiplied by; over 0.
    pub scale: f64,
    /// Keys before its own that a query sees, where there is a window.
    pub before: Option<i64>,
}

/// What libtorch has on CUDA devices only.
pub trait Library: Sync {
    /// Whether [`Library::attention`] takes tensors of this kind.
    fn attends(&self, kind: Kind) -> bool;

    /// Queries [Q, H, E], keys and values [K, G, E] -> `output` [Q, H, E]; returns log-sum-exps of scaled scores, [H, Q] f32.
    /// Only a head's numbers need lie together.
    ///
    /// # Errors
    /// What libtorch reports, a lack of memory among it; so too below.
    fn attention(&self, call: &VarlenCall, rows: [&Tensor; 3], output: &Tensor) -> Result<Tensor>;

    /// Gradients of queries, keys and values from that of [`Library::attention`]'s output [Q, H, E].
    fn attention_backward(
        &self,
        call: &VarlenCall,
        gradient: &Tensor,
        rows: [&Tensor; 3],
        output: &Tensor,
        log_sums: &Tensor,
    ) -> Result<[Tensor; 3]>;

    /// Adds left^T right to `sum` [M, N] f32, with left [T, M] and right [T, N] in bf16, summed in f32: nothing is rounded to
    /// bf16.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()>;
}

/// libtorch's own, with CUDA.
pub struct Libtorch;

impl Libtorch {
    /// Flash attention's window, left and right of a query's own key: it takes a causal call with a window as a local one.
    fn window(call: &VarlenCall) -> (Option<i64>, Option<i64>) {
        (call.before, call.before.map(|_| 0))
    }
}

impl Library for Libtorch {
    /// It knows f16 too, which this crate does not compute in.
    fn attends(&self, kind: Kind) -> bool {
        kind == Kind::BFloat16
    }

    fn attention(&self, call: &VarlenCall, [query, key, value]: [&Tensor; 3], output: &Tensor) -> Result<Tensor> {
        let (left, right) = Self::window(call);
        let ([longest_query, longest_key], none) = (call.longest, || None::<&Tensor>);
        let (dropout, causal, debug_mask) = (0.0, true, false);
        Ok(Tensor::f_internal_flash_attention_forward_no_dropout_inplace(
            output,
            query,
            key,
            value,
            Some(&call.queries),
            Some(&call.keys),
            longest_query,
            longest_key,
            dropout,
            causal,
            debug_mask,
            call.scale,
            left,
            right,
            none(),
            none(),
            none(),
            None,
        )?)
    }

    fn attention_backward(
        &self,
        call: &VarlenCall,
        gradient: &Tensor,
        [query, key, value]: [&Tensor; 3],
        output: &Tensor,
        log_sums: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (left, right) = Self::window(call);
        let ([longest_query, longest_key], dropout, causal) = (call.longest, 0.0, true);
        // The state of dropout's random numbers, which is read where there is dropout only.
        let unread = Tensor::f_empty([0], (Kind::Int64, query.device()))?;
        let (query, key, value) = Tensor::f_internal_flash_attention_backward(
            gradient,
            query,
            key,
            value,
            output,
            log_sums,
            &call.queries,
            &call.keys,
            longest_query,
            longest_key,
            dropout,
            causal,
            &unread,
            &unread,
            call.scale,
            left,
            right,
        )?;
        Ok([query, key, value])
    }

    /// A batch of one. libtorch gives it to cublasGemmEx with an f32 output and beta 1, on its own handle, stream and workspace;
    /// [`Tensor::f_addmm_dtype_out`] would do but for its check that what is added has the factors' kind.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()> {
        let sum = sum.unsqueeze(0);
        let _ = sum.f_baddbmm_dtype_out(&sum, &left.tr().unsqueeze(0), &right.unsqueeze(0), Kind::Float)?;
        Ok(())
    }
}
