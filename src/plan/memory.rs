//! A rank's memory by part, counted from what the code allocates.
//!
//! Each function counts one place in the code and names it. A change there needs a change here; `tests/all/plan.rs` compares the
//! two. Not here: whether it fits (`hardware.rs`).
//!
//! Legend: T tokens of a micro-batch, D width, V vocabulary, R response rows held at once, c bytes per number in the
//! compute kind.

use super::hardware::Hardware;
use super::workload::Shape;
use super::{Bucket, Job};
use crate::engine::head::ROWS_AT_ONCE;
use crate::model::architecture::BlockDescription;
use crate::model::segment::Sizes;
use crate::model::workspace::{self, Keep};
use crate::ops::Activation;
use crate::ops::cuda::{self, Libtorch};
use crate::packing::HeadCounts;
use serde::Serialize;

/// The process without a model. CPU: libtorch, MPI, tokenizer, data and the thread stacks, as seen on Linux x86-64.
const CPU_BASE: usize = 250_000_000;

/// The process without a model on a GPU, assumed: CUDA's context, libtorch's kernels, cuBLAS's workspaces, NCCL's buffers.
const GPU_BASE: usize = 1_500_000_000;

/// Allocator slack, as a share of all buffers of a micro-batch: assumed.
const GPU_SLACK: f64 = 0.05;

/// Bytes of an f32.
const F32: usize = 4;

/// Bytes of a rank, by part. Sizes of weights and optimizer state come from the table that allocation reads ([`Sizes`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// Parameters in the compute kind.
    pub weights: usize,
    /// f32 gradient sums: the reducer's buckets.
    pub gradients: usize,
    /// f32 masters; 0 if the weights are f32 themselves.
    pub masters: usize,
    /// AdamW's two moments.
    pub moments: usize,
    /// Kept by the largest micro-batch for its backward pass.
    pub activations: usize,
    /// Shared by blocks, and temporary results of one block.
    pub block_workspace: usize,
    /// Logits, the heads' hidden states and the gradient product of the vocabulary matrix.
    pub head_workspace: usize,
    /// Temporary results of the update, on a GPU.
    pub(crate) update_workspace: usize,
    /// One tensor while it is loaded, on a CPU; on a GPU it is in the host's memory.
    pub(crate) loading: usize,
    /// Collected for saving: on a GPU a part of one tensor's state, on a CPU that and the whole tensor.
    pub(crate) saving: usize,
    /// Allocator slack, on a GPU.
    pub(crate) slack: usize,
    /// The process without a model, including libraries' caches.
    pub base: usize,
}

impl Memory {
    /// [`Memory::of`] on that hardware.
    pub(crate) fn on(hardware: &Hardware, job: &Job, largest: &Shape, ranks: usize) -> Self {
        Self::of(job, largest, (!hardware.cpu).then_some(hardware.multiprocessors), ranks)
    }

    /// Memory of one of the `ranks` of a job whose micro-batches are at most `largest`, on a GPU with so many multiprocessors or
    /// on a CPU.
    pub fn of(job: &Job, largest: &Shape, gpu: Option<usize>, ranks: usize) -> Self {
        let cpu = gpu.is_none();
        // Buffers are made for the budget; on a CPU pages that no micro-batch reaches take no memory. Large pages (2 MB,
        // if the system has them) cover more than the rows in use: measured peaks lie 1% to 7% above.
        let budget = if cpu { 0 } else { job.tokens_per_micro_batch };
        let largest = &Shape { tokens: largest.tokens.max(budget), ..*largest };
        let buckets = job.buckets();
        let sizes: Vec<(&Bucket, Sizes)> =
            buckets.iter().map(|bucket| (bucket, bucket.sizes(job.sharded, ranks))).collect();
        let sum = |bytes: &dyn Fn(&(&Bucket, Sizes)) -> usize| sizes.iter().map(bytes).sum::<usize>();
        let mut memory = Self {
            weights: sum(&|(bucket, sizes)| bucket.kind.elt_size_in_bytes() * sizes.weights),
            gradients: sum(&|(_, sizes)| F32 * sizes.bucket),
            masters: sum(&|(_, sizes)| F32 * sizes.masters),
            moments: sum(&|(_, sizes)| 2 * F32 * sizes.moment),
            activations: workspace(job, largest.tokens).kept,
            block_workspace: block_workspace(job, largest, gpu),
            head_workspace: head_workspace(job, largest, cpu),
            update_workspace: if cpu { 0 } else { update_workspace(&sizes) },
            loading: if cpu {
                F32 * buckets.iter().map(|bucket| bucket.largest_parameter).max().unwrap_or(0)
            } else {
                0
            },
            saving: if job.sharded && ranks > 1 { saving(&sizes, cpu) } else { 0 },
            slack: 0,
            base: if cpu { CPU_BASE } else { GPU_BASE },
        };
        if !cpu {
            memory.slack = (GPU_SLACK * memory.buffers() as f64) as usize;
        }
        memory
    }

