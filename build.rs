//! Lets the engine and the tests find libtorch, MPI and NCCL at run time without LD_LIBRARY_PATH, keeps libtorch out of the
//! launcher, and tells the program what it is built from: ranks of different programs must notice.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!("cargo:rustc-env=HAF_DIST_SOURCES={:016x}", hash_of_sources());
    println!("cargo:rustc-env=HAF_DIST_COMMIT={}", commit());
    println!("cargo:rustc-env=HAF_DIST_MPI={}", said(Command::new("mpicc").arg("--showme:version")));
    // Nothing in the launcher calls libtorch. Its symbols that shared libraries could replace would keep it linked.
    println!("cargo:rustc-link-arg-bin=haf-dist=-Wl,--exclude-libs,ALL");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let libtorch = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    println!("cargo:rustc-env=HAF_DIST_LIBTORCH={libtorch}");
    println!("cargo:rustc-env=HAF_DIST_LIBTORCH_VERSION={}", version_of_libtorch(Path::new(&libtorch)));
    if !libtorch.is_empty() {
        // Of links to a PyTorch the folder they lead to: its libraries look for others from where they lie themselves.
        let library = Path::new(&libtorch).join("libtorch_cpu.so").canonicalize();
        let real = library.ok().and_then(|library| library.parent().map(Path::to_path_buf));
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", real.unwrap_or(PathBuf::from(&libtorch)).display());
        println!("cargo:rerun-if-changed={libtorch}");
        // launch/setup.sh makes a link to NCCL under the name that is looked for.
        if let Some(nccl) = Path::new(&libtorch).ancestors().nth(2).map(|place| place.join("nccl"))
            && nccl.join("libnccl.so").exists()
        {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", nccl.display());
        }
    }
    find_mpi_at_run_time();
}

/// Puts the folder of the MPI library on the search path of the program, unless the loader looks there anyway. The probe is
/// the one that chose the library to link to: where it finds nothing, the crate that links it has not been built.
fn find_mpi_at_run_time() {
    println!("cargo:rerun-if-env-changed=MPICC");
    // launch/setup.sh rewrites it when it has chosen another MPI. A file that is not there would count as changed.
    if Path::new(".deps/env.sh").exists() {
        println!("cargo:rerun-if-changed=.deps/env.sh");
    }
    let known = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"].map(Path::new);
    for folder in build_probe_mpi::probe().map(|mpi| mpi.lib_paths).unwrap_or_default() {
        if folder.join("libmpi.so").exists() && !known.contains(&folder.as_path()) {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
        }
    }
}

/// The last commit that changed the sources, and whether they differ from it. Other commits build nothing anew.
fn commit() -> String {
    let sources = ["--", "src", "Cargo.lock"];
    let commit = said(Command::new("git").args(["log", "-1", "--format=%h"]).args(sources));
    let changed = said(Command::new("git").args(["status", "--porcelain"]).args(sources));
    if commit == UNKNOWN || changed == UNKNOWN { commit } else { format!("{commit} with changes") }
}

/// `build-version` of a libtorch that was unpacked, `version.py` of one in a Python environment.
fn version_of_libtorch(libraries: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(libraries.join("..").join(name)).ok();
    let version = read("build-version").or_else(|| {
        let text = read("version.py")?;
        Some(text.lines().find_map(|line| line.strip_prefix("__version__ = "))?.trim_matches(['\'', '"']).to_owned())
    });
    version.map_or(UNKNOWN.to_owned(), |version| version.trim().to_owned())
}

const UNKNOWN: &str = "unknown";

/// The first line that a program prints; a build without it is as good.
fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or(UNKNOWN.to_owned())
}

/// FNV-1a over names and contents of src/ and Cargo.lock. What cannot be read counts as empty: the build itself will say so.
fn hash_of_sources() -> u64 {
    let mut files = vec![PathBuf::from("Cargo.lock")];
    collect(Path::new("src"), &mut files);
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let content = std::fs::read(&file).unwrap_or_default();
        for byte in file.to_string_lossy().bytes().chain(content).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
