//! Loads the part of libtorch that computes on GPUs when the engine starts, if it is in the folder of the libtorch in use; and
//! sets whether it computes the same bits every time.
//!
//! The program is linked without that part, so one build serves machines with and without GPUs. Python loads it the same way.
//! Not here: the driver and NCCL (`comm/nccl/`).

#![allow(unsafe_code)]

use super::look::hides_gpus;
use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The library that every libtorch has.
const CPU: &str = "libtorch_cpu.so";
/// The library that only one for GPUs has.
pub(crate) const CUDA: &str = "libtorch_cuda.so";

/// Device files of a machine with a usable GPU: the driver's control device, or that of WSL.
const DEVICES: [&str; 2] = ["/dev/nvidiactl", "/dev/dxg"];

/// Where NVIDIA's driver says its version.
const DRIVER: &str = "/proc/driver/nvidia/version";

/// Whether the CUDA part is loaded.
static LOADED: AtomicBool = AtomicBool::new(false);

/// Loads the CUDA part and returns its path; None if this libtorch has no such part, or this machine no GPU (then the libraries
/// that the part needs may be missing). Call it before libtorch is first used.
///
/// # Errors
/// The part is there but does not load, because a library that it needs is missing.
pub fn load() -> Result<Option<PathBuf>> {
    if !DEVICES.iter().any(|device| Path::new(device).exists()) {
        return Ok(None);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(path) = beside(&maps) else { return Ok(None) };
    open(&path)?;
    LOADED.store(true, Ordering::Relaxed);
    Ok(Some(path))
}

/// Number of GPUs that libtorch can use; 0 where the rank is to compute on the processor.
///
/// # Errors
/// As [`usable`].
pub(super) fn gpus() -> Result<usize> {
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    let version = std::fs::read_to_string(DRIVER).ok();
    let version = version.as_deref().map(|text| text.lines().next().unwrap_or_default().trim());
    let driver = version.or_else(|| Path::new(DEVICES[0]).exists().then_some("its version is not known"));
    let shown = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    usable(count, LOADED.load(Ordering::Relaxed), shown.as_deref(), driver)
}

/// `count` GPUs, as libtorch has counted them. `shown` is `CUDA_VISIBLE_DEVICES`, `driver` what NVIDIA's driver says of itself.
///
/// # Errors
/// A driver, a libtorch for GPUs, and none that it can use, although nobody has hidden them.
fn usable(count: usize, loaded: bool, shown: Option<&str>, driver: Option<&str>) -> Result<usize> {
    match driver {
        Some(driver) if loaded && count == 0 && !hides_gpus(shown) => Err(Error::input(format!(
            "NVIDIA's driver is here ({driver}), but libtorch finds no GPU that it can use"
        ))
        .hint(
            "libtorch for CUDA 13 needs driver 580 or newer: nvidia-smi shows the driver and its GPUs; CUDA_VISIBLE_DEVICES=\"\" \
             computes on the processor",
        )),
        _ => Ok(count),
    }
}

fn open(path: &Path) -> Result<()> {
    // SAFETY: its initializers only register kernels with libtorch, which is loaded already. It is never unloaded.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        Error::runtime(format!("{} does not load: {error}", path.display()))
            .hint("launch/setup.sh --cuda or pip install torch brings its CUDA libraries; haf-dist doctor checks them")
    })?;
    std::mem::forget(library);
    Ok(())
}

