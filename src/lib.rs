//! haf-dist: distributed data-parallel training of reward models with the HaF-RM hybrid loss (arXiv 2407.04185).

#![deny(missing_docs)]

pub mod cli;
pub mod comm;
pub mod commands;
pub mod config;
pub mod data;
pub mod error;
pub mod files;
pub mod launcher;
pub mod logging;
pub mod tensor;
