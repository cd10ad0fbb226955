//! Compares each operation of a device with its plain formula on the same small inputs, and times both.
//!
//! A trial does not know whether the device has an operation of its own; if not, the formula is compared with itself.
//! Not here: the inputs (`prepared.rs`), and the replacement of a wrong operation (`mod.rs`).

use super::super::{Ops, Tensors, add_rows};
use super::inputs::{BlockWidths, Widths};
use super::prepared::{self, Prepared};
use super::{Operation, adapters};
use crate::error::{Error, Result, libtorch};
use crate::tensor::on_device;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Calls that are timed together, after an untimed one.
const REPEATS: usize = 10;

/// An operation that disagrees with its formula, or fails although the formula works.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Which.
    pub operation: Operation,
    /// What is wrong.
    pub why: String,
}

/// Times of an operation and of its formula.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// Which.
    pub operation: Operation,
    /// Bytes of its inputs and outputs.
    pub bytes: usize,
    /// Seconds of one call of the device's own operation.
    pub own: f64,
    /// Seconds of one call of the formula.
    pub formula: f64,
}

/// The rounding that an operation and its formula may differ by.
#[derive(Clone, Copy)]
enum Rounding {
    /// That of the compute kind.
    Kind,
    /// That of f32, whatever the compute kind is.
    F32,
}

type Prepare = fn(&Widths, &BlockWidths) -> Prepared;

/// Whether the widths have what a trial needs.
type Applies = fn(&Widths, &BlockWidths) -> bool;

const ALWAYS: Applies = |_, _| true;
const ROTATES: Applies = |_, block| block.rotated > 0;
const HAS_EXPERTS: Applies = |_, block| block.experts > 0;

const TRIALS: [(Operation, Rounding, Applies, Prepare); 27] = [
    (Operation::Rotate, Rounding::Kind, ROTATES, prepared::rotate),
    (Operation::RmsNorm, Rounding::Kind, ALWAYS, prepared::rms_norm),
    (Operation::AddRmsNorm, Rounding::Kind, ALWAYS, prepared::add_rms_norm),
    (Operation::ApplyRmsNorm, Rounding::Kind, ALWAYS, prepared::apply_rms_norm),
    (Operation::RmsNormBackward, Rounding::Kind, ALWAYS, prepared::rms_norm_backward),
    (Operation::LayerNorm, Rounding::Kind, ALWAYS, prepared::layer_norm),
    (Operation::ApplyLayerNorm, Rounding::Kind, ALWAYS, prepared::apply_layer_norm),
    (Operation::LayerNormBackward, Rounding::Kind, ALWAYS, prepared::layer_norm_backward),
    (Operation::Add, Rounding::Kind, ALWAYS, prepared::add),
    (Operation::Activate, Rounding::Kind, ALWAYS, prepared::activate),
    (Operation::ActivateBackward, Rounding::Kind, ALWAYS, prepared::activate_backward),
    (Operation::Route, Rounding::Kind, HAS_EXPERTS, prepared::route),
    (Operation::GroupedProduct, Rounding::Kind, HAS_EXPERTS, prepared::grouped_product),
    (Operation::GroupedInputGradient, Rounding::Kind, HAS_EXPERTS, prepared::grouped_input_gradient),
    (Operation::AddGroupedProduct, Rounding::Kind, HAS_EXPERTS, prepared::add_grouped_product),
    (Operation::Attention, Rounding::Kind, ALWAYS, prepared::attention),
    (Operation::LogSumExp, Rounding::Kind, ALWAYS, prepared::log_sum_exp),
    (Operation::LogProbs, Rounding::Kind, ALWAYS, prepared::log_probs),
    (Operation::LogProbsBackward, Rounding::Kind, ALWAYS, prepared::log_probs_backward),
    (Operation::AddColumnSums, Rounding::Kind, ALWAYS, prepared::add_column_sums),
    (Operation::AddProduct, Rounding::Kind, ALWAYS, prepared::add_product),
    (Operation::LowRank, Rounding::Kind, ALWAYS, adapters::low_rank),
    (Operation::AddLowRank, Rounding::Kind, ALWAYS, adapters::add_low_rank),
    (Operation::AddLowRankGradient, Rounding::Kind, ALWAYS, adapters::add_low_rank_gradient),
    (Operation::AdamW, Rounding::F32, ALWAYS, prepared::adamw),
    (Operation::Hash, Rounding::F32, ALWAYS, prepared::hash),
    (Operation::SumOfSquares, Rounding::F32, ALWAYS, prepared::sum_of_squares),
];

/// The operations of a device that are wrong on these widths, each listed once.
///
/// # Errors
/// A formula that fails: nothing can be computed on this device then.
pub fn faults(own: &dyn Ops, widths: &Widths) -> Result<Vec<Fault>> {
    let _guard = tch::no_grad_guard();
    libtorch(|| check_sums(widths, add_rows))?;
    let mut faults: Vec<Fault> = Vec::new();
    for (operation, rounding, applies, prepare) in TRIALS {
        for (number, block) in widths.blocks.iter().enumerate() {
            // Operations that do not depend on the block are tried once.
            let tried = number > 0 && !of_a_block(operation);
            let known = faults.iter().any(|fault| fault.operation == operation);
            if tried || known || !applies(widths, block) {
                continue;
            }
            let found = libtorch(|| prepare(widths, block).run(own));
            let expected = libtorch(|| prepare(widths, block).run(&Tensors))?;
            let why = match found {
                Ok(found) => libtorch(|| difference(&found, &expected, rounding, widths.kind))?,
                Err(error) => Some(error.message),
            };
            faults.extend(why.map(|why| Fault { operation, why }));
        }
    }
    Ok(faults)
}

