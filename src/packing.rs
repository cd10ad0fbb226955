//! How sequences are packed into rows and how attention reads them: the types that data, model and operations share.
//!
//! Not here: packing pairs (`data/batch.rs`), computing attention (`ops/`).

/// One prompt and its answers in a packed micro-batch, where each token is a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// First row.
    pub start: usize,
    /// Rows that every suffix sees; may be 0.
    pub prefix: usize,
    /// Rows of each suffix, in order; at least one.
    pub suffixes: Vec<usize>,
}

impl Group {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.prefix + self.suffixes.iter().sum::<usize>()
    }
}

/// Which sequence lengths are rotated alike, for models whose rotation depends on the sequence's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlikeLengths {
    /// All up to this one; a longer sequence is rotated like those of exactly its length.
    UpTo(usize),
    /// All up to this one, and all longer ones among themselves.
    OnEitherSideOf(usize),
}

impl AlikeLengths {
    /// The shortest length that is rotated like this one.
    pub(crate) fn first_like(self, length: usize) -> usize {
        match self {
            Self::UpTo(limit) | Self::OnEitherSideOf(limit) if length <= limit => 0,
            Self::UpTo(_) => length,
            Self::OnEitherSideOf(limit) => limit + 1,
        }
    }

    /// A rule by which lengths are alike only if both rules say so; it may separate more lengths than needed.
    pub(crate) fn and(self, other: Self) -> Self {
        let (Self::UpTo(one) | Self::OnEitherSideOf(one), Self::UpTo(two) | Self::OnEitherSideOf(two)) = (self, other);
        if self == other { self } else { Self::UpTo(one.min(two)) }
    }
}

/// How a model family computes attention scores, before the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRules {
    /// Factor on the product of a query and a key.
    pub scale: f64,
    /// Positions that a query sees, its own the last of them; at least 1. None: all up to its own. A suffix's positions continue
    /// its prefix's, so the window is that of the two as a single sequence (Mistral, Jiang et al., arXiv 2310.06825).
    pub window: Option<usize>,
    /// The c > 0 in c tanh(score / c), applied to the scaled scores (Gemma 2, arXiv 2408.00118). None: no cap.
    pub soft_cap: Option<f64>,
}

impl AttentionRules {
    /// The usual rules for heads of the given width: scale 1 / sqrt(width), no window, no cap.
    pub fn plain(width: usize) -> Self {
        Self { scale: 1.0 / (width as f64).sqrt(), window: None, soft_cap: None }
    }
}

/// Numbers of attention heads, and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    /// Query heads, H.
    pub query: usize,
    /// Key and value heads, G; divides H.
    pub key: usize,
    /// Width of a head, E; even.
    pub width: usize,
}
