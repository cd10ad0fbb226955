//! A run that is asked to stop: the first SIGTERM, SIGUSR1, SIGHUP or Ctrl-C is acknowledged at once and raises a flag, the
//! second ends the process.
//!
//! Not here: what stopping means; the trainer ends its step and saves.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::low_level::{pipe, unregister};
use signal_hook::{SigId, flag};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use tracing::info;

/// The signals that ask to stop, and their usual names.
const ASKING: [(i32, &str); 4] = [(SIGTERM, "SIGTERM"), (SIGUSR1, "SIGUSR1"), (SIGHUP, "SIGHUP"), (SIGINT, "Ctrl-C")];

/// From now on a write beyond the limit on a file's size (`ulimit -f`) is an error of that write, and does not end the
/// process without a message.
///
/// # Errors
/// The system refuses the handler.
pub fn let_oversized_writes_fail() -> Result<()> {
    let heard = Arc::new(AtomicBool::new(false));
    flag::register(SIGXFSZ, heard)
        .map(drop)
        .map_err(|error| Error::runtime(format!("cannot listen for SIGXFSZ: {error}")))
}

/// While this lives, signals ask to stop. Before and after, they end the process as usual.
#[derive(Debug)]
pub(crate) struct Listening {
    asked: Arc<AtomicBool>,
    pipes: Vec<SigId>,
    /// Ends when its pipe has no writers left.
    answering: Option<JoinHandle<()>>,
}

impl Listening {
    /// Starts to listen. `asked` becomes true at the first signal. One that the process was started to ignore, as `nohup`
    /// does with SIGHUP, stays ignored.
    ///
    /// # Errors
    /// The system refuses a handler or a thread.
    pub(crate) fn start(asked: Arc<AtomicBool>) -> Result<Self> {
        let (answers, asks) = UnixStream::pair().map_err(|error| Error::runtime(format!("no pipe: {error}")))?;
        // Before the handlers: an error here leaves none behind.
        let answering = std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || answer(answers))
            .map_err(|error| Error::runtime(format!("cannot start the thread that answers signals: {error}")))?;
        let mut pipes = Vec::new();
        for (signal, name) in ASKING {
            if ignored(signal) {
                continue;
            }
            // In this order: the first signal finds the flag down, and raises it.
            let registered = flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .and_then(|_| pipe::register(signal, asks.try_clone()?));
            pipes.push(registered.map_err(|error| Error::runtime(format!("cannot listen for {name}: {error}")))?);
        }
        Ok(Self { asked, pipes, answering: Some(answering) })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // From now on the next signal counts as the second.
        self.asked.store(true, Ordering::Relaxed);
        for id in self.pipes.drain(..) {
            unregister(id);
        }
        if let Some(thread) = self.answering.take() {
            let _ = thread.join();
        }
    }
}

/// Acknowledges a signal, since the step under way may take long.
fn answer(mut asks: UnixStream) {
    if asks.read(&mut [0]).is_ok_and(|count| count > 0) {
        info!("asked to stop: stopping after this step, with a checkpoint; ask again to stop now, without");
    }
}

/// Whether the process was started to ignore a signal: Linux lists it in /proc.
pub(crate) fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}
