//! Real MPI, without cargo's harness: started plainly, this program runs itself under mpirun case by case; with CHILD set it is
//! one rank of a case. The promises: MPI passes the conformance suite, also if ranks of a node share memory, and trains as
//! threads do; if memory cannot be shared it says so once and continues; no rank outlives a lost or stopped one; ranks at
//! different collectives get an error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;
#[path = "common/job.rs"]
mod job;
#[path = "common/peak.rs"]
mod peak;
#[path = "common/steps.rs"]
#[allow(dead_code)]
mod steps;

use common::conformance::CASES;
use haf_dist::comm::{CommThread, Communicator, Local, connect, install_panic_hook, launch, mpi::Mpi, threads};
use haf_dist::error::Error;
use haf_dist::update::reducer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Names the part that a child plays.
const CHILD: &str = "HAF_DIST_TEST_CHILD";

/// How a job must end: with this code, or with any but 0.
enum End {
    Code(i32),
    Failure,
}

struct Case {
    name: &'static str,
    part: &'static str,
    ranks: usize,
    end: End,
    /// What the job must have printed.
    says: &'static str,
}

const fn case(name: &'static str, part: &'static str, ranks: usize, end: End, says: &'static str) -> Case {
    Case { name, part, ranks, end, says }
}

const SUITE_LIMIT: Duration = Duration::from_secs(300);
/// A job with a lost rank must be over within this time.
const LOSS_LIMIT: Duration = Duration::from_secs(20);
/// How long ranks may wait for one another where one of them stalls.
const STALL: Duration = Duration::from_secs(2);

const ALL: &[Case] = &[
    case("one_rank_conforms", "suite", 1, End::Code(0), "conforms as 0 of 1"),
    case("two_ranks_conform", "suite", 2, End::Code(0), "conforms as 1 of 2"),
    case("three_ranks_conform", "suite", 3, End::Code(0), "conforms as 2 of 3"),
    case("two_nodes_of_two_sum_shared_buffers", "nodes", 4, End::Code(0), "conforms as 3 of 4"),
    case("nodes_of_two_and_one_share_nothing", "nodes", 3, End::Code(0), "conforms as 2 of 3"),
    case("two_ranks_train_as_two_threads", "training", 2, End::Code(0), "rank 1 has the same masters"),
    case("two_nodes_of_two_train_as_four_threads", "training nodes", 4, End::Code(0), "rank 3 has the same masters"),
    case("three_ranks_train_as_three_threads", "training", 3, End::Code(0), "rank 2 has the same masters"),
    case(
        "buffers_too_large_to_share_are_not_shared",
        "too much",
        2,
        End::Code(0),
        "WARN  rank=0 the ranks of a node cannot share",
    ),
    case(
        "if_one_rank_cannot_share_memory_none_does",
        "no files",
        3,
        End::Code(0),
        "WARN  rank=1 the ranks of a node cannot",
    ),
    case("no_rank_holds_whole_masters_of_sharded_state", "peak", 2, End::Code(0), "rank 0 of 2: loading"),
    case("different_parts_are_an_error", "parts", 3, End::Code(0), "rank 1 was told"),
    case("a_rank_killed_before_a_shared_sum_ends_the_job", "kill shared", 3, End::Failure, "rank 1 dies"),
    case("a_panic_ends_the_job", "panic", 3, End::Code(101), "rank 1, thread worker: panicked at"),
    case("an_abort_ends_the_job", "abort", 3, End::Code(2), "rank 1 gives up"),
    case("an_abort_inside_a_collective_ends_the_job", "abort inside", 2, End::Code(3), "rank 1 gives up"),
    case("an_abort_ends_the_job_where_mpi_takes_one_thread", "abort serialized", 3, End::Code(2), "rank 1 gives up"),
    case(
        "different_votes_are_an_error",
        "votes",
        3,
        End::Code(0),
        "rank 1 was told: the ranks are at different collectives",
    ),
    case(
        "different_sizes_are_an_error",
        "sizes",
        2,
        End::Code(0),
        "rank 1 was told: the ranks are at different collectives",
    ),
    case(
        "a_vote_during_a_shared_sum_ends_the_job",
        "vote and sum",
        2,
        End::Code(1),
        "the ranks are at different collectives",
    ),
    case("a_stopped_rank_ends_the_job", "stop 1", 3, End::Code(1), "error: waiting for rank 1 at the collective at"),
    case("a_stopped_rank_0_ends_the_job", "stop 0", 3, End::Code(1), "error: rank 1: waiting for rank 0 at the "),
    case(
        "a_rank_stopped_on_another_node_ends_the_job",
        "stop 2 nodes",
        4,
        End::Code(1),
        "error: waiting for rank 2 at",
    ),
    case(
        "a_rank_stopped_at_announced_work_ends_the_job",
        "stop at work",
        2,
        End::Code(1),
        "its process is stopped, or the network is cut",
    ),
    case("a_late_rank_ends_the_job", "late", 2, End::Code(1), "for 2 s: rank 1 is running but has not reached it"),
    case("announced_work_may_take_longer", "at work", 2, End::Code(0), "rank 0 has waited"),
    case("a_killed_rank_ends_the_job", "kill", 3, End::Failure, "rank 1 dies"),
    case("an_agreed_error_ends_the_job_with_its_code", "agree", 3, End::Code(2), "rank 1: no such file"),
];

