//! Promises whose tests change or measure the whole process: the pool of threads, and the peak of memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod hostile_templates;
mod threads;
