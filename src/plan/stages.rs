//! Ways to run a job in less memory, and the largest micro-batch that fits with each.
//!
//! Not here: the parts of the memory (`memory.rs`).

use super::Job;
use super::hardware::Hardware;
use super::memory::Memory;
use super::scaling::MOST_SHOWN;
use super::workload::Shape;
use serde::Serialize;

/// Micro-batch sizes are tried in steps of this many tokens.
const STEP: usize = 256;
/// The largest micro-batch that is tried, in tokens.
const MOST: usize = 1 << 18;

/// One way to run the job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Stage {
    /// `parallel.shard_optimizer`.
    pub(crate) sharded: bool,
    /// `train.activation_checkpointing`.
    pub(crate) checkpointing: bool,
    /// Bytes of a rank while the model is loaded.
    pub(crate) at_start: usize,
    /// Bytes of a rank in a step.
    pub(crate) in_a_step: usize,
    /// Whether both are at most what a rank may fill.
    pub(crate) fits: bool,
    /// Tokens of the largest micro-batch of such pairs that fits, in steps of 256; 0: none fits.
    pub(crate) largest_micro_batch: usize,
}

impl Stage {
    /// Settings that differ from those of `job`.
    pub(crate) fn changes(&self, job: &Job) -> Vec<&'static str> {
        let mut changes = Vec::new();
        for (now, then, on, off) in [
            (job.sharded, self.sharded, "parallel.shard_optimizer=true", "parallel.shard_optimizer=false"),
            (
                job.checkpointing,
                self.checkpointing,
                "train.activation_checkpointing=true",
                "train.activation_checkpointing=false",
            ),
        ] {
            if now != then {
                changes.push(if then { on } else { off });
            }
        }
        changes
    }
}

/// The four ways, from the fastest to the one that needs least memory.
pub(crate) fn stages(job: &Job, largest: &Shape, hardware: &Hardware, ranks: usize) -> Vec<Stage> {
    let ways = [(false, false), (true, false), (false, true), (true, true)];
    ways.into_iter()
        .map(|(sharded, checkpointing)| {
            let job = Job { sharded, checkpointing, ..job.clone() };
            let memory = Memory::on(hardware, &job, largest, ranks);
            Stage {
                sharded,
                checkpointing,
                at_start: memory.at_start(),
                in_a_step: memory.in_a_step(),
                fits: fits(&memory, hardware),
                largest_micro_batch: largest_micro_batch(&job, largest, hardware, ranks),
            }
        })
        .collect()
}

/// The smallest of `ranks` doubled again and again, up to [`MOST_SHOWN`], on which the leanest way fits; None on a computer's
/// processors, whose memory ranks share.
pub(crate) fn more_ranks(job: &Job, largest: &Shape, hardware: &Hardware, ranks: usize) -> Option<usize> {
    if hardware.cpu {
        return None;
    }
    let job = Job { sharded: true, checkpointing: true, ..job.clone() };
    let mut more =
        std::iter::successors(Some(2 * ranks), |ranks| Some(2 * ranks)).take_while(|ranks| *ranks <= MOST_SHOWN);
    more.find(|&ranks| fits(&Memory::on(hardware, &job, largest, ranks), hardware))
}

fn fits(memory: &Memory, hardware: &Hardware) -> bool {
    memory.total() as f64 <= hardware.usable_memory()
}

/// Finds it by bisection: memory grows with the tokens.
fn largest_micro_batch(job: &Job, largest: &Shape, hardware: &Hardware, ranks: usize) -> usize {
    let fits = |steps: usize| {
        let job = Job { tokens_per_micro_batch: STEP * steps, ..job.clone() };
        fits(&Memory::on(hardware, &job, &largest.of_tokens(STEP * steps), ranks), hardware)
    };
    let (mut fit, mut too_large) = (0, MOST / STEP + 1);
    while too_large - fit > 1 {
        let middle = (fit + too_large) / 2;
        if fits(middle) {
            fit = middle;
        } else {
            too_large = middle;
        }
    }
    STEP * fit
}
