//! The transformer: its description, its weights, and its segments with their own backward pass.

pub mod adapter;
pub mod architecture;
pub mod balance;
pub mod context;
pub mod declared;
pub mod decoder;
pub mod embedding;
pub mod experts;
mod fused;
pub mod head_norm;
pub mod layout;
pub mod linear;
pub mod lora;
pub mod names;
pub mod norm;
pub mod order;
pub mod peft;
mod quantised;
pub mod rope;
pub mod routes;
pub mod segment;
pub mod weight_files;
mod weight_index;
pub mod weights;
pub mod workspace;
