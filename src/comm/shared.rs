//! Float memory that the processes of one node share, and sums over it that need no messages.
//!
//! Each process makes a [`Region`] and the others map it too: an anonymous file in memory (memfd), found through /proc.
//! Chosen over MPI's windows and over files in /dev/shm because it has no size limit of its own (/dev/shm has 64 MB in
//! many containers, and going beyond it kills the job), leaves nothing behind however a job ends, and its pages lie near
//! the process that touches them first. Not here: how processes learn of each other's regions, and sums between nodes.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::thread::futex::{self, Timespec};

use std::fs::{File, OpenOptions, metadata};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Buffers begin at multiples of this many bytes, the first behind the header.
const PAGE: usize = 4096;
/// Floats in a cache line: slices of two ranks share none.
const LINE: usize = 16;
/// Floats that are summed at a time. They and their sum fit in the innermost cache for two or three ranks.
const BLOCK: usize = 2048;

/// How long to poll for ranks that still compute before sleeping: they need the core.
const BRIEFLY: Duration = Duration::from_micros(20);
/// The same for ranks that are about to finish their slices of the same sum.
const A_WHILE: Duration = Duration::from_micros(200);
/// A sleeping rank is woken by the others, and after this time wakes by itself so that MPI can progress.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Where the others find a region: process, file descriptor, device and inode.
pub(crate) type Address = [u64; 4];

/// Starts each region. Its words are zero in a new region.
#[repr(C, align(64))]
struct Header {
    /// Meetings that the region's rank has reached, modulo 2^32. Others sleep on it.
    arrived: AtomicU32,
    /// The part that the rank sums: its start and its length.
    start: AtomicU64,
    length: AtomicU64,
}

/// A process's own memory, which lasts as long as it or any mapping of it.
pub(crate) struct Region {
    file: File,
}

/// The regions of all ranks of the node, mapped by one of them.
pub(crate) struct Team {
    rank: usize,
    /// In rank order. Never unmapped, because tensors over the memory may live anywhere.
    maps: &'static [MmapRaw],
    /// Buffers in each region, counted in floats from its first byte.
    buffers: Vec<Range<usize>>,
    /// Meetings so far.
    meetings: u32,
}

/// Where buffers of these lengths lie in a region, in floats; and the region's size in bytes.
fn layout(lengths: &[usize]) -> Result<(Vec<Range<usize>>, usize)> {
    let page = PAGE / size_of::<f32>();
    let mut end = page;
    let mut buffers = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let next = end.checked_add(length).and_then(|end| end.checked_next_multiple_of(page));
        buffers.push(end..end.wrapping_add(length));
        end = next.ok_or_else(too_large)?;
    }
    let size = end.checked_mul(size_of::<f32>()).filter(|&size| i64::try_from(size).is_ok());
    Ok((buffers, size.ok_or_else(too_large)?))
}

fn too_large() -> Error {
    Error::runtime("buffers of that length do not fit in memory")
}

impl Region {
    /// Zeroed memory for buffers of these lengths. Memory is taken when it is touched.
    pub(crate) fn new(lengths: &[usize]) -> Result<Self> {
        let (_, size) = layout(lengths)?;
        let file = memfd_create("haf-dist", MFdFlags::MFD_CLOEXEC).map_err(|error| refused(error.into()))?;
        let file = File::from(file);
        file.set_len(size as u64).map_err(refused)?;
        Ok(Self { file })
    }

    /// Where the other ranks find it.
    pub(crate) fn address(&self) -> Result<Address> {
        let is = self.file.metadata().map_err(refused)?;
        Ok([u64::from(std::process::id()), self.file.as_raw_fd() as u64, is.dev(), is.ino()])
    }
}

fn refused(error: std::io::Error) -> Error {
    Error::runtime(format!("cannot allocate shared memory: {error}"))
}

/// Maps the region at `address` after checking its identity: in another container the numbers mean another file.
fn map(address: &Address, size: usize) -> Result<MmapRaw> {
    let [process, descriptor, device, inode] = *address;
    let path = format!("/proc/{process}/fd/{descriptor}");
    let failed = |error: std::io::Error| Error::runtime(format!("cannot map {path}, another rank's memory: {error}"));
    let is = metadata(&path).map_err(failed)?;
    if (is.dev(), is.ino(), is.len()) != (device, inode, size as u64) {
        return Err(Error::runtime(format!("{path} is not another rank's memory: the ranks do not share one /proc")));
    }
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    MmapOptions::new().len(size).map_raw(&file).map_err(failed)
}

