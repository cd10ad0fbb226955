//! The haf-dist program: arguments, logging, the command, one error, an exit code.

use clap::Parser;
use haf_dist::cli::{Arguments, Command};
use haf_dist::comm::{self, CommThread, launch, solo::Solo};
use haf_dist::error::{Error, Kind, Result};
use haf_dist::train::signals;
use haf_dist::{commands, logging, machine, memory, terminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long a rank keeps an error to itself, so that rank 0 can report one that all ranks share.
const RANK_0_FIRST: Duration = Duration::from_secs(2);

/// Says so where there is no memory.
#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;

fn main() -> ExitCode {
    machine::keep_freed_memory();
    comm::install_panic_hook();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error),
    };
    let trace = arguments.trace().map(Path::to_path_buf);
    match start(arguments) {
        Ok((command, comm)) => {
            let done = commands::compare_ranks(&command, trace.is_some(), &comm)
                .and_then(|()| start_trace(trace.as_deref(), &comm))
                .and_then(|()| commands::run(&command, &comm));
            logging::finish_trace();
            match done {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    report(&error);
                    // Other ranks may be waiting for this one: finalising MPI would wait for them in turn.
                    comm.abort(error.exit_code())
                }
            }
        }
        Err(error) => {
            report(&error);
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
    }
}

fn start(arguments: Arguments) -> Result<(Command, CommThread)> {
    logging::init(launch::launch().map(|launch| launch.rank), arguments.trace().is_some())?;
    signals::let_oversized_writes_fail()?;
    let command = Command::try_from(arguments)?;
    let alone = matches!(command, Command::Train { debug: true, .. });
    if alone && launch::launch().is_some_and(|launch| launch.size != Some(1)) {
        return Err(Error::input("--debug is for one process, and an MPI launcher started several")
            .hint("leave mpirun out: haf-dist --config FILE --debug"));
    }
    let comm = if alone { CommThread::start(|| Ok(Box::new(Solo)))? } else { CommThread::start(comm::connect)? };
    Ok((command, comm))
}

/// Begins the trace that `--trace` asks for: on every rank or, where one of the files is there already, on none.
fn start_trace(file: Option<&Path>, comm: &CommThread) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let path = comm.agree(logging::trace_path(file, comm.rank(), comm.world_size()))?;
    comm.agree(logging::trace_to(&path, comm.rank()))
}

/// Prints help, the version or what is wrong with the arguments, once for all ranks: as [`report`] does.
fn explain(error: &clap::Error) -> ExitCode {
    match launch::rank() {
        // A closed pipe leaves nobody to tell.
        0 => drop(error.print()),
        rank if error.use_stderr() => {
            std::thread::sleep(RANK_0_FIRST);
            terminal::note(format_args!("rank {rank}: {error}"));
        }
        _ => {}
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints an error once. Rank 0 does it at once; by the time the others would, the job has ended, unless the error was
/// theirs alone.
fn report(error: &Error) {
    // A run that ends because it was asked to has not failed.
    let word = if error.kind == Kind::Stopped { "" } else { "error: " };
    match launch::rank() {
        0 => logging::above_progress(|| terminal::note(format_args!("{word}{error}"))),
        rank => {
            std::thread::sleep(RANK_0_FIRST);
            terminal::note(format_args!("{word}rank {rank}: {error}"));
        }
    }
}
