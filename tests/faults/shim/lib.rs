//! A library that is loaded before libc (LD_PRELOAD): it counts a program's file operations below one folder and lets the k-th
//! fail, kills the process there, or cuts the power: everything that was not flushed is undone, then the process dies. Starts
//! of threads and large aligned blocks of memory, such as libtorch's, are counted and fail in the same way. It can make a rank
//! deaf to the others' votes, and a clock run faster.
//!
//! The environment says what to do, `FAULT_ROOT` first; without it nothing is done. Not here: how a program must react
//! (`tests/faults/`). Written for x86-64 Linux, where the third argument of `open` may be read whether it is there or not.

mod disk;
mod plan;

use disk::DISK;
use plan::{Plan, inside, outside};
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const SYS_WRITE: c_long = 1;
const SYS_KILL: c_long = 62;
const SYS_FSYNC: c_long = 74;
const SYS_FDATASYNC: c_long = 75;
const SYS_FTRUNCATE: c_long = 77;
const SYS_RENAME: c_long = 82;
const SYS_MKDIR: c_long = 83;
const SYS_OPENAT: c_long = 257;
const SYS_CLOCK_GETTIME: c_long = 228;
const SYS_COPY_FILE_RANGE: c_long = 326;

const AT_FDCWD: c_int = -100;
const O_CREAT: c_int = 0o100;
const O_TRUNC: c_int = 0o1000;
const O_ACCMODE: c_int = 0o3;
const O_DIRECTORY: c_int = 0o200000;
const EAGAIN: c_int = 11;
const ENOMEM: c_int = 12;
/// Bytes from which on a block of memory counts.
const LARGE: usize = 4096;
const SIGKILL: c_long = 9;
const CLOCK_MONOTONIC: c_int = 1;
const SECOND: i64 = 1_000_000_000;
/// Bytes that a rank sends in a vote.
const VOTE: c_int = 8;
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

/// The path that an open file has now.
fn of(file: c_int) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{file}")).ok()
}

fn absolute(folder: c_int, path: *const c_char) -> Option<PathBuf> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller of a libc function hands a string over.
    let path = Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    match (path.is_absolute(), folder) {
        (true, _) | (_, AT_FDCWD) => std::path::absolute(path).ok(),
        (false, folder) => Some(of(folder)?.join(path)),
    }
}

/// Whether the operation is to fail; errno is set then. Does not return where the process is to die.
fn fails(operation: &str, path: Option<&Path>) -> bool {
    let (Some(plan), Some(path)) = (Plan::get(), path) else { return false };
    if !plan.reaches(operation, path) {
        return false;
    }
    // SAFETY: errno is this thread's own.
    unsafe { *__errno_location() = plan.errno };
    true
}

/// Ends the process as a lost machine would: without a word.
fn die() -> ! {
    // SAFETY: nothing that a signal to this process could make unsound is left to run.
    unsafe { syscall(SYS_KILL, std::process::id() as c_long, SIGKILL) };
    std::process::abort()
}

fn open_at(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's own.
    let really = || unsafe { syscall(SYS_OPENAT, folder as c_long, path, flags as c_long, mode as c_long) } as c_int;
    outside(really, || {
        let place = absolute(folder, path);
        let file = flags & O_DIRECTORY == 0;
        if file && fails("open", place.as_deref()) {
            return -1;
        }
        let existed = place.as_ref().is_some_and(|place| place.symlink_metadata().is_ok());
        let opened = really();
        if let (true, true, Some(place)) = (file && opened >= 0, flags & O_ACCMODE != 0, place) {
            DISK.opened(&place, existed, flags & O_CREAT != 0, flags & O_TRUNC != 0);
        }
        opened
    })
}

