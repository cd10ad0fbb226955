//! Kernels that a block starts on a CUDA device: its calls, each with the kernels behind it.
//!
//! Counted for a block of Llama's in bf16, with all its parameters trained and pairs that share prefixes. A test runs such a
//! block and traces every call, so that these numbers are those of the code; that a call of libtorch's is one kernel, and flash
//! attention as many as below, was read in its sources and is to be seen in a trace on a GPU. Copies to the device are not
//! counted: a micro-batch makes them once, for all blocks.

/// Kernels of flash attention, forward and backward: where key/value heads are shared, gradients of keys and of values are each
/// summed by one more.
pub const FLASH: [usize; 2] = [1, 5];

/// Kernels of a product of rows and weights.
pub const PRODUCT: usize = 1;

/// Kernels of each method of [`Ops`](crate::ops::Ops) that such a block calls.
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
    ("attention_backward", 8 + FLASH[1]),
    ("add_product", PRODUCT),
];

/// Kernels of the block, forward and backward, however many pairs there are.
pub const BLOCK: [usize; 2] = [41, 77];
