//! Sums over two ranks of one node: MPI_Allreduce, the MPI backend's own calls of it, and through shared memory.
//! `cargo bench --bench reduction` starts two ranks; under mpirun this program is one rank. Not a test of anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/common/job.rs"]
mod job;

use haf_dist::comm::{Communicator, install_panic_hook, launch, mpi::Mpi};
use haf_dist::tensor::{slice, slice_mut};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const MEGABYTES: [usize; 4] = [1, 4, 16, 64];
/// Each round times the three ways one after the other, so that they meet the same disturbances.
const ROUNDS: usize = 21;
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    if launch::under_mpirun() {
        rank();
        return ExitCode::SUCCESS;
    }
    let program = std::env::current_exe().expect("this program has a path");
    let job = job::mpirun(2, &program).spawn().expect("mpirun of Open MPI is installed");
    if job::wait(job, LIMIT) == Some(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn rank() {
    install_panic_hook();
    let mut comm = Mpi::start().expect("MPI starts");
    let world = SimpleCommunicator::world();
    if comm.rank() == 0 {
        println!(
            "sums of f32 over {} ranks of one node, milliseconds of the slowest rank: best | median",
            world.size()
        );
        println!("of {ROUNDS} rounds. The whole buffer in one MPI_Allreduce, not in place: no copy is made.\n");
        println!("{:>5}{:>20}{:>20}{:>20}{:>16}", "MB", "one MPI_Allreduce", "MPI backend", "shared memory", "gain");
    }
    for megabytes in MEGABYTES {
        let length = megabytes * 1_000_000 / size_of::<f32>();
        let values = Tensor::ones([length as i64], (Kind::Float, Device::Cpu)) * 1e-3;
        let mut plain = values.copy();
        let shared = comm.shared_buffers(&[length]).expect("MPI works").expect("the ranks share a node");
        let mut shared = shared.into_iter().next().expect("one buffer was asked for");
        let out = values.zeros_like();
        let mut times: [Vec<f64>; 3] = Default::default();
        // The first round touches the memory and does not count.
        for round in 0..=ROUNDS {
            plain.copy_(&values);
            shared.copy_(&values);
            let (input, mut output) = (slice::<f32>(&values).expect("flat"), slice_mut::<f32>(&out).expect("flat"));
            let whole = timed(&world, || world.all_reduce_into(&*input, &mut *output, SystemOperation::sum()));
            drop((input, output));
            let taken = [
                whole,
                timed(&world, || comm.all_reduce(&mut plain).expect("MPI works")),
                timed(&world, || comm.all_reduce(&mut shared).expect("MPI works")),
            ];
            assert!(plain == shared && plain == out, "the three ways give one sum");
            if round > 0 {
                times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
            }
        }
        if comm.rank() == 0 {
            let [whole, ours, shared] = times.map(best_and_median);
            let milliseconds = |(best, median): (f64, f64)| format!("{:.3} | {:.3}", best * 1e3, median * 1e3);
            let gain = format!("{:.1}x | {:.1}x", whole.0 / shared.0, whole.1 / shared.1);
            let [whole, ours, shared] = [whole, ours, shared].map(milliseconds);
            println!("{megabytes:>5}{whole:>20}{ours:>20}{shared:>20}{gain:>16}");
        }
    }
}

/// Seconds that the slowest rank took for `work`, which all begin together.
fn timed(world: &SimpleCommunicator, work: impl FnOnce()) -> f64 {
    world.barrier();
    let start = Instant::now();
    work();
    let (mine, mut slowest) = (start.elapsed().as_secs_f64(), 0.0);
    world.all_reduce_into(&mine, &mut slowest, SystemOperation::max());
    slowest
}

fn best_and_median(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}
