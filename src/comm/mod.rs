//! Collective communication: the `Communicator` trait and the thread that owns it.
//!
//! All communication of a process goes through one thread fed by a crossbeam channel, so that every rank
//! issues the same collectives in the same order.

use crate::error::Result;
use tch::Tensor;

/// What every backend does. All ranks must call the same operations in the same order with the same sizes.
///
/// Buffers are contiguous tensors (CPU: kinds Float, Double, Int64, Uint8); they are changed in place.
pub trait Communicator {
    /// This process's number, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world_size(&self) -> usize;
    /// This rank's number among the ranks of its node, and how many these are.
    fn local(&self) -> (usize, usize);
    /// Every rank gets `root`'s values.
    fn broadcast(&mut self, buffer: &mut Tensor, root: usize) -> Result<()>;
    /// Every rank gets the element-wise sum over ranks, the same bits everywhere.
    fn all_reduce(&mut self, buffer: &mut Tensor) -> Result<()>;
    /// `output` (n elements) gets this rank's part of the element-wise sum of all `input`s (n * world_size elements).
    fn reduce_scatter(&mut self, input: &Tensor, output: &mut Tensor) -> Result<()>;
    /// `output` (n * world_size elements) gets every rank's `input` (n elements), in rank order.
    fn all_gather(&mut self, input: &Tensor, output: &mut Tensor) -> Result<()>;
    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<()>;
}
