//! The MPI backend for tensors in CPU memory, and the end of an MPI job. The only file that names the `mpi` crate.
//!
//! Exactly one thread of a process may make a [`Mpi`] and use it; only [`abort`] may be called from others. The crate
//! ignores MPI's return codes, which is sound because MPI's default error handler (MPI_ERRORS_ARE_FATAL) stays in
//! force: an error inside MPI prints MPI's message and ends the whole job; no call ever returns one.
//!
//! A collective starts when every rank has arrived, and the wait for that yields the core: MPI's own waiting spins,
//! which would take the core from the computation that the other ranks are still busy with. While they wait, ranks
//! compare purpose, operation and size of their collective: a difference is an error on all of them.
//!
//! Buffers from [`Communicator::shared_buffers`] are summed in shared memory within a node; MPI then only adds up the
//! nodes' sums. A reduce-scatter uses shared memory only if there is one node.

use super::abort::{abort, set_job_end};
use super::nccl::Event;
use super::progress::Progress;
use super::progress::whole_letters;
use super::shared::{Region, Team};
use super::watch::{Line, Watch};
use super::{Communicator, Local, apart, check_root, kind_error, launch, share_of};
use crate::error::{Error, Result};
use crate::tensor::{Number, bytes_mut, count, slice, slice_mut};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::{Universe, initialize_with_threading, library_version};
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator as _, CommunicatorCollectives as _, Equivalence, Root as _, Source as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tch::{Kind, Tensor};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes that one MPI call moves or sums at most. Sums need a copy of their input (the crate has no MPI_IN_PLACE), and
/// this size keeps that copy in cache; counts also stay far below MPI's limit of 2^31 elements.
const CHUNK: usize = 1 << 20;

/// Polls of a wait before it starts to sleep between them.
const QUICK_POLLS: u32 = 10;
/// Sleep between two polls of a wait.
const NAP: Duration = Duration::from_micros(50);

/// Bytes of a collective's description in the error for ranks at different collectives.
const DESCRIPTION: usize = 256;

/// MPI's world. Dropping it waits until all ranks do so, and finalizes MPI; the process cannot start it again.
pub struct Mpi {
    rank: usize,
    world_size: usize,
    local: Local,
    world: SimpleCommunicator,
    /// None if a node has one rank, or nodes have different numbers of ranks.
    sharing: Option<Sharing>,
    /// The next collective's.
    purpose: String,
    /// Until the watchdog takes it; none in a world of one rank.
    line: Option<Line>,
    // Declared last: its drop finalizes MPI.
    _universe: Universe,
}

/// The ranks whose memory this rank shares, and that memory.
struct Sharing {
    /// The ranks of this node.
    node: SimpleCommunicator,
    /// The ranks with this rank's local rank on every node; none if there is one node.
    across: Option<SimpleCommunicator>,
    /// One for each call of `shared_buffers`.
    teams: Vec<Team>,
}

impl Sharing {
    fn new(world: &SimpleCommunicator, node: SimpleCommunicator) -> Option<Self> {
        let mut sizes = vec![0; world.size() as usize];
        world.all_gather_into(&node.size(), &mut sizes[..]);
        if node.size() == 1 || sizes.iter().any(|&size| size != sizes[0]) {
            return None;
        }
        let across = if node.size() == world.size() {
            None
        } else {
            Some(world.split_by_color(Color::with_value(node.rank()))?)
        };
        Some(Self { node, across, teams: Vec::new() })
    }

    /// The index of the team whose memory holds these values, and their place in it.
    fn find(&self, values: &[f32]) -> Option<(usize, Range<usize>)> {
        self.teams.iter().enumerate().find_map(|(index, team)| Some((index, team.find(values)?)))
    }
}

impl Mpi {
    /// Initializes MPI. All ranks must call it. Errors if MPI was initialized before, if it refuses threads, or if its
    /// world is not the one that the launcher started (mpirun of another MPI library).
    pub fn start() -> Result<Self> {
        Self::with(Threading::Multiple, None)
    }

