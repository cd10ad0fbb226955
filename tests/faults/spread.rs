//! Runs on many ranks, and runs that resume with another number of ranks or another sharding than they began with: the same up
//! to rounding, since sums are taken in another order.

use crate::run::{Fault, Outcome, recovered, sample, train, undisturbed};
use crate::tiny::{Workspace, rows};

const SHARD: &str = "parallel.shard_optimizer=true";
const OPERATIONS: &str = "open,write,fsync,rename";

#[test]
fn a_killed_run_resumes_with_any_number_of_ranks_and_any_sharding() {
    let counted = train(&Workspace::new(), 2, &[SHARD], Some(Fault::count(OPERATIONS)));
    let saved = counted.noted.iter().position(|line| line.starts_with("rename") && line.ends_with("/run/step-3"));
    let saved = saved.expect("a checkpoint is saved") + 1;
    let mut tried = 0;
    for (from, to) in [
        ((2, &[SHARD][..]), (1, &[][..])),
        ((2, &[SHARD]), (2, &[])),
        ((2, &[SHARD]), (3, &[SHARD])),
        ((2, &[]), (3, &[])),
        ((1, &[]), (4, &[SHARD])),
    ] {
        let last = counted.noted.len() - saved;
        for at in sample(last, &format!("{from:?}{to:?}")).into_iter().take(2 + last / 50) {
            let workspace = Workspace::new();
            let fault = Fault { mode: "kill", at: saved + at, ..Fault::count(OPERATIONS) };
            let killed = train(&workspace, from.0, from.1, Some(fault));
            let what = format!("from {from:?} to {to:?}, killed at operation {}: {}", saved + at, killed.printed);
            // Fewer operations where nothing is gathered.
            assert!(killed.code != 0 && killed.noted.len() == 1, "not reached: {what}");
            recovered(&workspace, to.0, to.1, &what).expect_close(undisturbed(2), &what);
            tried += 1;
        }
    }
    println!("killed runs that went on otherwise: {tried}");
}

/// Pairs for every one of 16 ranks.
fn wide() -> Workspace {
    let workspace = Workspace::new();
    workspace.write("plain.jsonl", &rows(0, 20));
    workspace
}

#[test]
fn sixteen_ranks_train_as_one_does_and_their_killed_run_resumes_to_the_same_bytes() {
    let set = ["train.pairs_per_step=18", "train.steps=6"];
    let whole = |ranks| {
        let workspace = wide();
        let ended = train(&workspace, ranks, &set, None);
        assert_eq!(ended.code, 0, "{}", ended.printed);
        Outcome::of(&workspace)
    };
    let expected = whole(16);
    expected.expect_close(&whole(1), "16 ranks");
    let mut tried = 0;
    // A rank other than 0 writes nothing, and opens a few files.
    for (rank, operations) in [(0, OPERATIONS), (9, "open")] {
        let counted = train(&wide(), 16, &set, Some(Fault { rank, ..Fault::count(operations) }));
        for at in sample(counted.noted.len(), &format!("sixteen {rank}")).into_iter().step_by(3) {
            let workspace = wide();
            let ended = train(&workspace, 16, &set, Some(Fault { mode: "kill", at, rank, ..Fault::count(operations) }));
            let what = format!("rank {rank} of 16 killed at operation {at}: {}", ended.printed);
            assert!(ended.code != 0 && ended.noted.len() == 1, "not reached: {what}");
            recovered(&workspace, 16, &set, &what).expect(&expected, &what);
            tried += 1;
        }
    }
    println!("kills within 16 ranks: {tried}");
}
