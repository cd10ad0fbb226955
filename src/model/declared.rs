//! A parameter as declared by a model's files: its name, its shape, and the order of its rows.

use tch::Tensor;

/// A parameter as declared by a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The order of its rows.
    pub(crate) rows: Rows,
}

impl Declared {
    /// A parameter whose rows are in memory as they are in files.
    pub fn new(name: impl Into<String>, shape: &[i64]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), rows: Rows::AsInMemory }
    }
}

/// The order of a parameter's rows in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As in memory.
    AsInMemory,
    /// Query, key and value of each head together [H, 3, E], for this number of heads; in memory [3, H, E].
    HeadByHead(i64),
    /// Heads of `width` rows, of which the first `turned` are pairs of neighbors [H, R / 2, 2] that turn together; in memory
    /// two halves [H, 2, R / 2].
    Neighbors {
        /// E, width of a head.
        width: i64,
        /// R, columns that are rotated.
        turned: i64,
    },
}

impl Rows {
    /// Values from a file, as they are in memory.
    pub(crate) fn to_memory(self, values: &Tensor) -> Tensor {
        match self {
            Self::AsInMemory => values.shallow_clone(),
            Self::HeadByHead(heads) => swapped(values, [heads, 3]),
            Self::Neighbors { width, turned } => turned_swapped(values, width, [turned / 2, 2]),
        }
    }

    /// Values from memory, as they are in files.
    pub fn to_file(self, values: &Tensor) -> Tensor {
        match self {
            Self::AsInMemory => values.shallow_clone(),
            Self::HeadByHead(heads) => swapped(values, [3, heads]),
            Self::Neighbors { width, turned } => turned_swapped(values, width, [2, turned / 2]),
        }
    }
}

/// The first rows [a, b] of every head of `width` rows -> [b, a]; the rest of a head as it was.
fn turned_swapped(values: &Tensor, width: i64, [outer, inner]: [i64; 2]) -> Tensor {
    let shape = values.size();
    let heads = values.view([&[shape[0] / width, width], &shape[1..]].concat().as_slice());
    let turned = heads.narrow(1, 0, outer * inner);
    let cut = [&[shape[0] / width, outer, inner], &shape[1..]].concat();
    let turned = turned.reshape(cut.as_slice()).transpose(1, 2).reshape(turned.size().as_slice());
    let rest = heads.narrow(1, outer * inner, width - outer * inner);
    Tensor::cat(&[turned, rest], 1).view(shape.as_slice())
}

/// Rows [a, b, E] -> [b, a, E], in their former shape.
fn swapped(values: &Tensor, [outer, inner]: [i64; 2]) -> Tensor {
    let shape = values.size();
    let cut = [&[outer, inner, shape[0] / (outer * inner)], &shape[1..]].concat();
    values.view(cut.as_slice()).transpose(0, 1).reshape(shape.as_slice())
}