#[unsafe(no_mangle)]
extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    open_at(AT_FDCWD, path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    open_at(AT_FDCWD, path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    open_at(folder, path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    open_at(folder, path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn write(file: c_int, from: *const c_void, count: usize) -> isize {
    // SAFETY: the arguments are the caller's own; so below.
    let really = || unsafe { syscall(SYS_WRITE, file as c_long, from, count) } as isize;
    outside(really, || if fails("write", of(file).as_deref()) { -1 } else { really() })
}

#[unsafe(no_mangle)]
extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut i64,
    to: c_int,
    to_offset: *mut i64,
    count: usize,
    flags: c_uint,
) -> isize {
    let really = || {
        let (from, to, flags) = (from as c_long, to as c_long, flags as c_long);
        (unsafe { syscall(SYS_COPY_FILE_RANGE, from, from_offset, to, to_offset, count, flags) }) as isize
    };
    outside(really, || if fails("write", of(to).as_deref()) { -1 } else { really() })
}

fn flush(number: c_long, file: c_int) -> c_int {
    let really = || unsafe { syscall(number, file as c_long) } as c_int;
    outside(really, || {
        let path = of(file);
        if fails("fsync", path.as_deref()) {
            return -1;
        }
        let done = really();
        if let (0, Some(path)) = (done, path) {
            DISK.flushed(&path);
        }
        done
    })
}

#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    flush(SYS_FSYNC, file)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    flush(SYS_FDATASYNC, file)
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(file: c_int, length: i64) -> c_int {
    let really = || unsafe { syscall(SYS_FTRUNCATE, file as c_long, length) } as c_int;
    outside(really, || if fails("write", of(file).as_deref()) { -1 } else { really() })
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let really = || unsafe { syscall(SYS_RENAME, from, to) } as c_int;
    outside(really, || {
        let (old, new) = (absolute(AT_FDCWD, from), absolute(AT_FDCWD, to));
        if fails("rename", new.as_deref()) {
            return -1;
        }
        let (Some(old), Some(new)) = (old, new) else { return really() };
        let replaced = DISK.keep(&new);
        let done = really();
        if done == 0 {
            DISK.renamed(old, new, replaced);
        }
        done
    })
}

#[unsafe(no_mangle)]
extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    let really = || unsafe { syscall(SYS_MKDIR, path, mode as c_long) } as c_int;
    outside(really, || {
        let place = absolute(AT_FDCWD, path);
        if fails("open", place.as_deref()) {
            return -1;
        }
        let done = really();
        if let (0, Some(place)) = (done, place) {
            DISK.created(place);
        }
        done
    })
}

type Start = extern "C" fn(*mut c_void, *const c_void, *const c_void, *mut c_void) -> c_int;

#[unsafe(no_mangle)]
extern "C" fn pthread_create(thread: *mut c_void, how: *const c_void, run: *const c_void, with: *mut c_void) -> c_int {
    if !inside() && Plan::get().is_some_and(|plan| plan.reaches("thread", &plan.root)) {
        return EAGAIN;
    }
    // SAFETY: what libc calls `pthread_create` has this type.
    let next: Start = unsafe { std::mem::transmute(dlsym(RTLD_NEXT, c"pthread_create".as_ptr())) };
    next(thread, how, run, with)
}

unsafe extern "C" {
    fn __libc_memalign(alignment: usize, length: usize) -> *mut c_void;
}

#[unsafe(no_mangle)]
extern "C" fn posix_memalign(block: *mut *mut c_void, alignment: usize, length: usize) -> c_int {
    if length >= LARGE && !inside() && Plan::get().is_some_and(|plan| plan.reaches("memory", &plan.root)) {
        return ENOMEM;
    }
    // SAFETY: glibc's own, of the same heap as `free`; the caller hands a place for the address over.
    unsafe { *block = __libc_memalign(alignment, length) };
    if unsafe { *block }.is_null() { ENOMEM } else { 0 }
}

type Gather =
    extern "C" fn(*const c_void, c_int, *const c_void, *mut c_void, c_int, *const c_void, *const c_void) -> c_int;

/// A deaf rank sends its vote, so that MPI's calls match, and takes the others' to be as its own.
#[unsafe(no_mangle)]
extern "C" fn MPI_Allgather(
    from: *const c_void,
    sent: c_int,
    kind: *const c_void,
    to: *mut c_void,
    each: c_int,
    other_kind: *const c_void,
    ranks: *const c_void,
) -> c_int {
    // SAFETY: what MPI calls `MPI_Allgather` has this type.
    let next: Gather = unsafe { std::mem::transmute(dlsym(RTLD_NEXT, c"MPI_Allgather".as_ptr())) };
    let done = next(from, sent, kind, to, each, other_kind, ranks);
    if let (VOTE, Some(number)) = (sent, plan::deaf_among()) {
        for rank in 0..number {
            // SAFETY: the buffer has as many votes as there are ranks.
            unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>().add(rank * VOTE as usize), VOTE as usize) };
        }
    }
    done
}

/// Of the monotonic clock, time since the first look passes faster.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int {
    let done = unsafe { syscall(SYS_CLOCK_GETTIME, clock as c_long, time) } as c_int;
    if done == 0 && clock == CLOCK_MONOTONIC && !inside() {
        let haste = outside(|| 1, || Plan::get().map_or(1, |plan| plan.haste));
        if haste > 1 {
            // SAFETY: the system has just written it.
            let [seconds, rest] = unsafe { &mut *time };
            let now = *seconds * SECOND + *rest;
            let first = *plan::FIRST_LOOK.get_or_init(|| now);
            let told = first + (now - first) * haste;
            (*seconds, *rest) = (told / SECOND, told % SECOND);
        }
    }
    done
}
