//! Memory of a rank by part, counted from what the code allocates.
//!
//! Each function counts one place of the code and names it: whoever changes what is kept there changes the count here,
//! and `tests/plan.rs` compares the two. Not here: whether it fits (`hardware.rs`).
//!
//! Legend: T tokens of a micro-batch, D width, V vocabulary, H query heads, G key/value heads, E head width, F width of
//! the MLP, R response rows held at once, c bytes of a number in the compute kind. Statistics are f32: 4 bytes.

use super::workload::Shape;
use super::{Bucket, Job};
use crate::head::ROWS_AT_ONCE;
use serde::Serialize;

/// The process without a model. CPU: libtorch, MPI, tokenizer, data and the thread stacks, as seen on Linux x86-64.
const CPU_BASE: usize = 250_000_000;

/// What bf16 runs on the CPU were seen to hold less of without oneDNN's primitive cache
/// (ONEDNN_PRIMITIVE_CACHE_CAPACITY=0): its entries lie between the activations. It grows with the number of different
/// token counts: runs with few stayed 0.3 GB below this, some with many went 0.5 GB above.
const ONEDNN: usize = 500_000_000;

/// The process without a model on a GPU, assumed: CUDA's context, libtorch's kernels, cuBLAS's workspaces, NCCL's buffers.
const GPU_BASE: usize = 1_500_000_000;

/// Gaps between blocks that come and go, as a share of them: on the CPU fitted to runs of SmolLM2-135M (glibc's heap keeps
/// what it once had), on a GPU assumed.
const CPU_SLACK: f64 = 0.20;
const GPU_SLACK: f64 = 0.05;

/// Bytes of a rank, by part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// Parameters in the compute kind.
    pub weights: usize,
    /// f32 gradient sums: the reducer's buckets.
    pub gradients: usize,
    /// f32 masters; none where the weights are f32 themselves.
    pub masters: usize,
    /// AdamW's two moments.
    pub moments: usize,
    /// What the largest micro-batch keeps for its backward pass.
    pub activations: usize,
    /// What one block's backward pass needs besides.
    pub block_workspace: usize,
    /// What the two heads need besides; not at the same time as a block.
    pub head_workspace: usize,
    /// What the update needs, when no activations are there.
    pub update_workspace: usize,
    /// Gaps between blocks that come and go.
    pub slack: usize,
    /// The process without a model, libraries' caches included.
    pub base: usize,
}

impl Memory {
    /// Memory of a job whose micro-batches are at most `largest`.
    pub fn of(job: &Job, largest: &Shape, cpu: bool) -> Self {
        let buckets = job.buckets();
        let sum = |bytes: &dyn Fn(&Bucket) -> usize| buckets.iter().map(bytes).sum::<usize>();
        let trained = job.trained();
        let has_masters = |bucket: &Bucket| bucket.trains && bucket.compute_bytes != 4;
        let mut memory = Self {
            weights: sum(&|bucket| bucket.elements * bucket.compute_bytes),
            gradients: 4 * trained,
            masters: sum(&|bucket| if has_masters(bucket) { 4 * bucket.elements } else { 0 }),
            moments: 8 * trained,
            activations: activations(job, largest),
            block_workspace: block_workspace(job, largest, cpu),
            head_workspace: head_workspace(job, largest),
            update_workspace: if cpu { 0 } else { update_workspace(&buckets) },
            slack: 0,
            base: match (cpu, job.compute_bytes()) {
                (true, 4) => CPU_BASE,
                (true, _) => CPU_BASE + ONEDNN,
                (false, _) => GPU_BASE,
            },
        };
        memory.slack = (if cpu { CPU_SLACK } else { GPU_SLACK } * memory.passing() as f64) as usize;
        memory
    }

    /// The most that comes and goes in a step.
    fn passing(&self) -> usize {
        (self.activations + self.block_workspace.max(self.head_workspace)).max(self.update_workspace)
    }

