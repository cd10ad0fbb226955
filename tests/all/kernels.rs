//! Promise: an operation of a device that disagrees with its plain formula, or fails, is found at the start, named, and replaced
//! on every rank; one that is right stays.

use haf_dist::comm::{CommThread, threads};
use haf_dist::error::{Error, Result};
use haf_dist::machine::kernels::{try_out, widths};
use haf_dist::model::architecture::Architecture;
use haf_dist::ops::checked::{BlockWidths, Operation, Widths, faults, timings};
use haf_dist::ops::cpu::Cpu;
use haf_dist::ops::{Checked, NormWeight, Ops, Scratch, Tensors};
use haf_dist::packing::HeadCounts;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A device whose norm is wrong in one number, whose product fails, whose activation panics, and whose sum is right.
struct Odd;

impl Ops for Odd {
    fn rms_norm(&self, x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
        Tensors.rms_norm(x, weight, epsilon, output, scale)?;
        let _ = output.narrow(0, 3, 1).narrow(1, 5, 1).g_add_scalar_(1.0);
        Ok(())
    }

    fn add_product(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &mut Scratch) -> Result<()> {
        Err(Error::runtime("no such product on this device"))
    }

    fn log_sum_exp(&self, logits: &Tensor, _: Option<f64>) -> Result<Tensor> {
        Ok(logits.view([7, -3]))
    }

    fn add(&self, x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
        sum.shallow_clone().copy_(&(change + x));
        Ok(())
    }

    fn hash(&self, _: &Tensor) -> Result<Tensor> {
        Ok(Tensor::from_slice(&[7i64]))
    }
}

static ODD: Odd = Odd;

fn small(kind: Kind) -> Widths {
    let mut widths = Widths::new(48, 301, kind, Device::Cpu);
    let block = BlockWidths { experts: 5, ..BlockWidths::plain(HeadCounts { query: 4, key: 2, width: 16 }, 40) };
    widths.add(block);
    widths
}

#[test]
fn operations_that_are_wrong_fail_or_panic_are_named_and_right_ones_are_not() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let found = faults(&ODD, &small(kind)).unwrap();
        let named: Vec<_> = found.iter().map(|fault| fault.operation.name()).collect();
        // A product of experts is made of products.
        assert_eq!(named, ["rms_norm", "add_grouped_product", "log_sum_exp", "add_product", "hash"], "{kind:?}");
        assert!(found[0].why.contains("at the worst value"), "{}", found[0].why);
        assert_eq!(found[3].why, "no such product on this device");
        assert!(found[2].why.contains("libtorch: "), "{}", found[2].why);
    }
}

#[test]
fn the_formulas_and_the_loops_are_right_on_the_widths_of_every_kind_of_model() {
    for case in ["llama-untied", "gemma2", "qwen3-moe", "phi", "mistral-some-windows", "olmo2"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let architecture = Architecture::open(&folder).unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            let widths = widths(&architecture, kind, Device::Cpu);
            assert!(!widths.blocks.is_empty());
            for ops in [&Tensors as &dyn Ops, &Cpu] {
                let found = faults(ops, &widths).unwrap();
                assert!(found.is_empty(), "{case} {kind:?}: {found:?}");
            }
        }
    }
}

#[test]
fn one_ranks_wrong_operation_is_replaced_on_all() {
    static OF_RANK: [Checked; 2] = [Checked::over(&Tensors), Checked::over(&ODD)];
    std::thread::scope(|scope| {
        for seat in threads::world(2) {
            scope.spawn(move || {
                let comm = CommThread::start(move || Ok(seat.communicator())).unwrap();
                let checked = &OF_RANK[comm.rank()];
                try_out(checked, &small(Kind::Float), &comm).unwrap();
                let replaced: Vec<_> = Operation::ALL.into_iter().filter(|one| checked.is_replaced(*one)).collect();
                use Operation::{AddGroupedProduct, AddProduct, Hash, LogSumExp, RmsNorm};
                assert_eq!(replaced, [RmsNorm, AddGroupedProduct, LogSumExp, AddProduct, Hash]);
                // What is computed with from now on is right.
                assert!(faults(checked, &small(Kind::Float)).unwrap().is_empty());
            });
        }
    });
}

#[test]
fn each_operation_that_the_widths_have_is_timed_with_its_formula() {
    let timings = timings(&Cpu, &small(Kind::Float), || ()).unwrap();
    assert_eq!(timings.len(), Operation::ALL.len());
    assert!(timings.iter().all(|one| one.own > 0.0 && one.formula > 0.0));
    assert!(timings.iter().all(|one| one.bytes > 0 || one.operation == Operation::LogProbs));
}
