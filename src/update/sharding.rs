//! Sharded optimizer state, ZeRO stage 1 (Rajbhandari et al., arXiv 1910.02054): each rank keeps masters and moments of
//! one share of every segment, and updates that share alone.
//!
//! A step is then: reduce-scatter of the gradients (`reducer.rs`), update of the rank's own share (`optim/`), all-gather of
//! the new compute values ([`Gathers`]). A checkpoint, which needs whole masters, collects them on rank 0 ([`Shares`]). No
//! rank ever holds all of them: a model is loaded with its shares ([`Use::TrainShare`](crate::model::segment::Use)).

use crate::comm::{CommThread, Pending};
use crate::error::{Error, Result};
use crate::model::segment::{OptimizerState, OwnedPart, Segment};
use crate::model::weights::Model;
use crate::tensor;
use tch::{Device, Kind, Tensor};
use tracing::info;

/// Logs how much memory sharding saves a rank, if the state is sharded.
pub(crate) fn report(model: &Model, ranks: usize) {
    if is_sharded(model) {
        let whole: usize = model.segments.iter().filter(|segment| segment.trains()).map(unsharded_bytes).sum();
        info!(
            "optimizer state is sharded over {ranks} ranks: {:.1} MB a rank instead of {:.1} MB",
            state_bytes(model) as f64 / 1e6,
            whole as f64 / 1e6
        );
    }
}

/// Bytes of this rank's optimizer state.
pub fn state_bytes(model: &Model) -> usize {
    let bytes = |segment: &Segment| segment.state.as_ref().map(|own| own.owned.len() * bytes_of_an_element(segment));
    model.segments.iter().filter_map(bytes).sum()
}

fn unsharded_bytes(segment: &Segment) -> usize {
    segment.length() * bytes_of_an_element(segment)
}

/// Two moments and the master, unless the weights are f32 and the master is a view of them.
fn bytes_of_an_element(segment: &Segment) -> usize {
    if segment.weights.flat.kind() == Kind::Float { 8 } else { 12 }
}

/// Whether this rank holds masters of shares only.
pub(crate) fn is_sharded(model: &Model) -> bool {
    model.segments.iter().any(Segment::is_share)
}

/// The all-gathers of one update: new compute values of every share to every rank, while later segments are updated.
pub(crate) struct Gathers<'a> {
    comm: &'a CommThread,
    pending: Vec<Pending<Vec<Tensor>>>,
}

impl<'a> Gathers<'a> {
    /// Nothing under way yet.
    pub(crate) fn new(comm: &'a CommThread) -> Self {
        Self { comm, pending: Vec::new() }
    }

    /// Starts the all-gather of a segment whose own share was just updated; nothing if the segment is not sharded.
    pub(crate) fn updated(&mut self, number: usize, segment: &Segment) {
        if segment.is_share() {
            let purpose = format!("the values of bucket {number}");
            self.pending.push(self.comm.all_gather_together(purpose, vec![segment.weights.flat.shallow_clone()]));
        }
    }

    /// Waits until every rank's values have arrived.
    ///
    /// # Errors
    /// A lost rank or network.
    pub(crate) fn finish(self) -> Result<()> {
        self.pending.into_iter().try_for_each(|pending| pending.wait().map(drop))
    }
}

/// Optimizer state of which every rank holds a share, collected on rank 0 one parameter at a time, so that no more than one
/// is ever whole. State that is not sharded needs no message.
///
/// Rank 0 asks for parameters ([`Shares::whole`]) in any order and ends with [`Shares::done`]; meanwhile the other ranks
/// [`Shares::serve`].
pub struct Shares<'a> {
    comm: &'a CommThread,
    segments: &'a [Segment],
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

/// Rank 0's request: the numbers of a segment, of a parameter in it, and of a state. Negative: it needs nothing more.
type Request = [i64; 3];

const DONE: Request = [-1; 3];

impl<'a> Shares<'a> {
    /// Over a model's segments.
    pub fn new(comm: &'a CommThread, segments: &'a [Segment]) -> Self {
        Self { comm, segments }
    }

