//! Runs a child process and forwards signals to it.
//!
//! Not here: which programs are started (`ranks.rs`, `commands/compare/`).

use crate::error::{Error, Result};
use crate::train::signals;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::low_level::pipe;
use std::io::{self, IsTerminal, Read, stdin};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

const SIGNALS: [i32; 4] = [SIGHUP, SIGINT, SIGTERM, SIGUSR1];

/// Whether no child runs, and a signal ends this process as it does by default. Set up with the first child: once a signal has
/// been listened for, signal-hook ignores it when nobody listens.
static ALONE: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn alone() -> io::Result<&'static AtomicBool> {
    if let Some(alone) = ALONE.get() {
        return Ok(alone);
    }
    let alone = Arc::new(AtomicBool::new(true));
    for signal in SIGNALS.into_iter().filter(|&signal| !signals::ignored(signal)) {
        flag::register_conditional_default(signal, alone.clone())?;
    }
    Ok(ALONE.get_or_init(|| alone))
}

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
    let alone = alone().map_err(no_signals)?;
    let (heard, hears) = UnixStream::pair().map_err(no_signals)?;
    let mut listening = Vec::new();
    for signal in SIGNALS.into_iter().filter(|&signal| !signals::ignored(signal)) {
        listening.push(pipe::register(signal, hears.try_clone().map_err(no_signals)?).map_err(no_signals)?);
    }
    alone.store(false, Ordering::SeqCst);
    let to_its_end = || -> Result<ExitStatus> {
        let started = command.spawn();
        let name = command.get_program().display();
        let mut child = started.map_err(|error| Error::runtime(format!("cannot start {name}: {error}")))?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let signals = std::thread::Builder::new().name("signals".into());
        if let Err(error) = signals.spawn(move || forward(heard, pid, first)) {
            let _ = kill(pid, Signal::SIGTERM);
            let _ = child.wait();
            return Err(no_signals(error));
        }
        child.wait().map_err(|error| Error::runtime(format!("cannot wait for {name}: {error}")))
    };
    let ended = to_its_end();
    // First, so that no signal is lost between the two.
    alone.store(true, Ordering::SeqCst);
    for id in listening {
        signal_hook::low_level::unregister(id);
    }
    let status = ended?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal;
    use std::io::{BufRead, BufReader};
    use std::time::Duration;

    const CHILD: &str = "HAF_DIST_TEST_OF_SIGNALS";

    /// Runs itself a second time: a signal ends a whole process.
    #[test]
    fn between_two_children_ctrl_c_ends_the_program() {
        if std::env::var_os(CHILD).is_some() {
            for _ in 0..2 {
                assert_eq!(run(&mut Command::new("true"), Signal::SIGTERM).unwrap(), 0);
            }
            terminal::note("ready");
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "launcher::child::tests::between_two_children_ctrl_c_ends_the_program", "--nocapture"]);
        let mut process = again.env(CHILD, "1").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        assert!(lines.map_while(std::result::Result::ok).any(|line| line.contains("ready")));
        kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGINT).unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(SIGINT));
    }
}