impl Team {
    /// Maps every rank's region of buffers of these lengths. `addresses` are in rank order; every region must exist
    /// until all ranks have mapped it.
    pub(crate) fn join(rank: usize, addresses: &[Address], lengths: &[usize]) -> Result<Self> {
        let (buffers, size) = layout(lengths)?;
        let maps = addresses.iter().map(|address| map(address, size)).collect::<Result<Vec<_>>>()?;
        Ok(Self { rank, maps: maps.leak(), buffers, meetings: 0 })
    }

    /// This rank's buffers as flat tensors.
    pub(crate) fn tensors(&self) -> Result<Vec<Tensor>> {
        let tensor = |buffer: &Range<usize>| {
            let data = self.maps[self.rank].as_mut_ptr().wrapping_add(buffer.start * size_of::<f32>());
            // SAFETY: the layout has that many floats there, zeroed by the kernel, and the map lasts for ever.
            Ok(unsafe { Tensor::f_from_blob(data, &[buffer.len() as i64], &[], Kind::Float, Device::Cpu)? })
        };
        self.buffers.iter().map(tensor).collect()
    }

    /// Where `values` lies in this rank's region, in floats; none if it lies elsewhere.
    pub(crate) fn find(&self, values: &[f32]) -> Option<Range<usize>> {
        let map = &self.maps[self.rank];
        let offset = (values.as_ptr() as usize).checked_sub(map.as_mut_ptr() as usize)?;
        let start = offset / size_of::<f32>();
        (offset + size_of_val(values) <= map.len() && !values.is_empty()).then(|| start..start + values.len())
    }

    /// Gives every rank the sum of `part` over all ranks' regions, added in rank order: the same bits everywhere. Each
    /// rank sums one slice and writes it to all. `across` is called in between with this rank's slice, to add the other
    /// nodes' sums. `idle` is called now and then while this rank waits. Nobody may touch the part meanwhile.
    ///
    /// # Errors
    /// Ranks that sum different parts; all of them notice.
    pub(crate) fn sum(
        &mut self,
        part: Range<usize>,
        across: Option<impl FnOnce(&mut [f32])>,
        idle: impl Fn(),
    ) -> Result<()> {
        self.begin(&part, &idle)?;
        let slices = self.rows(slice_of(self.rank, self.maps.len(), &part)).into_iter();
        // SAFETY: `part` lies within the maps, which are distinct memory and as long as each other (`find`, `map`).
        // Between the two meetings each rank touches only its slice, in every region, so that the access is exclusive.
        let mut rows: Vec<&mut [f32]> = slices.map(|slice| unsafe { &mut *slice }).collect();
        match across {
            None => match &mut rows[..] {
                [first, second] => in_one_pass(first, second),
                _ => in_blocks(&mut rows, |rows, block, sum| {
                    rows.iter_mut().for_each(|row| row[block.clone()].copy_from_slice(sum));
                }),
            },
            Some(across) => {
                let own = self.rank;
                in_blocks(&mut rows, |rows, block, sum| rows[own][block].copy_from_slice(sum));
                across(rows[own]);
                let (before, rest) = rows.split_at_mut(own);
                if let Some((own, after)) = rest.split_first_mut() {
                    before.iter_mut().chain(after).for_each(|row| row.copy_from_slice(own));
                }
            }
        }
        self.meet(A_WHILE, &idle);
        Ok(())
    }

    /// Gives every rank its share of the sum of `part` over all ranks' regions, added in rank order. The part consists of
    /// one equal share per rank. `idle` and the rest as for [`sum`](Self::sum).
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    pub(crate) fn sum_share(&mut self, part: Range<usize>, idle: impl Fn()) -> Result<()> {
        self.begin(&part, &idle)?;
        let share = part.len() / self.maps.len();
        let start = part.start + self.rank * share;
        // SAFETY: as in `sum`, with shares in place of slices.
        let mut rows: Vec<&mut [f32]> =
            self.rows(start..start + share).into_iter().map(|share| unsafe { &mut *share }).collect();
        let own = self.rank;
        in_blocks(&mut rows, |rows, block, sum| rows[own][block].copy_from_slice(sum));
        self.meet(A_WHILE, &idle);
        Ok(())
    }

