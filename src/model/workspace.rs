//! The memory of a micro-batch: what blocks keep for the backward pass, and buffers that all blocks share.
//!
//! Buffers are made once, for the largest micro-batch so far, and used again: a step allocates little besides, and its
//! memory is known (`haf-dist plan` predicts it). A view of the first T rows is what a micro-batch works in.
//!
//! Legend: T tokens, N rows that are read of the last block's output, D width, H query heads, G key/value heads, E head
//! width, F width of the MLP.

use super::config::{Architecture, Residual};
use super::norm::Statistics;
use crate::ops::Scratch;
use tch::{Device, Kind, Tensor};

/// Buffers grow to a multiple of this many rows.
pub const ROWS: usize = 128;

/// What a block keeps for its backward pass; the first T rows are used.
pub struct BlockState {
    /// [T, D], the block's input.
    pub input: Tensor,
    /// Of the norm before attention.
    pub input_statistics: Statistics,
    /// [T, (H + 2 G) E], after rotation.
    pub query_key_value: Tensor,
    /// Of queries and of keys, where each head is normed.
    pub head_norms: Option<[HeadNorm; 2]>,
    /// [T, H E], what attention gave.
    pub attended: Tensor,
    /// Of each attention call.
    pub log_sums: Vec<Tensor>,
    /// Where what attention adds is normed.
    pub post_attention: Option<PostNorm>,
    /// [T, D], after attention and the residual addition. Where the halves of a block are side by side nothing is kept
    /// here: all blocks have the same buffer.
    pub middle: Tensor,
    /// Of the norm before the MLP, if it has one of its own.
    pub middle_statistics: Statistics,
    /// [T, 2 F] with a gate, else [T, F]; before the activation.
    pub inner: Tensor,
    /// Where what the MLP adds is normed.
    pub post_mlp: Option<PostNorm>,
}

/// What the norm of every head keeps, of n heads.
pub struct HeadNorm {
    /// [T, n, E], before the norm.
    pub before: Tensor,
    /// [T, n] f32.
    pub scale: Tensor,
}

/// What a norm after a half of a block keeps.
pub struct PostNorm {
    /// [T, D], before the norm.
    pub before: Tensor,
    /// Of its rows.
    pub statistics: Statistics,
}

/// Buffers that hold nothing between blocks, except the gradient that walks back.
pub struct Shared {
    /// [T, D], a norm's output.
    pub normed: Tensor,
    /// [T, D], a projection's output, or the gradient of a norm's output.
    pub change: Tensor,
    /// [T, F], the activation.
    pub activated: Tensor,
    /// [T, F], its gradient.
    pub activated_gradient: Tensor,
    /// [T, 2 F] with a gate, else [T, F].
    pub inner_gradient: Tensor,
    /// [T, H E].
    pub attended_gradient: Tensor,
    /// [T, (H + 2 G) E].
    pub query_key_value_gradient: Tensor,
    /// [T, D], the gradient that walks back from block to block.
    pub gradient: Tensor,
    /// [T, D], that gradient between a block's two halves.
    pub middle_gradient: Tensor,
}

/// All buffers of a model that runs.
pub struct Workspace {
    rows: i64,
    /// Rows that buffers are made for at least.
    reserved: usize,
    /// A state for every block where all is kept; one where blocks are recomputed, and in evaluation.
    states: Vec<BlockState>,
    /// Inputs of the blocks where they are recomputed, and the last one's output.
    inputs: Vec<Tensor>,
    /// [T, D] for every block's `middle` where none is kept.
    middle: Option<Tensor>,
    shared: Option<Shared>,
    /// For a chunk's logits.
    pub logits: Scratch,
    /// For products whose sum lies elsewhere.
    pub scratch: Scratch,
}

/// What the next micro-batch needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Every block's state.
    Everything,
    /// Every block's input.
    Inputs,
    /// Nothing: there is no backward pass.
    Nothing,
}

/// The views of one micro-batch.
pub struct Views {
    /// A state for every block; with [`Keep::Inputs`] and [`Keep::Nothing`] they share everything but the input.
    pub states: Vec<BlockState>,
    /// [T, D], of which the last block fills the first N rows.
    pub output: Tensor,
    /// Shared buffers.
    pub shared: Shared,
}

impl Default for Workspace {
    fn default() -> Self {
        let [logits, scratch] = Default::default();
        let (states, inputs) = Default::default();
        Self { rows: 0, reserved: 0, states, inputs, middle: None, shared: None, logits, scratch }
    }
}

