//! Tests that need GPUs; launch/gpu-check.sh runs them one by one and reads their output. All are ignored elsewhere. Those that
//! say so run under mpirun, one rank a GPU; a single rank is enough for them.

use crate::device::{gpu, gpu_of_a_run, load};
#[allow(dead_code)]
use crate::steps;
use haf_dist::comm::{CommThread, connect, install_panic_hook, nccl, solo::Solo};
use haf_dist::config::Config;
use haf_dist::machine::wait_for;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Steps of the trajectories that are compared.
const STEPS: usize = 5;
/// Relative difference of f32 losses and gradient norms that the order of summing explains.
const TOLERANCE: f64 = 1e-4;
/// Width of the square matrices whose product gives the GPU's rate.
const WIDTH: i64 = 8192;

/// All ranks, joined by NCCL, and this one's GPU.
fn joined() -> (CommThread, Device) {
    load();
    install_panic_hook();
    let comm = CommThread::start(connect).expect("MPI starts");
    let index = comm.local().rank;
    let device = gpu_of_a_run(index);
    let settings = nccl::Settings { device, gpu: index, timeout: Duration::from_secs(60) };
    let version = nccl::join(&comm, settings).unwrap_or_else(|error| panic!("{error}"));
    if comm.rank() == 0 {
        println!("NCCL {version}, {} rank(s)", comm.world_size());
    }
    (comm, device)
}

/// Under mpirun. Sums ones, and prints the rate a size as nccl-tests define it: bytes a second, and times 2(n-1)/n.
#[test]
#[ignore = "needs GPUs: launch/gpu-check.sh"]
fn all_reduce_of_ones() {
    let (comm, device) = joined();
    let ranks = comm.world_size() as f64;
    for megabytes in [1, 4, 16, 64, 256] {
        let elements = megabytes << 18;
        let mut ones = Tensor::ones([elements], (Kind::Float, device));
        comm.all_reduce_blocking(&mut ones).expect("a reduction");
        let right = ones.eq(ranks).all().int64_value(&[]) == 1;
        assert!(right, "rank {}: a sum of {ranks} ones is something else", comm.rank());
        let (repeats, mut buffer) = (20, Tensor::zeros([elements], (Kind::Float, device)));
        wait_for(device);
        comm.barrier().expect("all ranks");
        let start = Instant::now();
        for _ in 0..repeats {
            comm.all_reduce_blocking(&mut buffer).expect("a reduction");
        }
        wait_for(device);
        let rate = (repeats * megabytes) as f64 / 1024.0 / start.elapsed().as_secs_f64();
        if comm.rank() == 0 {
            println!(
                "all-reduce {megabytes:4} MiB: {rate:8.2} GiB/s, bus {:8.2} GiB/s",
                rate * 2.0 * (ranks - 1.0) / ranks
            );
        }
    }
}

fn trajectory(config: &Config, comm: &CommThread, device: Device) -> Vec<f64> {
    let engine = steps::engine_of_rank(config, (Kind::Float, device), comm);
    let mut trainer = steps::trainer(config, comm, engine);
    let step = |_| trainer.step(STEPS).expect("a step").0;
    (0..STEPS).map(step).flat_map(|metrics| [metrics.loss, metrics.grad_norm]).collect()
}

/// Under mpirun. All ranks through NCCL, one rank alone on its GPU, and one rank on its CPU train the same.
#[test]
#[ignore = "needs GPUs: launch/gpu-check.sh"]
fn the_trajectory_is_the_same_over_nccl_alone_and_on_the_cpu() {
    let (comm, device) = joined();
    let alone = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
    let config = steps::config("llama-tied", &[]);
    let together = trajectory(&config, &comm, device);
    let sharded = trajectory(&steps::config("llama-tied", &["parallel.shard_optimizer=true"]), &comm, device);
    let far = together.iter().zip(&sharded).map(|(left, right)| (left - right).abs() / right.abs()).fold(0.0, f64::max);
    assert!(far < TOLERANCE, "rank {}: sharded optimizer state differs by {far:.1e}", comm.rank());
    for (place, reference) in [("its GPU", device), ("its CPU", Device::Cpu)] {
        let reference = trajectory(&config, &alone, reference);
        let differences = together.iter().zip(&reference).map(|(left, right)| (left - right).abs() / right.abs());
        let far = differences.fold(0.0, f64::max);
        assert!(far < TOLERANCE, "rank {} alone on {place} differs by {far:.1e}", comm.rank());
        if comm.rank() == 0 {
            println!("{} rank(s) over NCCL and one on {place} differ by {far:.1e}", comm.world_size());
        }
    }
}

/// Prints the rate of a large bf16 matrix product: what model FLOP utilization is measured against.
#[test]
#[ignore = "needs a GPU: launch/gpu-check.sh"]
fn the_rate_of_a_matrix_product() {
    let device = gpu(0);
    let matrix = || Tensor::ones([WIDTH, WIDTH], (Kind::BFloat16, device));
    let (left, right) = (matrix(), matrix());
    let product = left.matmul(&right);
    assert_eq!(product.double_value(&[0, 0]), WIDTH as f64);
    let repeats = 50;
    wait_for(device);
    let start = Instant::now();
    for _ in 0..repeats {
        let _ = left.matmul(&right);
    }
    wait_for(device);
    let flop = 2.0 * (WIDTH as f64).powi(3) * f64::from(repeats);
    println!("matrix product: {:.1} TFLOP/s", flop / start.elapsed().as_secs_f64() / 1e12);
}
