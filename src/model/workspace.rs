//! The memory of a micro-batch: what blocks keep for the backward pass, and buffers that all blocks share.
//!
//! One table lists every buffer (`BUFFERS`). Allocation, views, bytes and `haf-dist plan` follow from it: a new buffer
//! is a slot and a line. Buffers are made once, for the largest micro-batch so far, and used again: a step allocates
//! little besides, and its memory is known. A micro-batch works in a view of the first T rows.
//!
//! Legend: T tokens, N rows that are read of the last block's output, D width, H query heads, G key/value heads, E head
//! width, F width of the MLP, or of each of X experts of which a token takes K; else K = 1.

use super::architecture::{Architecture, BeforeMlp, BlockDescription, QueryKeyNorm, Residual};
use super::norm::Statistics;
use super::routes::Routes;
use crate::ops::Scratch;
use std::ops::Index;
use tch::{Device, Kind, Tensor};

/// Buffers grow to a multiple of this many rows.
pub const ROWS: usize = 128;

/// The name of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// [T, D], the block's input.
    Input,
    /// `[T]`, the norm before attention: what its rows were multiplied by.
    InputScale,
    /// `[T]`, the same norm's means, of a layer norm.
    InputMean,
    /// [T, (H + 2 G) E], queries, keys and values after rotation.
    QueryKeyValue,
    /// [T, H, E], queries before their norm.
    Queries,
    /// [T, H], or [T, 1] where all heads are normed together: what they were multiplied by.
    QueryScale,
    /// [T, G, E], keys before their norm.
    Keys,
    /// [T, G] or [T, 1].
    KeyScale,
    /// [T, H E], attention's result.
    Attended,
    /// [T, D], what attention adds, before its norm.
    PostAttention,
    /// `[T]`, of that norm.
    PostAttentionScale,
    /// `[T]`, of that norm.
    PostAttentionMean,
    /// [T, D], after attention and the residual addition.
    Middle,
    /// `[T]`, of the MLP's own norm.
    MiddleScale,
    /// `[T]`, of the MLP's own norm.
    MiddleMean,
    /// [T, X] f32, each expert's share of a token.
    Shares,
    /// [T, K, 2 F] with a gate, else [T, K, F]; before the activation. With experts the T K rows are sorted by expert.
    Inner,
    /// [T, D], what the MLP adds, before its norm.
    PostMlp,
    /// `[T]`, of that norm.
    PostMlpScale,
    /// `[T]`, of that norm.
    PostMlpMean,
    /// [T, D], [`Slot::Middle`] of all blocks where none keeps one: both halves read the block's input.
    SharedMiddle,
    /// [T, D], a norm's output.
    Normed,
    /// [T, D], a projection's output, or the gradient of a norm's output.
    Change,
    /// [T, K, D], rows that go through experts, sorted by expert.
    Routed,
    /// [T, K, F], the activation.
    Activated,
    /// [T, K, F], its gradient.
    ActivatedGradient,
    /// [T, K, 2 F] with a gate, else [T, K, F].
    InnerGradient,
    /// [T, H E].
    AttendedGradient,
    /// [T, (H + 2 G) E].
    QueryKeyValueGradient,
    /// [T, D], the gradient that walks back from block to block.
    Gradient,
    /// [T, D], that gradient between a block's two halves.
    MiddleGradient,
}

/// How long a buffer's content lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// Until the block's backward pass, always: what a block is recomputed from.
    AsInput,
    /// Until the block's backward pass, unless blocks are recomputed.
    Kept,
    /// Within a block; the gradients from block to block.
    Shared,
}

/// A line of the table.
struct Buffer {
    slot: Slot,
    lasts: Lasts,
    /// Whether it is f32 whatever the model computes in.
    wide: bool,
    /// Whether a block that goes on with some rows alone after attention reads those rows of it.
    read_on: bool,
    /// The shape of a row; none where the block has no such buffer.
    row: fn(&Architecture, &BlockDescription) -> Option<Vec<usize>>,
}

/// A buffer in the compute kind.
const fn compute(slot: Slot, lasts: Lasts, row: fn(&Architecture, &BlockDescription) -> Option<Vec<usize>>) -> Buffer {
    Buffer { slot, lasts, wide: false, read_on: false, row }
}

