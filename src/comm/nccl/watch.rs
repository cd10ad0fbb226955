//! The watchdog of a rank: keeps what is in flight alive, and ends the job when a collective fails late or never ends.
//!
//! No other thread could: one that waits for a GPU may wait for ever. Not here: errors that a call returns at once.

use super::cuda::{Event, Gpu};
use super::group::Group;
use crate::comm::abort;
use crate::error::{Error, Result};
use crate::terminal;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Time between two polls.
const POLL: Duration = Duration::from_millis(50);
/// How long a rank waits after a failure, so that the others can report theirs, before it ends the job.
const GRACE: Duration = Duration::from_secs(2);

/// A call under way that other ranks must take part in.
struct Flight {
    number: u64,
    what: String,
    /// The computation that it waits for.
    after: Option<Event>,
    /// Its end; none until the call that starts it returns.
    done: Option<Event>,
    /// Kept alive until the end.
    _tensors: Vec<Tensor>,
}

#[derive(Default)]
struct Flights {
    started: u64,
    /// In the order of their start, which is the order of their ends.
    queue: VecDeque<Flight>,
    /// When something last ended, or started with nothing in flight.
    progress: Option<Instant>,
    /// Polled for late errors; under the same lock, so that it is not polled while the rank leaves it.
    group: Option<Arc<Group>>,
}

impl Flights {
    /// Removes the flights that have ended.
    fn retire(&mut self) -> Result<()> {
        while let Some(Flight { done: Some(done), .. }) = self.queue.front()
            && done.reached()?
        {
            self.queue.pop_front();
            self.progress = Some(Instant::now());
        }
        Ok(())
    }
}

struct Shared {
    rank: usize,
    timeout: Duration,
    gpu: Arc<Gpu>,
    flights: Mutex<Flights>,
    over: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if a collective has failed or makes no progress.
    fn check(&self) -> Result<()> {
        let mut flights = self.lock();
        flights.retire().map_err(|error| error.at(waiting_for(&flights)))?;
        if let Some(group) = &flights.group {
            group.async_error().map_err(|error| error.at(waiting_for(&flights)))?;
        }
        let waited = flights.progress.map_or(Duration::ZERO, |since| since.elapsed());
        let Some(first) = flights.queue.front() else { return Ok(()) };
        if waited < self.timeout {
            return Ok(());
        }
        let own = match first.after.as_ref().map(Event::reached) {
            Some(Ok(false)) => "this rank's own computation before it has not ended either",
            _ => "other ranks have not reached it, or the network between them is stuck",
        };
        let message = format!("{}: no progress in {} s; {own}", waiting_for(&flights), waited.as_secs());
        Err(Error::runtime(message).hint("raise parallel.timeout_seconds if a rank may be that late"))
    }

    /// Reports and ends the job.
    fn end(&self, error: &Error) -> ! {
        terminal::note(format_args!("error: rank {}: {error}", self.rank));
        std::thread::sleep(GRACE);
        abort(error.exit_code())
    }
}

fn waiting_for(flights: &Flights) -> String {
    match (flights.queue.front(), flights.queue.len()) {
        (Some(first), 1) => format!("waiting for {}", first.what),
        (Some(first), several) => format!("waiting for {} and {} more", first.what, several - 1),
        (None, _) => "between collectives".into(),
    }
}

/// The watchdog's thread, and what it watches.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the thread; `timeout` without progress ends the job.
    pub(super) fn start(rank: usize, timeout: Duration, gpu: Arc<Gpu>) -> Result<Self> {
        let (flights, over) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { rank, timeout, gpu, flights, over });
        let watched = shared.clone();
        let body = move || {
            let bound = watched.gpu.bind();
            while !watched.over.load(Ordering::Acquire) {
                if let Err(error) = bound.clone().and_then(|()| watched.check()) {
                    watched.end(&error);
                }
                std::thread::park_timeout(POLL);
            }
        };
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(body)
            .map_err(|error| Error::runtime(format!("cannot start the watchdog thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Polls this group for late errors from now on; `None` polls none.
    pub(super) fn set_group(&self, group: Option<Arc<Group>>) {
        self.shared.lock().group = group;
    }

    /// Runs `call`, which starts `what` and returns its end if that comes after the call; keeps `tensors` until then.
    pub(super) fn over<T>(
        &self,
        what: String,
        after: Option<Event>,
        tensors: Vec<Tensor>,
        call: impl FnOnce() -> Result<(T, Option<Event>)>,
    ) -> Result<T> {
        let mut flights = self.shared.lock();
        flights.retire()?;
        if flights.queue.is_empty() {
            flights.progress = Some(Instant::now());
        }
        flights.started += 1;
        let number = flights.started;
        flights.queue.push_back(Flight { number, what, after, done: None, _tensors: tensors });
        drop(flights);
        let result = call();
        let mut flights = self.shared.lock();
        let place = flights.queue.iter().position(|flight| flight.number == number);
        match (result, place) {
            (Ok((value, Some(done))), Some(place)) => {
                flights.queue[place].done = Some(done);
                Ok(value)
            }
            (result, place) => {
                if let Some(place) = place {
                    flights.queue.remove(place);
                    flights.progress = Some(Instant::now());
                }
                result.map(|(value, _)| value)
            }
        }
    }

    /// Returns when nothing is in flight.
    pub(super) fn drain(&self) -> Result<()> {
        loop {
            let mut flights = self.shared.lock();
            flights.retire()?;
            if flights.queue.is_empty() {
                return Ok(());
            }
            drop(flights);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
