//! NCCL's part: the ranks send their data to a hub, a thread in the process that made the unique id, over sockets; it answers
//! with the result. Memory is read and written when the stream's thread gets there, not when a call is made.

use super::cuda::{Job, queue};
use super::plan::{befalls, delay, record, stall};
use super::types::*;
use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const ALL_REDUCE: u64 = 0;
const BROADCAST: u64 = 1;
const REDUCE_SCATTER: u64 = 2;
const ALL_GATHER: u64 = 3;

struct Comm {
    rank: usize,
    world_size: usize,
    hub: Mutex<UnixStream>,
    collectives: AtomicU64,
    remote_error: AtomicBool,
}

/// A collective of one rank: what it is and how many elements each rank brings, and its memory.
struct Call {
    /// Operation, kind, elements, root: the same on every rank.
    header: [u64; 4],
    send: usize,
    receive: usize,
    bytes_in: usize,
    bytes_out: usize,
}

thread_local! {
    /// Jobs of an open group, with their streams.
    static GROUP: RefCell<Option<Vec<(usize, Job)>>> = const { RefCell::new(None) };
}

fn width(kind: u64) -> usize {
    match kind {
        1 => 1,
        9 => 2,
        7 => 4,
        4 | 8 => 8,
        kind => panic!("kind {kind}"),
    }
}

macro_rules! add {
    ($type:ty, $sum:expr, $part:expr, $plus:expr) => {{
        const WIDTH: usize = size_of::<$type>();
        for (sum, part) in $sum.chunks_exact_mut(WIDTH).zip($part.chunks_exact(WIDTH)) {
            let left = <$type>::from_ne_bytes((&*sum).try_into().unwrap());
            let right = <$type>::from_ne_bytes(part.try_into().unwrap());
            let plus: fn($type, $type) -> $type = $plus;
            sum.copy_from_slice(&plus(left, right).to_ne_bytes());
        }
    }};
}

fn add_bf16(left: u16, right: u16) -> u16 {
    let wide = |half: u16| f32::from_bits(u32::from(half) << 16);
    let sum = (wide(left) + wide(right)).to_bits();
    // To the nearest, ties to even.
    ((sum + 0x7FFF + ((sum >> 16) & 1)) >> 16) as u16
}

fn add(kind: u64, sum: &mut [u8], part: &[u8]) {
    match kind {
        1 => add!(u8, sum, part, u8::wrapping_add),
        4 => add!(i64, sum, part, i64::wrapping_add),
        7 => add!(f32, sum, part, |left, right| left + right),
        8 => add!(f64, sum, part, |left, right| left + right),
        _ => add!(u16, sum, part, add_bf16),
    }
}

fn read_numbers<const N: usize>(from: &mut UnixStream) -> std::io::Result<[u64; N]> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        *number = u64::from_ne_bytes(bytes);
    }
    Ok(numbers)
}

fn write_numbers(to: &mut UnixStream, numbers: &[u64]) -> std::io::Result<()> {
    numbers.iter().try_for_each(|number| to.write_all(&number.to_ne_bytes()))
}

/// Serves a group until a rank leaves.
fn hub(listener: UnixListener, path: &str) -> std::io::Result<()> {
    let mut ranks: Vec<Option<UnixStream>> = Vec::new();
    while ranks.is_empty() || ranks.iter().any(Option::is_none) {
        let (mut stream, _) = listener.accept()?;
        let [rank, world_size] = read_numbers(&mut stream)?;
        ranks.resize_with(world_size as usize, || None);
        ranks[rank as usize] = Some(stream);
    }
    let mut ranks: Vec<UnixStream> = ranks.into_iter().flatten().collect();
    let _ = std::fs::remove_file(path);
    ranks.iter_mut().try_for_each(|rank| write_numbers(rank, &[0]))?;
    loop {
        let mut calls = Vec::new();
        for rank in &mut ranks {
            let [operation, kind, elements, root, bytes] = read_numbers(rank)?;
            let mut data = vec![0; bytes as usize];
            rank.read_exact(&mut data)?;
            calls.push(([operation, kind, elements, root], data));
        }
        let header = calls[0].0;
        if calls.iter().any(|call| call.0 != header) {
            stall(); // As NCCL may.
        }
        let [operation, kind, elements, root] = header;
        let whole = match operation {
            BROADCAST => calls.swap_remove(root as usize).1,
            ALL_GATHER => calls.into_iter().flat_map(|call| call.1).collect(),
            _ => {
                let mut parts = calls.into_iter().map(|call| call.1);
                let mut sum = parts.next().unwrap();
                parts.for_each(|part| add(kind, &mut sum, &part));
                sum
            }
        };
        let share = elements as usize * width(kind);
        for (number, rank) in ranks.iter_mut().enumerate() {
            let part = if operation == REDUCE_SCATTER { &whole[number * share..][..share] } else { &whole[..] };
            rank.write_all(part)?;
        }
    }
}

fn exchange(comm: &Comm, call: &Call) -> std::io::Result<()> {
    let mut hub = comm.hub.lock().unwrap();
    write_numbers(&mut hub, &call.header)?;
    write_numbers(&mut hub, &[call.bytes_in as u64])?;
    // A copy, as the memory may be wrongly in use.
    let mut data = vec![0u8; call.bytes_in];
    unsafe { std::ptr::copy_nonoverlapping(call.send as *const u8, data.as_mut_ptr(), data.len()) };
    hub.write_all(&data)?;
    let mut data = vec![0u8; call.bytes_out];
    hub.read_exact(&mut data)?;
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), call.receive as *mut u8, data.len()) };
    Ok(())
}

