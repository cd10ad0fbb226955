//! Chooses the operations of a run: the device's own, which are tried once at the start on a GPU, or the plain formulas.
//!
//! Not here: the trials (`ops/checked/`).

use super::{Machine, wait_for};
use crate::comm::CommThread;
use crate::config::Kernels;
use crate::error::Result;
use crate::model::architecture::{Architecture, BlockDescription, NormKind};
use crate::ops::checked::{BlockWidths, Operation, Widths, faults};
use crate::ops::{self, Checked};
use std::time::Instant;
use tch::{Device, Kind};
use tracing::{debug, info, warn};

/// Chooses before the model is placed on the device. `plain` replaces all operations by the formulas. `auto` replaces those that
/// disagree with their formula on a GPU, or fail there, on any rank, so that all ranks compute with the same. On a CPU `auto`
/// tries nothing: the program's tests compare its loops with the formulas. All ranks must call it.
///
/// # Errors
/// A formula that fails on this device, or a lost rank.
pub(crate) fn settle(
    kernels: Kernels,
    architecture: &Architecture,
    machine: &Machine,
    comm: &CommThread,
) -> Result<()> {
    let Some(checked) = ops::checked(machine.device) else { return Ok(()) };
    match (kernels, machine.device) {
        (Kernels::Plain, _) => {
            checked.replace(&Operation::ALL);
            info!("parallel.kernels = \"plain\": all operations are plain formulas");
            Ok(())
        }
        (Kernels::Auto, Device::Cpu) => Ok(()),
        (Kernels::Auto, _) => try_out(checked, &widths(architecture, machine.kind, machine.device), comm),
    }
}

/// Tries every operation on small tensors of these widths, and replaces those that are wrong on any rank. All ranks must call it.
///
/// # Errors
/// As [`settle`].
pub fn try_out(checked: &Checked, widths: &Widths, comm: &CommThread) -> Result<()> {
    let started = Instant::now();
    let found = comm.agree(faults(checked.own(), widths))?;
    wait_for(widths.device);
    for fault in &found {
        warn!(
            "{} is wrong on this device, and its plain formula is used in its place, which is slower: {}; \
             please report it with the output of launch/gpu-check.sh",
            fault.operation.name(),
            fault.why
        );
    }
    let is_wrong = |operation: &Operation| found.iter().any(|fault| fault.operation == *operation);
    let mut wrong = Operation::ALL.map(|operation| f64::from(u8::from(is_wrong(&operation))));
    comm.sum_f64(&mut wrong)?;
    let replaced = Operation::ALL.into_iter().zip(wrong).filter(|(_, ranks)| *ranks > 0.0);
    let replaced: Vec<Operation> = replaced.map(|(operation, _)| operation).collect();
    checked.replace(&replaced);
    for operation in replaced.iter().filter(|operation| !is_wrong(operation)) {
        info!("{} is computed by its plain formula here too, because it is wrong on another rank", operation.name());
    }
    debug!("compared operations with their formulas in {:.2} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The widths of a model, for the trials.
pub fn widths(architecture: &Architecture, kind: Kind, device: Device) -> Widths {
    let mut widths = Widths::new(architecture.width, architecture.vocabulary, kind, device);
    widths.plus_one = architecture.norm == NormKind::RootMeanSquarePlusOne;
    widths.soft_cap = architecture.logit_cap;
    for BlockDescription { heads, rules, rotation, mlp, .. } in &architecture.blocks {
        widths.add(BlockWidths {
            heads: *heads,
            rules: *rules,
            rotated: rotation
                .and_then(|number| architecture.rotations.get(number))
                .map_or(0, |rotation| rotation.width),
            inner: mlp.width,
            mlp: mlp.kind,
            experts: mlp.experts.map_or(0, |experts| experts.count),
        });
    }
    widths
}
