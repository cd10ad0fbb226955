//! Files in which one tensor holds a matrix of every expert, as Transformers 5 has them in memory: `experts.gate_up_proj`
//! [X, 2 F, D], each expert's gate above its up, and `experts.down_proj` [X, D, F].
//!
//! Not here: the names in files that hold every matrix by itself (`names.rs`).

use super::architecture::Architecture;
use crate::error::{Error, Result};
use std::ops::Range;

/// One matrix of such a tensor.
pub(crate) struct Part {
    /// Its usual name, by the architecture.
    pub(crate) name: String,
    /// Its rows, with all matrices of the tensor one below the other.
    pub(crate) rows: Range<usize>,
}

/// Whether a tensor, by its usual name, holds matrices of experts.
pub(crate) fn is_fused(architecture: &Architecture, name: &str) -> bool {
    place(architecture, name).is_some()
}

/// The matrices that a tensor of this usual name and this shape holds; none if it is no such tensor.
///
/// # Errors
/// A shape other than the one by config.json.
pub(crate) fn parts(architecture: &Architecture, name: &str, shape: &[i64]) -> Result<Option<Vec<Part>>> {
    let Some((block, is_up)) = place(architecture, name) else { return Ok(None) };
    let (mlp, names, width) = (architecture.blocks[block].mlp, architecture.names, architecture.width);
    let count = mlp.experts.map_or(0, |experts| experts.count);
    let expected = if is_up { [count, mlp.inner_width(), width] } else { [count, width, mlp.width] };
    if shape.iter().map(|&size| size as usize).ne(expected) {
        let error = format!("{name} has shape {shape:?}, but by config.json it must be {expected:?}");
        return Err(Error::input(error).hint("config.json and the safetensors must be of the same model"));
    }
    let matrices: &[&str] = if is_up { &names.expert_matrices[..2] } else { &names.expert_matrices[2..] };
    let rows = expected[1] / matrices.len();
    let part = |number: usize| Part {
        name: format!(
            "{}{block}.{}{}.{}.weight",
            names.block,
            names.experts,
            number / matrices.len(),
            matrices[number % matrices.len()]
        ),
        rows: number * rows..(number + 1) * rows,
    };
    Ok(Some((0..count * matrices.len()).map(part).collect()))
}

/// The block of such a tensor, and whether it holds gates and ups.
fn place(architecture: &Architecture, name: &str) -> Option<(usize, bool)> {
    let (block, rest) = name.strip_prefix(architecture.names.block)?.split_once('.')?;
    let is_up = match rest.strip_prefix(architecture.names.experts)? {
        "gate_up_proj" => true,
        "down_proj" => false,
        _ => return None,
    };
    let block: usize = block.parse().ok()?;
    architecture.blocks.get(block)?.mlp.experts.map(|_| (block, is_up))
}
