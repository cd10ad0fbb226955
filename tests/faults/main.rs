//! Promise: whatever fails at whatever instant, a run ends as the undisturbed one, or with one error and the documented code;
//! nothing half done is left behind; and a resumed run ends with the same bytes.
//!
//! Real runs of the built program on a tiny model, alone and under mpirun, with injected faults (`shim/`). How many of each kind:
//! `HAF_DIST_FAULTS` (default 5; 0: every one there is), drawn by `HAF_DIST_FAULTS_SEED`. README.md has the counts of the long
//! runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/job.rs"]
mod job;
#[allow(dead_code)]
#[path = "../common/tiny.rs"]
mod tiny;

mod damage;
mod disk;
mod kills;
mod limits;
mod nodes;
mod power;
mod run;
mod spread;
mod stalls;
mod unlike;
