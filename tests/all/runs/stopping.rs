//! A run that is asked to stop acknowledges it at once, saves the step under way, and does not call its end an error.

use crate::job;
use crate::runs::resuming::newest_step;
use crate::tiny::{Workspace, with_config};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

pub const ENDLESS: [&str; 4] = ["train.schedule=constant", "train.steps=1000000", "checkpoint.every=0", "eval.every=0"];

/// Waits for a file or folder of a run.
#[track_caller]
pub fn until(workspace: &Workspace, path: &str) {
    let started = Instant::now();
    while !workspace.path(path).exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "no {path}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a run has done four steps.
pub fn until_trained(workspace: &Workspace) {
    until(workspace, "run/metrics.jsonl");
    let started = Instant::now();
    while workspace.read("run/metrics.jsonl").iter().filter(|&&byte| byte == b'\n').count() < 4 {
        assert!(started.elapsed() < Duration::from_secs(60), "no fourth step");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn send(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// Asks a job to stop and returns what it had said by its end, which must be with code 143.
#[track_caller]
pub fn stop(workspace: &Workspace, job: Child, signal: &str, log: &str) -> String {
    send(signal, job.id());
    let code = job::wait(job, Duration::from_secs(60)).expect("it does not stop");
    let said = fs::read_to_string(workspace.log(log, "err")).unwrap();
    for kind in ["out", "err"] {
        fs::remove_file(workspace.log(log, kind)).unwrap();
    }
    assert_eq!(code, 143, "{signal}: {said}");
    said
}

#[test]
fn every_signal_that_asks_is_acknowledged_and_its_end_is_no_error() {
    for (ranks, signal) in [(1, "-TERM"), (1, "-HUP"), (1, "-INT"), (2, "-USR1")] {
        let workspace = Workspace::new();
        let job = workspace.start(ranks, "asked", &with_config(&[], &ENDLESS));
        until_trained(&workspace);
        let said = stop(&workspace, job, signal, "asked");
        assert!(said.contains("asked to stop: stopping after this step"), "{signal}: {said}");
        assert!(said.contains(&format!("stopped by a signal after step {}", newest_step(&workspace))), "{said}");
        assert!(!said.lines().any(|line| line.starts_with("error")), "{signal}: {said}");
    }
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let workspace = Workspace::new();
    let mut command = Command::new("nohup");
    let plain = workspace.command(1, &with_config(&[], &ENDLESS));
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(workspace.path(""));
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let file = |kind: &str| fs::File::create(workspace.log("nohup", kind)).unwrap();
    let job = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
    until_trained(&workspace);
    send("-HUP", job.id());
    let steps = workspace.steps("run").len();
    let started = Instant::now();
    while workspace.steps("run").len() <= steps + 20 {
        assert!(started.elapsed() < Duration::from_secs(60), "it has stopped");
        std::thread::sleep(Duration::from_millis(5));
    }
    stop(&workspace, job, "-TERM", "nohup");
}

#[test]
fn under_the_launch_scripts_what_would_end_mpirun_saves_the_step_under_way() {
    let common = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/common.sh");
    for signal in ["-INT", "-TERM", "-HUP"] {
        let workspace = Workspace::new();
        let plain = workspace.command(2, &with_config(&[], &ENDLESS));
        let mut command = Command::new("bash");
        let script = format!("set -euo pipefail; source {}; run_job \"$@\"", common.display());
        command.args(["-c", &script, "bash"]).arg(plain.get_program()).args(plain.get_args());
        command.current_dir(workspace.path("")).process_group(0);
        for (name, value) in plain.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        let file = |kind: &str| fs::File::create(workspace.log("script", kind)).unwrap();
        let job = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        until_trained(&workspace);
        let said = stop(&workspace, job, signal, "script");
        assert!(said.contains(&format!("stopped by a signal after step {}", newest_step(&workspace))), "{said}");
    }
}
