//! How sequences lie packed in rows, and how attention reads them: what data, model and operations all speak of.
//!
//! Not here: packing pairs (`data/batch.rs`), computing attention (`ops/`).

/// Rows of one prompt with its answers in a packed row of tokens.
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

/// Where a sequence's own length decides how it is rotated: which lengths are rotated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlikeLengths {
    /// All up to this one; a longer sequence is like those of its length alone.
    UpTo(usize),
    /// All up to this one, and all that are longer.
    OnEitherSideOf(usize),
}

impl AlikeLengths {
    /// The shortest length that is like this one.
    pub fn first_like(self, length: usize) -> usize {
        match self {
            Self::UpTo(limit) | Self::OnEitherSideOf(limit) if length <= limit => 0,
            Self::UpTo(_) => length,
            Self::OnEitherSideOf(limit) => limit + 1,
        }
    }

    /// Lengths that are alike by both, or fewer.
    pub fn and(self, other: Self) -> Self {
        let (Self::UpTo(one) | Self::OnEitherSideOf(one), Self::UpTo(two) | Self::OnEitherSideOf(two)) = (self, other);
        if self == other { self } else { Self::UpTo(one.min(two)) }
    }
}

/// What a model family makes of the scores between queries and keys, before the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRules {
    /// What a product of a query and a key is multiplied by.
    pub scale: f64,
    /// Positions that a query sees, its own the last of them; at least 1. None: all up to its own. A suffix counts its
    /// positions on from its prefix's, so that the window is the one of the two as a single sequence (Mistral, Jiang et
    /// al., arXiv 2310.06825).
    pub window: Option<usize>,
    /// c > 0 of c tanh(score / c), taken of the scaled scores (Gemma 2, arXiv 2408.00118). None: scores stay as they are.
    pub soft_cap: Option<f64>,
}

impl AttentionRules {
    /// The usual rules for heads of the given width: scale 1 / sqrt(width), no window, no cap.
    pub fn plain(width: usize) -> Self {
        Self { scale: 1.0 / (width as f64).sqrt(), window: None, soft_cap: None }
    }
}

/// How rows are cut into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    /// H.
    pub query: usize,
    /// G, which divides H.
    pub key: usize,
    /// E, even.
    pub width: usize,
}
