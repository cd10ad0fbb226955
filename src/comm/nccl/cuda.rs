//! The parts of the CUDA driver that NCCL needs: the rank's GPU, streams and events. Not here: NCCL, and computation.
//!
//! The driver is loaded when first used, so this file is in the CPU build too. [`probe`] comes before any other call,
//! because the bindings' loader panics if a library or a function is missing.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// The driver's functions that this file calls.
const FUNCTIONS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamWaitEvent",
];

/// Checks that the library `name` ("cuda", "nccl") is where the bindings' loader looks and has all `functions`.
///
/// # Errors
/// An input error: the library is missing or too old.
pub(super) fn probe_library(name: &str, functions: &[&str], hint: &str) -> Result<()> {
    // SAFETY: opening these libraries runs their initializers, as using them does anyway.
    let open = |file: &str| unsafe { libloading::Library::new(file) };
    let Some(library) = cudarc::get_lib_name_candidates(name).iter().find_map(|file| open(file).ok()) else {
        return Err(Error::input(format!("lib{name}.so is not found")).hint(hint));
    };
    for function in functions {
        // SAFETY: the symbol is only looked for, never called through this type.
        let found = unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) };
        if found.is_err() {
            return Err(Error::input(format!("lib{name}.so has no {function}: it is too old")).hint(hint));
        }
    }
    Ok(())
}

fn probe() -> Result<()> {
    probe_library("cuda", FUNCTIONS, "it comes with NVIDIA's driver; `nvidia-smi` must work here, in containers too")
}

fn failed(doing: &str, error: result::DriverError) -> Error {
    let text = |words: std::result::Result<&std::ffi::CStr, _>| match words {
        Ok(words) => words.to_string_lossy().into_owned(),
        Err(_) => format!("code {:?}", error.0),
    };
    Error::runtime(format!("CUDA: {doing}: {} ({})", text(error.error_string()), text(error.error_name())))
}

/// A GPU of this node and its primary context, the one that libtorch computes in. The context is held until the
/// process ends.
pub(crate) struct Gpu {
    /// Unique among the GPUs of all nodes.
    pub(crate) uuid: [u8; 16],
    /// The driver's name for it.
    pub(crate) name: String,
    context: sys::CUcontext,
}

// SAFETY: the driver's functions may be called from any thread, and the context is never released.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens the GPU of this number among those in CUDA_VISIBLE_DEVICES, and makes it the calling thread's.
    ///
    /// # Errors
    /// No driver, no such GPU, or a GPU that cannot be used.
    pub(crate) fn open(index: usize) -> Result<Self> {
        probe()?;
        result::init().map_err(|error| failed("start the driver", error).hint("does `nvidia-smi` work here?"))?;
        let count = result::device::get_count().map_err(|error| failed("count the GPUs", error))?;
        let ordinal = i32::try_from(index).ok().filter(|&ordinal| ordinal < count).ok_or_else(|| {
            Error::input(format!("there is no GPU {index}: this process sees {count}"))
                .hint("start no more ranks on a node than it has GPUs; CUDA_VISIBLE_DEVICES hides some")
        })?;
        let device = result::device::get(ordinal).map_err(|error| failed("get the GPU", error))?;
        let name = result::device::get_name(device).map_err(|error| failed("get the GPU's name", error))?;
        let uuid = result::device::get_uuid(device).map_err(|error| failed("get the GPU's id", error))?;
        // SAFETY: `device` comes from the driver.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| failed(&format!("take GPU {index} ({name})"), error))?;
        let gpu = Self { uuid: uuid.bytes.map(|byte| byte as u8), name, context };
        gpu.bind()?;
        Ok(gpu)
    }

    /// Makes it the calling thread's GPU, for CUDA's driver and runtime.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context was retained and is never released.
        unsafe { result::ctx::set_current(self.context) }.map_err(|error| failed("bind the GPU to a thread", error))
    }
}

/// A point in a stream's work.
#[derive(Clone)]
pub struct Event(Arc<RawEvent>);

struct RawEvent(sys::CUevent);

// SAFETY: the driver's functions may be called from any thread; the event lives as long as the last `Event`.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

impl Event {
    /// Whether the work before this point is done.
    ///
    /// # Errors
    /// Some work on the GPU has failed, not necessarily this stream's.
    pub(crate) fn reached(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.0.0) } {
            Ok(()) => Ok(true),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(failed("work on the GPU", error)),
        }
    }

    /// Returns when the work before this point is done.
    ///
    /// # Errors
    /// As [`Event::reached`].
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.0.0) }.map_err(|error| failed("work on the GPU", error))
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: nobody else has the event; the driver keeps what is still pending. An error has no remedy here.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// A queue of work on one GPU.
pub struct Stream {
    gpu: Arc<Gpu>,
    raw: sys::CUstream,
}

// SAFETY: the driver's functions may be called from any thread; the stream lives as long as this.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The stream that libtorch computes on: the legacy null stream.
    pub(crate) fn of_computation(gpu: Arc<Gpu>) -> Self {
        Self { gpu, raw: result::stream::null() }
    }

    /// A new stream, ordered with the null stream only by explicit waits.
    pub(super) fn new(gpu: Arc<Gpu>) -> Result<Self> {
        gpu.bind()?;
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("make a stream", error))?;
        Ok(Self { gpu, raw })
    }

    /// The end of the work queued so far.
    ///
    /// # Errors
    /// A failed GPU.
    pub(crate) fn record(&self) -> Result<Event> {
        self.gpu.bind()?;
        let raw = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(|error| failed("make an event", error))?;
        let event = Event(Arc::new(RawEvent(raw)));
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(raw, self.raw) }.map_err(|error| failed("record an event", error))?;
        Ok(event)
    }

    /// Work queued from now on waits for `event`; the calling thread does not.
    ///
    /// # Errors
    /// A failed GPU.
    pub(crate) fn wait(&self, event: &Event) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: event and stream are alive; the driver keeps what a queued wait needs.
        unsafe { result::stream::wait_event(self.raw, event.0.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
            .map_err(|error| failed("wait for an event", error))
    }

    /// As NCCL's type.
    pub(super) fn raw(&self) -> cudarc::nccl::sys::cudaStream_t {
        self.raw.cast()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by `new` and used by nobody else; queued work is finished first. An error has no remedy here.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}
