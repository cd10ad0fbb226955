//! How far the host may run ahead of a device, and when it has caught up.
//!
//! What a CPU has computed is there at once. A GPU's work is only queued: whoever reads a result in the middle of a step makes
//! the GPU wait for the host and the host for the GPU. Results are copied behind the work (`tensor::queue_to_host`) and read when
//! the next step is queued.

use crate::comm::CommThread;
use crate::comm::nccl::{Event, Gpu, Stream};
use crate::error::Result;
use std::sync::Arc;
use tch::Device;

/// A device's queue of work, where it has one.
pub struct Queue(Option<Arc<Stream>>);

/// A place in a queue.
pub struct Mark(Option<Event>);

impl Queue {
    /// That of a device, which is the one that `comm` orders its collectives with, where it does.
    ///
    /// # Errors
    /// A GPU that cannot be used.
    pub fn of(device: Device, comm: &CommThread) -> Result<Self> {
        Ok(Self(match (comm.computation(), device) {
            (Some(computation), _) => Some(computation),
            (None, Device::Cuda(index)) => Some(Arc::new(Stream::of_computation(Arc::new(Gpu::open(index)?)))),
            (None, _) => None,
        }))
    }

    /// Steps that are queued and not read while the next one is queued: none where their results are there at once. The same
    /// on every rank: all compute on GPUs, or none does.
    pub fn ahead(&self) -> usize {
        usize::from(self.0.is_some())
    }

    /// The end of what is queued so far.
    ///
    /// # Errors
    /// A failed GPU.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.0.as_ref().map(|stream| stream.record()).transpose()?))
    }
}

impl Mark {
    /// Returns when the device has come to it.
    ///
    /// # Errors
    /// Some work on the GPU has failed.
    pub fn wait(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), Event::wait)
    }
}
