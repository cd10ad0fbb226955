//! Sharded optimiser state, ZeRO stage 1 (Rajbhandari et al., arXiv 1910.02054): each rank keeps masters and moments of
//! one share of every segment, and updates that share alone.
//!
//! A step then goes: reduce-scatter of the gradients (`reducer.rs`), update of the own share (`optim/`), all-gather of
//! the new compute values ([`Spread`]). What needs whole masters, a checkpoint, collects them on rank 0 ([`Shares`]).

use crate::comm::{CommThread, Pending};
use crate::error::{Error, Result};
use crate::model::segment::{OptimizerState, Segment};
use crate::model::weights::Model;
use crate::tensor;
use std::cell::RefCell;
use tch::{Kind, Tensor};
use tracing::info;

/// Leaves each rank the masters of its share; to be called once the ranks' starting weights are the same, and before
/// the moments are made. Until then a rank holds whole masters, and no moments yet.
pub fn shard(model: &mut Model, comm: &CommThread) {
    let whole = state_bytes(model);
    model.segments.iter_mut().for_each(|segment| segment.keep_share(comm.rank(), comm.world_size()));
    info!(
        "optimiser state is sharded over {} ranks: {:.1} MB a rank instead of {:.1} MB",
        comm.world_size(),
        state_bytes(model) as f64 / 1e6,
        whole as f64 / 1e6
    );
}

/// Bytes of this rank's optimiser state: two moments for every master, and the master where it has memory of its own (it
/// is a view of the weights where these are f32).
pub fn state_bytes(model: &Model) -> usize {
    let tensors = |segment: &Segment| if segment.weights.flat.kind() == Kind::Float { 2 } else { 3 };
    let bytes = |segment: &Segment| segment.state.as_ref().map(|own| tensors(segment) * own.owned.len() * 4);
    model.segments.iter().filter_map(bytes).sum()
}

/// Whether this rank holds masters of shares only.
pub fn is_sharded(model: &Model) -> bool {
    model.segments.iter().any(Segment::is_share)
}

/// The all-gathers of one update: new compute values of every share to every rank, while later segments are updated.
pub struct Spread<'a> {
    comm: &'a CommThread,
    pending: Vec<Pending<Vec<Tensor>>>,
}

impl<'a> Spread<'a> {
    /// Nothing under way yet.
    pub fn new(comm: &'a CommThread) -> Self {
        Self { comm, pending: Vec::new() }
    }

    /// Starts it for the segment of that number, whose own share is new; nothing where the segment is whole.
    pub fn updated(&mut self, number: usize, segment: &Segment) {
        if segment.is_share() {
            let purpose = format!("the values of bucket {number}");
            self.pending.push(self.comm.all_gather_together(purpose, vec![segment.weights.flat.shallow_clone()]));
        }
    }

    /// Waits until every rank's values are there.
    ///
    /// # Errors
    /// A rank or the network is gone.
    pub fn finish(self) -> Result<()> {
        self.pending.into_iter().try_for_each(|pending| pending.wait().map(drop))
    }
}

/// State that all ranks hold shares of, collected on rank 0 one segment at a time: never is more than two segments'
/// state whole. Where nothing is sharded it is at hand, and no message is sent.
///
/// Rank 0 asks ([`Shares::whole`]) in any order and at last says that it is [`Shares::done`]; the other ranks
/// [`Shares::serve`] meanwhile.
pub struct Shares<'a> {
    comm: &'a CommThread,
    segments: &'a [Segment],
    /// The last two tensors: a moment's two halves are asked for in turn.
    cache: RefCell<Vec<((usize, State), Tensor)>>,
}

/// Which state of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The f32 master.
    Master,
    /// The first moment.
    First,
    /// The second moment.
    Second,
}

const STATES: [State; 3] = [State::Master, State::First, State::Second];

/// What rank 0 sends when it needs nothing more.
const DONE: i64 = -1;

impl<'a> Shares<'a> {
    /// Over a model's segments.
    pub fn new(comm: &'a CommThread, segments: &'a [Segment]) -> Self {
        Self { comm, segments, cache: RefCell::default() }
    }

    /// Rank 0: a segment's whole state, flat f32.
    ///
    /// # Errors
    /// A segment without such state, or a lost rank.
    pub fn whole(&self, segment: usize, state: State) -> Result<Tensor> {
        if !self.segments[segment].is_share() {
            return Ok(self.own(segment, state)?.shallow_clone());
        }
        let key = (segment, state);
        if let Some((_, known)) = self.cache.borrow().iter().find(|(other, _)| *other == key) {
            return Ok(known.shallow_clone());
        }
        let mut cache = self.cache.borrow_mut();
        if cache.len() == 2 {
            drop(cache.remove(0));
        }
        // Before the others are asked to bring theirs.
        self.own(segment, state)?;
        self.number(Some((segment * STATES.len()) as i64 + state as i64))?;
        let whole = self.gather(segment, state)?;
        cache.push((key, whole.shallow_clone()));
        Ok(whole)
    }

    /// Rank 0: lets the others go. To be called whatever has become of what the state was for.
    ///
    /// # Errors
    /// A lost rank.
    pub fn done(self) -> Result<()> {
        if self.segments.iter().any(Segment::is_share) { self.number(Some(DONE)).map(drop) } else { Ok(()) }
    }

    /// All other ranks: brings what rank 0 asks for, until it is done.
    ///
    /// # Errors
    /// A lost rank.
    pub fn serve(&self) -> Result<()> {
        while self.segments.iter().any(Segment::is_share) {
            let asked = self.number(None)?;
            let Ok(asked) = usize::try_from(asked) else { break };
            drop(self.gather(asked / STATES.len(), STATES[asked % STATES.len()])?);
        }
        Ok(())
    }

    /// Rank 0's number, on every rank: all of them must come from this one place.
    fn number(&self, own: Option<i64>) -> Result<i64> {
        let mut number = Tensor::from_slice(&[own.unwrap_or(DONE)]);
        self.comm.broadcast(&mut number, 0)?;
        Ok(tensor::slice::<i64>(&number)?[0])
    }

    fn own(&self, segment: usize, state: State) -> Result<&'a Tensor> {
        let moment = |own: &'a OptimizerState, which: usize| own.moments.as_ref().map(|moments| &moments[which]);
        let own = self.segments[segment].state.as_ref().and_then(|own| match state {
            State::Master => Some(&own.master),
            State::First => moment(own, 0),
            State::Second => moment(own, 1),
        });
        own.ok_or_else(|| Error::runtime(format!("segment {segment} has no {state:?} state")))
    }

    fn gather(&self, segment: usize, state: State) -> Result<Tensor> {
        let own = self.own(segment, state)?;
        let elements = own.numel() as i64;
        let whole = elements * self.comm.world_size() as i64;
        let whole = Tensor::empty([whole], (Kind::Float, own.device()));
        whole.narrow(0, elements * self.comm.rank() as i64, elements).copy_(own);
        let purpose = format!("the {state:?} state of bucket {segment}");
        let mut whole = self.comm.all_gather_together(purpose, vec![whole]).wait()?;
        Ok(whole.swap_remove(0))
    }
}
