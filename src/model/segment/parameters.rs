//! Where the parameters of a segment lie in its flat buffers.

use crate::model::declared::{Declared, Rows};
use std::ops::{Deref, Range};
use std::sync::Arc;
use tch::Tensor;

/// One parameter of a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Where it starts in the flat buffers, in elements.
    pub(crate) offset: usize,
    /// Its number of elements.
    pub(crate) length: usize,
    /// The order of its rows in files: masters, moments and exports are read and written through it.
    pub rows: Rows,
}

impl Parameter {
    /// The parameter's part of a flat buffer of its segment, in its shape.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.offset as i64, self.length as i64).view(self.shape.as_slice())
    }
}

/// The parameters of a segment, one after the other: the layout of its weights, its bucket and its optimizer state.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters(Arc<[Parameter]>);

impl Deref for Parameters {
    type Target = [Parameter];

    fn deref(&self) -> &[Parameter] {
        &self.0
    }
}

impl Parameters {
    /// The declared parameters, without gaps.
    pub fn new(declared: Vec<Declared>) -> Self {
        let mut offset = 0;
        let placed = declared.into_iter().map(|Declared { name, shape, rows }| {
            let length = shape.iter().product::<i64>() as usize;
            offset += length;
            Parameter { name, shape, offset: offset - length, length, rows }
        });
        Self(placed.collect())
    }

    /// Elements of all of them.
    pub(crate) fn elements(&self) -> usize {
        self.last().map_or(0, |last| last.offset + last.length)
    }

    /// Each parameter's part of a flat buffer, in its shape.
    pub(crate) fn views(&self, flat: &Tensor) -> Vec<Tensor> {
        self.iter().map(|parameter| parameter.view(flat)).collect()
    }

    /// Matrices or vectors of a flat buffer that lie one after the other, as one: matrices [out, in] stacked to
    /// [sum of outs, in].
    pub(crate) fn stack(&self, flat: &Tensor, places: Range<usize>) -> Tensor {
        let parameters = &self[places];
        let length: usize = parameters.iter().map(|parameter| parameter.length).sum();
        let mut shape = parameters[0].shape.clone();
        shape[0] = -1;
        flat.narrow(0, parameters[0].offset as i64, length as i64).view(shape.as_slice())
    }
}
