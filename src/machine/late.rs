//! How far the host may run ahead of a device, and when the device has caught up.
//!
//! A CPU's results are there when a call returns. A GPU's work is only queued: reading a result in the middle of a step would make
//! the host wait for the GPU, and then the GPU for the host. So the copy of a result is queued behind the work
//! (`tensor::queue_to_host`), and read once the next step is queued.

use crate::comm::CommThread;
use crate::comm::nccl::{Event, Gpu, Stream};
use crate::error::Result;
use std::sync::Arc;
use tch::Device;

/// A device's queue of work, if it has one.
pub struct Queue(Option<Arc<Stream>>);

/// A place in a queue.
pub struct Mark(Option<Event>);

impl Queue {
    /// The queue of a device: the one with which `comm` orders its collectives, if there is one.
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

    /// How many steps may be unread while the next one is queued: 0 if results are there at once. The same on every rank, since
    /// either all compute on GPUs or none does.
    pub(crate) fn ahead(&self) -> usize {
        usize::from(self.0.is_some())
    }

    /// Marks the end of the work queued so far.
    ///
    /// # Errors
    /// A failed GPU.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.0.as_ref().map(|stream| stream.record()).transpose()?))
    }
}

impl Mark {
    /// Waits until the device has reached it.
    ///
    /// # Errors
    /// Failed work on the GPU.
    pub fn wait(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), Event::wait)
    }
}
