//! The communication thread of a process: owns the backend, takes its work from a channel, keeps the order.
//! Not here: the backends, and what is reduced when.

use super::nccl::{Event, Stream};
use super::solo::Solo;
use super::{Communicator, launch, mpi};
use crate::error::{Error, Kind, Result};
use crate::panics;
use crate::tensor::{bytes, bytes_mut, slice, slice_mut};
use crate::terminal;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use tch::{Device, Tensor};

/// The backend, and the error that made it unusable.
struct Worker {
    communicator: Box<dyn Communicator>,
    failure: Option<Error>,
}

impl Worker {
    fn run<T>(&mut self, work: impl FnOnce(&mut dyn Communicator) -> Result<T>) -> Result<T> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        work(&mut *self.communicator).inspect_err(|error| self.failure = Some(error.clone()))
    }

    /// Runs a collective for `purpose` after the computation `after`; returns its end too, where it may still be going.
    fn collect<T>(
        &mut self,
        purpose: String,
        after: Result<Option<Event>>,
        work: impl FnOnce(&mut dyn Communicator) -> Result<T>,
    ) -> Result<(T, Option<Event>)> {
        self.run(|communicator| {
            communicator.announce(purpose, after?);
            let value = work(communicator)?;
            Ok((value, communicator.finished()))
        })
    }
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// Handle of the one thread of this process that communicates.
///
/// Every method but [`rank`](Self::rank), [`world_size`](Self::world_size), [`local`](Self::local) and
/// [`abort`](Self::abort) is a collective: all ranks must call the same ones in the same order with the same sizes.
/// Within a process they run one after the other in the order of the calls, so call them from one thread. After a
/// failure every later call returns that error.
///
/// Dropping it runs what is queued, ends the thread and finalises MPI, which waits until every rank does the same.
/// A rank that must stop while others go on calls [`abort`](Self::abort) instead.
pub struct CommThread {
    rank: usize,
    world_size: usize,
    local: (usize, usize),
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The backend's [`Communicator::computation`].
    computation: OnceLock<Arc<Stream>>,
}

/// A collective under way. Dropping it does not stop the collective.
#[must_use = "the memory may not be touched before `wait` returns"]
pub struct Pending<T = Tensor> {
    result: Receiver<Result<(T, Option<Event>)>>,
    computation: Option<Arc<Stream>>,
}

impl<T> Pending<T> {
    /// Waits for the result, without keeping a core busy. Errors if the backend failed or the thread is gone.
    ///
    /// On a GPU it returns when the collective is queued, and only what the caller queues from then on waits for its end.
    pub fn wait(self) -> Result<T> {
        let gone = |_| Err(Error::runtime("the communication thread has ended before its work was done"));
        let (value, done) = self.result.recv().unwrap_or_else(gone)?;
        if let (Some(computation), Some(done)) = (self.computation, done) {
            computation.wait(&done)?;
        }
        Ok(value)
    }
}