    /// For tests: as [`start`](Self::start), but with every `ranks` ranks as a node, so that one machine can play several.
    pub fn start_on_nodes_of(ranks: usize) -> Result<Self> {
        Self::with(Threading::Multiple, Some(ranks.max(1) as i32))
    }

    /// For tests: as [`start`](Self::start) with an MPI library that has no THREAD_MULTIPLE: [`abort`] does not call MPI.
    pub fn start_serialized() -> Result<Self> {
        Self::with(Threading::Serialized, None)
    }

    fn with(asked: Threading, node_size: Option<i32>) -> Result<Self> {
        let (universe, granted) = initialize_with_threading(asked)
            .ok_or_else(|| Error::runtime("MPI has already been initialized in this process"))?;
        // This thread makes all calls but `abort`, which alone needs `Multiple`.
        if granted < Threading::Funneled {
            return Err(Error::runtime("the MPI library does not allow threads").hint("use an MPI built with threads"));
        }
        if granted == Threading::Multiple {
            set_job_end(Some(|code| SimpleCommunicator::world().abort(code)));
        }

        let world = universe.world();
        let node = node_size.and_then(|ranks| world.split_by_color(Color::with_value(world.rank() / ranks)));
        let node = node.unwrap_or_else(|| world.split_shared(0));
        let local = Local { rank: node.rank() as usize, size: node.size() as usize };
        let (rank, world_size) = (world.rank() as usize, world.size() as usize);
        if let Some(started) = launch::launch().and_then(|launch| launch.size)
            && started != world_size
        {
            let library = library_version().unwrap_or_default();
            let library = library.split([',', '\n']).next().unwrap_or_default().to_string();
            return Err(Error::input(format!(
                "{started} processes were started, but MPI ({library}) sees {world_size}"
            ))
            .hint("start with the mpirun of that MPI library; under Slurm with srun --mpi=pmix or with mpirun"));
        }
        let sharing = Sharing::new(&world, node);
        let send = |bytes: &mut [u8]| world.process_at_rank(0).broadcast_into(bytes);
        let line = (world_size > 1).then(|| Line::open(rank, world_size, local.size == world_size, send));
        Ok(Self { rank, world_size, local, world, sharing, purpose: String::new(), line, _universe: universe })
    }

    /// Returns when every rank has arrived, without keeping a core busy. An error if ranks differ in the operation (with
    /// its root), in the tensor's size or kind, or in the announced purpose.
    fn meet(&self, operation: &str, buffer: Option<&Tensor>) -> Result<()> {
        let sizes = buffer.map(|buffer| format!(" ({operation} of {} {:?})", count(buffer), buffer.kind()));
        let description = format!("{}{}", self.purpose, sizes.unwrap_or_else(|| format!(" ({operation})")));
        let tag = xxh3_64(description.as_bytes());
        // The maxima are the largest tag, and the complement of the smallest.
        let (mine, mut most) = ([tag, !tag], [0; 2]);
        mpi::request::scope(|scope| {
            let mut waiting = self.world.immediate_all_reduce_into(scope, &mine, &mut most, SystemOperation::max());
            let mut polls = 0;
            while let Err(still) = waiting.test() {
                waiting = still;
                polls += 1;
                if polls <= QUICK_POLLS {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(NAP);
                }
            }
        });
        if most == mine { Ok(()) } else { Err(self.apart(&description)) }
    }

