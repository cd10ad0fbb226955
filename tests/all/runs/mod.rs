//! Whole runs of the built program on a tiny model, alone and under mpirun. Not here: what single modules promise.

mod as_trained;
mod bad_config;
mod bad_files;
mod benching;
mod caches;
mod changed;
mod comparing;
mod debugging;
mod export;
mod foreign;
mod hub;
mod lora;
mod models;
mod ranks;
mod reading;
mod refused;
mod resuming;
mod scoring;
mod stalled;
mod started;
mod stopping;
mod tracing;
mod training;
mod unheard;
mod useless;
mod verifying;
