//! A crash in the memory of this process: one line and nothing unfinished left, before the process ends by its signal as it
//! would without. And what every handler of such a signal needs.
//!
//! oneDNN, for one, crashes where it gets no memory. Not here: libtorch's errors (`panics.rs`), maps of files that are cut
//! short (`files/map.rs`).

#![allow(unsafe_code)]

use crate::memory;
use nix::libc;
use std::sync::OnceLock;

const MESSAGE: &[u8] = b"error: a library or this program has crashed (SIGSEGV: it used memory that is not there)\n  \
    hint: with little memory libtorch may crash instead of failing: give the job more; else report it with what `haf-dist doctor` \
    prints\n";

/// What a signal's handler is called with.
type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// A handler of a signal that an instruction raises, and the action that was there before.
pub(crate) struct FaultHandler {
    signal: libc::c_int,
    handler: Handler,
    /// Rust's own handler, which knows overflowed stacks.
    before: OnceLock<libc::sigaction>,
}

impl FaultHandler {
    /// `handler` may call only what signal-safety(7) allows.
    pub(crate) const fn new(signal: libc::c_int, handler: Handler) -> Self {
        Self { signal, handler, before: OnceLock::new() }
    }

    /// Puts the handler in place, once.
    pub(crate) fn install(&self) {
        self.before.get_or_init(|| {
            // SAFETY: a zeroed `sigaction` is a valid one: the default action, no flags, no signals blocked. The handler has
            // the signature that SA_SIGINFO asks for.
            unsafe {
                let (mut action, mut before): (libc::sigaction, libc::sigaction) =
                    (std::mem::zeroed(), std::mem::zeroed());
                action.sa_sigaction = self.handler as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(self.signal, &action, &mut before);
                before
            }
        });
    }

    /// Restores the action from before, which takes over when the instruction is repeated.
    ///
    /// # Safety
    /// To be called in the handler, with its `info`.
    pub(crate) unsafe fn hand_on(&self, info: *const libc::siginfo_t) {
        // SAFETY: the system passes a valid `info`. Only sigaction and raise are called.
        unsafe {
            match self.before.get() {
                Some(before) => libc::sigaction(self.signal, before, std::ptr::null_mut()),
                None => libc::sigaction(self.signal, &std::mem::zeroed(), std::ptr::null_mut()),
            };
            if (*info).si_code <= 0 {
                libc::raise(self.signal); // Sent by a process: no instruction is repeated.
            }
        }
    }
}

static CRASH: FaultHandler = FaultHandler::new(libc::SIGSEGV, on_crash);

/// From now on a crash is announced.
pub fn announce() {
    CRASH.install();
}

extern "C" fn on_crash(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: this is the handler, with its `info`. Nothing is called that a handler may not.
    unsafe {
        if !memory::take_end() {
            // It crashed while it ended for want of memory, and has said so.
            memory::finish();
            libc::_exit(1);
        }
        libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
        memory::said();
        memory::finish();
        CRASH.hand_on(info);
    }
}