impl Workspace {
    /// Makes buffers for micro-batches of so many tokens, from the next on. Buffers that grew with every longer
    /// micro-batch would leave holes; on CPUs pages that no micro-batch reaches take no memory.
    pub fn reserve(&mut self, tokens: usize) {
        self.reserved = self.reserved.max(tokens);
    }

    /// What [`Workspace::reserve`] was told.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Bytes of the buffers that are kept for the backward pass, and of those that blocks share.
    pub fn bytes(&self) -> (usize, usize) {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let sum = |tensors: Vec<&Tensor>| tensors.into_iter().map(bytes).sum::<usize>();
        let states = self.states.iter().map(|state| sum(state.kept())).sum::<usize>();
        let kept = states + self.inputs.iter().chain(&self.middle).map(bytes).sum::<usize>();
        let shared = self.shared.as_ref().map_or(0, |shared| sum(shared.all().to_vec()));
        (kept, shared)
    }

    /// Views of T = `tokens` rows. Those of the micro-batch before are overwritten.
    pub fn views(&mut self, architecture: &Architecture, tokens: i64, keep: Keep, on: (Kind, Device)) -> Views {
        let width = architecture.width as i64;
        if tokens > self.rows {
            // Freed before the larger ones are made.
            let [logits, scratch] = [&mut self.logits, &mut self.scratch].map(std::mem::take);
            *self = Self { reserved: self.reserved, logits, scratch, ..Self::default() };
            self.rows = self.reserved.max(tokens as usize).next_multiple_of(ROWS) as i64;
        }
        let rows = self.rows;
        let states = if keep == Keep::Everything { architecture.layers } else { 1 };
        // Without a backward pass two hidden states take turns.
        let inputs = if keep == Keep::Nothing { 2 } else { architecture.layers + 1 };
        while self.inputs.len() < inputs {
            self.inputs.push(Tensor::empty([rows, width], on));
        }
        while self.states.len() < states {
            self.states.push(BlockState::new(architecture, rows, on));
        }
        if architecture.residual == Residual::Parallel {
            self.middle.get_or_insert_with(|| Tensor::empty([rows, width], on));
        }
        let shared = self.shared.get_or_insert_with(|| Shared::new(architecture, rows, on));
        let first = |buffer: &Tensor| buffer.narrow(0, 0, tokens);
        let state = |block: usize| {
            let kept = &self.states[block % states];
            BlockState {
                input: first(&self.inputs[block % inputs]),
                middle: first(self.middle.as_ref().unwrap_or(&kept.middle)),
                ..kept.map(first)
            }
        };
        Views {
            states: (0..architecture.layers).map(state).collect(),
            output: first(&self.inputs[architecture.layers % inputs]),
            shared: shared.map(first),
        }
    }
}

/// Columns of the buffers: H E, (H + 2 G) E, F, and of what the MLP computes before its activation.
fn widths(architecture: &Architecture) -> [i64; 4] {
    let Architecture { heads, kv_heads, head_width, mlp_width, .. } = *architecture;
    let columns = [heads * head_width, (heads + 2 * kv_heads) * head_width, mlp_width, architecture.inner_width()];
    columns.map(|columns| columns as i64)
}

impl BlockState {
    /// `input` is filled in by the views, and `middle` where it is not kept.
    fn new(architecture: &Architecture, rows: i64, on: (Kind, Device)) -> Self {
        let Architecture { norm, names, heads, kv_heads, head_width, residual, .. } = architecture;
        let [attended, query_key_value, _, inner] = widths(architecture);
        let width = architecture.width as i64;
        let matrix = |columns: i64| Tensor::empty([rows, columns], on);
        let statistics = || Statistics::new(*norm, rows, on.1);
        let post_norm = || PostNorm { before: matrix(width), statistics: statistics() };
        let head_norm = |heads: &usize| HeadNorm {
            before: Tensor::empty([rows, *heads as i64, *head_width as i64], on),
            scale: Tensor::empty([rows, *heads as i64], (Kind::Float, on.1)),
        };
        Self {
            input: Tensor::new(),
            input_statistics: statistics(),
            query_key_value: matrix(query_key_value),
            head_norms: names.head_norms.map(|_| [heads, kv_heads].map(head_norm)),
            attended: matrix(attended),
            log_sums: Vec::new(),
            post_attention: names.post_attention_norm.map(|_| post_norm()),
            middle: if *residual == Residual::Sequential { matrix(width) } else { Tensor::new() },
            middle_statistics: statistics(),
            inner: matrix(inner),
            post_mlp: names.post_mlp_norm.map(|_| post_norm()),
        }
    }