    /// The error for ranks at different collectives; the same on all of them.
    fn apart(&self, description: &str) -> Error {
        let mut mine = [0u8; DESCRIPTION];
        let length = whole_letters(description, DESCRIPTION);
        mine[..length].copy_from_slice(&description.as_bytes()[..length]);
        let mut all = vec![0; DESCRIPTION * self.world_size];
        self.world.all_gather_into(&mine[..], &mut all[..]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
        let descriptions: Vec<_> = all.chunks(DESCRIPTION).map(text).collect();
        let other = descriptions.iter().position(|text| *text != descriptions[0]).unwrap_or(0);
        apart(&[(0, &descriptions[0]), (other, &descriptions[other])])
    }

    fn sum<T: Number + Equivalence>(&self, buffer: &mut Tensor) -> Result<()> {
        self.meet("all-reduce", Some(buffer))?;
        sum_over(&self.world, &mut slice_mut::<T>(buffer)?);
        Ok(())
    }

    /// Sums a part of the shared memory of the team with that index.
    fn sum_shared(&mut self, team: usize, part: Range<usize>) -> Result<()> {
        if self.sharing.as_ref().is_some_and(|sharing| sharing.across.is_some()) {
            // Otherwise ranks would spin in MPI until those of the last node arrive.
            self.meet("all-reduce in shared memory", None)?;
        }
        let Some(Sharing { across, teams, .. }) = &mut self.sharing else { return Ok(()) };
        let across = across.as_ref().map(|across| |slice: &mut [f32]| sum_over(across, slice));
        teams[team].sum(part, across, || {
            // Probing for a message lets MPI progress those that are still under way.
            let _ = self.world.any_process().immediate_probe();
        })
    }

    /// The result of a step toward shared memory if it succeeded on all ranks. If not, the lowest rank that failed warns.
    fn on_all_ranks<T>(&self, outcome: Result<T>) -> Option<T> {
        let mine = if outcome.is_ok() { self.world_size as u64 } else { self.rank as u64 };
        let mut lowest = mine;
        self.world.all_reduce_into(&mine, &mut lowest, SystemOperation::min());
        if let Err(error) = &outcome
            && lowest == mine
        {
            warn!(
                "the ranks of a node cannot share memory, so sums over ranks go through MPI, which is slower: {error}"
            );
        }
        outcome.ok().filter(|_| lowest == self.world_size as u64)
    }

    fn sum_share<T: Number + Equivalence>(&self, buffer: &mut Tensor) -> Result<()> {
        let share = share_of(buffer, self.world_size)?;
        self.meet("reduce-scatter", Some(buffer))?;
        let mut buffer = slice_mut::<T>(buffer)?;
        let most = (CHUNK / size_of::<T>() / self.world_size).max(1);
        let mut packed = Vec::with_capacity(most.min(share) * self.world_size);
        for start in (0..share).step_by(most) {
            let length = most.min(share - start);
            packed.clear();
            for rank in 0..self.world_size {
                packed.extend_from_slice(&buffer[rank * share + start..][..length]);
            }
            let own = &mut buffer[self.rank * share + start..][..length];
            self.world.reduce_scatter_block_into(&packed[..], own, SystemOperation::sum());
        }
        Ok(())
    }

    /// The same for a part of the shared memory of the team with that index; for a single node.
    fn sum_share_shared(&mut self, team: usize, part: Range<usize>) -> Result<()> {
        let Some(Sharing { teams, .. }) = &mut self.sharing else { return Ok(()) };
        teams[team].sum_share(part, || {
            let _ = self.world.any_process().immediate_probe();
        })
    }
}

/// Sums `values` over the ranks of `ranks`, in place.
fn sum_over<T: Number + Equivalence>(ranks: &SimpleCommunicator, values: &mut [T]) {
    let length = CHUNK / size_of::<T>();
    let mut own = Vec::with_capacity(length.min(values.len()));
    for part in values.chunks_mut(length) {
        own.clear();
        own.extend_from_slice(part);
        ranks.all_reduce_into(&own[..], part, SystemOperation::sum());
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn local(&self) -> Local {
        self.local
    }

    fn broadcast(&mut self, buffer: &mut Tensor, root: usize) -> Result<()> {
        check_root(root, self.world_size)?;
        self.meet(&format!("broadcast from rank {root}"), Some(buffer))?;
        let mut buffer = bytes_mut(buffer)?;
        for part in buffer.chunks_mut(CHUNK) {
            self.world.process_at_rank(root as i32).broadcast_into(part);
        }
        Ok(())
    }

    // The same bits everywhere: MPI's algorithms add two partial sums at a time, on one rank or on two that only swap
    // the operands. The conformance tests compare the bits.
    fn all_reduce(&mut self, buffer: &mut Tensor) -> Result<()> {
        match buffer.kind() {
            Kind::Float => {
                let shared = match &self.sharing {
                    Some(sharing) => sharing.find(&slice(buffer)?),
                    None => None,
                };
                match shared {
                    Some((team, part)) => self.sum_shared(team, part),
                    None => self.sum::<f32>(buffer),
                }
            }
            Kind::Double => self.sum::<f64>(buffer),
            Kind::Int64 => self.sum::<i64>(buffer),
            Kind::Uint8 => self.sum::<u8>(buffer),
            kind => Err(kind_error(kind)),
        }
    }

    fn reduce_scatter(&mut self, buffer: &mut Tensor) -> Result<()> {
        match buffer.kind() {
            Kind::Float => {
                share_of(buffer, self.world_size)?;
                // With several nodes the shares of a part are not the slices that a node's ranks sum.
                let shared = match &self.sharing {
                    Some(sharing) if sharing.across.is_none() => sharing.find(&slice(buffer)?),
                    _ => None,
                };
                match shared {
                    Some((team, part)) => self.sum_share_shared(team, part),
                    None => self.sum_share::<f32>(buffer),
                }
            }
            Kind::Double => self.sum_share::<f64>(buffer),
            Kind::Int64 => self.sum_share::<i64>(buffer),
            Kind::Uint8 => self.sum_share::<u8>(buffer),
            kind => Err(kind_error(kind)),
        }
    }

    fn all_gather(&mut self, buffer: &mut Tensor) -> Result<()> {
        let share = share_of(buffer, self.world_size)? * buffer.kind().elt_size_in_bytes();
        self.meet("all-gather", Some(buffer))?;
        let mut buffer = bytes_mut(buffer)?;
        let most = (CHUNK / self.world_size).max(1);
        let mut packed = vec![0u8; most.min(share) * self.world_size];
        for start in (0..share).step_by(most) {
            let length = most.min(share - start);
            let packed = &mut packed[..length * self.world_size];
            self.world.all_gather_into(&buffer[self.rank * share + start..][..length], packed);
            for (rank, part) in packed.chunks(length).enumerate() {
                buffer[rank * share + start..][..length].copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        self.meet("barrier", None)
    }

    fn announce(&mut self, purpose: String, _after: Option<Event>) {
        self.purpose = purpose;
    }

    fn watch(&mut self, progress: Arc<Progress>) -> Result<Option<Watch>> {
        let line = self.line.take();
        line.map(|line| Watch::start(self.rank, self.world_size, line, progress)).transpose()
    }

    fn shared_buffers(&mut self, lengths: &[usize]) -> Result<Option<Vec<Tensor>>> {
        self.meet("shared memory", None)?;
        let Some(Sharing { node, .. }) = &self.sharing else { return Ok(None) };
        let region = Region::new(lengths).and_then(|region| Ok((region.address()?, region)));
        let Some((address, _region)) = self.on_all_ranks(region) else { return Ok(None) };
        let mut addresses = vec![0; self.local.size * address.len()];
        node.all_gather_into(&address[..], &mut addresses[..]);
        let (addresses, _) = addresses.as_chunks();
        let team = Team::join(self.local.rank, addresses, lengths).and_then(|team| Ok((team.tensors()?, team)));
        let Some((tensors, team)) = self.on_all_ranks(team) else { return Ok(None) };
        if let Some(sharing) = &mut self.sharing {
            sharing.teams.push(team);
        }
        Ok(Some(tensors))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            abort(101); // MPI_Finalize would wait for ever for the other ranks, which do not call it.
        }
        // MPI_Finalize waits too, but spins. A rank at another collective reports the difference.
        self.purpose = "the end of the job".into();
        let _ = self.meet("barrier", None);
        set_job_end(None);
    }
}
