//! One small file a command; this one picks it.

mod bench;
mod debug;
mod eval;
mod plan;
mod prepare;
mod score;
mod scored;
mod setup;
mod train;

use crate::cli::Command;
use crate::comm::CommThread;
use crate::config::Config;
use crate::error::Result;

/// Does what the command line asks for, on every rank.
///
/// # Errors
/// Whatever the command meets. An error that only some ranks meet leaves the others waiting: the caller must end the
/// job.
pub fn run(command: &Command, comm: &CommThread) -> Result<()> {
    match command {
        Command::Train { config, set, debug: true, .. } => debug::run(&Config::load(config, set)?, comm),
        Command::Train { config, set, resume, .. } => {
            train::run(&comm.agree(Config::load(config, set))?, *resume, comm)
        }
        Command::Prepare { config, set } => prepare::run(&comm.agree(Config::load(config, set))?, comm),
        Command::Plan(planning) => plan::run(planning, comm),
        Command::Eval { scoring, format, json } => eval::run(scoring, *format, *json, comm),
        Command::Bench(options) => bench::run(options, comm),
        Command::Score { scoring, output } => score::run(scoring, output, comm),
    }
}
