//! The NCCL backend for tensors on GPUs, one rank a GPU. The only part of the crate that names `cudarc`.
//!
//! `cudarc` has maintained bindings to NCCL, which load it and the CUDA driver at run time, so the CPU build has the same
//! code. MPI stays the control plane: the backend behind NCCL distributes NCCL's unique id and still carries everything
//! that is not on the GPU, such as votes.
//!
//! Collectives run on a stream of their own. Their place in the order of the computation is fixed when the computing
//! thread submits them: [`super::CommThread`] records an event on the stream that libtorch computes on, the collective
//! waits for it, and `Pending::wait` makes the computation's stream, not the thread, wait for the collective's end. The
//! watchdog keeps the tensors alive until then.
//!
//! Not here: the thread that issues collectives, and what is reduced when.

mod cuda;
mod group;
mod watch;

pub(crate) use cuda::{Event, Gpu, Stream};

use super::{CommThread, Communicator, Local, check_root, share_of};
use crate::error::{Error, Result};
use crate::tensor::{bytes, bytes_mut, count};
use group::{Call, Group};
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use watch::Watch;

/// A rank's settings for [`join`].
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Tensors on this device go through NCCL, all others through the backend behind it.
    pub device: Device,
    /// The rank's GPU as the CUDA driver numbers it.
    pub gpu: usize,
    /// Time without progress after which a collective counts as stuck and the job ends.
    pub timeout: Duration,
}

/// The file names by which NCCL is looked for, in this order.
pub(crate) fn names() -> Vec<String> {
    cudarc::get_lib_name_candidates("nccl")
}

/// Makes a GPU the calling thread's from now on. Call it before the first tensor is made: then no memory is taken on
/// another GPU.
///
/// # Errors
/// No driver, or no such GPU.
pub(crate) fn use_gpu(index: usize) -> Result<()> {
    Gpu::open(index).map(drop)
}

/// Puts NCCL in front of the backend of `comm`, and makes the rank's GPU the calling thread's. All ranks must call it.
/// Returns NCCL's version.
///
/// # Errors
/// Input errors, agreed on by all ranks: no library, no GPU, two ranks on one GPU. Any other error is this rank's alone and
/// leaves `comm` unusable: the program must end the job.
pub fn join(comm: &CommThread, settings: Settings) -> Result<String> {
    comm.agree(group::probe())?;
    let gpu = Arc::new(comm.agree(Gpu::open(settings.gpu))?);
    comm.agree(check_alone(comm, &gpu))?;
    let version = comm.agree(group::version())?;
    let id = comm.agree(if comm.rank() == 0 { group::unique_id().map(Some) } else { Ok(None) })?;
    let id = comm.broadcast_bytes(id)?;
    let (rank, world_size) = (comm.rank(), comm.world_size());
    comm.put_in_front(move || {
        let front = Front::connect(rank, world_size, gpu, &id, settings)?;
        Ok(move |control| Box::new(Nccl { front, control }) as Box<dyn Communicator>)
    })?;
    Ok(version)
}

/// Refuses a GPU that a lower rank has too: NCCL would hang or fail in ways that are hard to read.
fn check_alone(comm: &CommThread, gpu: &Gpu) -> Result<()> {
    let width = gpu.uuid.len();
    let mut all = Tensor::zeros([(width * comm.world_size()) as i64], (Kind::Uint8, Device::Cpu));
    bytes_mut(&all)?[comm.rank() * width..][..width].copy_from_slice(&gpu.uuid);
    comm.all_gather_blocking(&mut all)?;
    let all = bytes(&all)?;
    let all: Vec<_> = all.chunks(width).collect();
    for (rank, uuid) in all.iter().enumerate() {
        if let Some(first) = all[..rank].iter().position(|other| other == uuid) {
            let local_size = comm.local().size;
            return Err(Error::input(format!("ranks {first} and {rank} are on the same GPU; NCCL needs one each"))
                .hint(format!(
                    "{local_size} ranks are on this node: start no more than it has GPUs (mpirun: --map-by ppr:N:node), and \
                     set CUDA_VISIBLE_DEVICES so that every rank sees all of them, or each only its own"
                )));
        }
    }
    Ok(())
}

/// The part that works on the GPU.
struct Front {
    rank: usize,
    world_size: usize,
    device: Device,
    computation: Arc<Stream>,
    communication: Stream,
    group: Arc<Group>,
    watch: Watch,
    /// The next collective's.
    purpose: String,
    /// The computation that the next collective waits for.
    after: Option<Event>,
    /// The end of the last collective.
    done: Option<Event>,
    failed: bool,
}

impl Front {
    fn connect(rank: usize, world_size: usize, gpu: Arc<Gpu>, id: &[u8], settings: Settings) -> Result<Self> {
        let communication = Stream::new(gpu.clone())?;
        let watch = Watch::start(rank, settings.timeout, gpu.clone())?;
        let what = format!("all {world_size} ranks to join NCCL's group");
        let group = watch
            .over(what, None, Vec::new(), || Ok((Group::join(id, rank, world_size)?, None)))
            .map_err(|error| error.at(format_args!("joining NCCL's group on rank {rank}, {}", gpu.name)))?;
        let group = Arc::new(group);
        watch.set_group(Some(group.clone()));
        let computation = Arc::new(Stream::of_computation(gpu));
        let (purpose, after, done, failed) = (String::new(), None, None, false);
        let device = settings.device;
        Ok(Self { rank, world_size, device, computation, communication, group, watch, purpose, after, done, failed })
    }

    /// Whether `tensor` is this backend's to move.
    fn takes(&self, tensor: &Tensor) -> bool {
        tensor.device() == self.device
    }

