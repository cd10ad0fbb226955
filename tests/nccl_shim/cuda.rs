//! The CUDA driver's part: every stream is a thread that works through its queue (collectives late); the null stream is the
//! calling thread, so that an event recorded there is reached at once and a wait there blocks.

use super::plan::{devices, record, told};
use super::types::*;
use std::ffi::{c_char, c_int, c_uint};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

pub type Job = Box<dyn FnOnce() + Send>;

struct Stream(Sender<Job>);

/// Queues a job of `stream`, which is not the null stream.
pub unsafe fn queue(stream: usize, job: Job) {
    let stream = unsafe { &*(stream as *const Stream) };
    stream.0.send(job).unwrap();
}

/// How often it was recorded, and the last record that was reached.
#[derive(Default)]
struct Event {
    records: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Event {
    fn reach(&self, record: u64) {
        let mut records = self.records.lock().unwrap();
        records.1 = records.1.max(record);
        self.changed.notify_all();
    }

    fn wait(&self, record: u64) {
        let mut records = self.records.lock().unwrap();
        while records.1 < record {
            records = self.changed.wait(records).unwrap();
        }
    }
}

unsafe fn event(handle: CUevent) -> Arc<Event> {
    let handle = handle as *const Event;
    unsafe {
        Arc::increment_strong_count(handle);
        Arc::from_raw(handle)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(_flags: c_uint) -> CUresult {
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    unsafe { *count = devices() };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    if ordinal < 0 || ordinal >= devices() {
        return CUresult::CUDA_ERROR_INVALID_DEVICE;
    }
    unsafe { *device = ordinal };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: CUdevice) -> CUresult {
    let text = b"shim\0";
    assert!(length as usize >= text.len());
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice) -> CUresult {
    unsafe { (*uuid).bytes = [device as c_char; 16] };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> CUresult {
    unsafe { *context = (0x1000 + device as usize) as CUcontext };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    record("bind", 0, context as usize);
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> CUresult {
    assert_eq!(flags, 1, "a stream that does not wait for the null stream was expected");
    let (sender, queue) = channel::<Job>();
    std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
    unsafe { *stream = Box::into_raw(Box::new(Stream(sender))).cast() };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: CUstream) -> CUresult {
    drop(unsafe { Box::from_raw(stream.cast::<Stream>()) });
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: CUstream, handle: CUevent, _flags: c_uint) -> CUresult {
    let switch = if stream.is_null() { "no-compute-wait" } else { "no-communication-wait" };
    if told(switch) {
        return CUresult::CUDA_SUCCESS;
    }
    record("wait", stream as usize, handle as usize);
    let event = unsafe { event(handle) };
    let awaited = event.records.lock().unwrap().0;
    if stream.is_null() {
        event.wait(awaited);
    } else {
        unsafe { queue(stream as usize, Box::new(move || event.wait(awaited))) };
    }
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(handle: *mut CUevent, _flags: c_uint) -> CUresult {
    unsafe { *handle = Arc::into_raw(Arc::new(Event::default())).cast_mut().cast() };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(handle: CUevent, stream: CUstream) -> CUresult {
    record("record", stream as usize, handle as usize);
    let event = unsafe { event(handle) };
    let number = {
        let mut records = event.records.lock().unwrap();
        records.0 += 1;
        records.0
    };
    if stream.is_null() {
        event.reach(number);
    } else {
        unsafe { queue(stream as usize, Box::new(move || event.reach(number))) };
    }
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(handle: CUevent) -> CUresult {
    let event = unsafe { event(handle) };
    let records = event.records.lock().unwrap();
    if records.1 < records.0 { CUresult::CUDA_ERROR_NOT_READY } else { CUresult::CUDA_SUCCESS }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(handle: CUevent) -> CUresult {
    record("synchronize", 0, handle as usize);
    let event = unsafe { event(handle) };
    let awaited = event.records.lock().unwrap().0;
    event.wait(awaited);
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(handle: CUevent) -> CUresult {
    drop(unsafe { Arc::from_raw(handle as *const Event) });
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(_error: CUresult, text: *mut *const c_char) -> CUresult {
    unsafe { *text = c"CUDA_ERROR_OF_THE_SHIM".as_ptr() };
    CUresult::CUDA_SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_error: CUresult, text: *mut *const c_char) -> CUresult {
    unsafe { *text = c"an error of the shim".as_ptr() };
    CUresult::CUDA_SUCCESS
}
