//! The transformer: its description, its weights, and its segments with their own backward pass.

pub mod adapter;
pub mod architecture;
pub(crate) mod balance;
pub(crate) mod context;
pub mod declared;
pub mod decoder;
pub(crate) mod embedding;
pub(crate) mod experts;
mod fused;
pub(crate) mod head_norm;
pub mod layout;
pub(crate) mod linear;
pub mod lora;
pub(crate) mod names;
pub(crate) mod norm;
pub mod order;
pub mod peft;
mod quantized;
pub(crate) mod rope;
pub(crate) mod routes;
pub mod segment;
pub mod weight_files;
pub(crate) mod weight_index;
pub mod weights;
pub mod workspace;
