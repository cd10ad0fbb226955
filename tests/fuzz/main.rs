//! Promise: whatever a file contains, reading it ends with values or with one input error that has a hint: no panic, no input
//! that takes over a second, no unbounded memory.
//!
//! Valid files are changed at random, by bytes and by structure. `HAF_DIST_FUZZ`: how many inputs of each kind (by default
//! what takes about a second in all); `HAF_DIST_FUZZ_SEED`: another draw. `../faults/README.md` has the counts of long runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/job.rs"]
#[allow(dead_code)]
mod job;
#[path = "../common/tiny.rs"]
#[allow(dead_code)]
mod tiny;

mod bounds;
mod caches;
mod models;
mod mutate;
mod texts;

/// As the program has it: counts what is allocated.
#[global_allocator]
static ALLOCATOR: bounds::Counting = bounds::Counting;
