//! The part of libtorch that computes on GPUs: loaded when the engine starts, where it lies beside the libtorch in use.
//!
//! The program is linked without it, so that one build serves machines with and without GPUs. Loading is what Python does too.
//! Not here: the driver and NCCL (`comm/nccl/`).

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::path::{Path, PathBuf};

/// What every libtorch has.
const CPU: &str = "libtorch_cpu.so";
/// What one for GPUs has besides.
const CUDA: &str = "libtorch_cuda.so";

/// What a machine with a GPU that may be used has: the driver's control device, or that of Windows' Linux.
const DEVICES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];

/// Loads the CUDA part and says where it was; none where this libtorch has none, or this machine no GPU: its own libraries may be
/// missing there, and nothing needs them. To be called before libtorch is.
///
/// # Errors
/// It is there and does not load: a library that it needs is missing.
pub fn load() -> Result<Option<PathBuf>> {
    if !DEVICES.iter().any(|device| Path::new(device).exists()) {
        return Ok(None);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(path) = beside(&maps) else { return Ok(None) };
    open(&path)?;
    Ok(Some(path))
}

fn open(path: &Path) -> Result<()> {
    // SAFETY: its initialisers register kernels with libtorch, which is loaded already. It stays for as long as the process.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        Error::runtime(format!("{} does not load: {error}", path.display())).hint(
            "its CUDA libraries come with it: launch/setup.sh --cuda, or pip install torch; haf-dist doctor looks",
        )
    })?;
    std::mem::forget(library);
    Ok(())
}

/// The CUDA part beside the libtorch that a process has mapped.
fn beside(maps: &str) -> Option<PathBuf> {
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let folder = mapped.filter(|path| path.file_name().is_some_and(|name| name == CPU)).find_map(Path::parent)?;
    Some(folder.join(CUDA)).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::{CUDA, beside, open};

    #[test]
    fn it_is_looked_for_beside_the_libtorch_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let maps = format!(
            "7f00-7f01 r-xp 0 08:01 1 /usr/lib/libc.so.6\n7f02-7f03 r-xp 0 08:01 2 {}/libtorch_cpu.so\n7f04-7f05 rw-p 0 00:00 0\n",
            folder.path().display()
        );
        assert_eq!(beside(&maps), None);
        std::fs::write(folder.path().join(CUDA), "").unwrap();
        assert_eq!(beside(&maps), Some(folder.path().join(CUDA)));
        assert_eq!(beside("7f00-7f01 r-xp 0 08:01 1 /usr/lib/libc.so.6\n"), None);
    }

    /// No silent computation on the processor.
    #[test]
    fn one_that_does_not_load_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CUDA);
        std::fs::write(&path, "no library").unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.message.contains(CUDA) && error.hint.is_some(), "{error}");
    }
}
