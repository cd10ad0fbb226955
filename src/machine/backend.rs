//! Chooses the backend that reduces gradients, from the config and the device that the rank computes on.

use super::cuda;
use crate::comm::{CommThread, nccl};
use crate::config::{Backend, ParallelConfig, ReduceDtype};
use crate::error::{Error, Result};
use std::time::Duration;
use tch::{Device, Kind};
use tracing::info;

/// Connects the backend that the config asks for; `auto` takes NCCL if several ranks compute on GPUs. Sets whether GPUs compute
/// in the same order every time. All ranks must call it, before there are tensors on a GPU.
///
/// # Errors
/// An input error, the same on every rank, if the requested backend cannot work here; a failure of NCCL.
pub(crate) fn connect(config: &ParallelConfig, device: Device, comm: &CommThread) -> Result<()> {
    let on_gpu = matches!(device, Device::Cuda(_));
    let all_on_gpus = comm.all_true(on_gpu)?;
    comm.agree(check(config, comm.world_size(), on_gpu, all_on_gpus))?;
    let Device::Cuda(gpu) = device else { return Ok(()) };
    let fixed = comm.agree(cuda::set_deterministic(config.deterministic))?;
    info!("parallel.deterministic = {}: {fixed}", config.deterministic);
    if !needs_nccl(config, comm.world_size()) {
        return Ok(());
    }
    let timeout = Duration::from_secs(config.timeout_seconds as u64);
    let version = nccl::join(comm, nccl::Settings { device, gpu, timeout })?;
    info!("gradients go through NCCL {version}, one rank a GPU");
    Ok(())
}

/// For ranks on GPUs. A single rank reduces nothing, but its config may ask for NCCL to test it.
fn needs_nccl(config: &ParallelConfig, world_size: usize) -> bool {
    match config.backend {
        Backend::Auto => world_size > 1,
        Backend::Mpi => false,
        Backend::Nccl => true,
    }
}

/// Checks that the backend that the config asks for can work on these devices.
///
/// # Errors
/// An input error if it cannot.
pub(crate) fn check(config: &ParallelConfig, world_size: usize, on_gpu: bool, all_on_gpus: bool) -> Result<()> {
    if on_gpu != all_on_gpus {
        return Err(Error::input("this rank sees a GPU, but some other rank sees none")
            .hint("let every node show its GPUs, or hide all of them with CUDA_VISIBLE_DEVICES="));
    }
    if config.backend == Backend::Nccl && !on_gpu {
        return Err(Error::input("parallel.backend = \"nccl\", but this program sees no GPU").hint(
            "`nvidia-smi` lists them; they need libtorch's CUDA part (launch/setup.sh --cuda); on CPUs set \
             parallel.backend = \"mpi\"",
        ));
    }
    if config.backend == Backend::Mpi && on_gpu && world_size > 1 {
        return Err(Error::input(format!(
            "parallel.backend = \"mpi\" moves CPU memory, and {world_size} ranks are on GPUs"
        ))
        .hint("set parallel.backend = \"nccl\", or hide the GPUs with CUDA_VISIBLE_DEVICES="));
    }
    if config.reduce_dtype == ReduceDtype::Bf16 && !on_gpu {
        return Err(Error::input("parallel.reduce_dtype = \"bf16\" needs NCCL, and this program sees no GPU")
            .hint("set parallel.reduce_dtype = \"f32\""));
    }
    Ok(())
}

/// The kind in which gradients are summed.
pub(crate) fn sum_kind(config: &ParallelConfig) -> Kind {
    match config.reduce_dtype {
        ReduceDtype::F32 => Kind::Float,
        ReduceDtype::Bf16 => Kind::BFloat16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(backend: Backend, reduce_dtype: ReduceDtype, world_size: usize, gpus: (bool, bool)) -> Option<Error> {
        let config = ParallelConfig { backend, reduce_dtype, ..ParallelConfig::default() };
        check(&config, world_size, gpus.0, gpus.1).err()
    }

    #[test]
    fn what_cannot_work_on_the_device_is_refused_with_a_hint() {
        use Backend::*;
        use ReduceDtype::*;
        const CPU: (bool, bool) = (false, false);
        const GPU: (bool, bool) = (true, true);
        for (backend, kind, ranks, gpus, says) in [
            (Nccl, F32, 2, CPU, "sees no GPU"),
            (Nccl, F32, 1, CPU, "sees no GPU"),
            (Mpi, F32, 2, GPU, "moves CPU memory"),
            (Auto, Bf16, 2, CPU, "needs NCCL"),
            (Auto, F32, 2, (true, false), "some other rank sees none"),
        ] {
            let error = refusal(backend, kind, ranks, gpus).expect(says);
            assert!(error.message.contains(says) && error.hint.is_some() && error.exit_code() == 2, "{error}");
        }
        for (backend, kind, ranks, gpus) in
            [(Auto, F32, 2, CPU), (Mpi, F32, 2, CPU), (Auto, F32, 1, GPU), (Mpi, F32, 1, GPU), (Nccl, Bf16, 2, GPU)]
        {
            assert_eq!(refusal(backend, kind, ranks, gpus), None);
        }
    }

    #[test]
    fn auto_takes_nccl_for_several_gpus() {
        let config = |backend| ParallelConfig { backend, ..ParallelConfig::default() };
        assert!(needs_nccl(&config(Backend::Auto), 2) && !needs_nccl(&config(Backend::Auto), 1));
        assert!(needs_nccl(&config(Backend::Nccl), 1) && !needs_nccl(&config(Backend::Mpi), 1));
    }
}
