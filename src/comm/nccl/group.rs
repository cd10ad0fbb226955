//! NCCL's calls: joining the group of ranks, issuing collectives, its errors in words. Not here: when, and on which data.

#![allow(unsafe_code)]

use super::cuda::{Stream, probe_library};
use crate::error::{Error, Result};
use crate::tensor::count;
use cudarc::nccl::{result, sys};
use std::ffi::{CStr, c_void};
use tch::{Kind, Tensor};

/// The functions of NCCL that this file calls.
const FUNCTIONS: &[&str] = &[
    "ncclAllGather",
    "ncclAllReduce",
    "ncclBroadcast",
    "ncclCommDestroy",
    "ncclCommGetAsyncError",
    "ncclCommInitRank",
    "ncclGetErrorString",
    "ncclGetLastError",
    "ncclGetUniqueId",
    "ncclGetVersion",
    "ncclGroupEnd",
    "ncclGroupStart",
    "ncclReduceScatter",
];

const HOW_TO_FIND: &str = "NCCL is loaded as libnccl.so, but its packages may have only libnccl.so.2: make a link \
     libnccl.so in the same folder, and add the folder to LD_LIBRARY_PATH (launch/setup.sh --cuda does so; so does haf-dist \
     in a Python environment that it may write to)";

/// Bytes of a unique id.
pub(super) const ID_BYTES: usize = 128;

/// Checks that NCCL can be loaded.
///
/// # Errors
/// An input error with a hint.
pub(super) fn probe() -> Result<()> {
    probe_library("nccl", FUNCTIONS, HOW_TO_FIND)
}

/// The error with NCCL's message; `comm` may be null.
fn failed(error: &result::NcclError, comm: sys::ncclComm_t) -> Error {
    let words = |text: *const std::ffi::c_char| match text.is_null() {
        true => String::new(),
        // SAFETY: NCCL returns strings that end in a zero and live until the next call.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string(),
    };
    // SAFETY: takes any code.
    let what = words(unsafe { sys::ncclGetErrorString(error.0) });
    // SAFETY: takes a communicator of this process, or null.
    let last = words(unsafe { sys::ncclGetLastError(comm) });
    let last = if last.is_empty() { last } else { format!("; {last}") };
    Error::runtime(format!("NCCL: {what}{last}")).hint("NCCL_DEBUG=INFO in the environment of all ranks logs details")
}

/// NCCL's version, as 2.27.3.
pub(super) fn version() -> Result<String> {
    let code = result::get_nccl_version().map_err(|error| failed(&error, std::ptr::null_mut()))?;
    Ok(format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100))
}

/// The id that rank 0 makes, and with which all ranks join the group.
pub(super) fn unique_id() -> Result<Vec<u8>> {
    let id = result::get_uniqueid().map_err(|error| failed(&error, std::ptr::null_mut()))?;
    Ok(id.internal.iter().map(|&byte| byte as u8).collect())
}

/// One collective over contiguous tensors on the group's device, whose sizes the caller has checked. `all` are all ranks'
/// shares, `own` is this rank's.
pub(super) enum Call<'t> {
    AllReduce(&'t Tensor),
    Broadcast(&'t Tensor, usize),
    ReduceScatter { all: &'t Tensor, own: Tensor },
    AllGather { all: &'t Tensor, own: Tensor },
}

impl Call<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all-reduce",
            Self::Broadcast(..) => "broadcast",
            Self::ReduceScatter { .. } => "reduce-scatter",
            Self::AllGather { .. } => "all-gather",
        }
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::AllReduce(buffer) | Self::Broadcast(buffer, _) => vec![buffer],
            Self::ReduceScatter { all, own } | Self::AllGather { all, own } => vec![all, own],
        }
    }
}

/// NCCL's number for the kinds that can be summed.
fn summable(kind: Kind) -> Result<sys::ncclDataType_t> {
    match kind {
        Kind::Float => Ok(sys::ncclDataType_t::ncclFloat32),
        Kind::Double => Ok(sys::ncclDataType_t::ncclFloat64),
        Kind::Int64 => Ok(sys::ncclDataType_t::ncclInt64),
        Kind::Uint8 => Ok(sys::ncclDataType_t::ncclUint8),
        Kind::BFloat16 => Ok(sys::ncclDataType_t::ncclBfloat16),
        kind => Err(super::super::kind_error(kind)),
    }
}

