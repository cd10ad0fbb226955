//! Memory for one matrix at a time, kept between uses.

use tch::{Device, Kind, Tensor};

/// A buffer for one matrix at a time.
#[derive(Default)]
pub struct Scratch(Option<Tensor>);

impl Scratch {
    /// An uninitialized matrix [rows, columns], in the memory of the one before.
    pub(crate) fn matrix(&mut self, rows: i64, columns: i64, kind: Kind, device: Device) -> Tensor {
        self.matrix_of_at_most(rows, rows, columns, kind, device)
    }

    /// As [`Scratch::matrix`], with memory for `most` rows.
    pub(crate) fn matrix_of_at_most(
        &mut self,
        most: i64,
        rows: i64,
        columns: i64,
        kind: Kind,
        device: Device,
    ) -> Tensor {
        let Self(buffer) = self;
        let fits = |buffer: &&mut Tensor| buffer.size()[0] >= rows * columns && buffer.kind() == kind;
        let buffer = match buffer.as_mut().filter(fits) {
            Some(buffer) => buffer,
            None => {
                *buffer = None;
                buffer.insert(Tensor::empty([most.max(rows) * columns], (kind, device)))
            }
        };
        buffer.narrow(0, 0, rows * columns).view([rows, columns])
    }
}
