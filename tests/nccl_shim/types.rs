//! The C types of NCCL and the CUDA driver that the shim uses. The test program compiles the shim's functions against
//! the types of `cudarc` instead, and compares these constants with them.

use std::ffi::{c_char, c_int};

#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ncclResult_t {
    ncclSuccess = 0,
    ncclSystemError = 2,
    ncclInvalidArgument = 4,
    ncclRemoteError = 6,
}

#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ncclDataType_t {
    ncclUint8 = 1,
    ncclInt64 = 4,
    ncclFloat32 = 7,
    ncclFloat64 = 8,
    ncclBfloat16 = 9,
}

#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ncclRedOp_t {
    ncclSum = 0,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclUniqueId {
    pub internal: [c_char; 128],
}

#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_NOT_READY = 600,
}

#[repr(C)]
pub struct CUuuid {
    pub bytes: [c_char; 16],
}

pub enum Opaque {}
pub type ncclComm_t = *mut Opaque;
pub type cudaStream_t = *mut Opaque;
pub type CUcontext = *mut Opaque;
pub type CUstream = *mut Opaque;
pub type CUevent = *mut Opaque;
pub type CUdevice = c_int;
