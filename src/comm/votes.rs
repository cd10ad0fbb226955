//! Small collectives of the control flow: votes, sums of a few numbers, bytes of rank 0, one error for all.
//!
//! Each is identified by its call site: ranks that vote on different things get an error. Not here: collectives of tensors.

use super::CommThread;
use crate::error::{Error, Kind, Result};
use crate::tensor::{bytes, bytes_mut, slice};
use tch::{Device, Tensor};

impl CommThread {
    /// Adds up `values` over all ranks, in place.
    #[track_caller]
    pub fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        let mut buffer = Tensor::from_slice(values);
        self.all_reduce_blocking(&mut buffer)?;
        values.copy_from_slice(&slice(&buffer)?);
        Ok(())
    }

    /// Whether `mine` is true on every rank.
    #[track_caller]
    pub fn all_true(&self, mine: bool) -> Result<bool> {
        Ok(self.gather_number(i64::from(mine))?.iter().all(|&theirs| theirs == 1))
    }

    /// Every rank's number, in rank order.
    #[track_caller]
    pub(super) fn gather_number(&self, mine: i64) -> Result<Vec<i64>> {
        let mut all = Tensor::from_slice(&vec![mine; self.world_size()]);
        self.all_gather_blocking(&mut all)?;
        Ok(slice(&all)?.to_vec())
    }

    /// `root`'s bytes, whose number, `length`, every rank knows.
    #[track_caller]
    pub(super) fn bytes_from(&self, root: usize, own: &[u8], length: usize) -> Result<Vec<u8>> {
        let mut buffer = Tensor::zeros([length as i64], (tch::Kind::Uint8, Device::Cpu));
        if self.rank() == root {
            bytes_mut(&buffer)?.copy_from_slice(own);
        }
        self.broadcast(&mut buffer, root)?;
        Ok(bytes(&buffer)?.to_vec())
    }

    /// Every rank gets the bytes that rank 0 passes; those of others are ignored. An error on all ranks if rank 0 passes
    /// none.
    #[track_caller]
    pub fn broadcast_bytes(&self, bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let mut length = Tensor::from_slice(&[bytes.as_ref().map_or(-1, |bytes| bytes.len() as i64)]);
        self.broadcast(&mut length, 0)?;
        let length = usize::try_from(slice::<i64>(&length)?[0])
            .map_err(|_| Error::runtime("rank 0 has no bytes to broadcast"))?;
        self.bytes_from(0, bytes.as_deref().unwrap_or_default(), length)
    }

    /// Ends a phase that may fail on some ranks only. If it succeeded everywhere, returns `outcome`'s value; otherwise
    /// every rank returns the error of the lowest failing rank N, so that rank 0 can print it once and all can exit with
    /// its code. The error starts with "rank N: " unless N is 0.
    #[track_caller]
    pub fn agree<T>(&self, outcome: Result<T>) -> Result<T> {
        let text = match &outcome {
            Ok(_) => Vec::new(),
            Err(error) => encode(error),
        };
        let lengths = match self.gather_number(text.len() as i64) {
            Ok(lengths) => lengths,
            Err(lost) => return outcome.and(Err(lost)),
        };
        let Some(failed) = lengths.iter().position(|&length| length > 0) else {
            return outcome;
        };
        let error = decode(&self.bytes_from(failed, &text, lengths[failed] as usize)?);
        Err(if failed == 0 { error } else { error.at(format_args!("rank {failed}")) })
    }
}

fn encode(error: &Error) -> Vec<u8> {
    serde_json::json!([error.kind == Kind::Input, error.message, error.hint]).to_string().into_bytes()
}

fn decode(text: &[u8]) -> Error {
    match serde_json::from_slice(text) {
        Ok((input, message, hint)) => Error { kind: if input { Kind::Input } else { Kind::Runtime }, message, hint },
        Err(error) => Error::runtime(format!("an error of another rank could not be read: {error}")),
    }
}
