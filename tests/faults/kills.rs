//! Kills: `kill -9` of the job or of one rank at a random instant, and at the k-th operation on a file.

use crate::job;
use crate::run::{
    Fault, LIMIT, all_are_over, finish, random, ranks_of, recovers, recovers_with, sample, send, train, wanted,
};
use crate::tiny::{Workspace, with_config};
use rand::RngExt;
use std::fs;
use std::process::Stdio;
use std::time::Instant;

/// Everything that changes files.
const OPERATIONS: &str = "open,write,fsync,rename";

#[test]
fn a_run_killed_at_a_random_instant_resumes_to_the_same_bytes() {
    let (mut random, mut hit, mut late) = (random("kills"), 0, 0);
    let tries = wanted().map_or(1000, |count| 3 * count);
    let took = [1, 2].map(|ranks| {
        let (workspace, started) = (Workspace::new(), Instant::now());
        assert_eq!(train(&workspace, ranks, &[], None).code, 0);
        started.elapsed()
    });
    while hit < tries {
        assert!(late <= tries + 10, "most came too late: {hit} hit");
        let ranks = 1 + hit % 2;
        let workspace = Workspace::new();
        let mut command = workspace.command(ranks, &with_config(&[], &[]));
        let mut job = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(took[ranks - 1].mul_f64(random.random_range(0.05..1.0)));
        let found = ranks_of(job.id());
        let victim = match found.get(random.random_range(0..found.len().max(1))) {
            Some(&rank) if ranks > 1 && random.random_bool(0.7) => rank,
            _ => job.id(),
        };
        let killed = job.try_wait().unwrap().is_none() && send("-KILL", victim);
        if killed {
            hit += 1
        } else {
            late += 1
        };
        job::wait(job, LIMIT).expect("the job outlives its rank");
        // Those that lost their mpirun end too, before anybody starts again.
        all_are_over(&found, "kill");
        recovers(&workspace, ranks, &format!("kill number {hit}"));
    }
    println!("kills at random instants: {hit}");
}

#[test]
fn a_run_killed_at_its_kth_file_operation_resumes_to_the_same_bytes() {
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
fn an_export_killed_at_its_kth_file_operation_succeeds_when_repeated() {
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

#[test]
fn a_killed_reference_pass_continues_from_its_stored_results() {
    // Parts of about two pairs; a minute passes within each.
    let set = ["train.tokens_per_micro_batch=5"];
    let hasty = Fault { haste: 100_000, ..Fault::count("rename") };
    let stored = |fault| {
        let counted = train(&Workspace::new(), 1, &set, Some(fault));
        assert_eq!(counted.code, 0, "{}", counted.printed);
        let is = |line: &&String| line.contains("/cache/reference-");
        let first = counted.noted.iter().position(|line| is(&line)).expect("the pass is stored") + 1;
        (first, counted.noted.iter().filter(is).count())
    };
    let (first, often) = stored(hasty);
    // The control: within less than a minute, each of the three splits is stored once.
    let (_, once) = stored(Fault::count("rename"));
    assert!(once == 3 && often > 5, "{once} and {often} times");
    for at in first + 1..first + 3 {
        let workspace = Workspace::new();
        let killed = train(&workspace, 1, &set, Some(Fault { mode: "kill", at, ..hasty }));
        let what = format!("killed at rename {at}");
        assert_eq!((killed.code, killed.noted.len()), (-1, 1), "{what}: {}", killed.printed);
        let again = train(&workspace, 1, &[&set[..], &["--resume"]].concat(), None);
        assert!(again.code == 2 || again.code == 0, "{what}: {}", again.printed);
        let again = if again.code == 0 { again } else { train(&workspace, 1, &set, None) };
        assert!(again.code == 0 && again.printed.contains("are in the cache"), "{what}: {}", again.printed);
        recovers_with(&workspace, 1, &set, &what);
    }
    println!("killed reference passes: 2; stored {often} times, {once} without haste");
}
