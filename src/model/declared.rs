//! A parameter as a model's files have it: its name, its shape, and the order of its rows.

use tch::Tensor;

/// A parameter as a model's files have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The order of its rows.
    pub rows: Rows,
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
    /// Those of a head's query, key and value together [H, 3, E], for so many heads; in memory [3, H, E].
    HeadByHead(i64),
}

impl Rows {
    /// Values from a file, as they are in memory.
    pub fn to_memory(self, values: &Tensor) -> Tensor {
        match self {
            Self::AsInMemory => values.shallow_clone(),
            Self::HeadByHead(heads) => swapped(values, [heads, 3]),
        }
    }

    /// Values from memory, as they are in files.
    pub fn to_file(self, values: &Tensor) -> Tensor {
        match self {
            Self::AsInMemory => values.shallow_clone(),
            Self::HeadByHead(heads) => swapped(values, [3, heads]),
        }
    }
}

/// Rows [a, b, E] -> [b, a, E], in the shape that they had.
fn swapped(values: &Tensor, [outer, inner]: [i64; 2]) -> Tensor {
    let shape = values.size();
    let cut = [&[outer, inner, shape[0] / (outer * inner)], &shape[1..]].concat();
    values.view(cut.as_slice()).transpose(0, 1).reshape(shape.as_slice())
}
