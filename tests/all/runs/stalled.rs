//! A rank that stops, whichever it is, ends the whole job at the limit, with one error that names it, and no process is left. A
//! job that is suspended as a whole continues.

use crate::job;
use crate::tiny::{Workspace, with_config};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TIMEOUT: &str = "parallel.timeout_seconds=3";
/// The limit, mpirun's end, and room for a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// The process of `rank` under this mpirun.
fn process(mpirun: u32, rank: usize) -> u32 {
    let expected = format!("OMPI_COMM_WORLD_RANK={rank}\0");
    let children = Command::new("pgrep").args(["-P", &mpirun.to_string()]).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let is = |process: &u32| {
        fs::read(format!("/proc/{process}/environ"))
            .is_ok_and(|environment| String::from_utf8_lossy(&environment).contains(&expected))
    };
    children.lines().map(|line| line.parse().unwrap()).find(is).expect("the rank runs")
}

/// Whether it is there and no zombie.
fn runs(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stopped_rank_ends_the_job_whichever_it_is() {
    for (ranks, stopped) in [(2, 1), (2, 0), (3, 2)] {
        let workspace = Workspace::new();
        let set = ["train.epochs=100000", "eval.every=0", "checkpoint.every=0", TIMEOUT];
        let log = format!("stop-{stopped}");
        let job = workspace.start(ranks, &log, &with_config(&[], &set));
        let metrics = workspace.path("run/metrics.jsonl");
        let steps = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
        wait_for("a step", || steps(&metrics) > 5);
        let all: Vec<_> = (0..ranks).map(|rank| process(job.id(), rank)).collect();
        signal("-STOP", &all[stopped..=stopped]);
        let ended = job::wait(job, LIMIT);
        let told = fs::read_to_string(workspace.log(&log, "err")).unwrap();
        ["out", "err"].iter().for_each(|kind| fs::remove_file(workspace.log(&log, kind)).unwrap());
        assert_eq!(ended, Some(1), "{told}");
        let errors: Vec<_> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{told}");
        // A rank that waits for the stopped one at an earlier collective is named with it, and so is where it waits.
        let names = |line: &str| line.contains("waiting for rank") && line.contains(&format!(" {stopped} at "));
        // Rank 1 need not have heard from rank 0 yet: the first reports take up to two polls, in which steps may pass.
        let silences = ["been silent for ", "never reported: "].map(|how| format!("rank {stopped} has {how}"));
        let silent = |line: &str| silences.iter().any(|silence| line.contains(silence));
        let parts = [" of step ", " for 3 s: ", "its process is stopped, or the network is cut"];
        let says = |line: &str| names(line) && silent(line) && parts.iter().all(|part| line.contains(part));
        assert!(says(errors[0]), "{told}");
        let notice = |line: &&str| line.contains(" WARN ") && names(line) && line.contains(" for 1 s");
        assert_eq!(told.lines().filter(notice).count(), 1, "{told}");
        // mpirun ends what is left while it goes itself.
        wait_for("the end of every rank", || !all.iter().any(|process| runs(*process)));
    }
}

fn signal(name: &str, processes: &[u32]) {
    let processes = processes.iter().map(u32::to_string);
    assert!(Command::new("kill").arg(name).args(processes).status().unwrap().success());
}

#[test]
fn a_job_that_is_suspended_for_longer_than_the_limit_goes_on() {
    let workspace = Workspace::new();
    let set = ["train.epochs=100000", "eval.every=0", "checkpoint.every=0", TIMEOUT];
    let job = workspace.start(2, "suspended", &with_config(&[], &set));
    let steps = || fs::read_to_string(workspace.path("run/metrics.jsonl")).unwrap_or_default().lines().count();
    wait_for("a step", || steps() > 5);
    let all = [0, 1].map(|rank| process(job.id(), rank));
    signal("-STOP", &all);
    std::thread::sleep(Duration::from_secs(5));
    let before = steps();
    signal("-CONT", &all);
    // Long enough for a limit that had passed to be noticed.
    std::thread::sleep(Duration::from_secs(3));
    wait_for("another step", || steps() > before + 5);
    assert_eq!(job::wait(job, Duration::ZERO), None, "it runs until it is ended here");
    let told = fs::read_to_string(workspace.log("suspended", "err")).unwrap();
    ["out", "err"].iter().for_each(|kind| fs::remove_file(workspace.log("suspended", kind)).unwrap());
    assert!(!told.contains("waiting for"), "{told}");
}
