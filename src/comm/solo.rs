//! The backend of a world of one: nothing to exchange, on any device. Arguments are checked as in the other backends.

use super::{Communicator, Local, check_root};
use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// A world of one rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

fn check_contiguous(buffer: &Tensor) -> Result<()> {
    if !buffer.is_contiguous() {
        return Err(Error::runtime("a contiguous tensor was expected"));
    }
    Ok(())
}

fn check_summable(buffer: &Tensor) -> Result<()> {
    check_contiguous(buffer)?;
    match buffer.kind() {
        Kind::Float | Kind::Double | Kind::Int64 | Kind::Uint8 => Ok(()),
        kind => Err(super::kind_error(kind)),
    }
}

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn local(&self) -> Local {
        Local { rank: 0, size: 1 }
    }

    fn broadcast(&mut self, buffer: &mut Tensor, root: usize) -> Result<()> {
        check_root(root, 1)?;
        check_contiguous(buffer)
    }

    fn all_reduce(&mut self, buffer: &mut Tensor) -> Result<()> {
        check_summable(buffer)
    }

    fn reduce_scatter(&mut self, buffer: &mut Tensor) -> Result<()> {
        check_summable(buffer)
    }

    fn all_gather(&mut self, buffer: &mut Tensor) -> Result<()> {
        check_contiguous(buffer)
    }

    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }
}
