//! The communication thread of a process: owns the backend, takes its work from a channel, keeps the order.
//! Not here: the backends, what is reduced when, and what is voted on (`votes.rs`).

use super::abort::abort;
use super::nccl::{Event, Stream};
use super::progress::{AtWork, Progress};
use super::solo::Solo;
use super::watch::Watch;
use super::{Communicator, Local, launch};
use crate::error::{Error, Result};
use crate::memory;
use crate::panics;
use crate::terminal;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::panic::Location;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tch::{Device, Tensor};

/// The backend, and the error that made it unusable.
struct Worker {
    communicator: Box<dyn Communicator>,
    failure: Option<Error>,
    progress: Arc<Progress>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The backend is dropped next, which waits for all ranks.
        self.progress.begin("the end of the job");
    }
}

impl Worker {
    fn run<T>(&mut self, work: impl FnOnce(&mut dyn Communicator) -> Result<T>) -> Result<T> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        work(&mut *self.communicator).inspect_err(|error| self.failure = Some(error.clone()))
    }

    /// Runs a collective for `purpose` after the computation `after`; also returns its end if it may still be running.
    fn collect<T>(
        &mut self,
        purpose: String,
        after: Result<Option<Event>>,
        work: impl FnOnce(&mut dyn Communicator) -> Result<T>,
    ) -> Result<(T, Option<Event>)> {
        let progress = self.progress.clone();
        self.run(|communicator| {
            progress.begin(&purpose);
            communicator.announce(purpose, after?);
            let value = work(communicator);
            progress.end();
            Ok((value?, communicator.finished()))
        })
    }
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// Handle of the one thread of this process that communicates.
///
/// Every method but [`rank`](Self::rank), [`world_size`](Self::world_size), [`local`](Self::local),
/// [`computation`](Self::computation), [`set_stage`](Self::set_stage), [`set_limit`](Self::set_limit), [`at_work`](Self::at_work) and
/// [`abort`](Self::abort) is a collective: all ranks must call the same ones in the same order with the same sizes. A
/// collective without a purpose is identified by its call site, and ranks that call from different ones get an error.
/// Within a process collectives run in the order of the calls, so call them from one thread. After a failure every later
/// call returns that error.
///
/// Dropping it runs what is queued, ends the thread and finalizes MPI, which waits until every rank does the same.
/// A rank that must stop while others continue calls [`abort`](Self::abort) instead.
pub struct CommThread {
    rank: usize,
    world_size: usize,
    local: Local,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The backend's [`Communicator::computation`].
    computation: OnceLock<Arc<Stream>>,
    /// What this rank is doing, for its watchdog.
    progress: Arc<Progress>,
    /// What collectives are part of, for messages.
    stage: Mutex<String>,
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
    /// On a GPU it returns when the collective is queued; only work that the caller queues after that waits for its end.
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
    /// Starts the thread, which makes its backend with `make` (backends need not be `Send`); programs pass
    /// `comm::connect`. Returns `make`'s error.
    pub fn start(make: impl FnOnce() -> Result<Box<dyn Communicator>> + Send + 'static) -> Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        let (ready, started) = bounded(1);
        let progress = Arc::<Progress>::default();
        let shown = progress.clone();
        let body = move || {
            let watched = make().and_then(|mut communicator| {
                let watch: Option<Watch> = communicator.watch(shown.clone())?;
                Ok((watch, communicator))
            });
            // The watchdog outlives the backend, whose end waits for all ranks.
            let (_watch, communicator) = match watched {
                Ok(started) => started,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let place = (communicator.rank(), communicator.world_size(), communicator.local());
            let _ = ready.send(Ok((place, None)));
            let mut worker = Worker { communicator, failure: None, progress: shown };
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
                let (computation, stage) = (OnceLock::new(), Mutex::default());
                Ok(Self { rank, world_size, local, jobs, thread, computation, progress, stage })
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

    /// This rank's place on its node.
    pub fn local(&self) -> Local {
        self.local
    }

    /// Names what later collectives are part of, the same on every rank: `step 40` makes `bucket 12 of step 40`.
    pub fn set_stage(&self, stage: impl Into<String>) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage.into();
    }

    /// Sets how long ranks may wait for one another before the job ends; 600 s until then. No effect without a watchdog,
    /// as in a world of threads.
    pub fn set_limit(&self, limit: Duration) {
        self.progress.set_limit(limit);
    }

    /// Announces long work that others wait for: it may take longer than the limit while this rank's process runs. It is
    /// over when the returned value is dropped.
    pub fn at_work(&self, what: impl Into<String>) -> AtWork {
        AtWork::start(&self.progress, what.into())
    }

    /// Queues a collective that is identified by its call site.
    #[track_caller]
    pub(super) fn submit<T, W>(&self, work: W) -> Pending<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn Communicator) -> Result<T> + Send + 'static,
    {
        let place = Location::caller();
        self.submit_for(format!("the collective at {place}"), work)
    }

    /// Queues a collective that waits for the computation the calling thread has queued so far. Messages name its purpose;
    /// ranks whose purposes differ get an error.
    fn submit_for<T, W>(&self, mut purpose: String, work: W) -> Pending<T>
    where
        T: Send + 'static,
        W: FnOnce(&mut dyn Communicator) -> Result<T> + Send + 'static,
    {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if !stage.is_empty() {
            purpose.extend([" of ", &stage[..]]);
        }
        drop(stage);
        // Recorded now: the collective must not wait for later computation.
        let computation = self.computation();
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

    /// The stream of the computation that collectives are ordered with, if there is one.
    pub(crate) fn computation(&self) -> Option<Arc<Stream>> {
        self.computation.get().cloned()
    }

    /// Puts another backend of the same ranks in front of the present one. `make` runs on the communication thread and
    /// returns a function that takes over the present backend. If it fails, the error is this rank's alone, and every later
    /// collective fails too.
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
    #[track_caller]
    pub fn all_reduce(&self, mut buffer: Tensor) -> Pending {
        self.submit(move |communicator| {
            let _span = tracing::trace_span!("all-reduce", bytes = bytes_of([&buffer])).entered();
            communicator.all_reduce(&mut buffer)?;
            Ok(buffer)
        })
    }

    /// As [`all_reduce`](Self::all_reduce) for several buffers, together if the backend can; messages call them
    /// `purpose`.
    pub(crate) fn all_reduce_together(&self, purpose: String, buffers: Vec<Tensor>) -> Pending<Vec<Tensor>> {
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
    #[track_caller]
    pub fn all_reduce_blocking(&self, buffer: &mut Tensor) -> Result<()> {
        self.all_reduce(buffer.shallow_clone()).wait().map(drop)
    }

    /// Every rank gets `root`'s values.
    #[track_caller]
    pub fn broadcast(&self, buffer: &mut Tensor, root: usize) -> Result<()> {
        let mut buffer = buffer.shallow_clone();
        self.submit(move |communicator| communicator.broadcast(&mut buffer, root)).wait()
    }

    /// Every rank gets `root`'s values of several buffers, together if the backend can; messages call them `purpose`.
    pub fn broadcast_together(&self, purpose: String, buffers: &[Tensor], root: usize) -> Result<()> {
        let mut buffers: Vec<_> = buffers.iter().map(Tensor::shallow_clone).collect();
        self.submit_for(purpose, move |communicator| communicator.broadcast_together(&mut buffers, root)).wait()
    }

    /// Queues [`Communicator::reduce_scatter`] of several buffers, together if the backend can, and returns at once;
    /// messages call them `purpose`. The promise of [`all_reduce`](Self::all_reduce) holds for all shares.
    pub fn reduce_scatter_together(&self, purpose: String, buffers: Vec<Tensor>) -> Pending<Vec<Tensor>> {
        self.in_place(purpose, buffers, |communicator, buffers| {
            let _span = tracing::trace_span!("reduce-scatter", bytes = bytes_of(&*buffers)).entered();
            communicator.reduce_scatter_together(buffers)
        })
    }

    /// Queues [`Communicator::all_gather`] of several buffers, together if the backend can, and returns at once;
    /// messages call them `purpose`. The promise of [`all_reduce`](Self::all_reduce) holds for all shares.
    pub fn all_gather_together(&self, purpose: String, buffers: Vec<Tensor>) -> Pending<Vec<Tensor>> {
        self.in_place(purpose, buffers, |communicator, buffers| {
            let _span = tracing::trace_span!("all-gather", bytes = bytes_of(&*buffers)).entered();
            communicator.all_gather_together(buffers)
        })
    }

    /// `buffer` consists of world_size equal shares. Every share gets the values of the rank with its number.
    #[track_caller]
    pub fn all_gather_blocking(&self, buffer: &mut Tensor) -> Result<()> {
        // Votes, too small to trace.
        let mut buffer = buffer.shallow_clone();
        self.submit(move |communicator| communicator.all_gather(&mut buffer)).wait()
    }

    /// Returns when every rank has called it.
    #[track_caller]
    pub fn barrier(&self) -> Result<()> {
        self.submit(|communicator| communicator.barrier()).wait()
    }

    /// Memory in which sums are faster, if the backend has it: see [`Communicator::shared_buffers`].
    #[track_caller]
    pub fn shared_buffers(&self, lengths: &[usize]) -> Result<Option<Vec<Tensor>>> {
        let lengths = lengths.to_vec();
        self.submit(move |communicator| communicator.shared_buffers(&lengths)).wait()
    }

    /// The same for tensors on a device; none if ranks cannot share its memory.
    #[track_caller]
    pub(crate) fn shared_buffers_on(&self, device: Device, lengths: &[usize]) -> Result<Option<Vec<Tensor>>> {
        if device == Device::Cpu { self.shared_buffers(lengths) } else { Ok(None) }
    }

    /// Ends the whole job at once, from any thread and whatever the communication thread is doing; see [`abort`].
    pub fn abort(&self, code: i32) -> ! {
        abort(code)
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

/// Makes a panic on any thread end the whole job within a second, with exit code 101: it prints one message with the
/// rank and calls [`abort`]. Without it the other ranks would wait for ever. Call it first in a program; it is
/// not for tests with several ranks in one process. Panics that are caught end the job too, except within
/// [`panics::contain`]. A panic for lack of memory is reported as an error, with exit code 1.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        memory::wait_if_ending();
        let message = panic.to_string();
        if panics::becomes_an_error(&message) {
            return;
        }
        if let Some(lack) = memory::lack_in(&message) {
            let rank = if launch::rank() == 0 { String::new() } else { format!("rank {}: ", launch::rank()) };
            let text = format!("error: {rank}out of memory: {lack}\n  hint: {}\n", memory::hint());
            if memory::take_end() {
                terminal::note_bytes(text.as_bytes());
                memory::said();
            }
            abort(1);
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
        abort(101)
    }));
}
