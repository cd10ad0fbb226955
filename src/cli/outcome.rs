//! The end of the program: help and usage errors, one error message, an exit code.
//!
//! Not here: what an error says (`error.rs`).

use crate::comm::launch;
use crate::error::{Error, Kind};
use crate::{logging, memory, terminal};
use std::process::ExitCode;
use std::time::Duration;

/// How long other ranks wait before they print an error, so that only rank 0 reports one that all ranks share.
const RANK_0_FIRST: Duration = Duration::from_secs(2);

/// Prints help, the version or a usage error, once for all ranks, as [`report`] does.
pub fn explain(error: &clap::Error) -> ExitCode {
    match launch::rank() {
        // Failed writes are ignored: nobody reads a closed pipe. A launcher's pipe may look like a terminal and end in a file.
        0 if error.use_stderr() || terminal::is_seen() => drop(error.print()),
        0 => drop(terminal::out(error.render().to_string().trim_end())),
        rank if error.use_stderr() => {
            std::thread::sleep(RANK_0_FIRST);
            terminal::note(format_args!("rank {rank}: {error}"));
        }
        _ => {}
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints an error once and returns its exit code. Rank 0 prints at once. The others wait; by then the job has ended, unless
/// the error was theirs alone.
pub fn report(error: &Error) -> ExitCode {
    memory::wait_if_ending();
    // A run that ends because it was asked to has not failed.
    let word = if error.kind == Kind::Stopped { "" } else { "error: " };
    match launch::rank() {
        0 => logging::above_progress(|| terminal::note(format_args!("{word}{error}"))),
        rank => {
            std::thread::sleep(RANK_0_FIRST);
            terminal::note(format_args!("{word}rank {rank}: {error}"));
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
}