fn comm(handle: ncclComm_t) -> Arc<Comm> {
    let handle = handle as *const Comm;
    unsafe {
        Arc::increment_strong_count(handle);
        Arc::from_raw(handle)
    }
}

fn issue(handle: ncclComm_t, stream: cudaStream_t, call: Call) -> ncclResult_t {
    let comm = comm(handle);
    record("collective", stream as usize, call.receive);
    let number = comm.collectives.fetch_add(1, Ordering::Relaxed);
    if befalls("fail", comm.rank, number) {
        return ncclResult_t::ncclSystemError;
    }
    let job: Job = Box::new(move || {
        delay();
        if befalls("async", comm.rank, number) {
            comm.remote_error.store(true, Ordering::Release);
            stall();
        }
        if befalls("stall", comm.rank, number) || exchange(&comm, &call).is_err() {
            stall();
        }
    });
    GROUP.with_borrow_mut(|group| match group {
        Some(jobs) => jobs.push((stream as usize, job)),
        None => unsafe { queue(stream as usize, job) },
    });
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> ncclResult_t {
    unsafe { *version = 22_703 };
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(result: ncclResult_t) -> *const c_char {
    match result {
        ncclResult_t::ncclSuccess => c"no error",
        ncclResult_t::ncclSystemError => c"unhandled system error of the shim",
        ncclResult_t::ncclRemoteError => c"remote process exited, says the shim",
        _ => c"invalid argument, says the shim",
    }
    .as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_comm: ncclComm_t) -> *const c_char {
    c"the shim was told to fail".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("nccl-shim-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name).to_string_lossy().into_owned();
    let Ok(listener) = UnixListener::bind(&path) else { return ncclResult_t::ncclSystemError };
    let mut internal = [0; 128];
    internal.iter_mut().zip(path.bytes()).for_each(|(to, from)| *to = from as c_char);
    unsafe { *id = ncclUniqueId { internal } };
    std::thread::spawn(move || hub(listener, &path));
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    handle: *mut ncclComm_t,
    ranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
) -> ncclResult_t {
    let path: Vec<u8> = id.internal.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    let joined = UnixStream::connect(String::from_utf8(path).unwrap()).and_then(|mut hub| {
        write_numbers(&mut hub, &[rank as u64, ranks as u64])?;
        read_numbers::<1>(&mut hub)?;
        Ok(hub)
    });
    let Ok(hub) = joined else { return ncclResult_t::ncclSystemError };
    let comm = Comm {
        rank: rank as usize,
        world_size: ranks as usize,
        hub: Mutex::new(hub),
        collectives: AtomicU64::new(0),
        remote_error: AtomicBool::new(false),
    };
    unsafe { *handle = Arc::into_raw(Arc::new(comm)).cast_mut().cast() };
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(handle: ncclComm_t) -> ncclResult_t {
    drop(unsafe { Arc::from_raw(handle as *const Comm) });
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(handle: ncclComm_t, error: *mut ncclResult_t) -> ncclResult_t {
    let failed = comm(handle).remote_error.load(Ordering::Acquire);
    unsafe { *error = if failed { ncclResult_t::ncclRemoteError } else { ncclResult_t::ncclSuccess } };
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> ncclResult_t {
    GROUP.with_borrow_mut(|group| {
        group.get_or_insert_default();
    });
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> ncclResult_t {
    let Some(jobs) = GROUP.with_borrow_mut(Option::take) else { return ncclResult_t::ncclInvalidArgument };
    jobs.into_iter().for_each(|(stream, job)| unsafe { queue(stream, job) });
    ncclResult_t::ncclSuccess
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    kind: ncclDataType_t,
    operation: ncclRedOp_t,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    if operation != ncclRedOp_t::ncclSum {
        return ncclResult_t::ncclInvalidArgument;
    }
    let bytes = count * width(kind as u64);
    let header = [ALL_REDUCE, kind as u64, count as u64, 0];
    issue(
        comm,
        stream,
        Call { header, send: send as usize, receive: receive as usize, bytes_in: bytes, bytes_out: bytes },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    kind: ncclDataType_t,
    root: c_int,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    let bytes = count * width(kind as u64);
    let header = [BROADCAST, kind as u64, count as u64, root as u64];
    issue(
        comm,
        stream,
        Call { header, send: send as usize, receive: receive as usize, bytes_in: bytes, bytes_out: bytes },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    kind: ncclDataType_t,
    operation: ncclRedOp_t,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    if operation != ncclRedOp_t::ncclSum {
        return ncclResult_t::ncclInvalidArgument;
    }
    let bytes_out = count * width(kind as u64);
    let bytes_in = bytes_out * self::comm(comm).world_size;
    let header = [REDUCE_SCATTER, kind as u64, count as u64, 0];
    issue(comm, stream, Call { header, send: send as usize, receive: receive as usize, bytes_in, bytes_out })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    kind: ncclDataType_t,
    comm: ncclComm_t,
    stream: cudaStream_t,
) -> ncclResult_t {
    let bytes_in = count * width(kind as u64);
    let bytes_out = bytes_in * self::comm(comm).world_size;
    let header = [ALL_GATHER, kind as u64, count as u64, 0];
    issue(comm, stream, Call { header, send: send as usize, receive: receive as usize, bytes_in, bytes_out })
}
