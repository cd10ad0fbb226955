//! The MLP's gated activation, silu(gate) * up (Shazeer, arXiv 2002.05202), forward and backward.
//!
//! Legend: T tokens, F width of the MLP. On CPUs the fused loops of `kernels/swiglu.rs` run; elsewhere the same formulas
//! as tensor operations.

use crate::error::Result;
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Kind, Tensor};

/// gate and up side by side [T, 2 F] -> `output` [T, F].
pub fn forward(gate_up: &Tensor, output: &Tensor) -> Result<()> {
    fn on_cpu<E: Element + Number>(gate_up: &Tensor, output: &Tensor) -> Result<()> {
        let width = output.size()[1] as usize;
        kernels::swiglu::forward(slice::<E>(gate_up)?, width, slice_mut(&mut output.shallow_clone())?);
        Ok(())
    }
    match tensor::cpu_kind(gate_up) {
        Some(Kind::Float) => on_cpu::<f32>(gate_up, output),
        Some(Kind::BFloat16) => on_cpu::<bf16>(gate_up, output),
        _ => {
            let halves = gate_up.chunk(2, -1);
            let _ = halves[0].silu().f_mul_out(output, &halves[1])?;
            Ok(())
        }
    }
}

/// From the gradient of [`forward`]'s output [T, F]: the `output` again, and the gradient of gate and up [T, 2 F].
pub fn backward(gate_up: &Tensor, gradient: &Tensor, output: &Tensor, gate_up_gradient: &Tensor) -> Result<()> {
    fn on_cpu<E: Element + Number>([gate_up, gradient, output, gate_up_gradient]: [&Tensor; 4]) -> Result<()> {
        let width = gradient.size()[1] as usize;
        let [mut output, mut gate_up_gradient] = [output, gate_up_gradient].map(Tensor::shallow_clone);
        let (output, gate_up_gradient) = (slice_mut(&mut output)?, slice_mut(&mut gate_up_gradient)?);
        kernels::swiglu::backward(slice::<E>(gate_up)?, slice(gradient)?, width, output, gate_up_gradient);
        Ok(())
    }
    let tensors = [gate_up, gradient, output, gate_up_gradient];
    match tensor::cpu_kind(gate_up) {
        Some(Kind::Float) => on_cpu::<f32>(tensors),
        Some(Kind::BFloat16) => on_cpu::<bf16>(tensors),
        _ => {
            backward_with_tensors(tensors);
            Ok(())
        }
    }
}

fn backward_with_tensors([gate_up, gradient, output, gate_up_gradient]: [&Tensor; 4]) {
    let [halves, mut gradients] = [gate_up, gate_up_gradient].map(|side_by_side| side_by_side.chunk(2, -1));
    let activated = halves[0].silu();
    gradients[0].copy_(&halves[0].silu_backward(&(gradient * &halves[1])));
    gradients[1].copy_(&(gradient * &activated));
    output.shallow_clone().copy_(&(activated * &halves[1]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    #[test]
    fn the_fused_loops_equal_the_tensor_formulas() {
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-2)] {
            // 70 rows make two blocks.
            let (gate_up, gradient) =
                ((waves(&[70, 74], 1.0) * 4.0).to_kind(kind), waves(&[70, 37], 2.0).to_kind(kind));
            let new = || (gradient.empty_like(), gate_up.empty_like());
            let (fused, plain, alone) = (new(), new(), gradient.empty_like());
            forward(&gate_up, &alone).unwrap();
            backward(&gate_up, &gradient, &fused.0, &fused.1).unwrap();
            backward_with_tensors([&gate_up, &gradient, &plain.0, &plain.1]);
            assert_eq!(alone, fused.0);
            for (fused, plain) in [(&fused.0, &plain.0), (&fused.1, &plain.1)] {
                let (fused, plain) = (fused.to_kind(Kind::Float), plain.to_kind(Kind::Float));
                assert!(((&fused - &plain).norm() / plain.norm()).double_value(&[]) < bound);
            }
        }
    }
}