    /// Rank 0: the whole state of a parameter, f32 in its shape; collected on the CPU if it is sharded.
    ///
    /// # Errors
    /// A segment without such state, or a lost rank.
    pub fn whole(&self, segment: usize, index: usize, state: State) -> Result<Tensor> {
        let parameters = self.segments[segment].parameters();
        // Checked before the others are asked for theirs.
        let own = self.own(segment, state)?;
        if !self.segments[segment].is_share() {
            return Ok(parameters[index].view(own));
        }
        self.request(Some([segment, index, state as usize].map(|number| number as i64)))?;
        let parameter = &parameters[index];
        let whole = Tensor::f_empty([parameter.length as i64], (Kind::Float, Device::Cpu))?;
        self.bring(segment, index, state, Some(&whole))?;
        Ok(whole.f_view(parameter.shape.as_slice())?)
    }

    /// Rank 0: releases the others. Must be called even after a failure.
    ///
    /// # Errors
    /// A lost rank.
    pub fn done(self) -> Result<()> {
        if self.segments.iter().any(Segment::is_share) { self.request(Some(DONE)).map(drop) } else { Ok(()) }
    }

    /// All other ranks: send what rank 0 asks for, until it is done.
    ///
    /// # Errors
    /// A lost rank.
    pub fn serve(&self) -> Result<()> {
        while self.segments.iter().any(Segment::is_share) {
            let asked = self.request(None)?;
            if asked == DONE {
                break;
            }
            let [segment, index, state] = asked.map(|number| number as usize);
            self.bring(segment, index, STATES[state], None)?;
        }
        Ok(())
    }

    /// Rank 0's request, on every rank; one call site for all, since it identifies the collective.
    fn request(&self, own: Option<Request>) -> Result<Request> {
        let mut numbers = Tensor::from_slice(&own.unwrap_or(DONE));
        self.comm.broadcast(&mut numbers, 0)?;
        let numbers = tensor::slice::<i64>(&numbers)?;
        (*numbers).try_into().map_err(|_| Error::runtime("rank 0's request did not arrive whole"))
    }

    fn own(&self, segment: usize, state: State) -> Result<&'a Tensor> {
        self.state(segment).and_then(|own| of(own, state)).ok_or_else(|| lacks(segment, state))
    }

    fn state(&self, segment: usize) -> Option<&'a OptimizerState> {
        self.segments[segment].state.as_ref()
    }

    /// Broadcasts every rank's part of a parameter, one after the other, and copies it to `whole`, flat, if given.
    fn bring(&self, segment: usize, index: usize, state: State, whole: Option<&Tensor>) -> Result<()> {
        let (own, parameters) = (self.own(segment, state)?, self.segments[segment].parameters());
        let shares = self.state(segment).ok_or_else(|| lacks(segment, state))?;
        for rank in 0..self.comm.world_size() {
            let OwnedPart { in_owned, in_parameter } = shares.part_of(rank, parameters, index);
            if in_owned.is_empty() {
                continue;
            }
            let length = in_owned.len() as i64;
            let part = match rank == self.comm.rank() {
                true => own.f_narrow(0, in_owned.start as i64, length)?,
                false => Tensor::f_empty([length], (Kind::Float, own.device()))?,
            };
            // Only rank 0 needs the parts, and it has its own.
            if rank > 0 {
                let purpose = format!("the {state:?} state of bucket {segment}");
                self.comm.broadcast_together(purpose, &[part.shallow_clone()], rank)?;
            }
            if let Some(whole) = whole {
                whole.f_narrow(0, in_parameter.start as i64, length)?.f_copy_(&part)?;
            }
        }
        Ok(())
    }
}

fn of(own: &OptimizerState, state: State) -> Option<&Tensor> {
    let moment = |which: usize| own.moments.as_ref().map(|moments| &moments[which]);
    match state {
        State::Master => Some(&own.master),
        State::First => moment(0),
        State::Second => moment(1),
    }
}

fn lacks(segment: usize, state: State) -> Error {
    Error::runtime(format!("segment {segment} has no {state:?} state"))
}
