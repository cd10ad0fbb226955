//! `haf-dist doctor`: reports what this machine has, what is missing or wrong, and what to do about it.
//!
//! Computes nothing and loads no library: it asks the dynamic linker which libraries the engine would load. Not here:
//! setting up the machine for the engine (`machine/`).

use super::findings::{self, Finding};
use crate::cli;
use crate::comm::nccl;
use crate::error::{Error, Result};
use crate::files;
use crate::hub::Hub;
use crate::launcher::linked::{Library, folder_of_libtorch, found, linked};
use crate::launcher::{self, libraries, mpi};
use crate::machine::cuda::CUDA;
use crate::machine::{self, look};
use std::path::{Path, PathBuf};

/// Free bytes wanted in /dev/shm, where gradients of a node's ranks are summed.
const SHARED_MEMORY: u64 = 1 << 30;
/// On a disk with fewer free bytes a checkpoint is unlikely to fit.
const DISK: u64 = 5 << 30;

/// Prints a line for each finding.
///
/// # Errors
/// Anything missing or wrong, after all is printed.
pub(crate) fn run(json: bool) -> Result<()> {
    let libraries = launcher::engine().map(|engine| linked(&engine, &[]));
    let findings: Vec<Finding> = [program(), engine(&libraries)]
        .into_iter()
        .chain(libraries.as_deref().map(of_libraries).unwrap_or_default())
        .chain([mpirun(libraries.as_deref().unwrap_or_default()), cores(), memory()])
        .chain(gpus(libraries.as_deref().unwrap_or_default()))
        .chain([shared_memory(), disk(), hub_cache()])
        .collect();
    findings::print(&findings, json, |faults| {
        Error::runtime(format!("{faults} of {} checks failed", findings.len())).hint("see the hints above")
    })
}

fn program() -> Finding {
    let version = cli::LONG_VERSION.lines().take(3).collect::<Vec<_>>().join(", ");
    Finding::ok("haf-dist", version.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn engine(libraries: &Result<Vec<Library>>) -> Finding {
    match libraries {
        Err(error) => Finding::missing("engine", error.message.clone(), error.hint.clone().unwrap_or_default()),
        Ok(libraries) => {
            let missing: Vec<&str> =
                libraries.iter().filter(|one| one.path.is_none()).map(|one| one.name.as_str()).collect();
            if missing.is_empty() {
                return Finding::ok("engine", format!("{} libraries, all found", libraries.len()));
            }
            Finding::missing(
                "engine",
                format!("libraries are not found: {}", missing.join(", ")),
                "set LD_LIBRARY_PATH to their folders, or run launch/setup.sh and build again",
            )
        }
    }
}

fn of_libraries(libraries: &[Library]) -> Vec<Finding> {
    let torch = match found(libraries, "libtorch_cpu.so") {
        Some(path) => {
            let version = version_beside(path);
            let text = format!("{}, {}", version.as_deref().unwrap_or("version unknown"), path.display());
            match version {
                Some(version) if !version.starts_with(&built_with()[..]) => Finding::wrong(
                    "libtorch",
                    format!("{text}; built with {}", built_with()),
                    "take the folder out of LD_LIBRARY_PATH, or build against this one (LIBTORCH=FOLDER cargo build --release)",
                ),
                _ => Finding::ok("libtorch", text),
            }
        }
        None => Finding::missing("libtorch", "libtorch_cpu.so is not found", "launch/setup.sh lays it out in .deps/"),
    };
    let mpi = match found(libraries, "libmpi.so") {
        Some(path) => Finding::ok("MPI library", path.display().to_string()),
        None => Finding::missing(
            "MPI library",
            "libmpi.so is not found",
            "load the module it was built with, or run launch/setup.sh",
        ),
    };
    vec![torch, mpi]
}

/// Version of libtorch that this program was built with.
fn built_with() -> String {
    env!("HAF_DIST_LIBTORCH_VERSION").split('+').next().unwrap_or_default().to_owned()
}

/// The version of the libtorch that a library belongs to.
fn version_beside(library: &Path) -> Option<String> {
    let folder = library.parent()?.parent()?;
    if let Ok(text) = std::fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = std::fs::read_to_string(folder.join("version.py")).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix("__version__ = "))?.trim_matches(['\'', '"']).to_owned())
}

fn mpirun(libraries: &[Library]) -> Finding {
    match mpi::find(launcher::engine().ok().and_then(|engine| libraries::mpirun(&engine))) {
        Err(error) => Finding::missing("mpirun", error.message, error.hint.unwrap_or_default()),
        Ok(mpirun) => {
            let text = format!("{}, {}", mpirun.version, mpirun.path.display());
            // Open MPI's library has the number 40, that of MPICH and its derivatives 12.
            let open_mpi = found(libraries, "libmpi.so").map(|path| path.to_string_lossy().contains(".so.40"));
            match open_mpi {
                Some(open_mpi) if open_mpi != (mpirun.maker == mpi::Maker::OpenMpi) => Finding::wrong(
                    "mpirun",
                    format!("{text}: belongs to another MPI than the engine is linked with"),
                    "put the mpirun of the engine's MPI first on the PATH: with this one each rank would run alone",
                ),
                _ => Finding::ok("mpirun", text),
            }
        }
    }
}

