//! A rank that is stopped (SIGSTOP) at a random instant: the watchdog names it and ends the job, no process is left, and the run
//! resumes to the same bytes. A rank that is slow, but goes on, is no stall. Not here: the watchdog's other promises
//! (`runs/stalled.rs`).

use crate::job;
use crate::run::{LIMIT, all_are_over, random, ranks_of, recovers_with, send, wanted};
use crate::tiny::{Workspace, rows, with_config};
use rand::RngExt;
use std::fs;
use std::time::{Duration, Instant};

const RANKS: usize = 2;
const SET: [&str; 1] = ["parallel.timeout_seconds=4"];

/// Starts a job and returns when it has said something: MPI's own start, which nobody watches, is over then.
fn started(workspace: &Workspace, log: &str) -> std::process::Child {
    let job = workspace.start(RANKS, log, &with_config(&[], &SET));
    let (path, begun) = (workspace.log(log, "err"), Instant::now());
    while fs::metadata(&path).map_or(0, |found| found.len()) == 0 {
        assert!(begun.elapsed() < LIMIT, "it says nothing");
        std::thread::sleep(Duration::from_millis(2));
    }
    job
}

fn said(workspace: &Workspace, log: &str) -> String {
    let text = fs::read_to_string(workspace.log(log, "err")).unwrap();
    ["out", "err"].iter().for_each(|kind| fs::remove_file(workspace.log(log, kind)).unwrap());
    text
}

#[test]
fn a_stopped_rank_is_named_and_the_run_resumes_to_the_same_bytes() {
    let (mut random, mut hit, mut late) = (random("stops"), 0, 0);
    let whole = Workspace::new();
    let job = started(&whole, "whole");
    let begun = Instant::now();
    assert_eq!(job::wait(job, LIMIT), Some(0), "{}", said(&whole, "whole"));
    let took = begun.elapsed();
    said(&whole, "whole");
    let tries = wanted().map_or(500, |count| count.div_ceil(2));
    while hit < tries {
        let workspace = Workspace::new();
        let job = started(&workspace, "stopped");
        std::thread::sleep(took.mul_f64(random.random_range(0.0..0.8)));
        let ranks = ranks_of(job.id());
        let victim = random.random_range(0..RANKS);
        let stopped = ranks.len() == RANKS && send("-STOP", ranks[victim]);
        let code = job::wait(job, LIMIT);
        let told = said(&workspace, "stopped");
        all_are_over(&ranks, &told);
        // MPI's own end is not watched (docs/faults.md): a rank that is stopped there has done its work.
        let is_done = code.is_none() && told.contains("saved run/step-6");
        if !stopped || code == Some(0) || is_done {
            late += 1;
            assert!(late <= 3 * tries, "most came too late: {hit} of {late}");
            continue;
        }
        hit += 1;
        let what = format!("stop number {hit} of rank {victim}: {told}");
        assert_eq!(code, Some(1), "{what}");
        let errors: Vec<_> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        let named = format!("rank {victim}");
        assert!(errors.len() == 1 && errors[0].contains("waiting for ") && errors[0].contains(&named), "{what}");
        recovers_with(&workspace, RANKS, &SET, &what);
    }
    println!("ranks stopped at random instants: {hit}");
}

/// Ranks meet now and then while they score, so a slow one is not late by all that it has lost so far.
#[test]
fn a_rank_that_scores_for_longer_than_the_limit_at_a_twentieth_of_the_speed_is_no_stall() {
    const SECONDS: u64 = 5;
    // More where a machine is over before the limit is tried.
    for pairs in [6_000, 24_000, 96_000] {
        let workspace = Workspace::new();
        workspace.write("dev.jsonl", &rows(40, pairs));
        let limit = format!("parallel.timeout_seconds={SECONDS}");
        let set = ["loss.objective=reward", "train.steps=1", "eval.every=1", &limit];
        let mut job = workspace.start(RANKS, "slow", &with_config(&[], &set));
        let begun = Instant::now();
        let is_over = |job: &mut std::process::Child| job.try_wait().unwrap().is_some() || begun.elapsed() > LIMIT;
        let has_stepped = || fs::metadata(workspace.path("run/metrics.jsonl")).map_or(0, |found| found.len()) > 0;
        while !has_stepped() && !is_over(&mut job) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let (slow, scoring) = (ranks_of(job.id()).get(1).copied(), Instant::now());
        while let Some(slow) = slow.filter(|_| !is_over(&mut job)) {
            send("-STOP", slow);
            std::thread::sleep(Duration::from_millis(380));
            send("-CONT", slow);
            std::thread::sleep(Duration::from_millis(20));
        }
        let took = scoring.elapsed();
        let code = job::wait(job, Duration::from_secs(1));
        let told = said(&workspace, "slow");
        assert_eq!(code, Some(0), "{told}");
        if took > Duration::from_secs(SECONDS) {
            return;
        }
    }
    panic!("the limit was not tried");
}
