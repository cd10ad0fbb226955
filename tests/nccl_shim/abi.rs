//! Promise, held by the compiler: the shim's functions and constants are those of `cudarc`'s bindings. The shim's code is
//! compiled here once more, against the bindings' types, and each function is put beside the bindings' own.

#![allow(dead_code, clippy::missing_safety_doc)]

mod cuda;
mod nccl;
#[path = "types.rs"]
#[allow(non_camel_case_types, clippy::enum_variant_names)]
mod own;
mod plan;

mod types {
    //! The bindings' types, under the names that the shim uses.
    pub use cudarc::driver::sys::{CUcontext, CUdevice, CUevent, CUresult, CUstream, CUuuid};
    pub use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
}

/// Compiles only where the function of the bindings and the shim's take and return the same.
macro_rules! same {
    ($bindings:path, $module:ident: $($function:ident($($argument:ident),*);)*) => {
        const _: fn() = || {
            $({
                fn check<R, $($argument),*>(_: unsafe fn($($argument),*) -> R, _: unsafe extern "C" fn($($argument),*) -> R) {}
                use $bindings as bindings;
                check(bindings::$function, $module::$function);
            })*
        };
    };
}

same! { cudarc::driver::sys, cuda:
    cuInit(A);
    cuDeviceGetCount(A);
    cuDeviceGet(A, B);
    cuDeviceGetName(A, B, C);
    cuDeviceGetUuid_v2(A, B);
    cuDevicePrimaryCtxRetain(A, B);
    cuCtxSetCurrent(A);
    cuStreamCreate(A, B);
    cuStreamDestroy_v2(A);
    cuStreamWaitEvent(A, B, C);
    cuEventCreate(A, B);
    cuEventRecord(A, B);
    cuEventQuery(A);
    cuEventSynchronize(A);
    cuEventDestroy_v2(A);
    cuGetErrorName(A, B);
    cuGetErrorString(A, B);
}

same! { cudarc::nccl::sys, nccl:
    ncclGetVersion(A);
    ncclGetErrorString(A);
    ncclGetLastError(A);
    ncclGetUniqueId(A);
    ncclCommInitRank(A, B, C, D);
    ncclCommDestroy(A);
    ncclCommGetAsyncError(A, B);
    ncclGroupStart();
    ncclGroupEnd();
    ncclAllReduce(A, B, C, D, E, F, G);
    ncclBroadcast(A, B, C, D, E, F, G);
    ncclReduceScatter(A, B, C, D, E, F, G);
    ncclAllGather(A, B, C, D, E, F);
}

/// Compiles only where the constants have the same numbers.
macro_rules! equal {
    ($($kind:ident: $($name:ident),*;)*) => {
        $($(const _: () = assert!(own::$kind::$name as u32 == types::$kind::$name as u32);)*)*
    };
}

equal! {
    ncclResult_t: ncclSuccess, ncclSystemError, ncclInvalidArgument, ncclRemoteError;
    ncclDataType_t: ncclUint8, ncclInt64, ncclFloat32, ncclFloat64, ncclBfloat16;
    ncclRedOp_t: ncclSum;
    CUresult: CUDA_SUCCESS, CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_NOT_READY;
}

const _: () = {
    use cudarc::driver::sys;
    assert!(size_of::<own::ncclUniqueId>() == size_of::<types::ncclUniqueId>());
    assert!(size_of::<own::CUuuid>() == size_of::<types::CUuuid>());
    // What the shim takes for granted of the flags that it is given.
    assert!(sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32 == 1);
    assert!(sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as u32 == 0);
};