fn cores() -> Finding {
    let mut sets = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, has) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512_bf16", machine::processor_has_bf16()),
    ] {
        if has {
            sets.push(name);
        }
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if cpuinfo.contains(" amx_bf16") {
        sets.push("amx_bf16");
    }
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let kind = if machine::processor_has_bf16() { "bf16" } else { "f32: no bf16 instructions" };
    Finding::ok(
        "processor",
        format!(
            "{}, {} threads usable, {}; computes in {kind}",
            model.unwrap_or("unknown"),
            machine::usable_cores(),
            sets.join(" ")
        ),
    )
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    match (kib("MemTotal:"), kib("MemAvailable:")) {
        (Some(total), Some(free)) => {
            Finding::ok("memory", format!("{} of {} free", gigabytes(free << 10), gigabytes(total << 10)))
        }
        _ => Finding::wrong("memory", "/proc/meminfo cannot be read", "haf-dist runs on Linux with /proc mounted"),
    }
}

/// The driver's GPUs, and the libraries that computing on them needs.
fn gpus(libraries: &[Library]) -> Vec<Finding> {
    let Some(cards) = look::gpus(None) else {
        return vec![match Path::new("/proc/driver/nvidia/version").exists() {
            true => Finding::wrong(
                "GPUs",
                "there is a driver, but nvidia-smi finds no GPU",
                "run nvidia-smi to see its error; a container must be started with its GPUs",
            ),
            false => Finding::ok("GPUs", "none: ranks compute on the processor"),
        }];
    };
    let mut found_gpus = vec![Finding::ok("GPUs", format!("{}: {}", cards.len(), cards.join("; ")))];
    if cards.len() > 1 {
        let links = look::nvlinks();
        let text = if links > 0 { format!("{links} pairs of GPUs by NVLink") } else { "PCIe, no NVLink".to_owned() };
        found_gpus.push(Finding::ok("links", text));
    }
    let Some(folder) = folder_of_libtorch(libraries) else { return found_gpus };
    found_gpus.push(match folder.join(CUDA).exists() {
        true => Finding::ok("CUDA", format!("libtorch_cuda.so in {}", folder.display())),
        false => Finding::missing(
            "CUDA",
            "this libtorch computes on processors only",
            "launch/setup.sh --cuda lays out one for GPUs",
        ),
    });
    found_gpus.extend(launcher::engine().map(|engine| of_nccl(&engine)));
    found_gpus
}

/// What an engine at this path would load as NCCL.
fn of_nccl(engine: &Path) -> Finding {
    match found(&linked(engine, &nccl::names()), "libnccl.so") {
        Some(path) => {
            Finding::ok("NCCL", std::fs::canonicalize(path).unwrap_or_else(|_| path.into()).display().to_string())
        }
        None => Finding::missing(
            "NCCL",
            "libnccl.so is not found",
            "launch/setup.sh --cuda brings it; else set LD_LIBRARY_PATH to a folder with a link of that name to libnccl.so.2",
        ),
    }
}

fn shared_memory() -> Finding {
    match look::free_bytes(Path::new("/dev/shm")) {
        None => Finding::missing(
            "/dev/shm",
            "not mounted",
            "ranks of a node exchange gradients through it: mount a tmpfs there",
        ),
        Some(bytes) if bytes < SHARED_MEMORY => Finding::wrong(
            "/dev/shm",
            format!("{} free", gigabytes(bytes)),
            "ranks of a node sum gradients there, 4 bytes per trained parameter: docker run --shm-size=16g, or parallel.backend",
        ),
        Some(bytes) => Finding::ok("/dev/shm", format!("{} free", gigabytes(bytes))),
    }
}

fn disk() -> Finding {
    disk_of("disk", &std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")))
}

fn hub_cache() -> Finding {
    let folder = Hub::from_env().map(|hub| hub.cache().to_path_buf());
    match folder {
        Ok(folder) => {
            let mut finding = disk_of("hub cache", files::nearest_existing(&folder));
            finding.found = format!("{}, {}", folder.display(), finding.found);
            finding
        }
        Err(error) => Finding::missing("hub cache", error.message, error.hint.unwrap_or_default()),
    }
}

fn disk_of(what: &'static str, folder: &Path) -> Finding {
    match look::free_bytes(folder) {
        Some(bytes) if bytes < DISK => Finding::wrong(
            what,
            format!("{} free in {}", gigabytes(bytes), folder.display()),
            "a checkpoint takes 14 bytes per parameter: make room, or set output.dir",
        ),
        Some(bytes) => Finding::ok(what, format!("{} free", gigabytes(bytes))),
        None => Finding::wrong(
            what,
            format!("the free space in {} is not known", folder.display()),
            "does the folder exist, and may you read it?",
        ),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a library that every program has in place of NCCL.
    #[test]
    fn nccl_is_what_the_engine_itself_would_load() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let any =
            maps.lines().find_map(|line| line.find('/').map(|at| &line[at..]).filter(|path| path.contains("libm.so")));
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("lib/python3.12/site-packages");
        for made in ["haf_dist-0.1.0.dist-info", "torch/lib", "nvidia/nccl/lib"] {
            std::fs::create_dir_all(packages.join(made)).unwrap();
        }
        std::fs::write(packages.join("torch/lib/libtorch_cpu.so"), "").unwrap();
        std::fs::create_dir_all(folder.path().join("bin")).unwrap();
        let engine = folder.path().join("bin/haf-dist-engine");
        std::os::unix::fs::symlink("/bin/true", &engine).unwrap();
        let finding = of_nccl(&engine);
        assert_eq!(finding.state, findings::State::Missing, "{}", finding.found);
        let library = packages.join("nvidia/nccl/lib/libnccl.so.2");
        std::fs::copy(any.unwrap(), &library).unwrap();
        assert_eq!(of_nccl(&engine).found, std::fs::canonicalize(&library).unwrap().display().to_string());
    }

    #[test]
    fn a_library_that_is_not_found_is_missing() {
        let libraries = vec![Library { name: "libc10.so".to_owned(), path: None }];
        let finding = engine(&Ok(libraries));
        assert_eq!((finding.state, finding.found.contains("libc10.so")), (findings::State::Missing, true));
    }
}