fn main() -> ExitCode {
    match std::env::var(CHILD) {
        Ok(part) => child(&part),
        Err(_) => parent(),
    }
}

/// One rank of a case.
fn child(part: &str) -> ExitCode {
    install_panic_hook();
    let start: fn() -> haf_dist::error::Result<Box<dyn Communicator>> = match part {
        "abort serialized" => || Ok(Box::new(Mpi::start_serialized()?)),
        "nodes" | "training nodes" | "stop 2 nodes" => || Ok(Box::new(Mpi::start_on_nodes_of(2)?)),
        _ => connect,
    };
    let comm = CommThread::start(start).expect("MPI starts");
    let mut buffer = Tensor::ones([1000], (Kind::Float, Device::Cpu));
    match (part, comm.rank()) {
        ("suite" | "nodes", _) => suite(part, &comm),
        ("training" | "training nodes", _) => training(part, &comm),
        ("peak", _) => peak::measure(&comm),
        ("too much" | "no files", _) => refused_memory(part, &comm, buffer),
        ("parts", rank) => {
            let shared = comm.shared_buffers(&[1000]).expect("no rank is lost").expect("one node").swap_remove(0);
            let pending = comm.all_reduce(shared.narrow(0, 0, if rank == 1 { 999 } else { 1000 }));
            let error = pending.wait().expect_err("the ranks differ");
            println!("rank {rank} was told: {error}");
        }
        ("votes", rank) => {
            let voted = if rank == 1 { comm.all_true(true) } else { comm.all_true(false) };
            println!("rank {rank} was told: {}", voted.expect_err("the ranks differ"));
        }
        ("sizes", rank) => {
            let mut buffer = buffer.narrow(0, 0, 1000 - rank as i64);
            println!("rank {rank} was told: {}", comm.broadcast(&mut buffer, 0).expect_err("the ranks differ"));
        }
        ("vote and sum", rank) => {
            comm.set_limit(STALL);
            let mut shared = comm.shared_buffers(&[1000]).expect("no rank is lost").expect("one node").swap_remove(0);
            let met = if rank == 1 { comm.barrier() } else { comm.all_reduce_blocking(&mut shared) };
            met.expect("never returns");
        }
        ("stop 0" | "stop 1" | "stop 2 nodes" | "stop at work" | "late" | "at work", _) => stalls(part, &comm),
        ("panic", 1) => {
            let worker = std::thread::Builder::new().name("worker".into());
            let worker = worker.spawn(|| panic!("this panic belongs to the test")).expect("a thread");
            let _ = worker.join();
        }
        // The communication thread waits in an all-reduce that not every rank will join.
        ("abort" | "abort serialized", 1) => {
            let _pending = comm.all_reduce(buffer);
            std::thread::sleep(Duration::from_millis(200));
            println!("rank 1 gives up");
            comm.abort(2);
        }
        ("abort" | "abort serialized", 2) => std::thread::sleep(Duration::from_secs(600)),
        // The communication threads are at work inside MPI.
        ("abort inside", rank) => {
            let large = Tensor::ones([1 << 22], (Kind::Float, Device::Cpu));
            let pending: Vec<_> = (0..2000).map(|_| comm.all_reduce(large.shallow_clone())).collect();
            std::thread::sleep(Duration::from_millis(100));
            if rank == 1 {
                println!("rank 1 gives up");
                comm.abort(3);
            }
            pending.into_iter().for_each(|pending| drop(pending.wait()));
        }
        // Every rank asks from one line: collectives are known by it.
        ("kill shared", rank) => {
            let shared = comm.shared_buffers(&[1000]);
            if rank == 1 {
                std::thread::sleep(Duration::from_millis(100));
                println!("rank 1 dies");
                let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
                std::thread::sleep(Duration::from_secs(600));
            }
            // The ranks that wait for the lost one.
            let mut shared = shared.expect("no rank is lost").expect("one node").swap_remove(0);
            comm.all_reduce_blocking(&mut shared).expect("never returns");
        }
        ("kill", 1) => {
            println!("rank 1 dies");
            let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
            std::thread::sleep(Duration::from_secs(600));
        }
        ("agree", rank) => {
            let outcome = if rank == 0 { Ok(()) } else { Err(Error::input("no such file")) };
            let error = comm.agree(outcome).expect_err("two ranks failed");
            if rank == 0 {
                println!("{error}");
            }
            drop(comm); // All ranks finalize MPI in good order.
            return ExitCode::from(error.exit_code() as u8);
        }
        (_, _) => comm.all_reduce_blocking(&mut buffer).expect("never returns"),
    }
    ExitCode::SUCCESS
}

