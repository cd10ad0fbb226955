//! Arguments of operations: small structs in place of many tensors of one type.
//!
//! Legend: as in `ops/mod.rs`.

use super::cuda::VarlenPlan;
use super::tensors::attention::Call;
use crate::error::{Error, Result};
use crate::packing::{AttentionRules, Group, HeadCounts};
use crate::tensor::on_device;
use std::ops::Range;
use tch::{Device, Tensor};

/// Cosines and sines of one batch's positions: two tensors [T, R / 2] f32, R rotated columns of a head.
pub struct Angles {
    /// Of each position and frequency.
    pub cosine: Tensor,
    /// Likewise.
    pub sine: Tensor,
}

/// The direction of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the angles of the positions.
    Forward,
    /// By their negatives: the gradient.
    Backward,
}

impl Direction {
    /// The sign of the sines.
    pub(crate) fn sign(self) -> f32 {
        if self == Self::Forward { 1.0 } else { -1.0 }
    }
}

/// Factors of normed rows: `[D]`, or 1 + that.
#[derive(Clone, Copy)]
pub struct NormWeight<'a> {
    /// The numbers.
    pub values: &'a Tensor,
    /// Whether 1 is added to them.
    pub plus_one: bool,
}

/// Weight of a layer norm and its bias, if it has one, `[D]` each.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// Multiplied.
    pub weight: &'a Tensor,
    /// Added.
    pub bias: Option<&'a Tensor>,
}

/// Sums `[D]` f32 that the gradients of an [`Affine`] are added to, if they are trained.
#[derive(Clone, Copy)]
pub struct AffineSums<'a> {
    /// Of the weight.
    pub weight: Option<&'a Tensor>,
    /// Of the bias.
    pub bias: Option<&'a Tensor>,
}

/// A layer norm's statistics of its rows: `[T]` f32 each.
#[derive(Clone, Copy)]
pub struct LayerStatistics<'a> {
    /// Mean.
    pub mean: &'a Tensor,
    /// 1 / standard deviation.
    pub scale: &'a Tensor,
}

/// A norm's backward pass: `input` = residual + gradient of x, from the gradient of the output; [T, D] each.
#[derive(Clone, Copy)]
pub struct NormGradients<'a> {
    /// Of the output.
    pub output: &'a Tensor,
    /// Added to the gradient of x, if given.
    pub residual: Option<&'a Tensor>,
    /// Written.
    pub input: &'a Tensor,
}

/// A function of one number (arXiv 1606.08415).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x): Llama's, Mistral's, Qwen's and Phi-3's `silu`.
    Silu,
    /// GELU by tanh: Gemma's `gelu_pytorch_tanh` and Phi-2's `gelu_new`.
    GeluTanh,
    /// GELU by the error function: GPT-NeoX's `gelu`.
    Gelu,
    /// x sigmoid(1.702 x): `quick_gelu`.
    QuickGelu,
    /// max(x, 0).
    Relu,
}

/// What an MLP computes between its two products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpKind {
    /// The function.
    pub activation: Activation,
    /// Whether its value is multiplied by a second projection (arXiv 2002.05202).
    pub gated: bool,
}

/// Which rows of a micro-batch see which.
pub struct AttentionPlan {
    pub(super) groups: Vec<Group>,
    pub(super) heads: HeadCounts,
    pub(super) rules: AttentionRules,
    /// For tensor operations; empty if loops walk the groups, or if one library call attends.
    pub(super) calls: Vec<Call>,
    /// For one library call, if it attends.
    pub(super) varlen: Option<VarlenPlan>,
}

/// Logits [R, V] and the log-sum-exp of each row, `[R]` f32; c > 0 if they are capped, c tanh(logit / c) (arXiv
/// 2408.00118).
pub struct Logits {
    /// The logits.
    pub values: Tensor,
    /// Log-sum-exps of the capped logits.
    pub sums: Tensor,
    /// c.
    pub soft_cap: Option<f64>,
}

/// A place in logits [R, V].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Below R.
    pub row: usize,
    /// Below V.
    pub token: usize,
}

/// Places in logits, as two tensors `[places]` i64 on their device.
pub struct Places {
    /// Their rows.
    pub rows: Tensor,
    /// Their tokens.
    pub tokens: Tensor,
}

impl Places {
    /// Places in these logits [R, V].
    ///
    /// # Errors
    /// A place outside the logits.
    pub fn new(places: &[Place], logits: &Tensor) -> Result<Self> {
        let (rows, width) = (logits.size()[0] as usize, logits.size()[1] as usize);
        if let Some(place) = places.iter().find(|place| place.row >= rows || place.token >= width) {
            return Err(Error::runtime(format!("{place:?} lies outside logits of {rows} x {width}")));
        }
        let index = |number: fn(&Place) -> usize, device: Device| {
            on_device(&places.iter().map(|place| number(place) as i64).collect::<Vec<_>>(), device)
        };
        let device = logits.device();
        Ok(Self { rows: index(|place| place.row, device), tokens: index(|place| place.token, device) })
    }
}

/// The constants of one update of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamWConstants {
    /// Learning rate.
    pub learning_rate: f32,
    /// Factor of values that decay: 1 - learning rate * weight decay.
    pub decay: f32,
    /// Of the first moment.
    pub beta1: f32,
    /// Of the second moment.
    pub beta2: f32,
    /// 1 - beta1 and 1 - beta2, taken in f64: in f32 the second would be 5e-5 too large.
    pub complements: [f32; 2],
    /// Keeps the quotient finite.
    pub epsilon: f32,
}

/// The verdict on a step's gradients, on their device: nobody waits for it before the update.
pub struct Verdict {
    /// `[3]` f32: the factor of gradient sums; 1 / (1 - beta1^t); 1 / sqrt(1 - beta2^t).
    pub scales: Tensor,
    /// `[1]` bool: whether the update is made.
    pub made: Tensor,
}

/// A parameter's elements in the flat buffers of an [`AdamWStep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdamWPart {
    /// Where they lie.
    pub range: Range<usize>,
    /// Whether they decay: matrices do, norms and biases do not.
    pub decays: bool,
}

/// Flat buffers of one length, to be updated; all f32 except the compute values.
pub struct AdamWStep<'a> {
    /// Gradient sums, read.
    pub gradient: Tensor,
    /// First and second moments.
    pub moments: &'a [Tensor; 2],
    /// Masters.
    pub master: &'a Tensor,
    /// bf16 copies of the masters; none if the masters are the compute values.
    pub compute: Option<Tensor>,
    /// The parameters, ascending, without gaps from the start of the buffers.
    pub parts: Vec<AdamWPart>,
    /// The numbers of this update that are known before its gradients are.
    pub constants: AdamWConstants,
    /// The other numbers, and whether the update is made.
    pub verdict: &'a Verdict,
}

/// Some columns of rows [T, N]: those of one of the projections that are one product.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// The rows.
    pub rows: &'a Tensor,
    /// The first of the columns.
    pub first: i64,
    /// Number of columns, C.
    pub count: i64,
}

impl<'a> Columns<'a> {
    /// All columns.
    pub(crate) fn all(rows: &'a Tensor) -> Self {
        Self { rows, first: 0, count: rows.size()[1] }
    }

    /// As a tensor [T, C] over the same memory.
    pub(crate) fn view(&self) -> Tensor {
        self.rows.narrow(1, self.first, self.count)
    }
}