/// A statistic of rows, f32.
const fn statistic(slot: Slot, row: fn(&Architecture, &BlockDescription) -> Option<Vec<usize>>) -> Buffer {
    Buffer { slot, lasts: Lasts::Kept, wide: true, read_on: false, row }
}

/// The same buffer, whose rows are read on.
const fn read_on(buffer: Buffer) -> Buffer {
    Buffer { read_on: true, ..buffer }
}

/// Every buffer, in the order of [`Slot`].
const BUFFERS: [Buffer; 31] = [
    read_on(compute(Slot::Input, Lasts::AsInput, |a, _| Some(vec![a.width]))),
    read_on(statistic(Slot::InputScale, |_, b| b.norms.before_attention.then(Vec::new))),
    read_on(statistic(Slot::InputMean, |a, b| mean(a, b.norms.before_attention))),
    compute(Slot::QueryKeyValue, Lasts::Kept, |_, b| Some(vec![query_key_value(b)])),
    compute(Slot::Queries, Lasts::Kept, |_, b| b.query_key_norm.map(|_| vec![b.heads.query, b.heads.width])),
    statistic(Slot::QueryScale, |_, b| b.query_key_norm.map(|norm| vec![scales(norm, b.heads.query)])),
    compute(Slot::Keys, Lasts::Kept, |_, b| b.query_key_norm.map(|_| vec![b.heads.key, b.heads.width])),
    statistic(Slot::KeyScale, |_, b| b.query_key_norm.map(|norm| vec![scales(norm, b.heads.key)])),
    read_on(compute(Slot::Attended, Lasts::Kept, |_, b| Some(vec![attended(b)]))),
    compute(Slot::PostAttention, Lasts::Kept, |a, b| b.norms.after_attention.then(|| vec![a.width])),
    statistic(Slot::PostAttentionScale, |_, b| b.norms.after_attention.then(Vec::new)),
    statistic(Slot::PostAttentionMean, |a, b| mean(a, b.norms.after_attention)),
    compute(Slot::Middle, Lasts::Kept, |a, b| (b.residual == Residual::Sequential).then(|| vec![a.width])),
    statistic(Slot::MiddleScale, |_, b| (b.norms.before_mlp == BeforeMlp::Own).then(Vec::new)),
    statistic(Slot::MiddleMean, |a, b| mean(a, b.norms.before_mlp == BeforeMlp::Own)),
    statistic(Slot::Shares, |_, b| b.mlp.experts.map(|experts| vec![experts.count])),
    compute(Slot::Inner, Lasts::Kept, |_, b| Some(within(b, b.mlp.inner_width()))),
    compute(Slot::PostMlp, Lasts::Kept, |a, b| b.norms.after_mlp.then(|| vec![a.width])),
    statistic(Slot::PostMlpScale, |_, b| b.norms.after_mlp.then(Vec::new)),
    statistic(Slot::PostMlpMean, |a, b| mean(a, b.norms.after_mlp)),
    compute(Slot::SharedMiddle, Lasts::Shared, |a, b| (b.residual == Residual::Parallel).then(|| vec![a.width])),
    read_on(compute(Slot::Normed, Lasts::Shared, |a, _| Some(vec![a.width]))),
    compute(Slot::Change, Lasts::Shared, |a, _| Some(vec![a.width])),
    compute(Slot::Routed, Lasts::Shared, |a, b| b.mlp.experts.map(|experts| vec![experts.top_k, a.width])),
    compute(Slot::Activated, Lasts::Shared, |_, b| Some(within(b, b.mlp.width))),
    compute(Slot::ActivatedGradient, Lasts::Shared, |_, b| Some(within(b, b.mlp.width))),
    compute(Slot::InnerGradient, Lasts::Shared, |_, b| Some(within(b, b.mlp.inner_width()))),
    compute(Slot::AttendedGradient, Lasts::Shared, |_, b| Some(vec![attended(b)])),
    compute(Slot::QueryKeyValueGradient, Lasts::Shared, |_, b| Some(vec![query_key_value(b)])),
    compute(Slot::Gradient, Lasts::Shared, |a, _| Some(vec![a.width])),
    compute(Slot::MiddleGradient, Lasts::Shared, |a, _| Some(vec![a.width])),
];