/// The conformance tests, and how ranks lie on nodes.
fn suite(part: &str, comm: &CommThread) {
    let rank = comm.rank();
    let (started, ranks) = (launch::launch().expect("mpirun started this"), comm.world_size());
    assert_eq!((started.rank, started.size), (rank, Some(ranks)));
    let node = if part == "nodes" { 2 } else { ranks };
    assert_eq!(comm.local(), Local { rank: rank % node, size: node.min(ranks - rank / node * node) });
    // Ranks that are alone have nothing to share, and nodes of different sizes cannot share their work out.
    let shares = comm.shared_buffers(&[3]).expect("no rank is lost").is_some();
    assert_eq!(shares, ranks > 1 && ranks.is_multiple_of(node));
    // Only sums of shared buffers know nodes.
    let cases = CASES.iter().filter(|(name, _)| part == "suite" || name.contains("shared_buffers"));
    for (name, case) in cases {
        eprintln!("rank {rank}: {name}");
        case(comm, Device::Cpu);
    }
    println!("conforms as {rank} of {}", comm.world_size());
}

/// Five steps, held to ranks that are threads.
fn training(part: &str, comm: &CommThread) {
    let rank = comm.rank();
    for shard in [false, true] {
        let found = masters(comm, shard);
        let seats = threads::world(comm.world_size()).into_iter();
        let start = |seat: threads::Seat| CommThread::start(|| Ok(seat.communicator())).expect("a seat");
        let expected: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = seats.map(|seat| scope.spawn(move || masters(&start(seat), shard))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("threads train")).collect()
        });
        let (found, expected) = (found.iter(), &expected[rank]);
        // Nodes add up in another order than threads.
        let bound = if part == "training" { 0.0 } else { 2e-5 };
        let far = |(found, expected): (&Tensor, &Tensor)| {
            ((found - expected).norm() / expected.norm().clamp_min(1e-12)).double_value(&[])
        };
        let far = found.zip(expected).map(far).fold(0.0, f64::max);
        assert!(far <= bound, "other masters, sharded {shard}: {far:.1e}");
    }
    println!("rank {rank} has the same masters");
}

/// Memory to share that the machine does not give.
fn refused_memory(part: &str, comm: &CommThread, mut buffer: Tensor) {
    let rank = comm.rank();
    haf_dist::logging::init(haf_dist::logging::Showing { rank: Some(rank), ..Default::default() })
        .expect("no filter is set");
    let limits = getrlimit(Resource::RLIMIT_NOFILE).expect("there are limits");
    let few = if part == "no files" && rank == 1 { 3 } else { limits.0 };
    setrlimit(Resource::RLIMIT_NOFILE, few, limits.1).expect("limits may be lowered");
    // 256 TiB are more than a process can address.
    let length = if part == "too much" { 1 << 46 } else { 1000 };
    assert!(comm.shared_buffers(&[length]).expect("that is no failure").is_none());
    setrlimit(Resource::RLIMIT_NOFILE, limits.0, limits.1).expect("limits may be raised again");
    comm.all_reduce_blocking(&mut buffer).expect("MPI works on");
    assert!(buffer == Tensor::ones_like(&buffer) * comm.world_size() as f64);
    // The control: nothing else was in the way.
    assert!(comm.shared_buffers(&[1000]).expect("no rank is lost").is_some());
}

