//! How property tests draw their cases: a fixed number, the same in every run.

use proptest::test_runner::{Config, RngSeed};

/// So many cases. No file is written for one that fails: the next run draws it again.
pub fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..Config::default() }
}