// The table lists every slot at its place.
const _: () = {
    let mut place = 0;
    while place < BUFFERS.len() {
        assert!(BUFFERS[place].slot as usize == place);
        place += 1;
    }
    assert!(BUFFERS.len() == Slot::MiddleGradient as usize + 1);
};

fn attended(block: &BlockDescription) -> usize {
    block.heads.query * block.heads.width
}

fn query_key_value(block: &BlockDescription) -> usize {
    (block.heads.query + 2 * block.heads.key) * block.heads.width
}

/// A row within the MLP, of so many columns.
fn within(block: &BlockDescription, columns: usize) -> Vec<usize> {
    block.mlp.experts.map_or_else(|| vec![columns], |experts| vec![experts.top_k, columns])
}

fn scales(norm: QueryKeyNorm, heads: usize) -> usize {
    match norm {
        QueryKeyNorm::PerHead => heads,
        QueryKeyNorm::WholeWidth => 1,
    }
}

fn mean(architecture: &Architecture, is_there: bool) -> Option<Vec<usize>> {
    (is_there && architecture.norm.is_centred()).then(Vec::new)
}

/// A tensor a slot; undefined where the block has no such buffer.
pub struct Buffers(Vec<Tensor>);

impl Index<Slot> for Buffers {
    type Output = Tensor;

    fn index(&self, slot: Slot) -> &Tensor {
        &self.0[slot as usize]
    }
}

impl Buffers {
    /// What a norm keeps of its rows.
    pub fn statistics(&self, scale: Slot, mean: Slot) -> Statistics {
        let mean = Some(&self[mean]).filter(|mean| mean.defined());
        Statistics { scale: self[scale].shallow_clone(), mean: mean.map(Tensor::shallow_clone) }
    }

    /// Uninitialised buffers of those that last so.
    fn new(architecture: &Architecture, lasts: Lasts, rows: usize, (kind, device): (Kind, Device)) -> Self {
        let block = &architecture.blocks[0];
        let buffer = |buffer: &Buffer| match (buffer.row)(architecture, block).filter(|_| buffer.lasts == lasts) {
            Some(row) => {
                let shape: Vec<i64> = std::iter::once(rows).chain(row).map(|size| size as i64).collect();
                Tensor::empty(shape.as_slice(), (if buffer.wide { Kind::Float } else { kind }, device))
            }
            None => Tensor::new(),
        };
        Self(BUFFERS.iter().map(buffer).collect())
    }

    fn map(&self, view: impl Fn(&Buffer, &Tensor) -> Tensor) -> Self {
        let each = |(buffer, tensor): (&Buffer, &Tensor)| match tensor.defined() {
            true => view(buffer, tensor),
            false => Tensor::new(),
        };
        Self(BUFFERS.iter().zip(&self.0).map(each).collect())
    }

    fn first(&self, rows: i64) -> Self {
        self.map(|_, tensor| tensor.narrow(0, 0, rows))
    }

    /// These, and the others where these are undefined.
    fn or(&self, others: &Self) -> Self {
        let either = |(mine, other): (&Tensor, &Tensor)| if mine.defined() { mine } else { other }.shallow_clone();
        Self(self.0.iter().zip(&others.0).map(either).collect())
    }

    /// The buffers of a block that goes on with these rows `[N]` alone after attention: rows that are read on are copied,
    /// the rest is the first N rows of the same buffers.
    pub fn of_rows(&self, rows: &Tensor) -> Self {
        let count = rows.size()[0];
        self.map(|buffer, tensor| match buffer.read_on {
            true => tensor.index_select(0, rows),
            false => tensor.narrow(0, 0, count),
        })
    }

    fn bytes(&self) -> usize {
        let defined = self.0.iter().filter(|tensor| tensor.defined());
        defined.map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }
}

