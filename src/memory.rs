//! No memory left: one error and exit code 1, where Rust would abort and libtorch's bindings would panic.
//!
//! Not here: how much memory a run needs (`plan/`). One of the few files with `unsafe`: an allocator is.

#![allow(unsafe_code)]

use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static ADVICE: OnceLock<&str> = OnceLock::new();

/// Says what the user of this process's command can do about it; to be called once, as soon as the command is known.
pub(crate) fn advise(hint: &'static str) {
    let _ = ADVICE.set(hint);
}

/// What to do about it.
pub(crate) fn hint() -> &'static str {
    ADVICE.get().copied().unwrap_or("give the job more memory")
}

/// What is still to be done at the end.
static LAST: OnceLock<fn()> = OnceLock::new();

/// Whether the end has been announced.
static SAID: AtomicBool = AtomicBool::new(false);

/// The thread that ends the process, by the kernel's number.
static ENDING: AtomicI32 = AtomicI32::new(0);

/// How long other threads wait for the one that ends the process, in seconds.
const PATIENCE: u32 = 5;

/// Has `last` called before an end that drops nothing, such as one for want of memory. To be called once. `last` may neither
/// allocate nor wait for a lock.
pub fn before_end(last: fn()) {
    let _ = LAST.set(last);
}

/// Waits for the process's end if it is ending for want of memory, or because it crashed: what another thread meets then is no error of its own.
pub(crate) fn wait_if_ending() {
    let ending = ENDING.load(Ordering::Acquire);
    if ending != 0 && ending != own_thread() {
        // SAFETY: the call has no precondition.
        unsafe { libc::sleep(PATIENCE) };
    }
}

/// Makes this thread the one that ends the process for want of memory, or because it crashed. False if it already is; where
/// another one is, this thread waits for that end: one error is enough. A signal's handler may call it.
pub(crate) fn take_end() -> bool {
    let own = own_thread();
    match ENDING.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(ending) if ending == own => false,
        Err(_) => {
            wait_if_ending();
            exit()
        }
    }
}

/// The end has been announced: nothing more is said if memory runs out once more.
pub(crate) fn said() {
    SAID.store(true, Ordering::Release);
}

/// Does what [`before_end`] was told: for an end that drops nothing.
pub(crate) fn finish() {
    if let Some(last) = LAST.get() {
        last();
    }
}

fn own_thread() -> i32 {
    // SAFETY: the call has no precondition.
    unsafe { libc::gettid() }
}

fn exit() -> ! {
    // SAFETY: the call has no precondition.
    unsafe { libc::_exit(1) }
}

/// The system's allocator; where it has nothing to give, the process ends. Under a launcher the other ranks end with it.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: all four do what the system's allocator does, whose contract is the same, or do not return.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller promises is what the system's asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: what the caller promises is what the system's asks for.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: what the caller promises is what the system's asks for.
        given(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

fn given(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() { end(bytes) } else { block }
}

/// Says it, does what is still to be done, and ends the process. Allocates nothing itself.
#[cold]
fn end(bytes: usize) -> ! {
    // This thread may be ending the process already, and lack the memory to say so.
    take_end();
    if !SAID.load(Ordering::Acquire) {
        say(bytes);
    }
    finish();
    exit()
}

fn say(bytes: usize) {
    // The digits from behind.
    let (mut digits, mut start, mut rest) = ([0u8; 20], 20, bytes);
    while start == 20 || rest > 0 {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    for part in
        [b"error: out of memory: no room for ", &digits[start..], b" bytes more\n  hint: ", hint().as_bytes(), b"\n"]
    {
        // SAFETY: the bytes are there. Nothing can be done about a failed write.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
}

/// Whether a panic's message tells that libtorch got no memory, on the CPU or on a GPU; if so, in which words.
pub(crate) fn lack_in(panic: &str) -> Option<&str> {
    let signs = ["can't allocate memory", "out of memory", "std::bad_alloc"];
    let start = signs.iter().filter_map(|sign| panic.find(sign)).min()?;
    // Torch's words go on with its own call stack.
    // Whoever quotes it says first that memory is out.
    let words = panic[start..].trim_start_matches("out of memory. ");
    words.split(['\n', '"']).next().map(|words| words.split("\\n").next().unwrap_or(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_memory_is_taken_for_one() {
        let cpu = "called `Result::unwrap()` on an `Err` value: Torch(\"[enforce fail at alloc_cpu.cpp:124] err == 0. \
                   DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12 (Cannot \
                   allocate memory)\\nException raised from alloc_cpu\")";
        let told = "can't allocate memory: you tried to allocate 64 bytes. Error code 12 (Cannot allocate memory)";
        assert_eq!(lack_in(cpu), Some(told));
        assert_eq!(lack_in("Torch(\"std::bad_alloc\")"), Some("std::bad_alloc"));
        assert_eq!(
            lack_in("Torch(\"CUDA out of memory. Tried to allocate 2 GiB\\nmore"),
            Some("Tried to allocate 2 GiB")
        );
        assert_eq!(lack_in("index out of bounds"), None);
    }
}
