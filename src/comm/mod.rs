//! Collective communication: the [`Communicator`] trait, its backends, and the thread that owns one.
//!
//! All communication of a process goes through one [`CommThread`] fed by a channel, so that every rank issues the
//! same collectives in the same order. Backends: [`solo`] (one process), [`threads`] (N ranks in one process, for
//! tests), [`mpi`], and [`nccl`] in front of one of them, for tensors on GPUs. Under MPI a watchdog on each rank ends a
//! job whose ranks wait too long for one another. Not here: what is communicated, and when (the reducer, the trainer).

mod abort;
pub mod launch;
pub mod mpi;
pub mod nccl;
mod progress;
mod same;
mod shared;
pub mod solo;
mod thread;
pub mod threads;
mod votes;
mod watch;

use crate::error::{Error, Result};
use crate::tensor::count;
use nccl::{Event, Stream};
use progress::Progress;
use std::sync::Arc;
use tch::Tensor;
use watch::Watch;

pub(crate) use abort::abort;
pub(crate) use same::{Fact, leaves, leaves_within};
pub(crate) use thread::Pending;
pub use thread::{CommThread, install_panic_hook};

/// This rank's place on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Its number among the ranks of the node, from 0.
    pub rank: usize,
    /// Number of ranks on the node.
    pub size: usize,
}

/// The collectives of a backend.
///
/// All ranks must call the same operations in the same order with the same sizes and kinds; a call returns when this
/// rank's part is done, which may be before other ranks return. Buffers are contiguous tensors, changed in place, on
/// the device the backend works on (MPI, threads: CPU). Sums take kinds Float, Double, Int64 and Uint8 (which wraps);
/// the other operations move any kind. Empty buffers are allowed.
///
/// After an error the order of collectives is lost: do not use that communicator again.
pub trait Communicator {
    /// This process's number, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world_size(&self) -> usize;
    /// This rank's place on its node.
    fn local(&self) -> Local;
    /// Every rank gets `root`'s values.
    fn broadcast(&mut self, buffer: &mut Tensor, root: usize) -> Result<()>;
    /// Every rank gets the element-wise sum over ranks, the same bits everywhere.
    fn all_reduce(&mut self, buffer: &mut Tensor) -> Result<()>;
    /// `buffer` consists of world_size equal shares. This rank's share gets its part of the element-wise sum over ranks;
    /// the other shares are undefined afterwards.
    fn reduce_scatter(&mut self, buffer: &mut Tensor) -> Result<()>;
    /// `buffer` consists of world_size equal shares. Every share gets the values of the rank with its number.
    fn all_gather(&mut self, buffer: &mut Tensor) -> Result<()>;
    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<()>;

    /// Zeroed Float tensors of these lengths, flat and aligned to 64 bytes, in memory that all ranks of the node see:
    /// `all_reduce` of such a tensor, or of a part of it, is faster. All ranks must call it with the same lengths, and
    /// later reduce the same parts. The memory lasts until the process ends. None on all ranks if there is no such
    /// memory; if that is a failure, one rank warns.
    fn shared_buffers(&mut self, lengths: &[usize]) -> Result<Option<Vec<Tensor>>> {
        let _ = lengths;
        Ok(None)
    }

    /// [`all_reduce`](Self::all_reduce) of several buffers, at the cost of one call if the backend can.
    fn all_reduce_together(&mut self, buffers: &mut [Tensor]) -> Result<()> {
        buffers.iter_mut().try_for_each(|buffer| self.all_reduce(buffer))
    }
    /// [`broadcast`](Self::broadcast) of several buffers, at the cost of one call if the backend can.
    fn broadcast_together(&mut self, buffers: &mut [Tensor], root: usize) -> Result<()> {
        buffers.iter_mut().try_for_each(|buffer| self.broadcast(buffer, root))
    }

    /// [`reduce_scatter`](Self::reduce_scatter) of several buffers, at the cost of one call if the backend can.
    fn reduce_scatter_together(&mut self, buffers: &mut [Tensor]) -> Result<()> {
        buffers.iter_mut().try_for_each(|buffer| self.reduce_scatter(buffer))
    }
    /// [`all_gather`](Self::all_gather) of several buffers, at the cost of one call if the backend can.
    fn all_gather_together(&mut self, buffers: &mut [Tensor]) -> Result<()> {
        buffers.iter_mut().try_for_each(|buffer| self.all_gather(buffer))
    }

    /// The computation's stream, with which collectives must be ordered; none if they are done when their call returns.
    /// With a stream, a call may return before its collective is done.
    fn computation(&self) -> Option<Arc<Stream>> {
        None
    }
    /// Called before a collective, with its purpose and the computation that it must wait for. If ranks announce different
    /// purposes, the collective returns an error if the backend can detect it.
    fn announce(&mut self, _purpose: String, _after: Option<Event>) {}
    /// Starts the rank's watchdog over `progress` if the backend needs one, that is, if its calls may wait for ever.
    fn watch(&mut self, _progress: Arc<Progress>) -> Result<Option<Watch>> {
        Ok(None)
    }
    /// Returns the event that marks the end of the last collective, for the computation that reads its result; none if it is over.
    fn finished(&mut self) -> Option<Event> {
        None
    }
}

/// The CPU backend for this process: MPI if an MPI launcher started it, else [`solo::Solo`], which neither initializes
/// MPI nor needs a launcher. Meant for [`CommThread::start`].
pub fn connect() -> Result<Box<dyn Communicator>> {
    if launch::under_mpirun() { Ok(Box::new(mpi::Mpi::start()?)) } else { Ok(Box::new(solo::Solo)) }
}

/// Refuses a root that is no rank.
fn check_root(root: usize, world_size: usize) -> Result<()> {
    if root >= world_size {
        return Err(Error::runtime(format!("broadcast: root {root} is not one of {world_size} ranks")));
    }
    Ok(())
}

/// Elements of each rank's share of `buffer`; refuses a buffer that does not divide into `world_size` equal shares.
fn share_of(buffer: &Tensor, world_size: usize) -> Result<usize> {
    let elements = count(buffer);
    if !elements.is_multiple_of(world_size) {
        return Err(Error::runtime(format!("{elements} elements do not divide into {world_size} equal shares")));
    }
    Ok(elements / world_size)
}

/// The error for two ranks at different collectives: each rank with the purpose of its collective.
fn apart([first, second]: &[(usize, &str); 2]) -> Error {
    Error::runtime(format!(
        "the ranks are at different collectives: rank {} at {}, rank {} at {}",
        first.0, first.1, second.0, second.1
    ))
    .hint("do all ranks run the same program, with the same config and files?")
}

/// The error for a kind that cannot be summed.
fn kind_error(kind: tch::Kind) -> Error {
    Error::runtime(format!("tensors of {kind:?} cannot be summed over ranks"))
        .hint("sum Float, Double, Int64 or Uint8 tensors")
}
