//! The transformer: its description, its weights, and its segments with their own backward pass.

pub mod adapter;
pub mod attention;
pub mod config;
pub mod decoder;
pub mod logits;
pub mod lora;
pub mod norm;
pub mod peft;
pub mod rope;
pub mod segment;
pub mod swiglu;
pub mod weights;
pub mod workspace;
