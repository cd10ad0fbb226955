//! The haf-dist program: arguments, logging, the command, one error, an exit code.

use clap::Parser;
use haf_dist::cli::{Arguments, Command};
use haf_dist::error::{Error, Result};
use haf_dist::{commands, launcher, logging};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let rank = launcher::rank();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error, rank),
    };
    match run(arguments, rank) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, rank);
            // MPI: where it has started, this is the place to abort the job with `error.exit_code()`, so that no other
            // rank waits for this one.
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
    }
}

fn run(arguments: Arguments, rank: Option<usize>) -> Result<()> {
    logging::init(rank)?;
    // MPI: the panic hook that aborts the job belongs here.
    commands::run(Command::try_from(arguments)?)
}

/// Prints help, the version or what is wrong with the arguments, once for all ranks.
fn explain(error: &clap::Error, rank: Option<usize>) -> ExitCode {
    if rank.unwrap_or(0) == 0 {
        // A closed pipe leaves nobody to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints an error once. Rank 0 does it at once; by the time the others would, the launcher has ended them, unless the
/// error was theirs alone.
fn report(error: &Error, rank: Option<usize>) {
    match rank {
        None | Some(0) => logging::above_progress(|| eprintln!("error: {error}")),
        Some(rank) => {
            std::thread::sleep(Duration::from_secs(2));
            eprintln!("error: rank {rank}: {error}");
        }
    }
}