/// All buffers of a model that runs.
#[derive(Default)]
pub struct Workspace {
    rows: usize,
    /// Rows that buffers are made for at least.
    reserved: usize,
    /// Inputs of the blocks, and the last one's output; two that take turns in evaluation.
    inputs: Vec<Buffers>,
    /// What every block keeps; one block's where blocks are recomputed, and in evaluation.
    kept: Vec<Buffers>,
    shared: Option<Buffers>,
    /// For a chunk's logits.
    pub logits: Scratch,
    /// For products whose sum lies elsewhere.
    pub scratch: Scratch,
}

/// What the next micro-batch needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything that a backward pass reads.
    Everything,
    /// Every block's input.
    Inputs,
    /// Nothing: there is no backward pass.
    Nothing,
}

impl Keep {
    /// How many inputs there are, the last block's output among them, and of how many blocks all is kept.
    fn counts(self, layers: usize) -> (usize, usize) {
        match self {
            Self::Everything => (layers + 1, layers),
            Self::Inputs => (layers + 1, 1),
            Self::Nothing => (2, 1),
        }
    }
}

/// What a block works in.
pub struct BlockState {
    /// Its buffers and the shared ones.
    pub buffers: Buffers,
    /// Of each attention call, for the backward pass.
    pub log_sums: Vec<Tensor>,
    /// Which rows went through which experts, where there are any.
    pub routes: Option<Routes>,
}

/// The views of one micro-batch.
pub struct Views {
    /// A state for every block.
    pub states: Vec<BlockState>,
    /// [T, D], of which the last block fills the first N rows.
    pub output: Tensor,
    /// The shared buffers.
    pub shared: Buffers,
}

/// Bytes of the workspace for micro-batches of so many tokens: of what is kept for the backward pass, and of what blocks
/// share; `compute_bytes` of a number in the compute kind.
pub fn bytes(architecture: &Architecture, tokens: usize, keep: Keep, compute_bytes: usize) -> (usize, usize) {
    let block = &architecture.blocks[0];
    let of = |lasts: Lasts| {
        let rows = BUFFERS.iter().filter(|buffer| buffer.lasts == lasts).filter_map(|buffer| {
            let numbers: usize = (buffer.row)(architecture, block)?.iter().product();
            Some(numbers * if buffer.wide { 4 } else { compute_bytes })
        });
        rows.sum::<usize>() * tokens.next_multiple_of(ROWS)
    };
    let (inputs, kept) = keep.counts(architecture.blocks.len());
    (inputs * of(Lasts::AsInput) + kept * of(Lasts::Kept), of(Lasts::Shared))
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
        let kept = self.inputs.iter().chain(&self.kept).map(Buffers::bytes).sum();
        (kept, self.shared.as_ref().map_or(0, Buffers::bytes))
    }

    /// Views of T = `tokens` rows. Those of the micro-batch before are overwritten.
    pub fn views(&mut self, architecture: &Architecture, tokens: i64, keep: Keep, on: (Kind, Device)) -> Views {
        if tokens as usize > self.rows {
            // Freed before the larger ones are made.
            let [logits, scratch] = [&mut self.logits, &mut self.scratch].map(std::mem::take);
            *self = Self { reserved: self.reserved, logits, scratch, ..Self::default() };
            self.rows = self.reserved.max(tokens as usize).next_multiple_of(ROWS);
        }
        let (rows, layers) = (self.rows, architecture.blocks.len());
        let new = |lasts| Buffers::new(architecture, lasts, rows, on);
        let (inputs, kept) = keep.counts(layers);
        while self.inputs.len() < inputs {
            self.inputs.push(new(Lasts::AsInput));
        }
        while self.kept.len() < kept {
            self.kept.push(new(Lasts::Kept));
        }
        let shared = self.shared.get_or_insert_with(|| new(Lasts::Shared)).first(tokens);
        let state = |block: usize| {
            let own = self.inputs[block % inputs].or(&self.kept[block % kept]).first(tokens);
            let mut buffers = own.or(&shared);
            if architecture.blocks[block].residual == Residual::Parallel {
                buffers.0[Slot::Middle as usize] = shared[Slot::SharedMiddle].shallow_clone();
            }
            BlockState { buffers, log_sums: Vec::new(), routes: None }
        };
        Views {
            states: (0..layers).map(state).collect(),
            output: self.inputs[layers % inputs][Slot::Input].narrow(0, 0, tokens),
            shared,
        }
    }
}
