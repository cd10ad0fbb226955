//! The squares of the gradients, of which the global norm is the root. Not here: clipping, which the trainer does.

use crate::error::Result;
use crate::model::segment::Segment;
use crate::model::weights::Model;

/// Sum of the squares of all gradient sums that this rank updates from; not finite if any of them is not. Summed in f64,
/// segment after segment.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn gradient_squares(model: &Model) -> Result<f64> {
    let gradients: Vec<_> = model.segments.iter().filter_map(Segment::owned_gradient).collect();
    model.segments.first().map_or(Ok(0.0), |first| first.ops.sum_of_squares(&gradients))
}
