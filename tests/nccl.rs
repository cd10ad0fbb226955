//! The NCCL backend unchanged, over the shim of tests/nccl_shim instead of NCCL and the CUDA driver, with tensors in CPU
//! memory: its promises on GPUs, as far as they can be tested without one. It conforms, trains as MPI does, waits where it
//! must, and ends the job with NCCL's own message if something fails or never ends.
//!
//! Every test starts mpirun; a rank of such a job is this program with `rank` as its only test.

#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "nccl_shim/abi.rs"]
mod abi;
mod common;
#[path = "common/job.rs"]
mod job;
#[path = "nccl_shim/order.rs"]
mod order;
#[path = "nccl_shim/part.rs"]
mod part;
#[path = "common/steps.rs"]
#[allow(dead_code)]
mod steps;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// A job that works must be over within this time.
const LIMIT: Duration = Duration::from_secs(300);
/// A job in which something fails or gets stuck.
const FAILURE_LIMIT: Duration = Duration::from_secs(20);

/// The arguments of a rank.
const RANK: [&str; 4] = ["rank", "--exact", "--ignored", "--nocapture"];

/// The folder with the shim under the two names that the loader looks for. Built once.
static SHIM: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nccl_shim");
    std::fs::create_dir_all(&folder).unwrap();
    let library = folder.join("libnccl.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl_shim/lib.rs");
    let built = Command::new(std::env::var("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "nccl_shim", "-O", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.expect("rustc starts").success(), "the shim does not build");
    // A link, so that both names are one library in memory.
    let _ = std::fs::remove_file(folder.join("libcuda.so"));
    std::os::unix::fs::symlink("libnccl.so", folder.join("libcuda.so")).unwrap();
    folder
});

/// How a job ended: its exit code (none if it had to be stopped), what it printed, and the shim's record of each rank.
struct Ended {
    code: Option<i32>,
    printed: String,
    records: Vec<String>,
}

/// Runs `part` on so many ranks, with the shim told to do `wrong`.
fn run(ranks: usize, part: &str, wrong: &str) -> Ended {
    run_with(ranks, part, wrong, Some(SHIM.as_path()))
}

fn run_with(ranks: usize, part: &str, wrong: &str, libraries: Option<&Path>) -> Ended {
    // Where waits are looked for, the shim must come before libtorch, in the ranks alone.
    let program = std::env::current_exe().unwrap();
    let mut command = match part.starts_with("queued") {
        false => job::mpirun(ranks, &program),
        true => {
            let mut command = job::mpirun(ranks, Path::new("env"));
            command.arg(format!("LD_PRELOAD={}", SHIM.join("libnccl.so").display())).arg(&program);
            command
        }
    };
    command.args(RANK);
    run_command(command, part, wrong, libraries)
}

fn run_command(mut command: Command, part: &str, wrong: &str, libraries: Option<&Path>) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let out = std::fs::File::create(folder.path().join("printed")).unwrap();
    command
        .env(part::PART, part)
        .env("NCCL_SHIM", wrong)
        .env("NCCL_SHIM_LOG", folder.path().join("record"))
        .stdin(Stdio::null())
        .stderr(out.try_clone().unwrap())
        .stdout(out);
    // One job at a time: jobs that share the cores would be late for reasons of their own.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(libraries) = libraries {
        let before = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        command.env("LD_LIBRARY_PATH", format!("{}:{before}", libraries.display()));
    }
    let job = command.spawn().expect("mpirun starts; is Open MPI installed?");
    let code = job::wait(job, if wrong.is_empty() { LIMIT } else { FAILURE_LIMIT });
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let records = entries.filter(|path| path.to_string_lossy().contains("record.")).map(|path| read(&path)).collect();
    Ended { code, printed: read(&folder.path().join("printed")), records }
}

impl Ended {
    /// Ended with this code and printed all of `says`.
    fn expect(&self, code: i32, says: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.printed);
        for says in says {
            assert!(self.printed.contains(says), "it did not say {says:?}:\n{}", self.printed);
        }
        self
    }
}

#[test]
#[ignore = "one rank of the jobs that the other tests start"]
fn rank() {
    if let Ok(part) = std::env::var(part::PART) {
        part::play(&part);
    }
}

#[test]
fn one_two_and_three_ranks_conform() {
    for ranks in [1, 2, 3] {
        run(ranks, "suite", "").expect(0, &[&format!("conforms as {} of {ranks}", ranks - 1)]);
    }
}

#[test]
fn the_reducer_sums_as_over_mpi_and_in_order_with_the_computation() {
    for ranks in [2, 3] {
        let ended = run(ranks, "reducer", "");
        ended.expect(0, &["the sums are right"]);
        assert_eq!(ended.records.len(), ranks);
        for record in &ended.records {
            let collectives = order::check(record).unwrap();
            assert!(collectives >= part::BUCKETS.len(), "{collectives}");
        }
    }
}

#[test]
fn whole_training_steps_are_the_same_as_over_mpi() {
    for ranks in [2, 3] {
        let ended = run(ranks, "training", "");
        for record in &ended.expect(0, &["the trajectories are the same"]).records {
            order::check(record).unwrap();
        }
    }
}

#[test]
fn memory_stays_alive_while_a_collective_uses_it() {
    run(2, "dropped", "").expect(0, &["nothing was overwritten"]);
}

#[test]
fn control_a_lost_wait_of_the_computation_gives_wrong_sums_and_another_trajectory() {
    let trajectories = "trajectories differ";
    for (part, says) in [("reducer", "differs"), ("training", trajectories), ("sharded training", trajectories)] {
        run(2, part, "no-compute-wait").expect(101, &[says]);
    }
}