impl CommThread {
    /// Starts the thread, which makes its backend with `make` (backends need not be `Send`): for a program
    /// `comm::connect`. Returns `make`'s error.
    pub fn start(make: impl FnOnce() -> Result<Box<dyn Communicator>> + Send + 'static) -> Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        let (ready, started) = bounded(1);
        let body = move || {
            let communicator = match make() {
                Ok(communicator) => communicator,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let place = (communicator.rank(), communicator.world_size(), communicator.local());
            let _ = ready.send(Ok((place, None)));
            let mut worker = Worker { communicator, failure: None };
            for job in queue {
                job(&mut worker);
            }
        };
        let thread = std::thread::Builder::new()
            .name("communication".into())
            .spawn(body)
            .map_err(|error| Error::runtime(format!("cannot start the communication thread: {error}")))?;
        match (Pending { result: started, computation: None }).wait() {
            Ok((rank, world_size, local)) => {
                let (jobs, thread) = (Some(jobs), Some(thread));
                Ok(Self { rank, world_size, local, jobs, thread, computation: OnceLock::new() })
            }
            Err(error) => {
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// This rank's number among the ranks of its node, and how many these are.
    pub fn local(&self) -> (usize, usize) {
        self.local
    }

    /// Queues a collective, to come after the computation that the calling thread has queued so far.
    fn submit<T, W>(&self, work: W) -> Pending<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn Communicator) -> Result<T> + Send + 'static,
    {
        self.submit_for(String::new(), work)
    }

    /// The same; messages about it say what it is for.
    fn submit_for<T, W>(&self, purpose: String, work: W) -> Pending<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn Communicator) -> Result<T> + Send + 'static,
    {
        // Recorded here and now: later computation is none of this collective's business.
        let computation = self.computation.get().cloned();
        let after = computation.as_ref().map(|stream| stream.record()).transpose();
        self.send(computation, move |worker| worker.collect(purpose, after, work))
    }

    fn send<T, W>(&self, computation: Option<Arc<Stream>>, work: W) -> Pending<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut Worker) -> Result<(T, Option<Event>)> + Send + 'static,
    {
        let (reply, result) = bounded(1);
        let job: Job = Box::new(move |worker| {
            let _ = reply.send(work(worker));
        });
        if let Some(jobs) = &self.jobs {
            // If the thread is gone the job is dropped, and `reply` with it: `wait` then returns an error.
            let _ = jobs.send(job);
        }
        Pending { result, computation }
    }

    /// Puts another backend of the same ranks in front of the present one. `make` runs on the communication thread and
    /// returns what takes the present backend over. Where it fails, the error is this rank's alone and nothing runs after it.
    pub(super) fn put_in_front<F>(&self, make: impl FnOnce() -> Result<F> + Send + 'static) -> Result<()>
    where
        F: FnOnce(Box<dyn Communicator>) -> Box<dyn Communicator>,
    {
        let pending = self.send(None, move |worker: &mut Worker| {
            let front = worker.run(|_| make())?;
            let present = std::mem::replace(&mut worker.communicator, Box::new(Solo));
            worker.communicator = front(present);
            Ok((worker.communicator.computation(), None))
        });
        if let Some(computation) = pending.wait()? {
            let _ = self.computation.set(computation);
        }
        Ok(())
    }

    /// Queues the sum of `buffer` over all ranks, in place, and returns at once. `buffer` may be a shallow clone of a
    /// view into a larger tensor: the caller promises that nobody reads or writes that memory until
    /// [`Pending::wait`] has returned, on any thread.
    pub fn all_reduce(&self, mut buffer: Tensor) -> Pending {
        self.submit(move |communicator| {
            let _span = tracing::trace_span!("all-reduce", bytes = bytes_of([&buffer])).entered();
            communicator.all_reduce(&mut buffer)?;
            Ok(buffer)
        })
    }

    /// As [`all_reduce`](Self::all_reduce) for several buffers, together where the backend can; messages call them
    /// `purpose`.
    pub fn all_reduce_together(&self, purpose: String, buffers: Vec<Tensor>) -> Pending<Vec<Tensor>> {
        self.in_place(purpose, buffers, |communicator, buffers| {
            let _span = tracing::trace_span!("all-reduce", bytes = bytes_of(&*buffers)).entered();
            communicator.all_reduce_together(buffers)
        })
    }

    /// Queues a collective that works in several buffers, which then come back.
    fn in_place<W>(&self, purpose: String, mut buffers: Vec<Tensor>, work: W) -> Pending<Vec<Tensor>>
    where
        W: FnOnce(&mut dyn Communicator, &mut [Tensor]) -> Result<()> + Send + 'static,
    {
        self.submit_for(purpose, move |communicator| work(communicator, &mut buffers).map(|()| buffers))
    }

    /// Every rank gets the element-wise sum over ranks, the same bits everywhere.
    pub fn all_reduce_blocking(&self, buffer: &mut Tensor) -> Result<()> {
        self.all_reduce(buffer.shallow_clone()).wait().map(drop)
    }

    /// Every rank gets `root`'s values.
    pub fn broadcast(&self, buffer: &mut Tensor, root: usize) -> Result<()> {
        let mut buffer = buffer.shallow_clone();
        self.submit(move |communicator| communicator.broadcast(&mut buffer, root)).wait()
    }

    /// Every rank gets `root`'s values of several buffers, together where the backend can; messages call them `purpose`.
    pub fn broadcast_together(&self, purpose: String, buffers: &[Tensor], root: usize) -> Result<()> {
        let mut buffers: Vec<_> = buffers.iter().map(Tensor::shallow_clone).collect();
        self.submit_for(purpose, move |communicator| communicator.broadcast_together(&mut buffers, root)).wait()
    }

    /// Queues [`Communicator::reduce_scatter`] of several buffers, together where the backend can, and returns at once;
    /// messages call them `purpose`. The promise of [`all_reduce`](Self::all_reduce) holds for all shares.
    pub fn reduce_scatter_together(&self, purpose: String, buffers: Vec<Tensor>) -> Pending<Vec<Tensor>> {
        self.in_place(purpose, buffers, |communicator, buffers| {
            let _span = tracing::trace_span!("reduce-scatter", bytes = bytes_of(&*buffers)).entered();
            communicator.reduce_scatter_together(buffers)
        })
    }

    /// Queues [`Communicator::all_gather`] of several buffers, together where the backend can, and returns at once;
    /// messages call them `purpose`. The promise of [`all_reduce`](Self::all_reduce) holds for all shares.
    pub fn all_gather_together(&self, purpose: String, buffers: Vec<Tensor>) -> Pending<Vec<Tensor>> {
        self.in_place(purpose, buffers, |communicator, buffers| {
            let _span = tracing::trace_span!("all-gather", bytes = bytes_of(&*buffers)).entered();
            communicator.all_gather_together(buffers)
        })
    }

    /// Of `buffer`, world_size shares of equal length, every share gets the values that the rank of its number has there.
    pub fn all_gather_blocking(&self, buffer: &mut Tensor) -> Result<()> {
        // Votes: small, and none of a trace's business.
        let mut buffer = buffer.shallow_clone();
        self.submit(move |communicator| communicator.all_gather(&mut buffer)).wait()
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.submit(|communicator| communicator.barrier()).wait()
    }

    /// Memory in which sums are faster, where the backend has such: see [`Communicator::shared_buffers`].
    pub fn shared_buffers(&self, lengths: &[usize]) -> Result<Option<Vec<Tensor>>> {
        let lengths = lengths.to_vec();
        self.submit(move |communicator| communicator.shared_buffers(&lengths)).wait()
    }

    /// Adds up `values` over all ranks, in place.
    pub fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        let mut buffer = Tensor::from_slice(values);
        self.all_reduce_blocking(&mut buffer)?;
        values.copy_from_slice(slice(&buffer)?);
        Ok(())
    }

    /// Whether `mine` is true on every rank.
    pub fn all_true(&self, mine: bool) -> Result<bool> {
        Ok(self.gather_number(i64::from(mine))?.iter().all(|&theirs| theirs == 1))
    }

    /// Every rank's number, in rank order.
    fn gather_number(&self, mine: i64) -> Result<Vec<i64>> {
        let mut all = Tensor::from_slice(&vec![mine; self.world_size]);
        self.all_gather_blocking(&mut all)?;
        Ok(slice(&all)?.to_vec())
    }

    /// `root`'s bytes, which every rank knows to be `length` many.
    fn bytes_from(&self, root: usize, own: &[u8], length: usize) -> Result<Vec<u8>> {
        let mut buffer = Tensor::zeros([length as i64], (tch::Kind::Uint8, Device::Cpu));
        if self.rank == root {
            bytes_mut(&mut buffer)?.copy_from_slice(own);
        }
        self.broadcast(&mut buffer, root)?;
        Ok(bytes(&buffer)?.to_vec())
    }

    /// Every rank gets the bytes that rank 0 passes; what others pass is ignored. Errors on all ranks if rank 0
    /// passes none.
    pub fn broadcast_bytes(&self, bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let mut length = Tensor::from_slice(&[bytes.as_ref().map_or(-1, |bytes| bytes.len() as i64)]);
        self.broadcast(&mut length, 0)?;
        let length = usize::try_from(slice_mut::<i64>(&mut length)?[0])
            .map_err(|_| Error::runtime("rank 0 has no bytes to broadcast"))?;
        self.bytes_from(0, bytes.as_deref().unwrap_or_default(), length)
    }

    /// Ends a phase that may fail on some ranks only. If it went well everywhere, returns `outcome`'s value; otherwise
    /// every rank returns the same error, the lowest failing rank's, so that rank 0 can print it once and all can
    /// leave with its exit code. "rank N: " stands in front if N is not 0, that is if not all ranks failed alike.
    pub fn agree<T>(&self, outcome: Result<T>) -> Result<T> {
        let text = match &outcome {
            Ok(_) => Vec::new(),
            Err(error) => encode(error),
        };
        let lengths = match self.gather_number(text.len() as i64) {
            Ok(lengths) => lengths,
            Err(lost) => return outcome.and(Err(lost)),
        };
        let Some(failed) = lengths.iter().position(|&length| length > 0) else {
            return outcome;
        };
        let error = decode(&self.bytes_from(failed, &text, lengths[failed] as usize)?);
        Err(if failed == 0 { error } else { error.at(format_args!("rank {failed}")) })
    }

    /// Ends the whole job at once, from any thread and whatever the communication thread is doing; see [`mpi::abort`].
    pub fn abort(&self, code: i32) -> ! {
        mpi::abort(code)
    }
}

impl Drop for CommThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Bytes of the buffers, for traces.
fn bytes_of<'t>(buffers: impl IntoIterator<Item = &'t Tensor>) -> usize {
    buffers.into_iter().map(|buffer| buffer.numel() * buffer.kind().elt_size_in_bytes()).sum()
}

fn encode(error: &Error) -> Vec<u8> {
    serde_json::json!([error.kind == Kind::Input, error.message, error.hint]).to_string().into_bytes()
}

fn decode(text: &[u8]) -> Error {
    match serde_json::from_slice(text) {
        Ok((input, message, hint)) => Error { kind: if input { Kind::Input } else { Kind::Runtime }, message, hint },
        Err(error) => Error::runtime(format!("an error of another rank could not be read: {error}")),
    }
}

/// Makes a panic on any thread end the whole job within a second, with exit code 101: it prints one message with the
/// rank and calls [`mpi::abort`]. Without it the other ranks would wait for ever. Call it first in a program; it is
/// not for tests with several ranks in one process. Panics that somebody catches end the job
/// too, but for those within [`panics::contain`].
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if panics::contained() {
            return;
        }
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let text = format!(
            "rank {}, thread {}: {panic}\n{backtrace}\n",
            launch::rank(),
            thread.name().unwrap_or("without a name")
        );
        let text = text.replace("disabled backtrace\n", "");
        terminal::note_bytes(text.as_bytes());
        mpi::abort(101)
    }));
}
