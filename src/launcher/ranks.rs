//! Several ranks on this machine: one mpirun, and signals that reach the ranks in time for a checkpoint.
//!
//! Not here: ranks on several machines (`launch/several-nodes.sh`, `launch/slurm.sbatch`).

use super::mpi;
use crate::error::{Error, Result};
use crate::train::signals;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, stdin};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Runs the engine as `ranks` ranks and gives mpirun's exit code.
///
/// The first of Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 becomes SIGUSR1 where the ranks save on it: mpirun would end them within a
/// second of the others, before a checkpoint is whole. The second ends the job.
///
/// # Errors
/// No mpirun, or one that cannot be started or told what to do.
pub fn run(engine: &Path, arguments: &[OsString], ranks: usize, saves: bool) -> Result<ExitCode> {
    let mpirun = mpi::find()?;
    let mut command = Command::new(&mpirun.path);
    command.args(mpirun.options(ranks)?).arg(engine).args(arguments);
    command.envs(mpirun.environment().iter().copied());
    // A group of its own: the terminal's Ctrl-C is for this process alone. Outside the terminal's group nobody may read it.
    command.process_group(0);
    if stdin().is_terminal() {
        command.stdin(Stdio::null());
    }
    let no_signals = |error| Error::runtime(format!("cannot listen for signals: {error}"));
    let (heard, hears) = UnixStream::pair().map_err(no_signals)?;
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR1].into_iter().filter(|&signal| !signals::ignored(signal)) {
        pipe::register(signal, hears.try_clone().map_err(no_signals)?).map_err(no_signals)?;
    }
    let mut job =
        command.spawn().map_err(|error| Error::runtime(format!("cannot start {}: {error}", mpirun.path.display())))?;
    let group = Pid::from_raw(job.id().cast_signed());
    let first = if saves { Signal::SIGUSR1 } else { Signal::SIGTERM };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || forward(heard, group, first))
        .map_err(no_signals)?;
    let status = job.wait().map_err(|error| Error::runtime(format!("mpirun was lost: {error}")))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Hands signals on to mpirun: the first as `first`, the others as SIGTERM. A job that has ended gets none.
fn forward(mut heard: UnixStream, mpirun: Pid, first: Signal) {
    let mut signal = first;
    while heard.read(&mut [0]).is_ok_and(|count| count > 0) {
        let _ = kill(mpirun, signal);
        signal = Signal::SIGTERM;
    }
}
