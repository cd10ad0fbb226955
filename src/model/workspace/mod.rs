//! The memory of a micro-batch: what blocks keep for the backward pass, and buffers that all blocks share.
//!
//! `table.rs` lists them; allocation, views, bytes and `haf-dist plan` follow from it. Buffers are made once, for the largest
//! micro-batch so far, and used again: a step allocates little else, and its memory is known. A micro-batch works in a view
//! of the first T rows.
//!
//! Legend: T tokens, N rows that are read of the last block's output, D width.

mod table;

use super::architecture::{Architecture, BlockDescription, Mlp, Residual};
use super::balance::Routing;
use super::norm::Statistics;
use super::routes::Routes;
use crate::ops::Scratch;
use std::ops::{Index, Range};
use table::{BUFFERS, Buffer, Lasts, longest};
use tch::{Device, Kind, Tensor};

pub use table::Slot;

/// Buffers grow to a multiple of this many rows.
pub(crate) const ROWS: usize = 128;

/// A tensor for each slot; undefined if the block has no such buffer.
pub struct Buffers(Vec<Tensor>);

impl Index<Slot> for Buffers {
    type Output = Tensor;

    fn index(&self, slot: Slot) -> &Tensor {
        &self.0[slot as usize]
    }
}

impl Buffers {
    /// The statistics of a norm.
    pub(crate) fn statistics(&self, scale: Slot, mean: Slot) -> Statistics {
        let mean = Some(&self[mean]).filter(|mean| mean.defined());
        Statistics { scale: self[scale].shallow_clone(), mean: mean.map(Tensor::shallow_clone) }
    }

