//! What the machine offers: device, compute precision, threads, memory allocator settings.

use crate::comm::CommThread;
use crate::config::Dtype;
use crate::error::{Error, Result};
use tch::{Cuda, Device, Kind};

/// Where and how a rank computes.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// The rank's GPU, or the CPU.
    pub device: Device,
    /// Kind of the computation.
    pub kind: Kind,
    /// Threads of the rank.
    pub threads: usize,
}

impl Machine {
    /// Picks the device, the precision and the number of threads, and tells libtorch.
    ///
    /// `threads` 0 means this node's cores divided by its ranks, or the cores that the launcher has bound the rank to.
    ///
    /// # Errors
    /// `dtype = "bf16"` is never refused: libtorch computes it everywhere, if slowly. More threads than can be counted.
    pub fn pick(dtype: Dtype, threads: usize, comm: &CommThread) -> Result<Self> {
        let (local_rank, local_size) = comm.local();
        let device = match Cuda::device_count() {
            0 => Device::Cpu,
            count => Device::Cuda(local_rank % count.max(1) as usize),
        };
        let threads = if threads > 0 { threads } else { default_threads(local_size) };
        let count =
            i32::try_from(threads).map_err(|_| Error::input(format!("parallel.threads = {threads} is too many")))?;
        tch::set_num_threads(count);
        let kind = match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::Auto if device != Device::Cpu || processor_has_bf16() => Kind::BFloat16,
            Dtype::Auto => Kind::Float,
        };
        Ok(Self { device, kind, threads })
    }

    /// The precision as users write it.
    pub fn dtype_name(&self) -> &'static str {
        if self.kind == Kind::BFloat16 { "bf16" } else { "f32" }
    }
}

/// Cores for each rank of this node.
fn default_threads(local_size: usize) -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    let bound = online.is_some_and(|online| (usable as i64) < online);
    // A rank that the launcher has bound to some cores has them for itself; else the node's cores are shared out.
    if bound { usable } else { (usable / local_size.max(1)).max(1) }
}

#[cfg(target_arch = "x86_64")]
fn processor_has_bf16() -> bool {
    // amx-bf16 machines have avx512bf16 too.
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_has_bf16() -> bool {
    false
}

/// Keeps freed memory in the process. glibc hands every large block back to the kernel, and a training step would spend
/// a third of its time faulting the same pages in again.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets tuning parameters; called once, before other threads exist.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_MAX, 0);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
