//! The GPU that a test computes on. The program is linked without the part of libtorch that computes on GPUs; libtorch looks for
//! it when it is first asked for a GPU, and never again.

use haf_dist::machine::cuda;
use std::sync::LazyLock;
use tch::Device;

/// Loads that part, once. A test that starts with anything else must call it before libtorch is used.
pub fn load() {
    static LOADED: LazyLock<()> = LazyLock::new(|| {
        let loaded = cuda::load().unwrap_or_else(|error| panic!("{error}"));
        assert!(
            loaded.is_some(),
            "no NVIDIA driver, or no libtorch_cuda.so beside libtorch_cpu.so: launch/setup.sh --cuda"
        );
    });
    LazyLock::force(&LOADED);
}

/// The GPU with this number among the visible ones, with libtorch set as a run sets it unless its config says otherwise.
pub fn gpu_of_a_run(index: usize) -> Device {
    load();
    cuda::set_deterministic(true).unwrap_or_else(|error| panic!("{error}"));
    gpu(index)
}

/// The GPU with this number among the visible ones.
pub fn gpu(index: usize) -> Device {
    load();
    Device::Cuda(index)
}
