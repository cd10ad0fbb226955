//! A bound on what one search of a tokenizer's expression may cost.
//!
//! The regex engine bounds the steps from one start (10 million, its default) but not those from all starts of a search. Loops
//! that it optimises are not counted: `a*a*b|c` over 4,000 characters still takes a minute. Not here: what happens at the bound, a panic that
//! `tokenizer_files.rs` contains. `unsafe` for one call into the engine.

use std::sync::Once;

/// Steps of one search, about a second. A sound expression takes some ten for each character that it passes over, and a row has
/// at most some millions.
const MOST_STEPS: std::ffi::c_ulong = 300_000_000;

/// Sets the bound for the whole process.
pub fn bound() {
    static SET: Once = Once::new();
    // SAFETY: the call stores one number, which the engine reads when a search starts; `Once` keeps it to one thread.
    SET.call_once(|| {
        // It has no way to fail.
        let _ = unsafe { onig_sys::onig_set_retry_limit_in_search(MOST_STEPS) };
    });
}
