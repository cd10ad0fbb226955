//! Promise: if libtorch fails, above all for lack of memory, the step returns an error with a hint; nothing panics.
//!
//! Tested with operations that fail as a GPU's do. Real limits of memory: tests/faults/limits.rs.

use crate::steps;
use haf_dist::cli::Command;
use haf_dist::comm::CommThread;
use haf_dist::comm::solo::Solo;
use haf_dist::commands::advise_on_memory;
use haf_dist::error::Result;
use haf_dist::ops::{NormWeight, Ops, Scratch, Tensors};
use std::path::PathBuf;
use tch::{Device, Kind, TchError, Tensor};

/// As libtorch reports it, with the start of its call stack.
const CUDA: &str =
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nException raised";

/// Fails where a weight's gradient is added.
struct Fails;

impl Ops for Fails {
    fn add_product(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &mut Scratch) -> Result<()> {
        Err(TchError::Torch(CUDA.into()).into())
    }
}

/// Asks for more memory than there is, with a call that panics where libtorch throws.
struct AsksForTooMuch;

impl Ops for AsksForTooMuch {
    fn rms_norm(&self, x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
        drop(Tensor::zeros([1 << 50], (Kind::Float, Device::Cpu)));
        Tensors.rms_norm(x, weight, epsilon, output, scale)
    }
}

/// Fails an assertion: a mistake of our own.
struct Wrong;

impl Ops for Wrong {
    fn rms_norm(&self, x: &Tensor, _: NormWeight, _: f64, _: &Tensor, _: &Tensor) -> Result<()> {
        assert!(x.size()[0] < 0, "a mistake of our own");
        Ok(())
    }
}

/// One step with these operations in every segment.
fn step_with(ops: &'static dyn Ops) -> Result<()> {
    let config = steps::config("llama-tied", &[]);
    let comm = CommThread::start(|| Ok(Box::new(Solo)))?;
    let mut trainer = steps::trainer(&config, &comm, steps::engine(&config));
    trainer.engine.model.segments.iter_mut().for_each(|segment| segment.weights.ops = ops);
    trainer.step(5).map(drop)
}

#[test]
fn a_lack_of_memory_in_a_step_is_an_error_that_says_what_to_do() {
    let (config, set) = (PathBuf::from("run.toml"), Vec::new());
    advise_on_memory(&Command::Train { config, set, resume: false, debug: false, allow_changed: false, json: false });
    for (ops, words) in
        [(&Fails as &'static dyn Ops, "Tried to allocate 2.00 GiB"), (&AsksForTooMuch, "you tried to allocate")]
    {
        let error = step_with(ops).unwrap_err();
        assert!(error.message.starts_with("out of memory: ") && error.message.contains(words), "{error}");
        assert!(!error.message.contains("raised"), "no call stack: {error}");
        let hint = error.hint.as_deref().unwrap();
        for key in ["train.tokens_per_micro_batch", "train.activation_checkpointing"] {
            assert!(hint.contains(key), "{hint}");
        }
        assert_eq!(error.exit_code(), 1);
    }
    // The control: the step itself works.
    step_with(&Tensors).unwrap();
}

#[test]
#[should_panic = "a mistake of our own"]
fn control_a_panic_that_is_not_libtorchs_is_not_taken_for_an_error() {
    let _ = step_with(&Wrong);
}
