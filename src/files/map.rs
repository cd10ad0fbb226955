//! Memory maps of files, with an error message if a mapped file is truncated. One of the few files with `unsafe`: the map,
//! and the handler of SIGBUS.
//!
//! Reading a mapped page that is no longer in the file, or that the disk cannot read, raises SIGBUS, which would end the
//! process without a message. The handler finds the map that contains the address, writes the message that was prepared when
//! the file was mapped, and exits with code 1. All of this is allowed in a signal handler (signal-safety(7)).

#![allow(unsafe_code)]

use super::open;
use crate::crash::FaultHandler;
use crate::memory;
use memmap2::{Mmap, MmapMut, UncheckedAdvice};
use nix::libc;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Most maps that the handler knows at a time. Further maps work as well, but without the message.
const KNOWN: usize = 512;

/// A map as the handler knows it.
struct Place {
    taken: AtomicBool,
    /// Address of its first byte; 0 while the rest is not set.
    start: AtomicUsize,
    length: AtomicUsize,
    message: AtomicPtr<u8>,
    message_length: AtomicUsize,
}

static PLACES: [Place; KNOWN] = [const {
    Place {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        message: AtomicPtr::new(std::ptr::null_mut()),
        message_length: AtomicUsize::new(0),
    }
}; KNOWN];

/// Without it the process would end as well, but without a message.
static TRUNCATION: FaultHandler = FaultHandler::new(libc::SIGBUS, on_bus_error);

/// A read-only map of a file, whose pages are read on first access, or of memory without a file.
#[derive(Debug)]
pub(crate) struct Map {
    map: Mmap,
    /// Its index in `PLACES`, and the message, which lives as long as that entry.
    known: Option<(usize, Box<[u8]>)>,
}

/// Maps a regular file for reading. If the file is truncated while the map lives, the process ends with a message that
/// names it, and exit code 1.
///
/// # Errors
/// The file cannot be opened or mapped, or is not a regular file.
pub(crate) fn map(path: &Path) -> io::Result<Map> {
    let file = open(path)?;
    // SAFETY: a map is sound while nobody rewrites the file in place. This crate replaces files by renaming
    // (`write_atomic`), which leaves the mapped inode alone; another program that edits a cache or a model's weights in
    // place during a run is outside the contract. A truncated file ends the process: see `on_bus_error`.
    let map = unsafe { Mmap::map(&file) }?;
    TRUNCATION.install();
    let known = register(&map, path);
    Ok(Map { map, known })
}

impl Map {
    /// Releases the memory of the whole pages in `piece`, a part of this map that will not be needed soon; they are read again
    /// on access. A map without a file keeps its memory.
    pub(crate) fn release(&self, piece: &[u8]) {
        if self.known.is_none() {
            return;
        }
        let page = 1 << 12;
        let start = (piece.as_ptr().addr() - self.map.as_ptr().addr()).next_multiple_of(page);
        let end = (piece.as_ptr().addr() + piece.len() - self.map.as_ptr().addr()) / page * page;
        if start < end {
            // SAFETY: the map is of a file and read-only, so its pages come back unchanged.
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }

    /// A copy of `bytes` in memory without a file, aligned to a page.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn of_bytes(bytes: &[u8]) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes.len())?;
        map.copy_from_slice(bytes);
        Ok(Self { map: map.make_read_only()?, known: None })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Nobody reads the map any more, so the handler is not at this entry.
        if let Some((place, _)) = &self.known {
            PLACES[*place].start.store(0, Ordering::Release);
            PLACES[*place].taken.store(false, Ordering::Release);
        }
    }
}

/// Makes a map known to the handler; `None` if all places are taken.
fn register(map: &Mmap, path: &Path) -> Option<(usize, Box<[u8]>)> {
    let free = |place: &Place| place.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let number = PLACES.iter().position(free)?;
    let text = format!(
        "error: {} was truncated while it was in use, or its disk can no longer be read\n  \
         hint: restore the file, or delete it if it is a cache file; then start again\n",
        path.display()
    );
    let message = text.into_bytes().into_boxed_slice();
    let place = &PLACES[number];
    place.length.store(map.len(), Ordering::Relaxed);
    place.message.store(message.as_ptr().cast_mut(), Ordering::Relaxed);
    place.message_length.store(message.len(), Ordering::Relaxed);
    place.start.store(map.as_ptr().addr(), Ordering::Release);
    Some((number, message))
}

extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system passes a valid `info`. The message lives while its entry has a start, and the entry while the map is
    // read, which is the case right now. Nothing is called that a handler may not.
    unsafe {
        let address = (*info).si_addr().addr();
        for place in &PLACES {
            let start = place.start.load(Ordering::Acquire);
            let within = address.checked_sub(start).is_some_and(|at| at < place.length.load(Ordering::Relaxed));
            if start != 0 && within {
                let message = place.message.load(Ordering::Relaxed);
                if memory::take_end() {
                    libc::write(2, message.cast(), place.message_length.load(Ordering::Relaxed));
                    memory::said();
                }
                memory::finish();
                libc::_exit(1);
            }
        }
        // Not one of our maps.
        memory::finish();
        TRUNCATION.hand_on(info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_come_and_go_without_an_end_of_places() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "content").unwrap();
        for _ in 0..3 * KNOWN {
            let map = map(&path).unwrap();
            assert!(map.known.is_some() && &map[..] == b"content");
        }
        let many: Vec<Map> = (0..KNOWN + 1).map(|_| map(&path).unwrap()).collect();
        assert!(many.last().unwrap().known.is_none() && &many[KNOWN][..] == b"content");
        assert_eq!(&Map::of_bytes(b"abc").unwrap()[..], b"abc");
    }
}
