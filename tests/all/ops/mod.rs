//! Promise: every implementation of the operations computes the plain formulas and their gradients, in every kind, on odd
//! sizes: compared with automatic differentiation by libtorch, in f32, and in bf16 with f32 differentiation of the same
//! rounded inputs.

mod attention;
mod conformance;
mod experts;
mod launches;
mod update;
mod varlen;

use crate::device::gpu;
use haf_dist::ops::cpu::Cpu;
use haf_dist::ops::cuda::{Cuda, Plain};
use haf_dist::ops::{Ops, Scratch, Tensors};
use tch::{Device, Kind, Tensor};

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
    conforms(haf_dist::ops::of(gpu(0)), gpu(0));
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

/// With a GPU's products written out: what they are given, and where their sum goes.
#[test]
fn a_weights_gradient_is_not_rounded_to_bf16_on_its_way() {
    let bf16 = |shape: &[i64], phase| conformance::waves(shape, phase, Device::Cpu).to_kind(Kind::BFloat16);
    let (wide, right) = (bf16(&[70, 60], 1.0), bf16(&[70, 33], 2.0));
    let left = wide.narrow(1, 5, 49);
    let exact = left.to_kind(Kind::Double).tr().mm(&right.to_kind(Kind::Double));
    let far = |ops: &dyn Ops| {
        // In a bucket, between the sums of other weights.
        let bucket = Tensor::ones([7 + 49 * 33 + 5], (Kind::Float, Device::Cpu));
        let sum = bucket.narrow(0, 7, 49 * 33).view([49, 33]);
        ops.add_product(&left, &right, &sum, &mut Scratch::default()).unwrap();
        for (start, length) in [(0, 7), (7 + 49 * 33, 5)] {
            assert!(bucket.narrow(0, start, length).eq(1.0).all().int64_value(&[]) == 1);
        }
        conformance::distance(&(sum.to_kind(Kind::Double) - 1.0), &exact)
    };
    assert!(far(&Cuda(Plain)) < 1e-6, "{:.1e}", far(&Cuda(Plain)));
    assert!(far(&Tensors) > 1e-4, "the control: the plain formula rounds once");
}
