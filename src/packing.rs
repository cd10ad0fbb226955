//! How sequences are packed in rows, and how attention reads them: terms shared by data, model and operations.
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

/// For rotations that depend on the sequence's length: which lengths are rotated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlikeLengths {
    /// All up to this one; each greater length is rotated in its own way.
    UpTo(usize),
    /// All up to this one, and in another way all greater ones.
    OnEitherSideOf(usize),
}

impl AlikeLengths {
    /// The shortest length that is rotated like this one.
    pub fn first_like(self, length: usize) -> usize {
        match self {
            Self::UpTo(limit) | Self::OnEitherSideOf(limit) if length <= limit => 0,
            Self::UpTo(_) => length,
            Self::OnEitherSideOf(limit) => limit + 1,
        }
    }

    /// Lengths that are alike by both rules, or fewer.
    pub fn and(self, other: Self) -> Self {
        let (Self::UpTo(one) | Self::OnEitherSideOf(one), Self::UpTo(two) | Self::OnEitherSideOf(two)) = (self, other);
        if self == other { self } else { Self::UpTo(one.min(two)) }
    }
}

/// How a model family transforms and masks the scores of queries and keys before the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRules {
    /// Factor of each product of a query and a key.
    pub scale: f64,
    /// Number of positions that a query sees, its own the last; at least 1. None: all up to its own. A suffix continues
    /// its prefix's positions, so the window is that of the two as a single sequence (Mistral, Jiang et al., arXiv
    /// 2310.06825).
    pub window: Option<usize>,
    /// c > 0 of c tanh(score / c), applied to the scaled scores (Gemma 2, arXiv 2408.00118). None: no cap.
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
    /// Query heads, H.
    pub query: usize,
    /// Key heads, G, which divides H.
    pub key: usize,
    /// Width of a head, E, even.
    pub width: usize,
}
