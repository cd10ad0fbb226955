//! A polite end: the first SIGTERM, SIGUSR1 or Ctrl-C only asks a run to stop, the second ends the process.
//!
//! Not here: what stopping means; the trainer ends its step and saves.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Signals ask while this lives. Before and after, they end the process as they always do.
#[derive(Debug)]
pub struct Listening {
    asked: Arc<AtomicBool>,
}

impl Listening {
    /// Starts to listen. `asked` becomes true at the first signal.
    ///
    /// # Errors
    /// A system that takes no handler.
    pub fn start(asked: Arc<AtomicBool>) -> Result<Self> {
        for signal in [SIGTERM, SIGUSR1, SIGINT] {
            // In this order: the first signal finds the flag down, and raises it.
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .map_err(|error| Error::runtime(format!("cannot listen for signal {signal}: {error}")))?;
        }
        Ok(Self { asked })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // From here on the next signal is the second.
        self.asked.store(true, Ordering::Relaxed);
    }
}
