//! Several ranks on this machine: one mpirun, and signals that reach the ranks in time for a checkpoint.
//!
//! Not here: ranks on several machines (`launch/several-nodes.sh`, `launch/slurm.sbatch`).

use super::{child, libraries, mpi};
use crate::error::Result;
use crate::terminal;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs the engine as `ranks` ranks and gives mpirun's exit code.
///
/// The first of Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 becomes SIGUSR1 where the ranks save on it: mpirun would end them within a
/// second of the others, before a checkpoint is whole. The second ends the job.
///
/// # Errors
/// No mpirun, or one that cannot be started or told what to do.
pub fn run(engine: &Path, arguments: &[OsString], ranks: usize, saves: bool) -> Result<ExitCode> {
    let engines = libraries::mpirun(engine);
    let mpirun = mpi::find(engines.clone())?;
    let mut command = Command::new(&mpirun.path);
    if engines.is_some() {
        // It would name another installation's folder.
        command.env_remove("OPAL_PREFIX");
    }
    command.args(mpirun.options(ranks)?).arg(engine).args(arguments);
    command.envs(mpirun.environment().iter().copied()).envs(libraries::variables(engine)?);
    // mpirun writes to the terminal, the ranks to mpirun: they cannot see how wide it is.
    command.envs(terminal::columns_of_both().map(|columns| (terminal::COLUMNS, columns.to_string())));
    let first = if saves { Signal::SIGUSR1 } else { Signal::SIGTERM };
    child::run(&mut command, first).map(ExitCode::from)
}
