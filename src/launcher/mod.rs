//! Starts the engine, the program with libtorch and MPI that lies beside this one, once or as several ranks.
//!
//! Not here: what the engine does (`commands/`), and the commands that need no engine (`commands/mod.rs`).

pub(crate) mod child;
pub(crate) mod libraries;
pub(crate) mod linked;
pub(crate) mod mpi;
mod ranks;

use crate::comm::launch;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// The engine's file, beside the launcher's.
const ENGINE: &str = "haf-dist-engine";

/// How the engine is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Number of ranks on this machine; `None`: this process is one rank, alone or among those that mpirun has started.
    pub ranks: Option<usize>,
    /// Whether the first signal asks the ranks to save what they have and end.
    pub saves: bool,
}

/// Replaces this process with the engine, with the same arguments; or starts the engine as several ranks and waits for them.
///
/// # Errors
/// No engine beside the launcher, no MPI for several ranks, ranks within ranks.
pub fn start_engine(start: Start) -> Result<ExitCode> {
    let engine = engine()?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "haf-dist".into());
    if let Some(ranks) = start.ranks {
        if launch::under_mpirun() {
            return Err(Error::input(format!(
                "--ranks {ranks} inside an MPI launcher, which has started ranks already"
            ))
            .hint("leave one of the two out"));
        }
        if ranks > 1 {
            return ranks::run(&engine, &without_ranks(arguments), ranks, start.saves);
        }
    }
    // Usage messages show the name that was typed.
    let mut command = Command::new(&engine);
    let failed = command.arg0(name).args(without_ranks(arguments)).envs(libraries::variables(&engine)?).exec();
    Err(Error::runtime(format!("cannot start {}: {failed}", engine.display())).hint("build or install haf-dist again"))
}

/// The path of the engine.
///
/// # Errors
/// It is not beside this program.
pub(crate) fn engine() -> Result<PathBuf> {
    let here = std::env::current_exe().map_err(|error| Error::runtime(format!("cannot find this program: {error}")))?;
    let engine = here.with_file_name(ENGINE);
    if engine.is_file() {
        return Ok(engine);
    }
    Err(Error::runtime(format!("{ENGINE} is not beside haf-dist: {} does not exist", engine.display()))
        .hint("the two are built and installed together, into one folder: build or install haf-dist again"))
}

/// The arguments without `--ranks N`.
fn without_ranks(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        if argument == "--ranks" {
            arguments.next();
        } else if !argument.as_encoded_bytes().starts_with(b"--ranks=") {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::without_ranks;
    use std::ffi::OsString;

    #[test]
    fn the_engine_gets_every_argument_but_the_ranks() {
        let kept = |line: &str| {
            let kept = without_ranks(line.split(' ').map(OsString::from));
            kept.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kept("train a.toml --ranks 2 --resume"), "train a.toml --resume");
        assert_eq!(kept("--ranks=4 --config a.toml"), "--config a.toml");
        assert_eq!(kept("train --ranks 2 -- a.toml --ranks=3"), "train -- a.toml --ranks=3");
    }
}
