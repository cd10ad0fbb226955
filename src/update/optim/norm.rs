//! The sum of squares of the gradients, whose root is the global norm. Not here: clipping (`verdict.rs`).

use crate::engine::Buckets;
use crate::error::{Error, Result, libtorch};
use crate::model::weights::Model;
use tch::Tensor;

/// Sum of the squares of all gradient sums that this rank updates from, `[1]` f64 on their device; not finite if any of them
/// is not. Summed segment after segment.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn gradient_squares(model: &Model, buckets: &Buckets) -> Result<Tensor> {
    let trained =
        model.segments.iter().enumerate().filter_map(|(index, segment)| Some((index, segment.state.as_ref()?)));
    let owned = trained.map(|(index, state)| match buckets.get(index) {
        Some(bucket) => Ok(state.owned_of(bucket.flat())),
        None => Err(Error::runtime(format!("the bucket of segment {index} is out"))),
    });
    let owned = owned.collect::<Result<Vec<_>>>()?;
    libtorch(|| model.ops().sum_of_squares(&owned))
}
