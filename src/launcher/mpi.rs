//! The MPI launcher of this machine: the path of `mpirun`, its maker, and the options it needs.
//!
//! Not here: starting it (`ranks.rs`).

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The maker of an MPI. Their options differ, and an engine that was built with one MPI does not run with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// Open MPI, which haf-dist is built and tested with.
    OpenMpi,
    /// MPICH and those built on it: Intel's, Cray's, MVAPICH.
    Mpich,
    /// Neither of them.
    Unknown,
}

/// An `mpirun`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mpirun {
    /// Its path.
    pub(crate) path: PathBuf,
    /// Its maker.
    pub(crate) maker: Maker,
    /// The first line of its output for `--version`.
    pub(crate) version: String,
}

/// The `mpirun` that belongs to the engine, if there is one, else the first `mpirun` or `mpiexec` on the PATH.
///
/// # Errors
/// There is none, or it does not start.
pub(crate) fn find(of_engine: Option<PathBuf>) -> Result<Mpirun> {
    let path = of_engine.or_else(|| on_path("mpirun")).or_else(|| on_path("mpiexec")).ok_or_else(|| {
        Error::input("neither mpirun nor mpiexec is on the PATH").hint(
            "launch/setup.sh installs Open MPI; on a cluster load its module, e.g. module load openmpi; haf-dist doctor \
             shows what is found",
        )
    })?;
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|error| Error::runtime(format!("cannot start {}: {error}", path.display())))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let version = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no version").trim().to_owned();
    Ok(Mpirun { path, maker: maker(&text), version })
}

fn maker(version: &str) -> Maker {
    // Open MPI 5's mpirun names itself and PRRTE; MPICH's process manager is Hydra, as is Intel's.
    if ["Open MPI", "PRRTE", "OpenRTE"].iter().any(|name| version.contains(name)) {
        Maker::OpenMpi
    } else if ["HYDRA", "MPICH", "Intel(R) MPI", "MVAPICH"].iter().any(|name| version.contains(name)) {
        Maker::Mpich
    } else {
        Maker::Unknown
    }
}

/// A program of this name on the PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

impl Mpirun {
    /// The options that start `ranks` ranks on this machine: as `set_mpirun_flags` in `launch/common.sh`.
    ///
    /// # Errors
    /// An MPI whose options are not known.
    pub(crate) fn options(&self, ranks: usize) -> Result<Vec<String>> {
        let mut options = vec!["-n".to_owned(), ranks.to_string()];
        match self.maker {
            Maker::OpenMpi => {
                // If a rank were bound to a core, its communication thread would share that core with the computation.
                options.extend(["--bind-to", "none"].map(str::to_owned));
                // Open MPI counts the cores that this process may use, and no hardware threads.
                if cores().min(usable()) < ranks {
                    options.push("--oversubscribe".to_owned());
                }
                Ok(options)
            }
            Maker::Mpich => {
                options.extend(["-bind-to", "none"].map(str::to_owned));
                Ok(options)
            }
            Maker::Unknown => Err(Error::input(format!(
                "{} is neither Open MPI nor MPICH: it says \"{}\"",
                self.path.display(),
                self.version
            ))
            .hint("start the ranks with it yourself: mpirun -n N haf-dist ...")),
        }
    }

    /// Variables without which it does not start: Open MPI refuses root, the usual user in a container, unless both are set.
    pub(crate) fn environment(&self) -> &'static [(&'static str, &'static str)] {
        match self.maker {
            Maker::OpenMpi if nix::unistd::geteuid().is_root() => {
                &[("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]
            }
            _ => &[],
        }
    }
}

/// Threads that may run at a time in this process.
fn usable() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cores of this machine; the hardware threads of a core count once.
fn cores() -> usize {
    let siblings = |cpu: &Path| std::fs::read_to_string(cpu.join("topology/thread_siblings_list")).ok();
    let folders = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let cores: BTreeSet<String> = folders.filter_map(|entry| siblings(&entry.path())).collect();
    if cores.is_empty() { usable() } else { cores.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_told_by_what_they_say() {
        assert_eq!(maker("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org"), Maker::OpenMpi);
        assert_eq!(maker("mpirun (Open MPI) 5.0.11"), Maker::OpenMpi);
        assert_eq!(maker("HYDRA build details:\n    Version:  4.2.0"), Maker::Mpich);
        assert_eq!(maker("Intel(R) MPI Library for Linux* OS, Version 2021.13"), Maker::Mpich);
        assert_eq!(maker("poe 1.0"), Maker::Unknown);
    }

    #[test]
    fn more_ranks_than_cores_are_asked_for_by_name() {
        let mpirun = |maker| Mpirun { path: "mpirun".into(), maker, version: "poe 1.0".into() };
        let many = mpirun(Maker::OpenMpi).options(10_000).unwrap();
        assert_eq!(many, ["-n", "10000", "--bind-to", "none", "--oversubscribe"]);
        assert_eq!(mpirun(Maker::OpenMpi).options(1).unwrap(), ["-n", "1", "--bind-to", "none"]);
        assert_eq!(mpirun(Maker::Mpich).options(2).unwrap(), ["-n", "2", "-bind-to", "none"]);
        assert!(mpirun(Maker::Unknown).options(2).unwrap_err().to_string().contains("poe 1.0"));
    }
}