fn bytes(tensor: &Tensor) -> usize {
    count(tensor) * tensor.kind().elt_size_in_bytes()
}

/// This process's membership in the group of all ranks.
pub(super) struct Group {
    raw: sys::ncclComm_t,
}

// SAFETY: collectives come from the communication thread alone; `async_error` may be called from any thread.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// Joins; returns when every rank has. The rank's GPU must be this thread's.
    pub(super) fn join(id: &[u8], rank: usize, world_size: usize) -> Result<Self> {
        let mut unique = sys::ncclUniqueId { internal: [0; ID_BYTES] };
        if id.len() != ID_BYTES {
            return Err(Error::runtime(format!("NCCL's unique id has {} bytes, not {ID_BYTES}", id.len())));
        }
        for (to, from) in unique.internal.iter_mut().zip(id) {
            *to = *from as std::ffi::c_char;
        }
        let mut raw: sys::ncclComm_t = std::ptr::null_mut();
        // SAFETY: `raw` is a place for the result, `unique` comes from rank 0's NCCL.
        unsafe { result::comm_init_rank(&mut raw, world_size as i32, unique, rank as i32) }
            .map_err(|error| failed(&error, std::ptr::null_mut()))?;
        Ok(Self { raw })
    }

    /// The error that NCCL's own threads have met, if any.
    pub(super) fn async_error(&self) -> Result<()> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the group is alive, `state` is a place for the result.
        unsafe { sys::ncclCommGetAsyncError(self.raw, &mut state) }
            .result()
            .and_then(|_| state.result())
            .map_err(|error| failed(&error, self.raw))
            .map(drop)
    }

    /// Queues `calls` on `stream`, several of them as one NCCL group call. The tensors must live until they are done.
    pub(super) fn issue(&self, calls: &[Call], stream: &Stream) -> Result<()> {
        if let [call] = calls {
            return self.issue_one(call, stream);
        }
        result::group_start().map_err(|error| failed(&error, self.raw))?;
        let issued = calls.iter().try_for_each(|call| self.issue_one(call, stream));
        // An open group call must be closed even after an error.
        let ended = result::group_end().map(drop).map_err(|error| failed(&error, self.raw));
        issued.and(ended)
    }

    fn issue_one(&self, call: &Call, stream: &Stream) -> Result<()> {
        let sum = sys::ncclRedOp_t::ncclSum;
        let read = |tensor: &Tensor| tensor.data_ptr() as *const c_void;
        let write = |tensor: &Tensor| tensor.data_ptr();
        let (comm, stream) = (self.raw, stream.raw());
        // Sums count elements. The others move bytes, so they take any kind.
        let byte = sys::ncclDataType_t::ncclUint8;
        let code = match call {
            Call::AllReduce(buffer) => {
                let kind = summable(buffer.kind())?;
                // SAFETY: a contiguous tensor of this many elements, in place, which the caller keeps alive.
                unsafe { result::all_reduce(read(buffer), write(buffer), count(buffer), kind, sum, comm, stream) }
            }
            Call::ReduceScatter { all, own } => {
                let kind = summable(all.kind())?;
                // SAFETY: as above; `all` holds world_size times as many elements as `own`.
                unsafe { result::reduce_scatter(read(all), write(own), count(own), kind, sum, comm, stream) }
            }
            Call::Broadcast(buffer, root) => {
                let root = *root as i32;
                // SAFETY: as above, in place.
                unsafe { result::broadcast(read(buffer), write(buffer), bytes(buffer), byte, root, comm, stream) }
            }
            // SAFETY: as above; `all` holds world_size times as many bytes as `own`.
            Call::AllGather { all, own } => unsafe {
                result::all_gather(read(own), write(all), bytes(own), byte, comm, stream)
            },
        };
        code.map(drop).map_err(|error| failed(&error, comm))
    }

    /// Leaves the group, after all collectives are done. All ranks must call it.
    pub(super) fn leave(&self) -> Result<()> {
        // SAFETY: called once, by the owner's drop, with nothing in flight.
        unsafe { result::comm_destroy(self.raw) }.map(drop).map_err(|error| failed(&error, std::ptr::null_mut()))
    }
}
