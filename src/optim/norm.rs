//! The squares of the gradients, of which the global norm is the root. Not here: clipping, which the trainer does.

use super::PIECE;
use crate::error::Result;
use crate::model::segment::Segment;
use crate::model::weights::Model;
use crate::{parallel, tensor};
use tch::{Device, Kind, Tensor};

/// Sum of the squares of all gradient sums that this rank updates from; not finite if any of them is not. Summed in f64,
/// piece by piece in order.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn gradient_squares(model: &Model) -> Result<f64> {
    let (mut total, mut on_device) = (0.0, Vec::new());
    for gradient in &model.segments.iter().filter_map(Segment::owned_gradient).collect::<Vec<_>>() {
        if gradient.device() != Device::Cpu {
            on_device.push(gradient.square().sum(Kind::Double));
            continue;
        }
        let values = tensor::slice::<f32>(gradient)?;
        total += parallel::map(values.chunks(PIECE).collect(), square_sum).iter().sum::<f64>();
    }
    if !on_device.is_empty() {
        // Waited for once.
        total += Tensor::f_stack(&on_device, 0)?.sum(Kind::Double).double_value(&[]);
    }
    Ok(total)
}

/// Sum of squares in f64, in eight lanes so that the loop vectorises.
fn square_sum(values: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&value| f64::from(value).powi(2)).sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest
}