    /// Uninitialized buffers that last so long, for any of these blocks.
    fn new(a: &Architecture, blocks: Range<usize>, lasts: Lasts, rows: usize, (kind, device): (Kind, Device)) -> Self {
        let buffer = |buffer: &Buffer| match longest(buffer, a, blocks.clone()).filter(|_| buffer.lasts == lasts) {
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

    /// The first rows of each, in the shapes of a block.
    fn first(&self, a: &Architecture, block: &BlockDescription, rows: i64) -> Self {
        self.map(|buffer, tensor| {
            let Some(row) = (buffer.row)(a, block) else { return Tensor::new() };
            let shape: Vec<i64> = std::iter::once(rows).chain(row.iter().map(|&size| size as i64)).collect();
            if tensor.size()[1..] == shape[1..] {
                return tensor.narrow(0, 0, rows);
            }
            // The memory is for blocks with longer rows: these are packed at its start.
            tensor.view([-1]).narrow(0, 0, shape.iter().product()).view(shape.as_slice())
        })
    }

    /// These, with the others in place of undefined ones.
    fn or(&self, others: &Self) -> Self {
        let either = |(mine, other): (&Tensor, &Tensor)| if mine.defined() { mine } else { other }.shallow_clone();
        Self(self.0.iter().zip(&others.0).map(either).collect())
    }

    /// The buffers of a block that computes these rows `[N]` alone after attention: copies of these rows if they are read
    /// after it, otherwise the first N rows of the same buffers.
    pub(crate) fn of_rows(&self, rows: &Tensor) -> Self {
        let count = rows.size()[0];
        self.map(|buffer, tensor| match buffer.read_after_attention {
            true => tensor.index_select(0, rows),
            false => tensor.narrow(0, 0, count),
        })
    }

    fn bytes(&self) -> usize {
        let defined = self.0.iter().filter(|tensor| tensor.defined());
        defined.map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }
}

/// Moves the first N rows of a gradient to the rows `[N]` that they belong to; the others become zero.
pub(crate) fn spread(gradient: &Tensor, rows: &Tensor) {
    let read = gradient.narrow(0, 0, rows.size()[0]).copy();
    let _ = gradient.shallow_clone().zero_().index_copy_(0, rows, &read);
}

/// All buffers of a model that runs.
#[derive(Default)]
pub struct Workspace {
    rows: usize,
    /// Least rows that buffers are made for.
    reserved: usize,
    /// Inputs of the blocks, and the last one's output; two that take turns in evaluation.
    inputs: Vec<Buffers>,
    /// What every block keeps; one block's if blocks are recomputed, and in evaluation.
    kept: Vec<Buffers>,
    shared: Option<Buffers>,
    /// For a chunk's logits.
    pub(crate) logits: Scratch,
    /// For products before they are added to a bucket.
    pub scratch: Scratch,
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything that a backward pass reads.
    Everything,
    /// Every block's input.
    Inputs,
    /// Nothing: there is no backward pass.
    Nothing,
}

/// Numbers of sets of buffers.
struct Counts {
    /// Inputs of blocks, and the last block's output.
    inputs: usize,
    /// Blocks of which everything is kept.
    kept: usize,
}

impl Keep {
    fn counts(self, layers: usize) -> Counts {
        match self {
            Self::Everything => Counts { inputs: layers + 1, kept: layers },
            Self::Inputs => Counts { inputs: layers + 1, kept: 1 },
            Self::Nothing => Counts { inputs: 2, kept: 1 },
        }
    }
}

/// The buffers of a block, and what else it keeps of a micro-batch.
pub struct BlockState {
    /// Its buffers and the shared ones.
    pub buffers: Buffers,
    /// Log-sum-exps of each attention call, for the backward pass.
    pub log_sums: Vec<Tensor>,
    /// Which rows went through which experts, if there are any.
    pub(crate) routes: Option<Routes>,
    /// The routing of all rows, in training if the block then computes only some of them.
    pub(crate) routing: Option<Routing>,
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

/// Bytes of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// Of buffers that are kept for the backward pass.
    pub kept: usize,
    /// Of buffers that blocks share.
    pub(crate) shared: usize,
}

/// Bytes of the workspace for micro-batches of this many tokens; a number in the compute kind has `compute_bytes`.
pub(crate) fn bytes(architecture: &Architecture, tokens: usize, keep: Keep, compute_bytes: usize) -> Bytes {
    let of = |lasts: Lasts, blocks: Range<usize>| {
        let rows = BUFFERS.iter().filter(|buffer| buffer.lasts == lasts).filter_map(|buffer| {
            let numbers: usize = longest(buffer, architecture, blocks.clone())?.iter().product();
            Some(numbers * if buffer.wide { 4 } else { compute_bytes })
        });
        rows.sum::<usize>() * tokens.next_multiple_of(ROWS)
    };
    let layers = architecture.blocks.len();
    let Counts { inputs, kept } = keep.counts(layers);
    let kept: usize = (0..kept).map(|number| of(Lasts::Kept, kept_by(number, layers))).sum();
    Bytes { kept: inputs * of(Lasts::AsInput, 0..layers) + kept, shared: of(Lasts::Shared, 0..layers) }
}

/// The blocks that may use the kept buffers of this number: the first are for any block.
fn kept_by(number: usize, layers: usize) -> Range<usize> {
    if number == 0 { 0..layers } else { number..number + 1 }
}

impl Workspace {
    /// From the next micro-batch on, makes buffers for at least this many tokens. Buffers that grew with every longer
    /// micro-batch would fragment memory; on CPUs pages that no micro-batch reaches take no memory.
    pub(crate) fn reserve(&mut self, tokens: usize) {
        self.reserved = self.reserved.max(tokens);
    }

    /// The tokens of [`Workspace::reserve`].
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Bytes of the buffers made so far.
    pub fn bytes(&self) -> Bytes {
        let kept = self.inputs.iter().chain(&self.kept).map(Buffers::bytes).sum();
        Bytes { kept, shared: self.shared.as_ref().map_or(0, Buffers::bytes) }
    }

    /// Views of T = `tokens` rows. The previous micro-batch's are overwritten.
    pub fn views(&mut self, architecture: &Architecture, tokens: i64, keep: Keep, on: (Kind, Device)) -> Views {
        if tokens as usize > self.rows {
            // Freed before the larger ones are made.
            let [logits, scratch] = [&mut self.logits, &mut self.scratch].map(std::mem::take);
            *self = Self { reserved: self.reserved, logits, scratch, ..Self::default() };
            self.rows = self.reserved.max(tokens as usize).next_multiple_of(ROWS);
        }
        let (rows, layers) = (self.rows, architecture.blocks.len());
        let new = |lasts, blocks| Buffers::new(architecture, blocks, lasts, rows, on);
        let Counts { inputs, kept } = keep.counts(layers);
        while self.inputs.len() < inputs {
            self.inputs.push(new(Lasts::AsInput, 0..layers));
        }
        while self.kept.len() < kept {
            self.kept.push(new(Lasts::Kept, kept_by(self.kept.len(), layers)));
        }
        let shared = self.shared.get_or_insert_with(|| new(Lasts::Shared, 0..layers));
        // One set for all blocks with the same MLP.
        let mut views: Vec<(Mlp, Buffers)> = Vec::new();
        let state = |(number, block): (usize, &BlockDescription)| {
            let own = self.inputs[number % inputs].or(&self.kept[number % kept]).first(architecture, block, tokens);
            let known = views.iter().position(|(mlp, _)| *mlp == block.mlp).unwrap_or_else(|| {
                views.push((block.mlp, shared.first(architecture, block, tokens)));
                views.len() - 1
            });
            let shared = &views[known].1;
            let mut buffers = own.or(shared);
            if block.residual == Residual::Parallel {
                buffers.0[Slot::Middle as usize] = shared[Slot::SharedMiddle].shallow_clone();
            }
            BlockState { buffers, log_sums: Vec::new(), routes: None, routing: None }
        };
        Views {
            states: architecture.blocks.iter().enumerate().map(state).collect(),
            output: self.inputs[layers % inputs][Slot::Input].narrow(0, 0, tokens),
            shared: shared.map(|_, tensor| tensor.narrow(0, 0, tokens)),
        }
    }
}