    /// Meets the others, and checks that they sum the same part.
    fn begin(&mut self, part: &Range<usize>, idle: &impl Fn()) -> Result<()> {
        self.header(self.rank).start.store(part.start as u64, Ordering::Relaxed);
        self.header(self.rank).length.store(part.len() as u64, Ordering::Relaxed);
        self.meet(BRIEFLY, idle);
        for rank in 0..self.maps.len() {
            let header = self.header(rank);
            let (start, length) = (header.start.load(Ordering::Relaxed), header.length.load(Ordering::Relaxed));
            if (start, length) != (part.start as u64, part.len() as u64) {
                return Err(Error::runtime(format!(
                    "local rank {} sums {} values at {} of the shared memory, rank {rank} {length} at {start}",
                    self.rank,
                    part.len(),
                    part.start
                )));
            }
        }
        Ok(())
    }

    /// The `slice` of every rank's region.
    fn rows(&self, slice: Range<usize>) -> Vec<*mut [f32]> {
        let start = |map: &MmapRaw| map.as_mut_ptr().cast::<f32>().wrapping_add(slice.start);
        self.maps.iter().map(|map| std::ptr::slice_from_raw_parts_mut(start(map), slice.len())).collect()
    }

    fn header(&self, rank: usize) -> &Header {
        // SAFETY: every region starts with a page for its header, page-aligned, whose words are all atomic.
        unsafe { &*self.maps[rank].as_ptr().cast::<Header>() }
    }

    /// Returns when every rank of the node has arrived: polls for `patience`, then sleeps. After it all ranks see what any
    /// of them wrote before it.
    fn meet(&mut self, patience: Duration, idle: &impl Fn()) {
        self.meetings = self.meetings.wrapping_add(1);
        let own = &self.header(self.rank).arrived;
        own.store(self.meetings, Ordering::Release);
        let _ = futex::wake(own, futex::Flags::empty(), i32::MAX as u32);
        let start = Instant::now();
        for rank in 0..self.maps.len() {
            let arrived = &self.header(rank).arrived;
            loop {
                let seen = arrived.load(Ordering::Acquire);
                // A rank may be one meeting ahead. The counters wrap.
                if seen.wrapping_sub(self.meetings) < u32::MAX / 2 {
                    break;
                }
                if start.elapsed() < patience {
                    std::thread::yield_now();
                } else {
                    idle();
                    // Woken, timed out, interrupted or changed already: poll again.
                    let _ = futex::wait(arrived, futex::Flags::empty(), seen, Some(&NAP));
                }
            }
        }
    }
}

/// The slice of a part that `rank` of `size` sums.
fn slice_of(rank: usize, size: usize, part: &Range<usize>) -> Range<usize> {
    let share = part.len().div_ceil(size).next_multiple_of(LINE);
    let at = |rank: usize| part.start + (rank * share).min(part.len());
    at(rank)..at(rank + 1)
}

/// Sums rows of equal length block by block and hands each block and its sum to `write`.
fn in_blocks(rows: &mut [&mut [f32]], mut write: impl FnMut(&mut [&mut [f32]], Range<usize>, &[f32])) {
    let length = rows.first().map_or(0, |row| row.len());
    let mut sum = [0f32; BLOCK];
    for start in (0..length).step_by(BLOCK) {
        let block = start..length.min(start + BLOCK);
        let sum = &mut sum[..block.len()];
        sum.copy_from_slice(&rows[0][block.clone()]);
        for row in &rows[1..] {
            sum.iter_mut().zip(&row[block.clone()]).for_each(|(sum, value)| *sum += value);
        }
        write(rows, block, sum);
    }
}

/// As [`in_blocks`] for two rows that both get the sum, in half the time.
fn in_one_pass(first: &mut [f32], second: &mut [f32]) {
    for (first, second) in first.iter_mut().zip(second) {
        let sum = *first + *second;
        (*first, *second) = (sum, sum);
    }
}
