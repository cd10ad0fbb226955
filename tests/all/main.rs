//! All promises that can be tested together in one process: a module for each.
//!
//! Not here: what changes or measures its whole process (`alone/`), starts itself under mpirun (`mpi.rs`, `nccl.rs`), or
//! breaks runs on purpose (`faults/`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/job.rs"]
mod job;
#[path = "../common/property.rs"]
mod property;
#[path = "../common/steps.rs"]
mod steps;
#[path = "../common/tiny.rs"]
mod tiny;

mod added_tokens;
mod balance;
mod beside;
mod best_of;
mod calibration;
mod checkpoint;
mod choices;
mod cli;
mod communicator;
mod comparison;
mod config;
mod conflict;
mod credits;
mod damaged;
mod device;
mod docs;
mod doubt;
mod equivalence;
mod experts;
mod exported_template;
mod families;
mod foreign_models;
mod formats;
mod golden;
mod golden_controls;
mod gpu;
mod gpu_figures;
mod head;
mod house;
mod hub;
mod kernels;
mod late;
mod layouts;
mod lending;
mod lora;
mod metrics;
mod ops;
mod out_of_memory;
mod parquet;
mod plan;
mod preferences;
mod prefetch;
mod prepared;
mod published;
mod random_models;
mod random_templates;
mod reference;
mod replicas;
mod reward_at;
mod rows;
mod run_folder;
mod runs;
mod sampler;
mod smollm2;
mod spellings;
mod suites;
mod suites_beside;
mod templates;
mod text_parts;
mod ties;
mod token_truth;
mod tokenize;
mod unused_keys;