    /// A view of each tensor that is kept, but `input` and `middle`.
    fn map(&self, view: impl Fn(&Tensor) -> Tensor) -> Self {
        let statistics = |of: &Statistics| of.map(&view);
        let post_norm =
            |kept: &PostNorm| PostNorm { before: view(&kept.before), statistics: statistics(&kept.statistics) };
        let head_norm = |kept: &HeadNorm| HeadNorm { before: view(&kept.before), scale: view(&kept.scale) };
        Self {
            input: Tensor::new(),
            input_statistics: statistics(&self.input_statistics),
            query_key_value: view(&self.query_key_value),
            head_norms: self.head_norms.as_ref().map(|both| both.each_ref().map(head_norm)),
            attended: view(&self.attended),
            log_sums: Vec::new(),
            post_attention: self.post_attention.as_ref().map(post_norm),
            middle: Tensor::new(),
            middle_statistics: statistics(&self.middle_statistics),
            inner: view(&self.inner),
            post_mlp: self.post_mlp.as_ref().map(post_norm),
        }
    }

    /// The state of a block that goes on with these rows `[N]` alone after attention: the block's input and what
    /// attention gave are copied, the rest is the first N rows of the same buffers.
    pub fn of_rows(&self, rows: &Tensor) -> Self {
        let read = |buffer: &Tensor| buffer.index_select(0, rows);
        let first = |buffer: &Tensor| buffer.narrow(0, 0, rows.size()[0]);
        Self {
            input: read(&self.input),
            input_statistics: self.input_statistics.map(read),
            attended: read(&self.attended),
            middle: first(&self.middle),
            ..self.map(first)
        }
    }

    /// Every tensor that the state owns: all but `input` and the sums of attention.
    fn kept(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.query_key_value, &self.attended, &self.inner];
        all.extend(Some(&self.middle).filter(|middle| middle.defined()));
        all.extend(self.input_statistics.all().chain(self.middle_statistics.all()));
        for kept in self.post_attention.iter().chain(&self.post_mlp) {
            all.push(&kept.before);
            all.extend(kept.statistics.all());
        }
        all.extend(self.head_norms.iter().flatten().flat_map(|kept| [&kept.before, &kept.scale]));
        all
    }
}

impl Shared {
    fn new(architecture: &Architecture, rows: i64, on: (Kind, Device)) -> Self {
        let [attended, query_key_value, mlp, inner] = widths(architecture);
        let width = architecture.width as i64;
        let matrix = |columns: i64| Tensor::empty([rows, columns], on);
        Self {
            normed: matrix(width),
            change: matrix(width),
            activated: matrix(mlp),
            activated_gradient: matrix(mlp),
            inner_gradient: matrix(inner),
            attended_gradient: matrix(attended),
            query_key_value_gradient: matrix(query_key_value),
            gradient: matrix(width),
            middle_gradient: matrix(width),
        }
    }

    /// The buffers for these rows `[N]` alone: the norm's output, which may be read on, is copied; all others are the
    /// first N rows of the same buffers.
    pub fn of_rows(&self, rows: &Tensor) -> Self {
        let first = self.map(|buffer| buffer.narrow(0, 0, rows.size()[0]));
        Self { normed: self.normed.index_select(0, rows), ..first }
    }

    fn all(&self) -> [&Tensor; 9] {
        let Self { normed, change, activated, activated_gradient, inner_gradient, .. } = self;
        let Self { attended_gradient, query_key_value_gradient, gradient, middle_gradient, .. } = self;
        [
            normed,
            change,
            activated,
            activated_gradient,
            inner_gradient,
            attended_gradient,
            query_key_value_gradient,
            gradient,
            middle_gradient,
        ]
    }

    fn map(&self, view: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            normed: view(&self.normed),
            change: view(&self.change),
            activated: view(&self.activated),
            activated_gradient: view(&self.activated_gradient),
            inner_gradient: view(&self.inner_gradient),
            attended_gradient: view(&self.attended_gradient),
            query_key_value_gradient: view(&self.query_key_value_gradient),
            gradient: view(&self.gradient),
            middle_gradient: view(&self.middle_gradient),
        }
    }
}