/// Ranks that stop, come late or take long at work.
fn stalls(part: &str, comm: &CommThread) {
    let rank = comm.rank();
    comm.set_limit(STALL);
    for _ in 0..50 {
        comm.barrier().expect("no rank is lost");
    }
    // The lines between the watchdogs are up by now.
    std::thread::sleep(Duration::from_millis(700));
    let slow = STALL * 2;
    match (part, rank) {
        ("stop 0", 0) | ("stop 1", 1) | ("stop 2 nodes", 2) => stop(),
        ("stop at work", 1) => {
            let _work = comm.at_work("work that never ends");
            std::thread::sleep(Duration::from_millis(700));
            stop();
        }
        ("late", 1) => std::thread::sleep(Duration::from_secs(600)),
        ("at work", 1) => {
            let _work = comm.at_work("slow work");
            std::thread::sleep(slow);
        }
        _ => {}
    }
    let start = Instant::now();
    comm.barrier().expect("no rank is lost");
    assert!(rank == 1 || start.elapsed() >= slow - Duration::from_secs(1), "the work was not slow");
    println!("rank {rank} has waited");
}

/// Stops this process as a debugger would, or a batch system.
fn stop() {
    let _ = Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
    std::thread::sleep(Duration::from_secs(600));
}

/// The masters after five steps, gradients in shared memory where there is such.
fn masters(comm: &CommThread, shard: bool) -> Vec<Tensor> {
    let config = steps::config("llama-tied", &[&format!("parallel.shard_optimizer={shard}")]);
    let engine = steps::engine_of_rank(&config, (Kind::Float, Device::Cpu), comm);
    let buckets = reducer::buckets(&engine.model, comm).expect("no rank is lost");
    let mut trainer = steps::trainer_with(&config, comm, (engine, buckets));
    for _ in 0..5 {
        trainer.step(5).expect("no rank is lost");
    }
    trainer.engine.model.named_values().into_iter().map(|(_, master)| master.copy()).collect()
}

fn parent() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        ALL.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |case: &&Case| filters.is_empty() || filters.iter().any(|filter| case.name.contains(*filter));
    let chosen: Vec<_> = ALL.iter().filter(wanted).collect();

    println!("\nrunning {} tests", chosen.len());
    let start = Instant::now();
    let mut failed = 0;
    for case in &chosen {
        match run(case) {
            Ok(took) => println!("test {} ... ok ({:.1} s)", case.name, took.as_secs_f64()),
            Err(why) => {
                failed += 1;
                println!("test {} ... FAILED\n{why}", case.name);
            }
        }
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
        ALL.len() - chosen.len(),
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one case under mpirun; says why it failed.
fn run(case: &Case) -> Result<Duration, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let log = folder.path().join("log");
    let out = std::fs::File::create(&log).map_err(|error| error.to_string())?;
    let err = out.try_clone().map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let start = Instant::now();
    let job = job::mpirun(case.ranks, &program)
        .env(CHILD, case.part)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| format!("cannot start mpirun: {error}; is Open MPI installed?"))?;
    let limit = if matches!(case.part, "suite" | "nodes" | "training" | "training nodes" | "peak") {
        SUITE_LIMIT
    } else {
        LOSS_LIMIT
    };
    let ended = job::wait(job, limit);
    let took = start.elapsed();
    let printed = std::fs::read_to_string(&log).unwrap_or_default();
    let report = |what: String| Err(format!("{what}; its output:\n{printed}"));
    match (ended, &case.end) {
        (None, _) => report(format!("not over after {} s", limit.as_secs())),
        (Some(code), End::Code(expected)) if code != *expected => report(format!("exit code {code}, not {expected}")),
        (Some(0), End::Failure) => report("exit code 0".into()),
        _ if !printed.contains(case.says) => report(format!("it did not print {:?}", case.says)),
        _ => Ok(took),
    }
}
