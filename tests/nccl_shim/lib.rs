//! Stands in for libnccl.so and libcuda.so in tests: exactly the functions that src/comm/nccl calls, on host memory and
//! between processes. Built by tests/nccl.rs with rustc alone. Only for testing that the backend waits where it must and
//! fails as it should.

#![allow(clippy::enum_variant_names, dead_code, non_camel_case_types, non_snake_case, clippy::missing_safety_doc, missing_docs)]

mod cuda;
mod nccl;
mod plan;
#[cfg(target_arch = "x86_64")]
mod reads;
mod types;