    /// A micro-batch's buffers. They stay allocated between steps.
    fn buffers(&self) -> usize {
        self.activations + self.block_workspace + self.head_workspace
    }

    /// At the worst moment.
    pub fn total(&self) -> usize {
        self.in_a_step().max(self.at_start())
    }

    /// While the model is loaded: nothing has been computed, and there are no moments.
    pub fn at_start(&self) -> usize {
        self.weights + self.gradients + self.masters + self.base + self.loading
    }

    /// The worst moment of a step, or of saving after it.
    pub fn in_a_step(&self) -> usize {
        let lasting = self.weights + self.gradients + self.masters + self.moments + self.base;
        lasting + self.buffers() + self.slack + self.update_workspace.max(self.saving)
    }
}

/// Bytes of `model::workspace`: those kept for the backward pass, and those that blocks share.
pub fn workspace(job: &Job, tokens: usize) -> workspace::Bytes {
    let keep = if job.checkpointing { Keep::Inputs } else { Keep::Everything };
    workspace::bytes(&job.architecture, tokens, keep, job.compute_bytes())
}

/// Buffers that blocks share, every block's log-sum-exps, the rotation's angles, the experts' routes, and the largest temporary
/// results of a block.
fn block_workspace(job: &Job, shape: &Shape, gpu: Option<usize>) -> usize {
    let a = &job.architecture;
    let temporary = a.blocks.iter().map(|block| temporary(job, shape, gpu, block)).max().unwrap_or(0);
    let angles: usize = a.rotations.iter().map(|rotation| rotation.width).sum();
    let log_sums = a.blocks.iter().map(|block| block.heads.query).sum::<usize>();
    // `model::routes` per token and expert: three numbers of eight bytes and one of four.
    let routes = a.blocks.iter().filter_map(|block| block.mlp.experts).map(|experts| 28 * experts.top_k).sum::<usize>();
    workspace(job, shape.tokens).shared + shape.tokens * (4 * (log_sums + angles) + routes) + temporary
}

/// The largest temporary results of a block: attention's before they are laid out, those of an activation without a loop of its
/// own, of normed heads, or of experts.
fn temporary(job: &Job, shape: &Shape, gpu: Option<usize>, block: &BlockDescription) -> usize {
    let (c, tokens) = (job.compute_bytes(), shape.tokens);
    let BlockDescription { heads, rules, mlp, query_key_norm, .. } = block;
    let (query, key) = (heads.query * heads.width, heads.key * heads.width);
    let attention = if let Some(multiprocessors) = gpu
        && cuda::takes(&Libtorch, job.kind, *heads, rules)
    {
        flash(c, shape, *heads, if job.deterministic { multiprocessors } else { 1 })
    } else if gpu.is_none() {
        c * tokens * (query + 2 * key)
    } else {
        // Without a fused kernel: a sequence's scores five times in f32, and its keys and values for every head. An
        // upper bound, since libtorch picks the kernel.
        let rows = shape.longest_sequence;
        4 * heads.query * rows * (5 * rows + 4 * heads.width) + c * shape.mask
    };
    let fused = mlp.kind.gated && matches!(mlp.kind.activation, Activation::Silu | Activation::GeluTanh);
    let activation = if fused { 0 } else { 3 * c * tokens * mlp.rows() * mlp.width };
    let head_norms = if query_key_norm.is_some() { 2 * c * tokens * query } else { 0 };
    // In f32: the sum of a token's experts and one of its rows; in the backward pass a product of such rows.
    let experts = mlp.experts.map_or(0, |experts| 8 * tokens * (job.architecture.width + experts.top_k * mlp.width));
    attention.max(activation).max(head_norms).max(experts)
}

/// Needs of flash attention's backward pass: gathered keys and values (at most twice their rows), their gradients and the
/// queries'. Beside them, one after the other: gradients of keys and values for every query head with the parts of the queries'
/// gradient ([`parts`]), and what shared rows' gradients are summed in.
fn flash(c: usize, shape: &Shape, HeadCounts { query, key, width }: HeadCounts, multiprocessors: usize) -> usize {
    let (rows, gathered) = (shape.tokens, 2 * shape.tokens);
    let lasting = c * width * (4 * gathered * key + rows * query);
    let expanded = if query == key { 0 } else { c * width * 2 * gathered * query };
    // As many rows again as are shared.
    let summed = c * width * 2 * key * (gathered + rows);
    lasting + (expanded + parts(shape, query, width, multiprocessors)).max(summed)
}

