//! Starts the reduction of a gradient bucket the moment it is complete, and waits for all of them at the step's end;
//! and puts the buckets where they are reduced fastest.
//!
//! A bucket belongs to the communication thread from `complete` to `finish`; nothing else may touch it between.

use crate::comm::{CommThread, Pending};
use crate::engine::GradientSink;
use crate::error::Result;
use crate::model::segment::Segment;
use crate::model::weights::Model;
use tch::{Device, Tensor};
use tracing::info;

/// Moves the gradient buckets of a model on the CPU to memory that the ranks of a node share, where the backend has
/// such. What they hold is lost. All ranks must call it, with the same model, before its first forward pass.
///
/// # Errors
/// A rank or the network is gone.
pub fn share_gradients(model: &mut Model, comm: &CommThread) -> Result<()> {
    if model.device != Device::Cpu {
        return Ok(());
    }
    let mut trained: Vec<&mut Segment> = model.segments.iter_mut().filter(|segment| segment.trains()).collect();
    let lengths: Vec<usize> = trained.iter().map(|segment| segment.length()).collect();
    let Some(buffers) = comm.shared_buffers(&lengths)? else { return Ok(()) };
    trained.iter_mut().zip(buffers).for_each(|(segment, buffer)| segment.adopt_gradient(buffer));
    let megabytes = (lengths.iter().sum::<usize>() * size_of::<f32>()) as f64 / 1e6;
    info!("the {} ranks of a node share the memory of their gradients, {megabytes:.0} MB each", comm.local().1);
    Ok(())
}

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