    /// This rank's share of `buffer`, a view: given both, NCCL works in place.
    fn own_share(&self, buffer: &Tensor) -> Result<Tensor> {
        let share = share_of(buffer, self.world_size)? as i64;
        Ok(buffer.f_view(-1)?.f_narrow(0, self.rank as i64 * share, share)?)
    }

    /// Queues the calls after the computation that they were announced with. Returns before they are done.
    fn run(&mut self, calls: &[Call]) -> Result<()> {
        let purpose = std::mem::take(&mut self.purpose);
        let after = self.after.take();
        let result = self.queue(calls, &purpose, after);
        self.failed |= result.is_err();
        result
    }

    fn queue(&mut self, calls: &[Call], purpose: &str, after: Option<Event>) -> Result<()> {
        let tensors = || calls.iter().flat_map(Call::tensors);
        for tensor in tensors() {
            if !tensor.is_contiguous() || !self.takes(tensor) {
                let device = self.device;
                return Err(Error::runtime(format!("a contiguous tensor on {device:?} was expected, not {tensor:?}")));
            }
        }
        let Some(name) = calls.first().map(Call::name) else { return Ok(()) };
        let elements: usize = calls.iter().flat_map(|call| call.tensors().into_iter().take(1)).map(count).sum();
        let of = if purpose.is_empty() { String::new() } else { format!(" of {purpose}") };
        let what = format!("{name}{of} ({elements} elements)");
        let kept = tensors().map(Tensor::shallow_clone).collect();
        let (group, stream) = (&self.group, &self.communication);
        let failure = format!("{what} on rank {}", self.rank);
        let done = self
            .watch
            .over(what, after.clone(), kept, || {
                if let Some(after) = &after {
                    stream.wait(after)?;
                }
                group.issue(calls, stream)?;
                let done = stream.record()?;
                Ok((done.clone(), Some(done)))
            })
            .map_err(|error| error.at(failure))?;
        self.done = Some(done);
        Ok(())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // After a failure the other ranks may never come, and the job is about to be aborted.
        if self.failed || std::thread::panicking() || self.watch.drain().is_err() {
            return;
        }
        self.watch.set_group(None);
        let what = "all ranks to leave NCCL's group".to_string();
        let _ = self.watch.over(what, None, Vec::new(), || Ok((self.group.leave()?, None)));
    }
}

/// NCCL for the GPU's tensors, another backend for the rest.
struct Nccl {
    // Declared first: it is dropped before MPI ends.
    front: Front,
    control: Box<dyn Communicator>,
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.front.rank
    }

    fn world_size(&self) -> usize {
        self.front.world_size
    }

    fn local(&self) -> Local {
        self.control.local()
    }

    fn broadcast(&mut self, buffer: &mut Tensor, root: usize) -> Result<()> {
        check_root(root, self.front.world_size)?;
        if !self.front.takes(buffer) {
            return self.control.broadcast(buffer, root);
        }
        self.front.run(&[Call::Broadcast(buffer, root)])
    }

    fn all_reduce(&mut self, buffer: &mut Tensor) -> Result<()> {
        if !self.front.takes(buffer) {
            return self.control.all_reduce(buffer);
        }
        self.front.run(&[Call::AllReduce(buffer)])
    }

    fn reduce_scatter(&mut self, buffer: &mut Tensor) -> Result<()> {
        self.reduce_scatter_together(std::slice::from_mut(buffer))
    }

    fn all_gather(&mut self, buffer: &mut Tensor) -> Result<()> {
        self.all_gather_together(std::slice::from_mut(buffer))
    }

    fn barrier(&mut self) -> Result<()> {
        self.control.barrier()
    }

    fn all_reduce_together(&mut self, buffers: &mut [Tensor]) -> Result<()> {
        if !buffers.iter().all(|buffer| self.front.takes(buffer)) {
            return self.control.all_reduce_together(buffers);
        }
        let calls: Vec<_> = buffers.iter().map(Call::AllReduce).collect();
        self.front.run(&calls)
    }

    fn broadcast_together(&mut self, buffers: &mut [Tensor], root: usize) -> Result<()> {
        check_root(root, self.front.world_size)?;
        if !buffers.iter().all(|buffer| self.front.takes(buffer)) {
            return self.control.broadcast_together(buffers, root);
        }
        let calls: Vec<_> = buffers.iter().map(|buffer| Call::Broadcast(buffer, root)).collect();
        self.front.run(&calls)
    }

    fn reduce_scatter_together(&mut self, buffers: &mut [Tensor]) -> Result<()> {
        if !buffers.iter().all(|buffer| self.front.takes(buffer)) {
            return self.control.reduce_scatter_together(buffers);
        }
        let calls = buffers.iter().map(|all| Ok(Call::ReduceScatter { all, own: self.front.own_share(all)? }));
        self.front.run(&calls.collect::<Result<Vec<_>>>()?)
    }

    fn all_gather_together(&mut self, buffers: &mut [Tensor]) -> Result<()> {
        if !buffers.iter().all(|buffer| self.front.takes(buffer)) {
            return self.control.all_gather_together(buffers);
        }
        let calls = buffers.iter().map(|all| Ok(Call::AllGather { all, own: self.front.own_share(all)? }));
        self.front.run(&calls.collect::<Result<Vec<_>>>()?)
    }

    fn computation(&self) -> Option<Arc<Stream>> {
        Some(self.front.computation.clone())
    }

    fn announce(&mut self, purpose: String, after: Option<Event>) {
        self.control.announce(purpose.clone(), None);
        (self.front.purpose, self.front.after) = (purpose, after);
    }

    fn finished(&mut self) -> Option<Event> {
        self.front.done.take()
    }
}
