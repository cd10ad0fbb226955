//! Ends the whole job at once, from any thread.
//!
//! Not here: the callers (`thread.rs`, the watchdogs), and MPI's own abort (`mpi.rs`), which is passed in.

#![allow(unsafe_code)]

use crate::memory;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long [`abort`] lets MPI, and the removal of files, try before it goes on.
const PATIENCE: Duration = Duration::from_millis(500);

/// Ends every process of the job. `None` before MPI starts, after it ends, and where not every thread may call it.
static JOB_END: Mutex<Option<fn(i32)>> = Mutex::new(None);

/// Sets the function that ends every process of the job, or removes it.
pub(super) fn set_job_end(call: Option<fn(i32)>) {
    *JOB_END.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = call;
}

/// Removes what is unfinished, unless that takes long: its disk may be what the ranks hang on.
fn finish_in_time() {
    let (done, wait) = channel();
    let finish = move || {
        memory::finish();
        let _ = done.send(());
    };
    match std::thread::Builder::new().spawn(finish) {
        Ok(_) => drop(wait.recv_timeout(PATIENCE)),
        Err(_) => memory::finish(),
    }
}

/// Ends this process at once with `code`, and the whole MPI job with it. Any thread may call it, even while another
/// one is inside a collective. Under THREAD_MULTIPLE it calls MPI_Abort. If MPI may not be called from here, or does not
/// answer within half a second, the process exits without finalizing MPI, and the launcher then ends the others.
pub(crate) fn abort(code: i32) -> ! {
    memory::wait_if_ending();
    finish_in_time();
    static FIRST: AtomicBool = AtomicBool::new(true);
    let _ = std::io::stdout().flush();
    let job_end = *JOB_END.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(job_end) = job_end
        && FIRST.swap(false, Ordering::AcqRel)
    {
        let call = std::thread::Builder::new().spawn(move || job_end(code));
        if call.is_ok() {
            std::thread::sleep(PATIENCE);
        }
    } else if !FIRST.load(Ordering::Acquire) {
        std::thread::sleep(PATIENCE); // Another thread is already ending the job.
    }
    // SAFETY: `_exit` has no precondition. Not `exit`: its handlers could wait for, or race with, threads that still run.
    unsafe { nix::libc::_exit(code) }
}
