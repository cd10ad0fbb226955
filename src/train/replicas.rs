//! Checks that the ranks' replicas are still the same, to the last bit, by hashes of weights and metrics.
//!
//! Nothing is changed. Not here: when they are compared (`step.rs`, `saving.rs`).

use crate::comm::CommThread;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::tensor;
use tch::Tensor;

/// Hashes of values that must be the same on every rank.
pub(crate) struct Hashes {
    /// After how many updates they were taken.
    step: usize,
    /// The names of the hashed values.
    names: Vec<String>,
    /// One number each; a GPU may still be computing it.
    hashes: Vec<Tensor>,
}

impl Hashes {
    /// Hashes of the trained weights: of the masters, or of the compute values if each rank holds a share of the masters. On
    /// a GPU the work is queued without waiting.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub(crate) fn of_weights(engine: &Engine, step: usize) -> Result<Self> {
        let (mut names, mut hashes) = (Vec::new(), Vec::new());
        for (number, (segment, part)) in engine.model.segments.iter().zip(&engine.model.parts).enumerate() {
            let Some(state) = &segment.state else { continue };
            let values = if state.is_share() { &segment.weights.flat } else { &state.master };
            names.push(format!("the weights of bucket {number} ({part:?})"));
            hashes.push(segment.weights.ops.hash(values)?);
        }
        Ok(Self { step, names, hashes })
    }

    /// Queues copies to the host: compare them once all work queued so far is done.
    ///
    /// # Errors
    /// A failed device.
    pub(crate) fn on_host(mut self) -> Result<Self> {
        for hash in &mut self.hashes {
            *hash = tensor::queue_to_host(hash)?;
        }
        Ok(self)
    }

    /// Adds these metrics of the step.
    pub(crate) fn and_metrics(mut self, metrics: &[(&str, f64)]) -> Self {
        for (name, value) in metrics {
            self.names.push(format!("the step's {name}"));
            self.hashes.push(Tensor::from(value.to_bits() as i64));
        }
        self
    }

    /// Compares them over all ranks, which must all call it; waits for the device if they are not on the host.
    ///
    /// # Errors
    /// Replicas that differ, with the first difference and the ranks that differ from rank 0; or a lost rank.
    pub(crate) fn compare(self, comm: &CommThread) -> Result<()> {
        let own: Vec<i64> = self.hashes.iter().map(|hash| hash.int64_value(&[])).collect();
        let mut all = Tensor::from_slice(&own.repeat(comm.world_size()));
        comm.all_gather_blocking(&mut all)?;
        let all = tensor::slice::<i64>(&all)?;
        let all: Vec<&[i64]> = all.chunks(own.len().max(1)).collect();
        for (index, name) in self.names.iter().enumerate() {
            let other = (0..all.len()).filter(|rank| all[*rank][index] != all[0][index]);
            let other: Vec<_> = other.map(|rank| rank.to_string()).collect();
            if !other.is_empty() {
                let ranks = if other.len() == 1 { "rank" } else { "ranks" };
                return Err(Error::runtime(format!(
                    "the ranks' replicas differ after step {}: in {name}, between rank 0 and {ranks} {}",
                    self.step,
                    other.join(", ")
                ))
                .hint(
                    "is a processor or memory faulty, or do the nodes have different libraries? --resume continues from \
                     the newest checkpoint, whose weights were compared before it was written",
                ));
            }
        }
        Ok(())
    }
}
