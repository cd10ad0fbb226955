//! Kills: `kill -9` of the job or of one rank at a random instant, and at the k-th operation on a file.

use crate::job;
use crate::run::{Fault, LIMIT, finish, random, recovers, sample, train, wanted};
use crate::tiny::{Workspace, with_config};
use rand::RngExt;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Everything that changes files.
const OPERATIONS: &str = "open,write,fsync,rename";

/// Processes under a job's first one that run the program.
fn ranks_of(job: u32) -> Vec<String> {
    let found = Command::new("pgrep").args(["-P", &job.to_string(), "haf-dist"]).output().unwrap().stdout;
    String::from_utf8(found).unwrap().lines().map(String::from).collect()
}

#[test]
fn a_run_killed_at_a_random_instant_goes_on_to_the_same_bytes() {
    let (mut random, mut hit) = (random("kills"), 0);
    let tries = wanted().unwrap_or(1000);
    let took = [1, 2].map(|ranks| {
        let (workspace, started) = (Workspace::new(), Instant::now());
        assert_eq!(train(&workspace, ranks, &[], None).code, 0);
        started.elapsed()
    });
    for number in 0..tries {
        let ranks = 1 + number % 2;
        let workspace = Workspace::new();
        let mut command = workspace.command(ranks, &with_config(&[], &[]));
        let mut job = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(took[ranks - 1].mul_f64(random.random_range(0.05..1.0)));
        let found = ranks_of(job.id());
        let victim = match found.get(random.random_range(0..found.len().max(1))) {
            Some(rank) if ranks > 1 => rank.clone(),
            _ => job.id().to_string(),
        };
        if job.try_wait().unwrap().is_none() {
            hit += usize::from(Command::new("kill").args(["-KILL", &victim]).status().unwrap().success());
        }
        job::wait(job, LIMIT).expect("the job outlives its rank");
        // Those that lost their mpirun end too, before anybody starts again.
        let started = Instant::now();
        while found.iter().any(|rank| fs::read_to_string(format!("/proc/{rank}/stat")).is_ok()) {
            assert!(started.elapsed() < LIMIT, "a rank outlives the job");
            std::thread::sleep(Duration::from_millis(5));
        }
        recovers(&workspace, ranks, &format!("kill number {number}"));
    }
    println!("kills at random instants: {tries} tried, {hit} hit");
    assert!(2 * hit >= tries, "most came too late: {hit} of {tries}");
}

#[test]
fn a_run_killed_at_its_kth_file_operation_goes_on_to_the_same_bytes() {
    let counted = train(&Workspace::new(), 1, &[], Some(Fault::count(OPERATIONS)));
    assert_eq!(counted.code, 0, "{}", counted.printed);
    let samples = sample(counted.noted.len(), "kth");
    for &at in &samples {
        let workspace = Workspace::new();
        let fault = Fault { mode: "kill", at, ..Fault::count(OPERATIONS) };
        let killed = train(&workspace, 1, &[], Some(fault));
        assert_eq!((killed.code, killed.noted.len()), (-1, 1), "operation {at} was not reached: {}", killed.printed);
        recovers(&workspace, 1, &format!("killed at operation {at}, {}", killed.noted[0]));
    }
    println!("kills at file operations: {} of {}", samples.len(), counted.noted.len());
}

#[test]
fn an_export_killed_at_its_kth_file_operation_is_made_by_the_next() {
    let trained = Workspace::trained(1);
    let export = |fault| finish(&trained, trained.command(1, &["export", "run/step-6", "exported"]), fault);
    assert_eq!(export(None).code, 0);
    let exported = trained.content();
    fs::remove_dir_all(trained.path("exported")).unwrap();
    let counted = export(Some(Fault::count(OPERATIONS)));
    assert_eq!(counted.code, 0, "{}", counted.printed);
    let samples = sample(counted.noted.len(), "export");
    for &at in &samples {
        fs::remove_dir_all(trained.path("exported")).unwrap();
        let killed = export(Some(Fault { mode: "kill", at, ..Fault::count(OPERATIONS) }));
        assert_eq!((killed.code, killed.noted.len()), (-1, 1), "operation {at} was not reached: {}", killed.printed);
        if !trained.path("exported").exists() {
            assert_eq!(export(None).code, 0, "killed at operation {at}");
        }
        assert!(trained.content() == exported, "killed at operation {at}, {}: another export", killed.noted[0]);
    }
    println!("kills of exports: {} of {}", samples.len(), counted.noted.len());
}
