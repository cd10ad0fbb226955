//! How many kernels a block starts on a CUDA device, call by call.
//!
//! Counted for a Llama block in bf16 with all parameters trained, pairs that share prefixes, and deterministic operations, the
//! default. A test runs such a block and traces every call, so the numbers of calls are those of the code. That a libtorch call
//! is one kernel, and how many flash attention starts, was read in libtorch's sources; launch/gpu-check.sh compares it with a
//! trace on a GPU, which has yet to be made. Copies to the device are not counted: a micro-batch makes them once, for all blocks.

/// Kernels of flash attention, forward and backward: rows' products, the gradients' own, the queries' sum, which is filled with
/// zeros first where the order is fixed, and, where key/value heads are shared, a sum of keys' and one of values'.
pub const FLASH: [usize; 2] = [1, 6];

/// Kernels of a product of rows with a weight matrix.
pub const PRODUCT: usize = 1;

/// Kernels of each [`Ops`](crate::ops::Ops) method that such a block calls.
pub const KERNELS: [(&str, usize); 11] = [
    ("rotate", 11),
    ("rms_norm", 10),
    ("add_rms_norm", 11),
    ("apply_rms_norm", 4),
    ("rms_norm_backward", 16),
    ("add", 1),
    ("activate", 2),
    ("activate_backward", 5),
    ("attention", 1 + FLASH[0]),
    ("attention_backward", 7 + FLASH[1]),
    ("add_product", PRODUCT),
];

/// Kernels of the block, forward and backward, for any number of pairs.
pub const BLOCK: [usize; 2] = [41, 77];
