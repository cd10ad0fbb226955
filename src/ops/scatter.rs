//! Rows that are added to given rows of a sum, where several may go to one: in the same order every time.
//!
//! On CPUs libtorch adds them one after the other. On a GPU its `index_add_` lets threads race, so that the order, and with it
//! the last bits, are other ones every time; `index_put_` sorts the places first. Its check of the places is left out, since it
//! would wait for the device.

use crate::error::Result;
use tch::{Device, Tensor};

/// Adds rows [N, ...] to the rows of `sum` at `places` `[N]` i64, all of which it has.
///
/// # Errors
/// A device without memory.
pub fn add_rows(sum: &Tensor, places: &Tensor, rows: &Tensor) -> Result<()> {
    match sum.device() {
        Device::Cuda(_) => sorted(sum, places, rows),
        _ => {
            let _ = sum.shallow_clone().f_index_add_(0, places, rows)?;
            Ok(())
        }
    }
}

fn sorted(sum: &Tensor, places: &Tensor, rows: &Tensor) -> Result<()> {
    let _ = sum.shallow_clone().f_internal_index_put_impl_(&[Some(places)], rows, true, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;
    use tch::Kind;

    #[test]
    fn the_way_of_gpus_adds_the_same_rows_to_the_same_places() {
        let places = Tensor::from_slice(&[3i64, 0, 3, 3, 1]);
        for (shape, kind) in [(&[7i64, 5][..], Kind::Float), (&[7][..], Kind::Double)] {
            let (start, mut rows) = (waves(shape, 1.0).to_kind(kind), shape.to_vec());
            rows[0] = 5;
            let rows = waves(&rows, 2.0).to_kind(kind);
            let (one, other) = (start.copy(), start.copy());
            add_rows(&one, &places, &rows).unwrap();
            sorted(&other, &places, &rows).unwrap();
            assert!(one.equal(&other) && !one.equal(&start), "{kind:?}");
            // Places without rows keep theirs; the control: the others do not.
            assert!(one.get(6).equal(&start.get(6)) && !one.get(3).equal(&start.get(3)));
        }
    }
}
