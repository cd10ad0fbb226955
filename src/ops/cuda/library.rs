//! libtorch calls that exist on CUDA devices only.
//!
//! Not here: their callers (`attention.rs`), and the same computations for any device (`plain.rs`).
//!
//! Legend: Q query rows in all, K key rows in all, H query heads, G key/value heads, E head width.

use crate::error::Result;
use tch::{Kind, Tensor};

/// Attention over consecutive runs of query rows, each with its own run of key rows.
///
/// Query i in a run of q queries and k keys sees the keys up to i + k - q, which is its own key; so the last query sees the last
/// key. With a window it sees none before i + k - q - `before`.
pub struct VarlenCall {
    /// `[runs + 1]` i32 on the device: where each run of queries starts, and where the last one ends.
    pub queries: Tensor,
    /// Likewise of keys.
    pub keys: Tensor,
    /// Length of the longest run of queries, and of keys.
    pub longest: [i64; 2],
    /// Factor of the product of a query and a key; above 0.
    pub scale: f64,
    /// Size of the window: how many keys before its own a query sees.
    pub before: Option<i64>,
}

/// What libtorch has on CUDA devices only.
pub trait Library: Sync {
    /// Whether [`Library::attention`] takes tensors of this kind.
    fn attends(&self, kind: Kind) -> bool;

    /// Queries [Q, H, E], keys and values [K, G, E] -> `output` [Q, H, E]; returns log-sum-exps of scaled scores, [H, Q] f32.
    /// Only the numbers of one head must be contiguous.
    ///
    /// # Errors
    /// libtorch's errors, such as a lack of memory; the same below.
    fn attention(&self, call: &VarlenCall, rows: [&Tensor; 3], output: &Tensor) -> Result<Tensor>;

    /// Gradients of queries, keys and values, given the gradient of [`Library::attention`]'s output [Q, H, E].
    fn attention_backward(
        &self,
        call: &VarlenCall,
        gradient: &Tensor,
        rows: [&Tensor; 3],
        output: &Tensor,
        log_sums: &Tensor,
    ) -> Result<[Tensor; 3]>;

    /// Adds left^T right to `sum` [M, N] f32, with left [T, M] and right [T, N] in bf16. The product is summed in f32 and never
    /// rounded to bf16.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()>;
}

/// libtorch's own calls, on CUDA devices.
pub(crate) struct Libtorch;

impl Libtorch {
    /// Flash attention's window to the left and right of a query's own key. A causal call with a window counts as a local one.
    fn window(call: &VarlenCall) -> (Option<i64>, Option<i64>) {
        (call.before, call.before.map(|_| 0))
    }
}

impl Library for Libtorch {
    /// f16 would work too, but this crate does not compute in it.
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
        // Dropout's random state; without dropout it is not read.
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

    /// A batched product with a batch of one. libtorch passes it to cublasGemmEx with an f32 output and beta 1, on its own handle,
    /// stream and workspace. [`Tensor::f_addmm_dtype_out`] would do, but it wants the sum to have the factors' kind.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()> {
        let sum = sum.unsqueeze(0);
        let _ = sum.f_baddbmm_dtype_out(&sum, &left.tr().unsqueeze(0), &right.unsqueeze(0), Kind::Float)?;
        Ok(())
    }
}
