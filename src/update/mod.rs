//! From summed gradients to new weights: the reduction of buckets, the sharing of optimizer state, AdamW and its schedule.

pub mod optim;
pub mod reducer;
pub mod sharding;
