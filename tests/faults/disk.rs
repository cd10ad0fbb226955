//! A disk that refuses: the k-th write, flush, rename or open fails, with EIO or for lack of space.

use crate::run::{Ended, Fault, Outcome, finish, nothing_is_left, recovers, sample, train, undisturbed};
use crate::tiny::Workspace;
use std::fs;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[test]
fn a_run_whose_kth_operation_fails_ends_with_one_error_and_resumes_to_the_same_bytes() {
    let expected = undisturbed(1);
    for operation in ["open", "write", "fsync", "rename"] {
        let counted = train(&Workspace::new(), 1, &[], Some(Fault::count(operation)));
        assert_eq!(counted.code, 0, "{}", counted.printed);
        let samples = sample(counted.noted.len(), operation);
        let mut stood = 0;
        for &at in &samples {
            for errno in [EIO, ENOSPC] {
                let workspace = Workspace::new();
                let fault = Fault { mode: "fail", at, errno, ..Fault::count(operation) };
                let ended = train(&workspace, 1, &[], Some(fault));
                assert_eq!(ended.noted.len(), 1, "{operation} {at} was not reached: {}", ended.printed);
                let what = format!("errno {errno} at {operation} {at}, {}", ended.noted[0]);
                if ended.code == 0 {
                    stood += 1;
                    Outcome::of(&workspace).expect(expected, &what);
                } else {
                    ended.failed_well(&what);
                }
                nothing_is_left(&workspace, &what);
                recovers(&workspace, 1, &what);
            }
        }
        println!("{operation} that fails: 2 x {} of {}, stood {stood}", samples.len(), counted.noted.len());
    }
}

#[test]
fn an_export_on_a_full_disk_names_the_target_and_leaves_nothing() {
    let trained = Workspace::trained(1);
    let export = |fault| finish(&trained, trained.command(1, &["export", "run/step-6", "exported"]), fault);
    let counted = export(Some(Fault::count("write")));
    assert_eq!(counted.code, 0, "{}", counted.printed);
    fs::remove_dir_all(trained.path("exported")).unwrap();
    let before = trained.content();
    let samples = sample(counted.noted.len(), "export to a full disk");
    for &at in &samples {
        let ended = export(Some(Fault { mode: "fail", at, errno: ENOSPC, ..Fault::count("write") }));
        assert_eq!(ended.noted.len(), 1, "write {at} was not reached");
        ended.failed_well(&ended.noted[0]);
        let named = ended.printed.contains(" exported") && !ended.printed.contains(".unfinished-");
        assert!(ended.code == 1 && named, "{}", ended.printed);
        assert!(trained.content() == before, "something is left");
    }
    println!("exports to a full disk: {} of {}", samples.len(), counted.noted.len());
}

/// One error, which tells what happened on the disk.
fn told(ended: &Ended, errno: i32) -> bool {
    matches!(ended.code, 1 | 2) && ended.errors() == 1 && ended.printed.contains(&format!("os error {errno}"))
}

#[test]
fn a_failure_on_one_rank_is_the_error_of_all() {
    let expected = undisturbed(2);
    for (operation, rank) in [("open", 0), ("open", 1), ("write", 0), ("fsync", 0), ("rename", 0)] {
        let counted = train(&Workspace::new(), 2, &[], Some(Fault { rank, ..Fault::count(operation) }));
        let samples = sample(counted.noted.len(), &format!("{operation} of rank {rank}"));
        for (&at, errno) in samples.iter().zip([EIO, ENOSPC].into_iter().cycle()) {
            let workspace = Workspace::new();
            let fault = Fault { mode: "fail", at, errno, rank, ..Fault::count(operation) };
            let ended = train(&workspace, 2, &[], Some(fault));
            assert_eq!(ended.noted.len(), 1, "{operation} {at} was not reached: {}", ended.printed);
            let what = format!("rank {rank}: errno {errno} at {operation} {at}, {}", ended.noted[0]);
            match ended.code {
                0 => Outcome::of(&workspace).expect(expected, &what),
                _ => assert!(told(&ended, errno), "{what}: code {}: {}", ended.code, ended.printed),
            }
            nothing_is_left(&workspace, &what);
            recovers(&workspace, 2, &what);
        }
        println!("{operation} that fails on rank {rank} of 2: {} of {}", samples.len(), counted.noted.len());
    }
}

#[test]
fn control_without_a_vote_a_failed_write_is_not_reported_by_all() {
    let counted = train(&Workspace::new(), 2, &[], Some(Fault::count("fsync")));
    let at =
        1 + counted.noted.iter().position(|line| line.contains("/run/step-3.partial/")).expect("a checkpoint is saved");
    let fault = Fault { mode: "fail", at, errno: EIO, ..Fault::count("fsync") };
    let heard = train(&Workspace::new(), 2, &[], Some(fault));
    assert!(told(&heard, EIO), "{}", heard.printed);
    let deaf = train(&Workspace::new(), 2, &[], Some(Fault { deaf: Some(1), ..fault }));
    assert_eq!((heard.noted.len(), deaf.noted.len()), (1, 1), "the failure was not reached");
    assert!(!told(&deaf, EIO), "rank 1 heard of it without the vote: {}", deaf.printed);
}