/// Environment variables that NCCL and cuBLAS read when they start, with values that make results repeatable: one reduction
/// algorithm for all sizes, and a workspace of fixed layout (libtorch insists on that).
const FIXED: [(&str, &str); 3] =
    [("NCCL_ALGO", "Ring"), ("NCCL_PROTO", "Simple"), ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")];

/// Makes GPUs compute in the same order every time, or in the fastest. Variables that the user has set stay; returns the values
/// in effect. Call it before NCCL and cuBLAS are first used.
///
/// # Errors
/// A libtorch without these settings.
pub fn set_deterministic(on: bool) -> Result<String> {
    if on {
        for (name, value) in FIXED {
            if std::env::var_os(name).is_none() {
                // SAFETY: the threads that exist by now wait for work, and read no environment until they get some.
                unsafe { std::env::set_var(name, value) };
            }
        }
    }
    tell_libtorch(on)?;
    let setting = |name: &str| std::env::var(name).map_or(format!("no {name}"), |value| format!("{name}={value}"));
    Ok(FIXED.map(|(name, _)| setting(name)).join(", "))
}

/// `at::globalContext()`.
const CONTEXT: &str = "_ZN2at13globalContextEv";
/// `at::Context::setDeterministicAlgorithms(bool on, bool warn_only)`. With `warn_only`, attention's backward pass ignores it.
const ALGORITHMS: &str = "_ZN2at7Context26setDeterministicAlgorithmsEbb";
/// `at::Context::setDeterministicFillUninitializedMemory(bool)`: turned off, or new memory would be filled with NaN.
const FILL: &str = "_ZN2at7Context39setDeterministicFillUninitializedMemoryEb";

/// Sets flags for which tch has no setter, through the mangled names in libtorch's library. On every platform of libtorch but
/// Windows, a member function takes its object as first argument, and booleans as C does.
fn tell_libtorch(on: bool) -> Result<()> {
    let library = Library::this();
    // SAFETY: the mangled names contain the signatures; the context lives as long as the process.
    unsafe {
        let context = library.get::<unsafe extern "C" fn() -> *mut c_void>(CONTEXT.as_bytes()).map_err(unknown)?;
        let algorithms = library.get::<unsafe extern "C" fn(*mut c_void, bool, bool)>(ALGORITHMS.as_bytes());
        let fill = library.get::<unsafe extern "C" fn(*mut c_void, bool)>(FILL.as_bytes()).map_err(unknown)?;
        let context = context();
        algorithms.map_err(unknown)?(context, on, false);
        fill(context, false);
    }
    Ok(())
}

fn unknown(error: libloading::Error) -> Error {
    Error::runtime(format!("this libtorch has no setting for a fixed order of computation: {error}"))
        .hint("haf-dist is made for libtorch 2.13; set parallel.deterministic = false to do without")
}

/// Path of the CUDA part in the folder of the libtorch that a process has mapped.
fn beside(maps: &str) -> Option<PathBuf> {
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let folder = mapped.filter(|path| path.file_name().is_some_and(|name| name == CPU)).find_map(Path::parent)?;
    Some(folder.join(CUDA)).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::{CONTEXT, CUDA, Library, beside, c_void, open, tell_libtorch, usable};

    /// `at::Context::deterministicAlgorithms() const` and `deterministicAlgorithmsWarnOnly() const`.
    const ASKED: [&str; 2] =
        ["_ZNK2at7Context23deterministicAlgorithmsEv", "_ZNK2at7Context31deterministicAlgorithmsWarnOnlyEv"];

    #[test]
    fn libtorch_is_told_to_compute_in_one_order_and_not_only_to_warn() {
        let asked = || {
            let library = Library::this();
            // SAFETY: as in `tell_libtorch`.
            unsafe {
                let context = library.get::<unsafe extern "C" fn() -> *mut c_void>(CONTEXT.as_bytes()).unwrap()();
                ASKED.map(|name| {
                    library.get::<unsafe extern "C" fn(*mut c_void) -> bool>(name.as_bytes()).unwrap()(context)
                })
            }
        };
        assert_eq!(asked(), [false, false]);
        tell_libtorch(true).unwrap();
        assert_eq!(asked(), [true, false]);
        tell_libtorch(false).unwrap();
        assert_eq!(asked(), [false, false]);
    }

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

    /// A GPU must not be ignored silently.
    #[test]
    fn a_driver_without_a_gpu_that_can_be_used_is_an_error_unless_gpus_are_hidden() {
        let old = Some("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05");
        for shown in [None, Some("0"), Some("0,1")] {
            let error = usable(0, true, shown, old).unwrap_err();
            assert!(error.message.contains("535.104.05") && error.hint.unwrap().contains("580"), "{shown:?}");
            assert_eq!(usable(2, true, shown, old).unwrap(), 2);
            assert_eq!(usable(0, true, shown, None).unwrap(), 0, "no driver");
            assert_eq!(usable(0, false, shown, old).unwrap(), 0, "a libtorch for processors");
        }
        for hidden in ["", "-1", " ", "NoDevFiles"] {
            assert_eq!(usable(0, true, Some(hidden), old).unwrap(), 0, "{hidden:?}");
        }
    }

    #[test]
    fn one_that_does_not_load_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CUDA);
        std::fs::write(&path, "no library").unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.message.contains(CUDA) && error.hint.is_some(), "{error}");
    }
}
