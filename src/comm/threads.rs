//! N ranks in one process, for tests: every collective is one exchange of copies through a shared table.
//! Not for training: each rank adds up everything itself.

use super::nccl::Event;
use super::{Communicator, Local, check_root, kind_error, share_of};
use crate::error::{Error, Result};
use crate::tensor::{bytes, count};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tch::{Kind, Tensor};

/// The value that a reduce-scatter leaves in the shares of other ranks.
const UNDEFINED: i64 = 77;

/// A rank's part of an exchange: its call, to compare with the others', and a copy of its data.
struct Offer {
    call: String,
    data: Option<Tensor>,
}

#[derive(Default)]
struct Table {
    /// Counts finished exchanges.
    round: u64,
    /// The running exchange: one place a rank.
    offers: Vec<Option<Offer>>,
    /// The offers of the last exchange. Overwritten only when all ranks have made the next ones, so after all have read it.
    finished: Vec<Offer>,
    /// The first rank that left.
    gone: Option<usize>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's place in a world of threads. Send it to the thread that plays the rank; there it is a [`Communicator`].
/// Dropping it (a return, a panic) gives every rank that waits for this one an error.
pub struct Seat {
    rank: usize,
    world_size: usize,
    shared: Arc<Shared>,
    /// The next collective's.
    purpose: String,
}

/// The places of a world of `world_size` ranks, in rank order.
pub fn world(world_size: usize) -> Vec<Seat> {
    let shared = Arc::new(Shared::default());
    shared.lock().offers.resize_with(world_size, || None);
    (0..world_size).map(|rank| Seat { rank, world_size, shared: shared.clone(), purpose: String::new() }).collect()
}

impl Seat {
    /// This place as a backend, for [`super::CommThread::start`].
    pub fn communicator(self) -> Box<dyn Communicator> {
        Box::new(self)
    }

    /// Waits for every rank's offer and returns all their data in rank order.
    fn exchange(&self, name: &str, root: Option<usize>, buffer: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let size = buffer.map(|buffer| (buffer.kind(), count(buffer)));
        let data = match buffer {
            Some(buffer) => {
                bytes(buffer)?; // Refuses what is not contiguous or not on the CPU.
                Some(copy(&buffer.f_detach()?.f_view(-1)?)?)
            }
            None => None,
        };
        let offer = Offer { call: format!("{name}, root {root:?}, {size:?}, {}", self.purpose), data };

        let mut table = self.shared.lock();
        let round = table.round;
        table.offers[self.rank] = Some(offer);
        if table.offers.iter().all(Option::is_some) {
            table.finished = table.offers.iter_mut().filter_map(Option::take).collect();
            table.round += 1;
            self.shared.changed.notify_all();
        }
        while table.round == round {
            if let Some(gone) = table.gone {
                return Err(Error::runtime(format!("rank {gone} has left; rank {} waited in {name}", self.rank)));
            }
            table = self.shared.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let calls: Vec<_> = table.finished.iter().map(|offer| offer.call.as_str()).collect();
        if calls.iter().any(|call| *call != calls[0]) {
            return Err(Error::runtime(format!("the ranks called different collectives: {calls:?}")));
        }
        Ok(table.finished.iter().filter_map(|offer| Some(offer.data.as_ref()?.shallow_clone())).collect())
    }

    /// A rank's share of a flat tensor.
    fn share(&self, whole: &Tensor, rank: usize) -> Result<Tensor> {
        let share = share_of(whole, self.world_size)? as i64;
        Ok(whole.f_narrow(0, rank as i64 * share, share)?)
    }

    /// The sum over ranks, added in rank order by everyone: the same bits everywhere.
    fn sum(&self, name: &str, buffer: &Tensor) -> Result<Tensor> {
        if !matches!(buffer.kind(), Kind::Float | Kind::Double | Kind::Int64 | Kind::Uint8) {
            return Err(kind_error(buffer.kind()));
        }
        let parts = self.exchange(name, None, Some(buffer))?;
        let mut sum = copy(&parts[0])?;
        for part in &parts[1..] {
            let _ = sum.f_add_(part)?;
        }
        Ok(sum)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.lock().gone.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

fn copy(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

fn fill(output: &mut Tensor, values: &Tensor) -> Result<()> {
    output.f_detach()?.f_view(-1)?.f_copy_(values)?;
    Ok(())
}

impl Communicator for Seat {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn local(&self) -> Local {
        Local { rank: self.rank, size: self.world_size }
    }

    fn broadcast(&mut self, buffer: &mut Tensor, root: usize) -> Result<()> {
        check_root(root, self.world_size)?;
        let parts = self.exchange("broadcast", Some(root), Some(buffer))?;
        fill(buffer, &parts[root])
    }

    fn all_reduce(&mut self, buffer: &mut Tensor) -> Result<()> {
        let sum = self.sum("all_reduce", buffer)?;
        fill(buffer, &sum)
    }

    fn reduce_scatter(&mut self, buffer: &mut Tensor) -> Result<()> {
        share_of(buffer, self.world_size)?;
        let sum = self.sum("reduce_scatter", buffer)?;
        let own = |whole: &Tensor| self.share(whole, self.rank);
        own(&buffer.f_detach()?.f_view(-1)?)?.f_copy_(&own(&sum)?)?;
        // The rest is undefined: a reader must not find the sum there by chance.
        for other in (0..self.world_size).filter(|rank| *rank != self.rank) {
            let _ = self.share(&buffer.f_detach()?.f_view(-1)?, other)?.f_fill_(UNDEFINED)?;
        }
        Ok(())
    }

    fn all_gather(&mut self, buffer: &mut Tensor) -> Result<()> {
        share_of(buffer, self.world_size)?;
        let parts = self.exchange("all_gather", None, Some(buffer))?;
        let shares = parts.iter().enumerate().map(|(rank, part)| self.share(part, rank)).collect::<Result<Vec<_>>>()?;
        fill(buffer, &Tensor::f_cat(&shares, 0)?)
    }

    fn barrier(&mut self) -> Result<()> {
        self.exchange("barrier", None, None).map(drop)
    }

    fn announce(&mut self, purpose: String, _after: Option<Event>) {
        self.purpose = purpose;
    }
}