/// Compares sums of rows by place (`scatter.rs`) with the processor's. The formulas use them too, so nothing could replace them.
fn check_sums(widths: &Widths, add: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<()>) -> Result<()> {
    // Several rows go to one place, and none to some.
    let places: Vec<i64> = (0..widths.rows as i64).map(|row| row * row % 61).collect();
    for of_a_row in [vec![widths.width], Vec::new()] {
        let shape = |count: usize| [&[count], of_a_row.as_slice()].concat();
        let (rows, sum) = (widths.f32_waves(&shape(widths.rows), 1.0), widths.f32_waves(&shape(61), 2.0));
        let [host_rows, mut expected] = [&rows, &sum].map(|values| values.to_device(Device::Cpu).copy());
        let _ = expected.f_index_add_(0, &Tensor::from_slice(&places), &host_rows)?;
        add(&sum, &on_device(&places, widths.device), &rows)?;
        if let Some(why) = difference(&[sum.to_device(Device::Cpu)], &[expected], Rounding::F32, widths.kind)? {
            let text = format!("the sum of rows by place is wrong on {:?}: {why}", widths.device);
            return Err(Error::runtime(text).hint("please report it with the output of launch/gpu-check.sh"));
        }
    }
    Ok(())
}

/// How long each operation takes on the first block's widths; `wait` waits for the device.
///
/// # Errors
/// An operation or a formula that fails.
pub fn timings(own: &dyn Ops, widths: &Widths, wait: impl Fn()) -> Result<Vec<Timing>> {
    let _guard = tch::no_grad_guard();
    let Some(block) = widths.blocks.first() else { return Ok(Vec::new()) };
    let mut timings = Vec::new();
    for (operation, _, applies, prepare) in TRIALS {
        if !applies(widths, block) {
            continue;
        }
        let mut prepared = libtorch(|| Ok(prepare(widths, block)))?;
        let mut seconds = |ops: &dyn Ops| {
            libtorch(|| {
                prepared.run(ops)?;
                wait();
                let started = Instant::now();
                for _ in 0..REPEATS {
                    prepared.run(ops)?;
                }
                wait();
                Ok(started.elapsed().as_secs_f64() / REPEATS as f64)
            })
        };
        let (own, formula) = (seconds(own)?, seconds(&Tensors)?);
        timings.push(Timing { operation, bytes: prepared.bytes, own, formula });
    }
    Ok(timings)
}

fn of_a_block(operation: Operation) -> bool {
    use Operation::*;
    let of_experts = matches!(operation, Route | GroupedProduct | GroupedInputGradient | AddGroupedProduct);
    of_experts || matches!(operation, Rotate | Activate | ActivateBackward | Attention | AddProduct)
}

/// Describes a difference that is too large.
///
/// There are two bounds. The first is on the relative distance of all values together. The second, ten times as wide, is on the
/// worst single value, relative to its own size plus the root mean square: one wrong value in a million shows only there.
fn difference(found: &[Tensor], expected: &[Tensor], rounding: Rounding, kind: Kind) -> Result<Option<String>> {
    let bound = match (rounding, kind) {
        (Rounding::Kind, Kind::BFloat16) => 1.5e-2,
        (Rounding::Kind, _) => 1e-4,
        (Rounding::F32, _) => 1e-5,
    };
    if found.len() != expected.len() {
        return Ok(Some(format!("it returns {} tensors, its formula {}", found.len(), expected.len())));
    }
    for (found, expected) in found.iter().zip(expected) {
        if found.size() != expected.size() {
            return Ok(Some(format!("it returns {found:?}, its formula {expected:?}")));
        }
        let [found, expected] = [found, expected].map(|values| values.f_to_kind(Kind::Float));
        let (found, expected) = (found?, expected?);
        let apart = (&found - &expected).abs();
        let rms = expected.square().mean(Kind::Float).sqrt();
        let size = rms.double_value(&[]).max(f64::from(f32::MIN_POSITIVE));
        let all = apart.square().mean(Kind::Float).sqrt().double_value(&[]) / size;
        let worst = (apart / (expected.abs() + size)).max().double_value(&[]);
        // Written so that NaN fails too.
        if !(all <= bound && worst <= 10.0 * bound) {
            return Ok(Some(format!(
                "it differs from its formula by {all:.1e} in all and by {worst:.1e} at the worst value; rounding allows {bound:.1e} and {:.1e}",
                10.0 * bound
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_added_up_wrongly_are_seen_whatever_the_formulas_use() {
        let widths = Widths::new(48, 301, Kind::BFloat16, Device::Cpu);
        check_sums(&widths, add_rows).unwrap();
        let lost = check_sums(&widths, |sum, places, rows| {
            // Of rows that race for a place, one is lost.
            add_rows(sum, &places.narrow(0, 1, places.size()[0] - 1), &rows.narrow(0, 1, rows.size()[0] - 1))
        });
        assert!(lost.unwrap_err().message.contains("sum of rows by place is wrong on Cpu"));
    }
}
