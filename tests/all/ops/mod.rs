//! Promise: every implementation of the operations computes the plain formulas and their gradients, in every kind, on odd
//! sizes: held to automatic differentiation by libtorch, in f32, and in bf16 to f32 differentiation of the same rounded
//! inputs.

mod attention;
mod conformance;
mod experts;
mod update;
mod varlen;

use haf_dist::ops::cpu::Cpu;
use haf_dist::ops::cuda::{Cuda, Plain};
use haf_dist::ops::{Ops, Tensors};
use tch::Device;

fn conforms(ops: &dyn Ops, device: Device) {
    conformance::all(ops, device);
    attention::all(ops, device);
    experts::all(ops, device);
    update::all(ops, device);
}

#[test]
fn the_plain_formulas_conform() {
    conforms(&Tensors, Device::Cpu);
}

#[test]
fn the_loops_of_the_cpu_conform() {
    conforms(&Cpu, Device::Cpu);
}

/// What exists on GPUs alone is written out as tensor operations; everything around it is what a GPU runs.
#[test]
fn the_operations_of_a_gpu_conform_where_its_own_calls_are_written_out() {
    conforms(&Cuda(Plain), Device::Cpu);
}

#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn the_operations_of_a_gpu_conform() {
    conforms(haf_dist::ops::of(Device::Cuda(0)), Device::Cuda(0));
}

#[test]
fn a_loop_refuses_an_output_that_is_its_input() {
    let x = conformance::waves(&[4, 8], 1.0, Device::Cpu);
    assert!(Cpu.add(&x, &x, &x.empty_like()).is_ok());
    assert!(Cpu.add(&x, &x, &x).is_err());
    let whole = conformance::waves(&[8, 8], 1.0, Device::Cpu);
    assert!(Cpu.add(&whole.narrow(0, 0, 4), &x, &whole.narrow(0, 3, 4)).is_err());
    assert!(Cpu.add(&whole.narrow(0, 0, 4), &x, &whole.narrow(0, 4, 4)).is_ok());
}
