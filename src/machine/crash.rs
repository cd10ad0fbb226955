//! A crash in the memory of this process: one line, before the process ends by its signal as it would without.
//!
//! oneDNN, for one, crashes where it gets no memory. Not here: libtorch's errors (`panics.rs`), maps of files that are cut
//! short (`files/map.rs`).

#![allow(unsafe_code)]

use nix::libc;
use std::sync::OnceLock;

const MESSAGE: &[u8] = b"error: a library or this program has crashed (SIGSEGV: it used memory that is not there)\n  \
    hint: with little memory libtorch may crash instead of failing: give the job more; else report it with what `haf-dist doctor` \
    prints\n";

/// What was done before: Rust's own handler, which knows overflowed stacks.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Puts the handler in place, once.
pub fn announce() {
    BEFORE.get_or_init(|| {
        // SAFETY: a zeroed `sigaction` is a valid one: the default action, no flags, no signals blocked. `on_crash` has the
        // signature that SA_SIGINFO asks for and calls nothing that a handler may not.
        unsafe {
            let (mut action, mut before): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_crash;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, &action, &mut before);
            before
        }
    });
}

extern "C" fn on_crash(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system hands a valid `info` over. Only write, sigaction and raise are called.
    unsafe {
        libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
        // Takes over when the instruction is repeated.
        match BEFORE.get() {
            Some(before) => libc::sigaction(signal, before, std::ptr::null_mut()),
            None => libc::sigaction(signal, &std::mem::zeroed(), std::ptr::null_mut()),
        };
        if (*info).si_code <= 0 {
            libc::raise(signal); // Sent by a process: no instruction is repeated.
        }
    }
}
