//! Whether the ranks' replicas are still the same, to the last bit: hashes of weights and metrics, held side by side.
//!
//! They read, and change nothing. Not here: when they are compared (`step.rs`, `saving.rs`).

use crate::comm::CommThread;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::tensor;
use tch::Tensor;

/// Hashes of what every rank must have alike.
pub struct Hashes {
    /// After how many updates they were taken.
    step: usize,
    /// What each hash is of.
    of: Vec<String>,
    /// One number each; on a GPU still being computed.
    hashes: Vec<Tensor>,
}

impl Hashes {
    /// Of the weights that are trained: masters, or where each rank holds a share of them the compute values. On a GPU the
    /// work is queued, and nobody waits for it.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn of_weights(engine: &Engine, step: usize) -> Result<Self> {
        let (mut of, mut hashes) = (Vec::new(), Vec::new());
        for (number, (segment, part)) in engine.model.segments.iter().zip(&engine.model.parts).enumerate() {
            let Some(state) = &segment.state else { continue };
            let values = if state.is_share() { &segment.weights.flat } else { &state.master };
            of.push(format!("the weights of bucket {number} ({part:?})"));
            hashes.push(segment.weights.ops.hash(values)?);
        }
        Ok(Self { step, of, hashes })
    }

    /// The same on the host, once all is done that is queued by then: compare them then.
    ///
    /// # Errors
    /// A failed device.
    pub fn on_host(mut self) -> Result<Self> {
        for hash in &mut self.hashes {
            *hash = tensor::queue_to_host(hash)?;
        }
        Ok(self)
    }

    /// With these numbers of the step besides.
    pub fn and_metrics(mut self, metrics: &[(&str, f64)]) -> Self {
        for (name, value) in metrics {
            self.of.push(format!("the step's {name}"));
            self.hashes.push(Tensor::from(value.to_bits() as i64));
        }
        self
    }

    /// Compares them over all ranks, which must all call it; waits for the device where they are not on the host.
    ///
    /// # Errors
    /// Replicas that differ: the first difference, and the ranks where something else is than on rank 0; or a lost rank.
    pub fn compare(self, comm: &CommThread) -> Result<()> {
        let own: Vec<i64> = self.hashes.iter().map(|hash| hash.int64_value(&[])).collect();
        let mut all = Tensor::from_slice(&own.repeat(comm.world_size()));
        comm.all_gather_blocking(&mut all)?;
        let all = tensor::slice::<i64>(&all)?;
        let all: Vec<&[i64]> = all.chunks(own.len().max(1)).collect();
        for (index, what) in self.of.iter().enumerate() {
            let other = (0..all.len()).filter(|rank| all[*rank][index] != all[0][index]);
            let other: Vec<_> = other.map(|rank| rank.to_string()).collect();
            if !other.is_empty() {
                let ranks = if other.len() == 1 { "rank" } else { "ranks" };
                return Err(Error::runtime(format!(
                    "the ranks' replicas differ after step {}: {what} on {ranks} {} are not rank 0's",
                    self.step,
                    other.join(", ")
                ))
                .hint(
                    "a processor or memory that computes wrongly, or different libraries on the nodes? --resume goes \
                     on from the newest checkpoint, which was compared before it was written",
                ));
            }
        }
        Ok(())
    }
}