/// The queries' gradient in f32, with room for a block of rows per run. In a fixed order the key blocks' parts of it are summed in
/// as many copies as it takes to keep all multiprocessors busy: most where a micro-batch has few pairs.
fn parts(shape: &Shape, heads: usize, width: usize, multiprocessors: usize) -> usize {
    const BLOCK: usize = 128;
    let width = width.next_multiple_of(if width > 128 { 64 } else { 32 });
    let of_pairs = |pairs: usize| {
        let (runs, rows) = (2 * pairs, shape.tokens.min(2 * shape.longest_sequence * pairs));
        multiprocessors.div_ceil(runs * heads) * (rows + BLOCK * runs)
    };
    F32 * heads * width * (1..=shape.pairs).map(of_pairs).max().unwrap_or(0)
}

/// Needs of `head::Heads::forward_backward`: the final norm's output and the gradient of the hidden states, in f32 and in the
/// compute kind, counted as if all T rows were read. With log-probs also R rows times V of logits; on a GPU those twice more in
/// f32, with a soft cap three times. On a CPU, if products are not f32, the largest weight's product before it is added to the
/// bucket; a GPU adds it at once.
fn head_workspace(job: &Job, shape: &Shape, cpu: bool) -> usize {
    let a = &job.architecture;
    let c = job.compute_bytes();
    let mut largest = a.blocks.iter().map(|block| block.mlp.inner_width()).max().unwrap_or(0) * a.width;
    let mut bytes = shape.tokens * a.width * (2 * c + 4);
    if job.policy {
        let rows = shape.answers.min(ROWS_AT_ONCE.max(shape.longest_answers));
        bytes += rows * a.vocabulary * c + rows * a.width * (2 * c + 4);
        if !cpu {
            bytes += rows * a.vocabulary * 4 * if a.logit_cap.is_some() { 3 } else { 2 };
        }
        largest = largest.max(a.vocabulary * a.width);
    }
    bytes + if cpu && c != 4 { c * largest } else { 0 }
}

/// The update as tensor operations (`ops::tensors::adamw`): four f32 tensors of the largest part of a bucket that a rank updates.
fn update_workspace(sizes: &[(&Bucket, Sizes)]) -> usize {
    4 * F32 * sizes.iter().map(|(_, sizes)| sizes.moment).max().unwrap_or(0)
}

/// Needs of rank 0 while it saves sharded state (`sharding::Shares`): another rank's part of a parameter and, on a CPU, the
/// whole parameter.
fn saving(sizes: &[(&Bucket, Sizes)], cpu: bool) -> usize {
    let trained = sizes.iter().filter(|(bucket, _)| bucket.trains);
    let bytes = trained.map(|(bucket, sizes)| {
        let part = sizes.moment.min(bucket.largest_parameter);
        F32 * if cpu { part + bucket.largest_parameter } else { part }
    });
    bytes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_order_takes_copies_of_the_queries_gradient_where_a_micro_batch_has_few_runs() {
        let shape = Shape { pairs: 1, tokens: 1000, longest_sequence: 800, ..Shape::default() };
        let one = 4 * 8 * 64 * (1000 + 2 * 128);
        // 132 multiprocessors, and 16 runs of a head: nine copies.
        assert_eq!([1, 132].map(|count| parts(&shape, 8, 64, count)), [one, 9 * one]);
        // Where more pairs fit, there may still be one that fills the budget nearly alone.
        let more = Shape { pairs: 40, ..shape };
        assert_eq!(parts(&more, 8, 64, 132), 9 * one);
        assert_eq!(parts(&more, 8, 64, 1), 4 * 8 * 64 * (1000 + 80 * 128));
        // Short sequences alone have no such micro-batch: 20 pairs in 40 runs.
        let short = Shape { longest_sequence: 25, ..more };
        assert_eq!(parts(&short, 8, 64, 132), 4 * 8 * 64 * (1000 + 80 * 128));
        // Wide heads are rounded up to 64 numbers, others to 32.
        assert_eq!([80, 160, 256].map(|width| parts(&shape, 8, width, 1) / (4 * 8 * 1256)), [96, 192, 256]);
    }
}
