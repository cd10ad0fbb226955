//! The squares of the gradients, of which the global norm is the root. Not here: clipping, which the trainer does.

use crate::engine::Buckets;
use crate::error::{Result, libtorch};
use crate::model::weights::Model;

/// Sum of the squares of all gradient sums that this rank updates from; not finite if any of them is not. Summed in f64,
/// segment after segment.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn gradient_squares(model: &Model, buckets: &Buckets) -> Result<f64> {
    let owned = buckets.iter().filter_map(|(segment, bucket)| {
        let state = model.segments.get(segment)?.state.as_ref()?;
        Some(state.owned_of(bucket.flat()))
    });
    libtorch(|| model.ops().sum_of_squares(&owned.collect::<Vec<_>>()))
}
