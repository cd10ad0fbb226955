//! The engine: the program that computes, with libtorch and MPI. `haf-dist` starts it and passes its arguments on.

use clap::Parser;
use haf_dist::cli::{Arguments, Command, Request, outcome};
use haf_dist::comm::{self, CommThread, launch, solo::Solo};
use haf_dist::error::{Error, Result};
use haf_dist::train::signals;
use haf_dist::{commands, crash, files, logging, machine, memory};
use std::path::Path;
use std::process::ExitCode;

/// Reports a failed allocation as an error.
#[global_allocator]
static ALLOCATOR: memory::Allocator = memory::Allocator;

fn main() -> ExitCode {
    machine::keep_freed_memory();
    memory::before_end(files::remove_own_unfinished);
    crash::announce();
    comm::install_panic_hook();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return outcome::explain(&error),
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
                    outcome::report(&error);
                    // Other ranks may be waiting for this one: finalizing MPI would wait for them in turn.
                    comm.abort(error.exit_code())
                }
            }
        }
        Err(error) => outcome::report(&error),
    }
}

fn start(arguments: Arguments) -> Result<(Command, CommThread)> {
    logging::init(arguments.showing(launch::launch().map(|launch| launch.rank)))?;
    signals::let_oversized_writes_fail()?;
    machine::cuda::load()?;
    let command = match Request::try_from(arguments)? {
        Request::Together(command) => command,
        Request::Alone(_) => {
            return Err(
                Error::input("the engine does not run this command").hint("start haf-dist, not haf-dist-engine")
            );
        }
    };
    commands::advise_on_memory(&command);
    let alone = matches!(command, Command::Train { debug: true, .. });
    if alone && launch::launch().is_some_and(|launch| launch.size != Some(1)) {
        return Err(Error::input("--debug is for one process, and an MPI launcher started several")
            .hint("leave mpirun out: haf-dist --config FILE --debug"));
    }
    let comm = if alone { CommThread::start(|| Ok(Box::new(Solo)))? } else { CommThread::start(comm::connect)? };
    Ok((command, comm))
}

/// Starts the trace for `--trace`: on every rank, or on none if one of the files exists already.
fn start_trace(file: Option<&Path>, comm: &CommThread) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let path = comm.agree(logging::trace_path(file, comm.rank(), comm.world_size()))?;
    comm.agree(logging::trace_to(&path, comm.rank()))
}
