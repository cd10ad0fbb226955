//! Starts the reduction of a gradient bucket the moment it is complete, and waits for all of them at the step's end.
//!
//! A bucket belongs to the communication thread from `complete` to `finish`; nothing else may touch it between.

use crate::comm::{CommThread, Pending};
use crate::engine::GradientSink;
use crate::error::Result;
use tch::Tensor;

/// The reductions of one step.
pub struct Reducer<'a> {
    comm: &'a CommThread,
    pending: Vec<Pending>,
}

impl<'a> Reducer<'a> {
    /// A reducer with nothing under way.
    pub fn new(comm: &'a CommThread) -> Self {
        Self { comm, pending: Vec::new() }
    }

    /// Waits until every bucket holds the sum over all ranks.
    ///
    /// # Errors
    /// A rank or the network is gone.
    pub fn finish(self) -> Result<()> {
        self.pending.into_iter().try_for_each(|pending| pending.wait().map(drop))
    }
}

impl GradientSink for Reducer<'_> {
    fn complete(&mut self, _segment: usize, gradient: Tensor) -> Result<()> {
        self.pending.push(self.comm.all_reduce(gradient));
        Ok(())
    }
}
