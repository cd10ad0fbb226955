//! The haf-dist program: a launcher without libtorch and MPI. It runs commands that need neither, and starts the engine for the
//! rest.

use clap::Parser;
use haf_dist::cli::{Arguments, Command, Request, outcome};
use haf_dist::comm::launch;
use haf_dist::error::Result;
use haf_dist::launcher::{self, Start};
use haf_dist::{commands, logging};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return outcome::explain(&error),
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => outcome::report(&error),
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let (ranks, showing) = (arguments.ranks(), arguments.showing(None));
    match Request::try_from(arguments)? {
        Request::Together(command) => {
            launcher::start_engine(Start { ranks, saves: matches!(command, Command::Train { .. }) })
        }
        // Every rank would print the same.
        Request::Alone(_) if launch::rank() > 0 => Ok(ExitCode::SUCCESS),
        Request::Alone(alone) => {
            logging::init(showing)?;
            commands::alone(&alone).map(|()| ExitCode::SUCCESS)
        }
    }
}
