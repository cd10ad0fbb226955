//! What the machine offers: device, compute precision, threads, memory allocator settings.

#![allow(unsafe_code)]

pub(crate) mod backend;
pub mod cuda;
pub mod kernels;
pub mod late;
pub(crate) mod look;

use crate::comm::{CommThread, Local, nccl};
use crate::config::Dtype;
use crate::error::{Error, Result};
use crate::ops::parallel;
use crate::tensor;
use tch::{Device, Kind, Tensor};
use tracing::warn;

/// Where and how a rank computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// The rank's GPU, or the CPU.
    pub(crate) device: Device,
    /// Kind that the model computes in.
    pub(crate) kind: Kind,
    /// Threads that the rank computes with.
    pub(crate) threads: usize,
}

/// Waits until a device has done all its queued work.
pub fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

impl Machine {
    /// Whether the rank computes on the CPU.
    pub(crate) fn is_cpu(&self) -> bool {
        self.device == Device::Cpu
    }

    /// Picks the device, the precision and the number of threads, and sets them in libtorch. All ranks must call it.
    ///
    /// `threads` 0 means this node's cores divided by its ranks, or the cores that the launcher has bound the rank to.
    /// `dtype = "auto"` is bf16 if every rank's hardware computes in it, else f32.
    ///
    /// # Errors
    /// GPUs that libtorch cannot use, too many threads, or a lost rank.
    pub(crate) fn pick(dtype: Dtype, threads: usize, comm: &CommThread) -> Result<Self> {
        let Local { rank: local_rank, size: local_size } = comm.local();
        let device = match comm.agree(cuda::gpus())? {
            0 => Device::Cpu,
            count => Device::Cuda(local_rank % count),
        };
        // Before the first tensor, or every rank would also take memory on the node's first GPU.
        comm.agree(match device {
            Device::Cuda(index) => nccl::use_gpu(index),
            _ => Ok(()),
        })?;
        let bf16_everywhere = comm.all_true(device != Device::Cpu || processor_has_bf16())?;
        let kind = match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::Auto => {
                if bf16_everywhere {
                    Kind::BFloat16
                } else {
                    Kind::Float
                }
            }
        };
        let usable = usable_cores();
        let (shared, bound) = default_threads(local_size, comm)?;
        scarcity(threads, usable, bound, comm.rank()).iter().for_each(|scarce| warn!("{scarce}"));
        let threads = if threads > 0 { threads } else { shared };
        let count = i32::try_from(threads).map_err(|_| {
            Error::input(format!("{threads} threads a rank are too many")).hint("0 shares this node's cores out")
        })?;
        tch::set_num_threads(count);
        parallel::start(threads)?;
        Ok(Self { device, kind, threads })
    }

    /// Where the rank computes, in words.
    pub(crate) fn place(&self) -> String {
        match self.device {
            Device::Cuda(index) => format!("GPU {index}"),
            _ => "the CPU".to_owned(),
        }
    }

    /// The precision as users write it.
    pub(crate) fn dtype_name(&self) -> &'static str {
        if self.kind == Kind::BFloat16 { "bf16" } else { "f32" }
    }
}

/// Warnings where there are more threads than cores. `bound`: ranks have cores of their own; this one may use `usable`.
fn scarcity(threads: usize, usable: usize, bound: bool, rank: usize) -> Vec<String> {
    let mut found = Vec::new();
    if threads > usable {
        found.push(format!(
            "parallel.threads = {threads} is more than the {usable} cores this process may use: threads will wait for one another"
        ));
    }
    // The launcher binds all alike: one rank says it.
    if bound && usable == 1 && rank == 0 {
        found.push(String::from(
            "each rank is bound to one core, which its computation shares with its communication: steps take longer; \
             start with mpirun --bind-to none",
        ));
    }
    found
}

