//! The table of buffers of a micro-batch: a new buffer is a slot and a line.
//!
//! Not here: their memory (`mod.rs`).
//!
//! Legend: T tokens, N rows that are read of the last block's output, D width, H query heads, G key/value heads, E head
//! width, F width of the MLP, or of each of X experts of which a token takes K; else K = 1.

use crate::model::architecture::{Architecture, BeforeMlp, BlockDescription, QueryKeyNorm, Residual};
use std::ops::Range;

/// The name of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// [T, D], the block's input.
    Input,
    /// `[T]`, the norm before attention: factors of its rows.
    InputScale,
    /// `[T]`, the same norm's means, if it is a layer norm.
    InputMean,
    /// [T, (H + 2 G) E], queries, keys and values after rotation.
    QueryKeyValue,
    /// [T, H, E], queries before their norm.
    Queries,
    /// [T, H], or [T, 1] if all heads are normed together: factors of the queries.
    QueryScale,
    /// The same shape: means of the queries, for a layer norm.
    QueryMean,
    /// [T, G, E], keys before their norm.
    Keys,
    /// [T, G] or [T, 1]: factors of the keys.
    KeyScale,
    /// [T, G] or [T, 1]: means of the keys, for a layer norm.
    KeyMean,
    /// [T, H E], attention's result.
    Attended,
    /// [T, D], attention's result before the norm after it.
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
    /// [T, D], the MLP's result before the norm after it.
    PostMlp,
    /// `[T]`, of that norm.
    PostMlpScale,
    /// `[T]`, of that norm.
    PostMlpMean,
    /// [T, D], [`Slot::Middle`] of all blocks whose halves both read the block's input: none keeps one.
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
    /// [T, D], the gradient that passes back from block to block.
    Gradient,
    /// [T, D], that gradient between a block's two halves.
    MiddleGradient,
}

/// How long a buffer's content lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// Until the block's backward pass, always: what a block is recomputed from.
    AsInput,
    /// Until the block's backward pass, unless blocks are recomputed.
    Kept,
    /// Within a block; or for gradients, from block to block.
    Shared,
}

/// A line of the table.
pub(super) struct Buffer {
    pub(crate) slot: Slot,
    pub(crate) lasts: Lasts,
    /// Whether it is f32 whatever the model computes in.
    pub(crate) wide: bool,
    /// Whether a block that computes only some rows after attention reads these rows of the buffer then.
    pub(crate) read_after_attention: bool,
    /// The shape of a row; none if the block has no such buffer.
    pub(crate) row: fn(&Architecture, &BlockDescription) -> Option<Vec<usize>>,
}

/// A buffer in the compute kind.
const fn compute(slot: Slot, lasts: Lasts, row: fn(&Architecture, &BlockDescription) -> Option<Vec<usize>>) -> Buffer {
    Buffer { slot, lasts, wide: false, read_after_attention: false, row }
}

/// A statistic of rows, f32.
const fn statistic(slot: Slot, row: fn(&Architecture, &BlockDescription) -> Option<Vec<usize>>) -> Buffer {
    Buffer { slot, lasts: Lasts::Kept, wide: true, read_after_attention: false, row }
}

/// The same buffer, whose rows are read after attention too.
const fn read_after_attention(buffer: Buffer) -> Buffer {
    Buffer { read_after_attention: true, ..buffer }
}

/// Every buffer, in the order of [`Slot`].
pub(super) const BUFFERS: [Buffer; 33] = [
    read_after_attention(compute(Slot::Input, Lasts::AsInput, |a, _| Some(vec![a.width]))),
    read_after_attention(statistic(Slot::InputScale, |_, b| b.norms.before_attention.then(Vec::new))),
    read_after_attention(statistic(Slot::InputMean, |a, b| mean(a, b.norms.before_attention))),
    compute(Slot::QueryKeyValue, Lasts::Kept, |_, b| Some(vec![query_key_value(b)])),
    compute(Slot::Queries, Lasts::Kept, |_, b| b.query_key_norm.map(|_| vec![b.heads.query, b.heads.width])),
    statistic(Slot::QueryScale, |_, b| b.query_key_norm.map(|norm| vec![scales(norm, b.heads.query)])),
    statistic(Slot::QueryMean, |a, b| head_means(a, b, b.heads.query)),
    compute(Slot::Keys, Lasts::Kept, |_, b| b.query_key_norm.map(|_| vec![b.heads.key, b.heads.width])),
    statistic(Slot::KeyScale, |_, b| b.query_key_norm.map(|norm| vec![scales(norm, b.heads.key)])),
    statistic(Slot::KeyMean, |a, b| head_means(a, b, b.heads.key)),
    read_after_attention(compute(Slot::Attended, Lasts::Kept, |_, b| Some(vec![attended(b)]))),
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
    read_after_attention(compute(Slot::Normed, Lasts::Shared, |a, _| Some(vec![a.width]))),
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

/// A row within the MLP, of this many columns.
fn within(block: &BlockDescription, columns: usize) -> Vec<usize> {
    block.mlp.experts.map_or_else(|| vec![columns], |experts| vec![experts.top_k, columns])
}

fn scales(norm: QueryKeyNorm, heads: usize) -> usize {
    match norm {
        QueryKeyNorm::PerHead => heads,
        QueryKeyNorm::WholeWidth => 1,
    }
}

fn head_means(architecture: &Architecture, block: &BlockDescription, heads: usize) -> Option<Vec<usize>> {
    let norm = block.query_key_norm.filter(|_| architecture.norm.is_centered())?;
    Some(vec![scales(norm, heads)])
}

fn mean(architecture: &Architecture, is_there: bool) -> Option<Vec<usize>> {
    (is_there && architecture.norm.is_centered()).then(Vec::new)
}

/// The longest row of a buffer among these blocks; none if none of them has the buffer.
pub(super) fn longest(buffer: &Buffer, architecture: &Architecture, blocks: Range<usize>) -> Option<Vec<usize>> {
    let rows = architecture.blocks[blocks].iter().filter_map(|block| (buffer.row)(architecture, block));
    rows.max_by_key(|row| row.iter().product::<usize>())
}
