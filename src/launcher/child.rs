//! A process that this one starts and waits for, with the signals that were meant for it.
//!
//! Not here: what is started (`ranks.rs`, `commands/compare/`).

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

/// Starts `command`, waits for its end and gives its exit code, 128 + N where signal N ended it. The first of Ctrl-C, SIGTERM,
/// SIGHUP and SIGUSR1 that this process gets goes on as `first`, every later one as SIGTERM.
///
/// # Errors
/// A program that cannot be started, or signals that cannot be listened for.
pub fn run(command: &mut Command, first: Signal) -> Result<u8> {
    // A group of its own: the terminal's Ctrl-C is for this process alone. Outside the terminal's group nobody may read it.
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
    let status = child.wait().map_err(|error| Error::runtime(format!("{name} was lost: {error}")))?;
    for id in listening {
        signal_hook::low_level::unregister(id);
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Hands signals on: the first as `first`, the others as SIGTERM. A process that has ended gets none.
fn forward(mut heard: UnixStream, to: Pid, first: Signal) {
    let mut signal = first;
    while heard.read(&mut [0]).is_ok_and(|count| count > 0) {
        let _ = kill(to, signal);
        signal = Signal::SIGTERM;
    }
}
