//! Runs a child process and forwards signals to it.
//!
//! Not here: which programs are started (`ranks.rs`, `commands/compare/`).

use crate::error::{Error, Result};
use crate::train::signals;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;
use std::io::{IsTerminal, Read, stdin};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

/// Starts `command`, waits for its end and returns its exit code, 128 + N if signal N ended it. The first of Ctrl-C, SIGTERM,
/// SIGHUP and SIGUSR1 that this process receives is forwarded as `first`, every later one as SIGTERM.
///
/// # Errors
/// A program that cannot be started, or signals that cannot be listened for.
pub(crate) fn run(command: &mut Command, first: Signal) -> Result<u8> {
    // In a process group of its own, so that the terminal's Ctrl-C reaches this process alone. Such a group may not read from
    // the terminal.
    command.process_group(0);
    if stdin().is_terminal() {
        command.stdin(Stdio::null());
    }
    let no_signals = |error| Error::runtime(format!("cannot listen for signals: {error}"));
    let (heard, hears) = UnixStream::pair().map_err(no_signals)?;
    let mut listening = Vec::new();
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR1].into_iter().filter(|&signal| !signals::ignored(signal)) {
        listening.push(pipe::register(signal, hears.try_clone().map_err(no_signals)?).map_err(no_signals)?);
    }
    let started = command.spawn();
    let name = command.get_program().display();
    let mut child = started.map_err(|error| Error::runtime(format!("cannot start {name}: {error}")))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    std::thread::Builder::new().name("signals".into()).spawn(move || forward(heard, pid, first)).map_err(no_signals)?;
    let status = child.wait().map_err(|error| Error::runtime(format!("cannot wait for {name}: {error}")))?;
    for id in listening {
        signal_hook::low_level::unregister(id);
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Forwards signals: the first as `first`, the others as SIGTERM. It does not matter if the process has ended.
fn forward(mut heard: UnixStream, to: Pid, first: Signal) {
    let mut signal = first;
    while heard.read(&mut [0]).is_ok_and(|count| count > 0) {
        let _ = kill(to, signal);
        signal = Signal::SIGTERM;
    }
}
