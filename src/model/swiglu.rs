//! The gated SiLU under its own name.

use super::activation::{self, Activation};
use crate::error::Result;
use tch::Tensor;

/// gate and up side by side [T, 2 F] -> `output` [T, F].
pub fn forward(gate_up: &Tensor, output: &Tensor) -> Result<()> {
    activation::forward(Activation::Silu, true, gate_up, output)
}

/// From the gradient of [`forward`]'s output [T, F]: the `output` again, and the gradient of gate and up [T, 2 F].
pub fn backward(gate_up: &Tensor, gradient: &Tensor, output: &Tensor, gate_up_gradient: &Tensor) -> Result<()> {
    activation::backward(Activation::Silu, true, gate_up, gradient, output, gate_up_gradient)
}
