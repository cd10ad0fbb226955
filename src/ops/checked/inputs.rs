//! Inputs of the trials: small tensors with a model's own widths. Their values look random and are the same in every run.
//!
//! Legend: as in `ops/mod.rs`.

use super::super::{Activation, Angles, MlpKind};
use crate::packing::{AttentionRules, Group, HeadCounts};
use tch::{Device, Kind, Tensor};

/// Rows of a trial: some whole tiles of a kernel and a part of one.
const ROWS: usize = 136;

/// The widths of a model, its device and its compute kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Widths {
    /// f32 or bf16.
    pub(crate) kind: Kind,
    /// The device.
    pub device: Device,
    /// T.
    pub rows: usize,
    /// D.
    pub(crate) width: usize,
    /// Whether norms add 1 to their weights.
    pub(crate) plus_one: bool,
    /// V.
    pub(crate) vocabulary: usize,
    /// Cap of the logits.
    pub(crate) soft_cap: Option<f64>,
    /// Its blocks; equal ones only once.
    pub blocks: Vec<BlockWidths>,
}

/// The widths of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockWidths {
    /// Its heads.
    pub heads: HeadCounts,
    /// Scale, cap and window of attention's scores.
    pub rules: AttentionRules,
    /// Columns of a head that are rotated; 0 if none.
    pub rotated: usize,
    /// F.
    pub inner: usize,
    /// Activation of its MLP, and whether it is gated.
    pub mlp: MlpKind,
    /// X; 0 if it has no experts.
    pub experts: usize,
}

impl Widths {
    /// A model of this width, still without blocks.
    pub fn new(width: usize, vocabulary: usize, kind: Kind, device: Device) -> Self {
        let blocks = Vec::new();
        Self { kind, device, rows: ROWS, width, plus_one: false, vocabulary, soft_cap: None, blocks }
    }

    /// Adds a block, unless an equal one is there.
    pub fn add(&mut self, block: BlockWidths) {
        if !self.blocks.contains(&block) {
            self.blocks.push(block);
        }
    }

    /// Values from -1 to 1, in the compute kind.
    pub(super) fn waves(&self, shape: &[usize], phase: f64) -> Tensor {
        self.f32_waves(shape, phase).to_kind(self.kind)
    }

    /// The same in f32.
    pub(super) fn f32_waves(&self, shape: &[usize], phase: f64) -> Tensor {
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, self.device));
        ((index * 12.9898 + phase).sin() * 43.758).sin().to_kind(Kind::Float).view(shape.as_slice())
    }

    /// Uninitialized, in the compute kind.
    pub(super) fn empty(&self, shape: &[usize]) -> Tensor {
        self.empty_of(shape, self.kind)
    }

    /// Uninitialized.
    pub(super) fn empty_of(&self, shape: &[usize], kind: Kind) -> Tensor {
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        Tensor::empty(shape.as_slice(), (kind, self.device))
    }

    /// Cosines and sines of R columns.
    pub(super) fn angles(&self, rotated: usize) -> Angles {
        let angle = self.f32_waves(&[self.rows, rotated / 2], 0.3) * 3.0;
        Angles { cosine: angle.cos(), sine: angle.sin() }
    }

    /// A prompt with two answers, one with one answer, and a sequence without a prompt, over all rows.
    pub(super) fn groups(&self) -> Vec<Group> {
        let part = self.rows / 8;
        let last = self.rows - 7 * part;
        vec![
            Group { start: 0, prefix: 2 * part, suffixes: vec![part, part + 1] },
            Group { start: 4 * part + 1, prefix: part, suffixes: vec![part] },
            Group { start: 6 * part + 1, prefix: 0, suffixes: vec![part + last - 1] },
        ]
    }
}

impl BlockWidths {
    /// A block of plain causal attention and a gated MLP.
    pub fn plain(heads: HeadCounts, inner: usize) -> Self {
        let rules = AttentionRules { scale: (heads.width as f64).powf(-0.5), window: None, soft_cap: None };
        let mlp = MlpKind { activation: Activation::Silu, gated: true };
        Self { heads, rules, rotated: heads.width, inner, mlp, experts: 0 }
    }

    /// Its rules with a window that hides something from this many rows.
    pub(super) fn narrowed(&self, rows: usize) -> AttentionRules {
        AttentionRules { window: self.rules.window.map(|window| window.min(rows / 6).max(1)), ..self.rules }
    }
}
