//! haf-dist: distributed data-parallel training of reward models with the HaF-RM hybrid loss (arXiv 2407.04185).

// `pub` is for what programs, tests and benches name. With `pub(crate)` for the rest the compiler finds dead code.
#![deny(unreachable_pub)]

pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod commands;
pub mod config;
pub mod crash;
pub mod data;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod hub;
pub mod launcher;
pub mod logging;
pub(crate) mod loss;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod packing;
pub mod panics;
pub mod plan;
pub mod safetensors_io;
pub mod statistics;
pub mod tensor;
pub(crate) mod terminal;
pub mod train;
pub mod update;
