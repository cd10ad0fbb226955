//! The faults that the shim is asked for (the variable NCCL_SHIM), and the record of calls (a file a process, at NCCL_SHIM_LOG).
//!
//! NCCL_SHIM is a list of `devices:N` (number of GPUs), `no-compute-wait` and `no-communication-wait` (waits of one direction are
//! lost), and of faults of collective K (from 0) on rank R: `fail:R:K`, `async:R:K`, `stall:R:K`.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};

static ASKED: LazyLock<Vec<String>> =
    LazyLock::new(|| std::env::var("NCCL_SHIM").unwrap_or_default().split(',').map(str::to_string).collect());

/// Whether the word is in the list.
pub fn told(word: &str) -> bool {
    ASKED.iter().any(|asked| asked == word)
}

/// Whether something befalls this collective.
pub fn befalls(what: &str, rank: usize, number: u64) -> bool {
    told(&format!("{what}:{rank}:{number}"))
}

/// GPUs that there are.
pub fn devices() -> i32 {
    ASKED.iter().find_map(|asked| asked.strip_prefix("devices:")?.parse().ok()).unwrap_or(8)
}

static LOG: LazyLock<Option<Mutex<File>>> = LazyLock::new(|| {
    let path = std::env::var("NCCL_SHIM_LOG").ok()?;
    File::create(format!("{path}.{}", std::process::id())).ok().map(Mutex::new)
});

/// Records a call: the number of the calling thread, the call, and the handles it is about.
pub fn record(call: &str, stream: usize, about: usize) {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    thread_local!(static THREAD: Cell<u64> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed)));
    if let Some(log) = &*LOG {
        let thread = THREAD.with(Cell::get);
        let mut log = log.lock().unwrap();
        writeln!(log, "{thread} {call} {stream:x} {about:x}").unwrap();
    }
}

/// 1 to 4 ms, different every time.
pub fn delay() {
    static STATE: AtomicU64 = AtomicU64::new(0x9E37_79B9);
    let mixed = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed) ^ u64::from(std::process::id());
    let micros = 1000 + (mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) % 3000;
    std::thread::sleep(std::time::Duration::from_micros(micros));
}

/// Never returns.
pub fn stall() -> ! {
    loop {
        std::thread::park();
    }
}
