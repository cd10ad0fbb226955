//! The MLP of a block: one for all tokens, or experts of which each token goes through a few.
//!
//! Not here: its parameters (`layout.rs`), what is computed with them (`decoder.rs`, `experts.rs`).

use crate::ops::MlpKind;

/// An MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// F: its width, or that of each expert.
    pub width: usize,
    /// Its function, and whether it gates: activation(gate) * up, rather than activation(up).
    pub kind: MlpKind,
    /// Whether gate and up lie in one matrix in files.
    pub(crate) stacked: bool,
    /// Whether its linear maps have biases.
    pub(crate) biases: bool,
    /// Its experts, if a router chooses among several.
    pub experts: Option<Experts>,
}

/// A mixture of experts (arXiv 1701.06538): a router gives every token a share of each expert, softmax(x W^T) in f32, and the
/// token goes through the experts with the largest; of equal shares those of the lower numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// X: number of experts.
    pub count: usize,
    /// K: number of experts that each token goes through.
    pub top_k: usize,
    /// Whether the K shares are divided by their sum.
    pub normalized: bool,
}

impl Mlp {
    /// Columns before its activation: 2 F with a gate, else F.
    pub(crate) fn inner_width(&self) -> usize {
        if self.kind.gated { 2 * self.width } else { self.width }
    }

    /// Rows of a token within it: one, or one for each expert that the token goes through.
    pub(crate) fn rows(&self) -> usize {
        self.experts.map_or(1, |experts| experts.top_k)
    }

    /// Number of matrices in each of its products: one, or one an expert.
    pub(crate) fn products(&self) -> usize {
        self.experts.map_or(1, |experts| experts.count)
    }

    /// Share of its weights that a token is multiplied with.
    pub(crate) fn active_share(&self) -> f64 {
        self.experts.map_or(1.0, |experts| experts.top_k as f64 / experts.count as f64)
    }
}
