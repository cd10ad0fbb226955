//! Whether the ranks' replicas are still the same, to the last bit: hashes of weights and metrics, held side by side.
//!
//! They read, and change nothing. Not here: when they are compared (`trainer.rs`, `saving.rs`).

use crate::comm::CommThread;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::tensor;
use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

/// Elements that a GPU hashes at a time: bounds the memory it takes.
const CHUNK: i64 = 1 << 24;

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
            let Some(master) = &segment.master else { continue };
            let values = if segment.is_share() { &segment.compute } else { master };
            of.push(format!("the weights of bucket {number} ({part:?})"));
            hashes.push(match values.device() {
                Device::Cpu => Tensor::from(xxh3_64(tensor::bytes(values)?) as i64),
                _ => on_device(values)?,
            });
        }
        Ok(Self { step, of, hashes })
    }

    /// With these numbers of the step besides.
    pub fn and_metrics(mut self, metrics: &[(&str, f64)]) -> Self {
        for (name, value) in metrics {
            self.of.push(format!("the step's {name}"));
            self.hashes.push(Tensor::from(value.to_bits() as i64));
        }
        self
    }

    /// Compares them over all ranks, which must all call it.
    ///
    /// # Errors
    /// Replicas that differ: the first difference, and the ranks where something else is than on rank 0; or a lost rank.
    pub fn compare(self, comm: &CommThread) -> Result<()> {
        let own: Vec<i64> = self.hashes.iter().map(|hash| hash.int64_value(&[])).collect();
        let mut all = Tensor::from_slice(&own.repeat(comm.world_size()));
        comm.all_gather_blocking(&mut all)?;
        let all: Vec<&[i64]> = tensor::slice::<i64>(&all)?.chunks(own.len().max(1)).collect();
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

/// A hash of a tensor's bits, where the tensor is: the sum of its words, each times an odd number of its own, modulo 2^64.
/// Every changed bit changes it, and the order of the sum does not.
fn on_device(values: &Tensor) -> Result<Tensor> {
    let words = match values.kind() {
        Kind::Float => values.f_view_dtype(Kind::Int)?,
        Kind::BFloat16 | Kind::Half => values.f_view_dtype(Kind::Int16)?,
        kind => return Err(Error::runtime(format!("weights of kind {kind:?} are not hashed"))),
    };
    let length = tensor::count(&words) as i64;
    let mut sum = Tensor::f_zeros([1], (Kind::Int64, words.device()))?;
    for start in (0..length).step_by(CHUNK as usize) {
        let part = words.f_narrow(0, start, CHUNK.min(length - start))?.f_to_kind(Kind::Int64)?;
        let odd = Tensor::f_arange_start_step(
            2 * start + 1,
            2 * (start + part.size()[0]) + 1,
            2,
            (Kind::Int64, words.device()),
        )?;
        let _ = sum.f_add_(&part.f_mul(&odd)?.f_sum(Kind::Int64)?)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_device_sees_each_bit_and_each_place() {
        let hash = |values: &Tensor| on_device(values).unwrap().int64_value(&[]);
        for kind in [Kind::Float, Kind::BFloat16] {
            let values = tensor::waves(&[1001], 0.5).to_kind(kind);
            let before = hash(&values);
            assert_eq!(hash(&values.copy()), before);
            let swapped = values.copy();
            swapped.narrow(0, 3, 1).copy_(&values.narrow(0, 700, 1));
            swapped.narrow(0, 700, 1).copy_(&values.narrow(0, 3, 1));
            assert_eq!(swapped.sum(Kind::Double), values.sum(Kind::Double), "the control: a sum sees no swap");
            assert_ne!(hash(&swapped), before);
            let flipped = values.copy();
            let words = if kind == Kind::Float { Kind::Int } else { Kind::Int16 };
            let _ = flipped.view_dtype(words).narrow(0, 1000, 1).bitwise_xor_tensor_(&Tensor::from(1).to_kind(words));
            assert_ne!(hash(&flipped), before, "{kind:?}");
        }
    }
}
