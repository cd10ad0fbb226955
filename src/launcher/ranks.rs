//! Several ranks on this machine: one mpirun, and signals that reach the ranks in time for a checkpoint.
//!
//! Not here: ranks on several machines (`launch/several-nodes.sh`, `launch/slurm.sbatch`).

use super::{child, libraries, mpi};
use crate::error::Result;
use crate::{files, terminal};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::io::{IsTerminal, stdin};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Runs the engine as `ranks` ranks and returns mpirun's exit code.
///
/// The first of Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 is forwarded as SIGUSR1 if the ranks save on it: after any other signal,
/// mpirun would end them within a second, before a checkpoint is complete. The second ends the job.
///
/// # Errors
/// No mpirun, or one that cannot be started or whose options are not known.
pub(crate) fn run(engine: &Path, arguments: &[OsString], ranks: usize, saves: bool) -> Result<ExitCode> {
    let of_engine = libraries::mpirun(engine);
    let mpirun = mpi::find(of_engine.clone())?;
    let mut command = Command::new(&mpirun.path);
    if of_engine.is_some() {
        // The variable would name another installation's folder.
        command.env_remove("OPAL_PREFIX");
    }
    command.args(mpirun.options(ranks)?).arg(engine).args(arguments);
    command.envs(mpirun.environment().iter().copied()).envs(libraries::variables(engine)?);
    // The ranks write to mpirun, not to the terminal, so they cannot see its width.
    command.envs(terminal::columns_of_both().map(|columns| (terminal::COLUMNS, columns.to_string())));
    // Rank 0 takes this process's standard input itself: Open MPI 5 passes it on with mistakes and without its end.
    let offered = match stdin().is_terminal() {
        true => Err("it is a terminal".to_owned()),
        false => files::offer_standard_input().map_err(|error| error.to_string()),
    };
    let lent = offered.unwrap_or_else(|reason| format!("{}{reason}", files::NOT_LENT));
    command.env(files::LENT_INPUT, lent).stdin(Stdio::null());
    let first = if saves { Signal::SIGUSR1 } else { Signal::SIGTERM };
    child::run(&mut command, first).map(ExitCode::from)
}