#[test]
fn control_a_lost_wait_of_the_communication_is_seen_in_the_record() {
    let ended = run(2, "reducer", "no-communication-wait");
    for record in &ended.expect(0, &[]).records {
        assert!(order::check(record).unwrap_err().contains("waited for no computation"));
    }
}

/// Between a step's first launch and its last the host waits for nothing: it reads no value, copies nothing to itself but
/// behind the work, and synchronizes with no event. The plain formulas are a GPU's own; its library's calls have a stand-in.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_step_is_queued_without_a_wait() {
    let ended = run(2, "queued", "");
    for record in &ended.expect(0, &["queued and read"]).records {
        order::check(record).unwrap();
        let (steps, waits) = order::waits(record);
        assert_eq!((steps, waits.len()), (part::QUEUED_STEPS, 0), "{:?}", &waits[..waits.len().min(9)]);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn control_any_wait_in_a_step_is_seen() {
    for (wait, call) in [("read", "read"), ("compared", "read"), ("copied", "copy"), ("awaited", "synchronize")] {
        let ended = run(2, &format!("queued and {wait}"), "");
        for record in &ended.expect(0, &["queued and read"]).records {
            let (steps, waits) = order::waits(record);
            let seen = waits.iter().filter(|line| line.contains(call)).count();
            assert_eq!((seen, waits.len()), (steps, steps), "{wait}: {:?}", &waits[..waits.len().min(9)]);
        }
    }
}

#[test]
fn control_another_order_on_one_rank_gives_wrong_sums() {
    run(2, "swapped", "").expect(101, &["bucket 1 differs"]);
}

#[test]
fn an_error_of_a_call_ends_the_job_in_nccls_own_words() {
    run(3, "failing", "fail:1:2").expect(
        1,
        &[
            "all-reduce of bucket 2 (40000 elements) on rank 1",
            "NCCL: unhandled system error of the shim; the shim was told to fail",
            "hint: NCCL_DEBUG=INFO",
        ],
    );
}

#[test]
fn an_error_that_comes_later_ends_the_job_and_is_reported() {
    run(2, "failing", "async:1:2").expect(
        1,
        &["error: rank 1: waiting for all-reduce of bucket 2", "NCCL: remote process exited, says the shim"],
    );
}

#[test]
fn a_collective_that_never_ends_is_reported_by_every_rank_and_ends_the_job() {
    let stuck =
        ["rank 0: waiting for all-reduce of bucket", "rank 1: waiting for all-reduce of bucket 2", "no progress in"];
    run(2, "failing", "stall:1:2").expect(1, &stuck).expect(1, &["parallel.timeout_seconds"]);
    // A rank that never comes to a collective.
    run(2, "absent", "stall:none").expect(1, &["error: rank 0: waiting for all-reduce of bucket 0"]);
}

#[test]
fn setups_that_nccl_cannot_use_are_refused_once_with_a_hint() {
    let refused = |ended: Ended, says: &[&str]| {
        ended.expect(2, says).expect(2, &["hint: "]);
        assert_eq!(ended.printed.matches("error:").count(), 1, "{}", ended.printed);
    };
    refused(run(2, "joining", "devices:1"), &["there is no GPU 1: this process sees 1"]);
    refused(run(2, "sharing", "devices:2"), &["ranks 0 and 1 are on the same GPU", "2 ranks are on this node"]);
    // Where the real library is installed, it is found.
    if cudarc::get_lib_name_candidates("nccl").iter().all(|name| !part::can_load(name)) {
        refused(run_with(2, "joining", "", None), &["libnccl.so is not found", "libnccl.so.2"]);
    }
}

/// As pip installs it: the wheel of haf-dist beside NCCL's, whose only file is libnccl.so.2. The engine is a rank of this program.
#[test]
fn the_engine_of_a_wheel_loads_nccls_own_package() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let [bin, driver, packages] =
        ["bin", "driver", "lib/python3.12/site-packages"].map(|name| folder.path().join(name));
    let package = packages.join("nvidia/nccl/lib");
    for made in [&bin, &driver, &package, &packages.join("torch"), &packages.join("haf_dist-0.1.0.dist-info")] {
        std::fs::create_dir_all(made).unwrap();
    }
    std::fs::copy(SHIM.join("libnccl.so"), package.join("libnccl.so.2")).unwrap();
    symlink(package.join("libnccl.so.2"), driver.join("libcuda.so")).unwrap();
    symlink(env!("HAF_DIST_LIBTORCH"), packages.join("torch/lib")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_haf-dist"), bin.join("haf-dist")).unwrap();
    let rank = format!("#!/bin/sh\nexec {} {}\n", std::env::current_exe().unwrap().display(), RANK.join(" "));
    std::fs::write(bin.join("haf-dist-engine"), rank).unwrap();
    std::fs::set_permissions(bin.join("haf-dist-engine"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = job::mpirun(1, &bin.join("haf-dist"));
    command.args(["bench", "--model", "unread", "--pairs", "unread"]);
    run_command(command, "suite", "", Some(&driver)).expect(0, &["conforms as 0 of 1"]);
    // The control: the folder of the package is not enough.
    if cudarc::get_lib_name_candidates("nccl").iter().all(|name| !part::can_load(name)) {
        run_with(1, "joining", "", Some(&package)).expect(2, &["libnccl.so is not found"]);
    }
}
