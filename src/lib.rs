//! haf-dist: distributed data-parallel training of reward models with the HaF-RM hybrid loss (arXiv 2407.04185).

#![deny(missing_docs)]

pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod commands;
pub mod comparison;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod head;
pub mod hub;
pub mod logging;
pub mod loss;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod optim;
pub mod packing;
pub mod panics;
pub mod parallel;
pub mod plan;
pub mod reducer;
pub mod reference;
pub mod safetensors_io;
pub mod scoring;
pub mod sharding;
pub mod signals;
pub mod statistics;
pub mod tensor;
pub mod terminal;
pub mod trainer;