    /// Everything at the worst moment of a step.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.masters + self.moments + self.passing() + self.slack + self.base
    }

    /// The same if each of `ranks` kept masters and moments of its share of the parameters only (ZeRO stage 1,
    /// arXiv 1910.02054).
    pub fn total_if_sharded(&self, ranks: usize) -> usize {
        let state = self.masters + self.moments;
        self.total() - state + state.div_ceil(ranks)
    }
}

/// Bytes that `model::decoder::BlockState` keeps of T tokens: input, middle (D each); query, attended (H E each); key,
/// value (G E each); gate, up (F each); the two norms' scales and the attention's log-sums in f32.
pub fn block_state(job: &Job, tokens: usize) -> usize {
    let a = &job.architecture;
    let kept = 2 * a.width + 2 * (a.heads + a.kv_heads) * a.head_width + 2 * a.mlp_width;
    tokens * (job.compute_bytes() * kept + 4 * (2 + a.heads))
}

/// What `engine::Engine::forward_backward` holds of a micro-batch when the last block is done: every block's state, or
/// its input alone and one state when blocks are recomputed; the rotation's cosines and sines; the masks.
fn activations(job: &Job, shape: &Shape) -> usize {
    let a = &job.architecture;
    let (c, tokens) = (job.compute_bytes(), shape.tokens);
    let blocks = if job.checkpointing {
        a.layers * c * tokens * a.width + block_state(job, tokens)
    } else {
        a.layers * block_state(job, tokens)
    };
    blocks + c * (2 * tokens * a.head_width + shape.mask)
}

/// The most that `model::decoder::Block::backward` holds besides the block's state: the larger of three moments.
fn block_workspace(job: &Job, shape: &Shape, cpu: bool) -> usize {
    let a = &job.architecture;
    let (c, tokens) = (job.compute_bytes(), shape.tokens);
    // The product of `Segment::add_product` before it is added to the bucket: only where it is not f32 itself.
    let product = if c == 4 { 0 } else { c * a.mlp_width * a.width };
    let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
    // `mlp_backward`: three tensors [T, F] beside the gradient, as the down projection goes back.
    let mlp = c * tokens * (3 * a.mlp_width + a.width) + product;
    // Its norm: two [T, F] and three [T, D] are still there, and `norm::backward` has three more in f32.
    let norm = tokens * (c * (2 * a.mlp_width + 4 * a.width) + 12 * a.width);
    // `attention_backward`: two gradients [T, D], that of the attended rows, and those of query, key and value.
    let mut attention = c * tokens * (2 * a.width + 2 * query + 2 * key);
    if !cpu {
        // The kernel for GPUs holds a sequence's scores five times in f32, and its keys and values for every head.
        let rows = shape.longest_sequence;
        attention += 4 * a.heads * rows * (5 * rows + 4 * a.head_width);
    }
    mlp.max(norm).max(attention)
}

/// The most that `head::Heads::forward_backward` holds: the hidden states before and after the final norm and their
/// gradient in f32 [T, D]; with log-probs also R rows times V: log-softmax, its exponential and their product in f32, or
/// the gradient in both kinds and the product of the weight gradient before it is added.
fn head_workspace(job: &Job, shape: &Shape) -> usize {
    let a = &job.architecture;
    let c = job.compute_bytes();
    let hidden = shape.tokens * a.width * (2 * c + 4);
    if !job.policy {
        return hidden;
    }
    let rows = shape.answers.min(ROWS_AT_ONCE.max(shape.longest_answers));
    let (narrow, product) = if c == 4 { (0, 0) } else { (c, c * a.vocabulary * a.width) };
    let loss = rows * a.vocabulary * 12;
    let gradient = rows * a.vocabulary * (8 + narrow) + product;
    hidden + rows * a.width * c + loss.max(gradient)
}

/// The update as tensor operations (`optim::step_with_tensors`): four f32 tensors of the largest bucket.
fn update_workspace(buckets: &[Bucket]) -> usize {
    let largest = buckets.iter().filter(|bucket| bucket.trains).map(|bucket| bucket.elements).max();
    4 * 4 * largest.unwrap_or(0)
}
