//! Predictions of `haf-dist plan` for the pairs that `haf-dist bench` times, so that every benchmark checks them.
//!
//! Not here: the predictions (`plan/`).

use crate::config::Config;
use crate::data::batch::Packing;
use crate::data::prepared::PreparedData;
use crate::error::Result;
use crate::machine::Machine;
use crate::model::architecture::Architecture;
use crate::plan::Job;
use crate::plan::here;
use crate::plan::memory::Memory;
use crate::plan::scaling::Inputs;
use crate::plan::workload::{self, PairTokens};

/// Predictions for one rank of a benchmark on CPUs.
pub(crate) struct Planned {
    /// Peak memory of the rank's process, in 10^9 bytes.
    pub(crate) peak_gb: f64,
    /// Pairs per second, all ranks together, after the first global batch.
    pub(crate) pairs_per_s: f64,
}

/// Predictions for all pairs of `data`, one global batch after the other; None if `plan` does not know the device.
///
/// # Errors
/// None for a benchmark's config.
pub(crate) fn planned(
    config: &Config,
    architecture: &Architecture,
    machine: &Machine,
    data: &PreparedData,
    ranks: usize,
) -> Result<Option<Planned>> {
    let Some(hardware) = here::running(machine, ranks) else { return Ok(None) };
    let job = Job::new(config, architecture.clone(), machine.kind)?;
    let packing = Packing::shared(architecture.alike());
    let pairs: Vec<PairTokens> = (0..data.len()).map(|pair| workload::lengths(&data.pair(pair), packing)).collect();
    let per_step = config.train.pairs_per_step;
    let batches: Vec<Vec<PairTokens>> = pairs.chunks(per_step).map(<[PairTokens]>::to_vec).collect();
    let largest = workload::largest(&batches, ranks, job.tokens_per_micro_batch);
    let inputs = Inputs { job: &job, hardware: &hardware, order: &pairs[per_step.min(pairs.len())..] };
    Ok(Some(Planned {
        peak_gb: Memory::on(&hardware, &job, &largest, ranks).total() as f64 / 1e9,
        pairs_per_s: inputs.step(ranks, per_step).pairs_per_s,
    }))
}
