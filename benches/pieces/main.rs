//! Micro-benchmarks of the pieces of a training step, in SmolLM2-135M's shapes: `cargo bench --bench pieces [NAME]`.
//!
//! They say which piece a change made faster or slower. Whole steps are measured by `haf-dist bench`, reductions by the
//! benchmark of that name. One thread; pin it to a core for figures that can be compared. Nothing here is a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod adamw;
mod attention;
mod block;
mod fixtures;
mod head;
mod packing;
mod tokenizing;

use criterion::Criterion;
use std::time::Duration;

fn main() {
    // As the program does, and before any tensor exists.
    haf_dist::machine::keep_freed_memory();
    tch::set_num_threads(1);
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    packing::bench(&mut criterion);
    tokenizing::bench(&mut criterion);
    attention::bench(&mut criterion);
    block::bench(&mut criterion);
    head::bench(&mut criterion);
    adamw::bench(&mut criterion);
    criterion.final_summary();
}
