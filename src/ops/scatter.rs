//! Adds rows to given rows of a sum. Several may go to the same row; they are added in the same order every time.
//!
//! On CPUs libtorch adds them one after the other. On a GPU the threads of its `index_add_` race, so the order and the last bits
//! change from run to run; `index_put_` sorts the places first. Its check of the places is turned off: they are this program's own,
//! and the check is kernels more.

use crate::error::Result;
use tch::{Device, Tensor};

/// Adds rows [N, ...] to the rows of `sum` at `places` `[N]` i64, which must exist.
///
/// # Errors
/// A device out of memory.
pub(crate) fn add_rows(sum: &Tensor, places: &Tensor, rows: &Tensor) -> Result<()> {
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
            // Other places keep their values; the control: these do not.
            assert!(one.get(6).equal(&start.get(6)) && !one.get(3).equal(&start.get(3)));
        }
    }
}
