//! haf-dist: distributed data-parallel training of reward models with the HaF-RM hybrid loss (arXiv 2407.04185).

#![deny(missing_docs)]

pub mod checkpoint;
pub mod comm;
pub mod config;
pub mod data;
pub mod error;
pub mod metrics;
pub mod safetensors_io;
pub mod statistics;
pub mod tensor;
