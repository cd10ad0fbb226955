//! The memory of a micro-batch: what blocks keep for the backward pass, and buffers that all blocks share.
//!
//! Buffers are made once, for the largest micro-batch so far, and used again: a step allocates little besides, and its
//! memory is known (`haf-dist plan` predicts it). A view of the first T rows is what a micro-batch works in.
//!
//! Legend: T tokens, D width, H query heads, G key/value heads, E head width, F width of the MLP.

use super::config::Architecture;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Buffers grow to a multiple of this many rows.
pub const ROWS: usize = 128;

/// What a block keeps for its backward pass; the first T rows are used.
pub struct BlockState {
    /// [T, D], the block's input.
    pub input: Tensor,
    /// `[T]` f32, of the norm before attention.
    pub input_scale: Tensor,
    /// [T, (H + 2 G) E], after rotation.
    pub query_key_value: Tensor,
    /// [T, H E], what attention gave.
    pub attended: Tensor,
    /// Of each attention call.
    pub log_sums: Vec<Tensor>,
    /// [T, D], after attention and the residual addition.
    pub middle: Tensor,
    /// `[T]` f32, of the norm before the MLP.
    pub middle_scale: Tensor,
    /// [T, 2 F], before the activation.
    pub gate_up: Tensor,
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
    /// [T, 2 F].
    pub gate_up_gradient: Tensor,
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
    shared: Option<Shared>,
    /// For a chunk's logits.
    pub logits: Scratch,
    /// For products whose sum lies elsewhere.
    pub scratch: Scratch,
}

/// A buffer for one matrix at a time.
#[derive(Default)]
pub struct Scratch(RefCell<Option<Tensor>>);

impl Scratch {
    /// An uninitialised matrix [rows, columns]; the one before it is gone.
    pub fn matrix(&self, rows: i64, columns: i64, kind: Kind, device: Device) -> Tensor {
        self.matrix_of_at_most(rows, rows, columns, kind, device)
    }

    /// As [`Scratch::matrix`], with memory for `most` rows.
    pub fn matrix_of_at_most(&self, most: i64, rows: i64, columns: i64, kind: Kind, device: Device) -> Tensor {
        let mut buffer = self.0.borrow_mut();
        let fits = |buffer: &&mut Tensor| buffer.size()[0] >= rows * columns && buffer.kind() == kind;
        let buffer = match buffer.as_mut().filter(fits) {
            Some(buffer) => buffer,
            None => {
                *buffer = None;
                buffer.insert(Tensor::empty([most.max(rows) * columns], (kind, device)))
            }
        };
        buffer.narrow(0, 0, rows * columns).view([rows, columns])
    }
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
    /// [T, D], the last block's output.
    pub output: Tensor,
    /// Shared buffers.
    pub shared: Shared,
}

impl Default for Workspace {
    fn default() -> Self {
        let [logits, scratch] = Default::default();
        Self { rows: 0, reserved: 0, states: Vec::new(), inputs: Vec::new(), shared: None, logits, scratch }
    }
}

impl Workspace {
    /// Makes buffers for micro-batches of so many tokens, from the next on. Buffers that grew with every longer
    /// micro-batch would leave holes; on CPUs rows that no micro-batch reaches take no memory.
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
        let sum = |tensors: &[&Tensor]| tensors.iter().map(|tensor| bytes(tensor)).sum::<usize>();
        let state = |kept: &BlockState| {
            let BlockState {
                input: _,
                input_scale,
                query_key_value,
                attended,
                log_sums: _,
                middle,
                middle_scale,
                gate_up,
            } = kept;
            sum(&[input_scale, query_key_value, attended, middle, middle_scale, gate_up])
        };
        let kept = self.states.iter().map(state).sum::<usize>() + self.inputs.iter().map(bytes).sum::<usize>();
        let shared = self.shared.as_ref().map_or(0, |shared| sum(&shared.all()));
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
        let shared = self.shared.get_or_insert_with(|| Shared::new(architecture, rows, on));
        let first = |buffer: &Tensor| buffer.narrow(0, 0, tokens);
        let state = |block: usize| {
            let kept = &self.states[block % states];
            BlockState {
                input: first(&self.inputs[block % inputs]),
                input_scale: first(&kept.input_scale),
                query_key_value: first(&kept.query_key_value),
                attended: first(&kept.attended),
                log_sums: Vec::new(),
                middle: first(&kept.middle),
                middle_scale: first(&kept.middle_scale),
                gate_up: first(&kept.gate_up),
            }
        };
        Views {
            states: (0..architecture.layers).map(state).collect(),
            output: first(&self.inputs[architecture.layers % inputs]),
            shared: shared.map(first),
        }
    }
}

/// Columns of the buffers: H E, (H + 2 G) E, F.
fn widths(architecture: &Architecture) -> (i64, i64, i64) {
    let Architecture { heads, kv_heads, head_width, mlp_width, .. } = *architecture;
    ((heads * head_width) as i64, ((heads + 2 * kv_heads) * head_width) as i64, mlp_width as i64)
}

impl BlockState {
    /// `input` is filled in by the views.
    fn new(architecture: &Architecture, rows: i64, on: (Kind, Device)) -> Self {
        let (attended, query_key_value, mlp) = widths(architecture);
        let matrix = |columns: i64| Tensor::empty([rows, columns], on);
        let scale = || Tensor::empty([rows], (Kind::Float, on.1));
        Self {
            input: Tensor::new(),
            input_scale: scale(),
            query_key_value: matrix(query_key_value),
            attended: matrix(attended),
            log_sums: Vec::new(),
            middle: matrix(architecture.width as i64),
            middle_scale: scale(),
            gate_up: matrix(2 * mlp),
        }
    }
}

impl Shared {
    fn new(architecture: &Architecture, rows: i64, on: (Kind, Device)) -> Self {
        let (attended, query_key_value, mlp) = widths(architecture);
        let width = architecture.width as i64;
        let matrix = |columns: i64| Tensor::empty([rows, columns], on);
        Self {
            normed: matrix(width),
            change: matrix(width),
            activated: matrix(mlp),
            activated_gradient: matrix(mlp),
            gate_up_gradient: matrix(2 * mlp),
            attended_gradient: matrix(attended),
            query_key_value_gradient: matrix(query_key_value),
            gradient: matrix(width),
            middle_gradient: matrix(width),
        }
    }

    fn all(&self) -> [&Tensor; 9] {
        let Self { normed, change, activated, activated_gradient, gate_up_gradient, .. } = self;
        let Self { attended_gradient, query_key_value_gradient, gradient, middle_gradient, .. } = self;
        [
            normed,
            change,
            activated,
            activated_gradient,
            gate_up_gradient,
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
            gate_up_gradient: view(&self.gate_up_gradient),
            attended_gradient: view(&self.attended_gradient),
            query_key_value_gradient: view(&self.query_key_value_gradient),
            gradient: view(&self.gradient),
            middle_gradient: view(&self.middle_gradient),
        }
    }
}