/// Cores for each rank of this node. A launcher that binds ranks gives each its own cores, so their sets differ; if
/// all ranks may use the same cores (no binding, a container's or a batch system's share), those are divided.
///
/// Returns also whether ranks are bound.
fn default_threads(local_size: usize, comm: &CommThread) -> Result<(usize, bool)> {
    let usable = usable_cores();
    let mine = cores();
    let mut of_rank_0 = Tensor::from_slice(&mine);
    comm.broadcast(&mut of_rank_0, 0)?;
    let bound = !comm.all_true(*tensor::slice::<u8>(&of_rank_0)? == mine)?;
    Ok((if bound { usable } else { (usable / local_size.max(1)).max(1) }, bound))
}

/// How many threads can compute at the same time in this process.
pub(crate) fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Which of the first 1,024 cores this process may use, one byte each.
fn cores() -> Vec<u8> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::count()).map(|core| u8::from(set.is_set(core).unwrap_or(false))).collect()
}

/// Floating-point operations that a fast device of this kind computes in a minute, about. Not measured: what is cut by it is cut
/// alike on every machine.
pub(crate) fn operations_per_minute(device: Device) -> usize {
    match device {
        Device::Cpu => 18_000_000_000_000,
        _ => 6_000_000_000_000_000,
    }
}

/// Whether this processor computes in bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn processor_has_bf16() -> bool {
    // amx-bf16 machines have avx512bf16 too.
    std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Whether this processor computes in bf16.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn processor_has_bf16() -> bool {
    false
}

/// The most memory this process has held so far, in bytes.
///
/// # Errors
/// A system without Linux's /proc.
pub fn peak_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| Error::runtime("/proc/self/status has no VmHWM: peak memory is not known here"))
}

/// Keeps freed memory in the process. glibc hands every large block back to the kernel, and a training step would spend
/// a third of its time faulting the same pages in again. Also asks for large pages (Linux's madvise), if the system
/// leaves that to programs: they need fewer page faults and fewer entries of the processor's address cache.
///
/// Call it before other threads exist: their first large blocks would get arenas of their own.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets tuning parameters, and madvise changes no contents. The range is that of a block that
    // malloc gave, cut to whole pages.
    unsafe {
        use nix::libc;
        libc::mallopt(libc::M_MMAP_MAX, 0);
        // Never.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        if !address_space_is_free() {
            return;
        }
        // The heap grows once, by three quarters of the machine's memory, and the block is freed untouched: later
        // allocations lie in this range, for which large pages were asked.
        let page = libc::sysconf(libc::_SC_PAGESIZE).max(1) as usize;
        let length = libc::sysconf(libc::_SC_PHYS_PAGES).max(0) as usize / 4 * 3 * page;
        let block = libc::malloc(length);
        if !block.is_null() {
            let skipped = block.align_offset(page);
            libc::madvise(block.add(skipped), length.saturating_sub(skipped) / page * page, libc::MADV_HUGEPAGE);
            libc::free(block);
        }
    }
}

/// Whether memory that is allocated but not touched costs nothing: no limit on it, and no strict accounting.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn address_space_is_free() -> bool {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let unlimited = |resource| getrlimit(resource).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let accounting = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    matches!(accounting.trim(), "0" | "1") && unlimited(Resource::RLIMIT_AS) && unlimited(Resource::RLIMIT_DATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_cores_are_warned_of() {
        let found = |threads, usable, bound, rank| scarcity(threads, usable, bound, rank).join("\n");
        for (threads, usable, bound) in [(0, 2, true), (2, 2, true), (0, 1, false), (1, 1, false)] {
            assert_eq!(found(threads, usable, bound, 0), "", "{threads} {usable} {bound}");
        }
        assert!(found(3, 2, false, 1).starts_with("parallel.threads = 3 is more than the 2 cores"));
        assert!(found(0, 1, true, 0).contains("bound to one core") && found(0, 1, true, 1).is_empty());
        assert_eq!(scarcity(2, 1, true, 0).len(), 2);
    }
}
