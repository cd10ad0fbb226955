//! The operations of a CUDA device: what libtorch and kernels of our own do better than the plain formulas there.
//!
//! Nothing yet: every method is the formula's.

use super::Ops;

/// On a CUDA device.
pub struct Cuda;

impl Ops for Cuda {}
