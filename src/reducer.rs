//! Starts the reduction of a gradient bucket the moment it is complete, and waits for all of them at the step's end.
//!
//! A bucket belongs to the communication thread from `complete` to `finish`; nothing else may touch it between.

use crate::comm::{CommThread, Pending};
use crate::engine::GradientSink;
use crate::error::Result;
use crate::tensor;
use tch::{Kind, Tensor};

/// Elements below which a bucket goes together with the next: a final norm and a reward head are worth no call each.
const SMALL: usize = 1 << 14;

/// The reductions of one step.
pub struct Reducer<'a> {
    comm: &'a CommThread,
    kind: Kind,
    /// Complete, but too small to go alone.
    held: Vec<(usize, Tensor)>,
    pending: Vec<Sent>,
}

/// Buckets that are reduced together.
struct Sent {
    gradients: Vec<Tensor>,
    sums: Pending<Vec<Tensor>>,
}

impl<'a> Reducer<'a> {
    /// A reducer with nothing under way, which adds up in f32.
    pub fn new(comm: &'a CommThread) -> Self {
        Self { comm, kind: Kind::Float, held: Vec::new(), pending: Vec::new() }
    }

    /// The same, which adds up in `kind`: bf16 halves what is sent and keeps 8 bits of each partial sum.
    pub fn summing_in(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Waits until every bucket holds the sum over all ranks.
    ///
    /// # Errors
    /// A rank or the network is gone.
    pub fn finish(mut self) -> Result<()> {
        self.send()?;
        for Sent { gradients, sums } in self.pending {
            let sums = sums.wait()?;
            if self.kind != Kind::Float {
                for (mut gradient, sum) in gradients.into_iter().zip(sums) {
                    gradient.f_copy_(&sum)?;
                }
            }
        }
        Ok(())
    }

    /// Starts the reduction of what is held.
    fn send(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let (numbers, gradients): (Vec<_>, Vec<_>) = self.held.drain(..).unzip();
        let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
        let purpose = format!("bucket{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(" and "));
        // In f32 a shallow clone of the bucket: the sum comes to be in its memory.
        let sent =
            gradients.iter().map(|gradient| gradient.f_to_kind(self.kind)).collect::<std::result::Result<_, _>>()?;
        let sums = self.comm.all_reduce_together(purpose, sent);
        self.pending.push(Sent { gradients, sums });
        Ok(())
    }
}

impl GradientSink for Reducer<'_> {
    fn complete(&mut self, segment: usize, gradient: Tensor) -> Result<()> {
        let small = tensor::count(&gradient) < SMALL;
        self.held.push((segment, gradient));
        if small { Ok(()) } else { self.send() }
    }
}
