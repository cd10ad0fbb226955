//! A segment: the parameters of one stage of the model (embedding, a block, ...), and where their values live.
//!
//! [`Weights`] are what forward and backward read, in the compute kind; [`OptimizerState`] is what the optimizer updates,
//! in f32; a [`Bucket`] holds the gradient sums of a step, and belongs to whoever reduces them. All three are flat buffers
//! with one layout, [`Parameters`]; named tensors are views into them.

mod bucket;
mod parameters;
mod sizes;
mod state;
mod weights;

pub use bucket::Bucket;
pub(crate) use parameters::Parameter;
pub use parameters::Parameters;
pub(crate) use sizes::{Share, Sizes};
pub(crate) use state::{OptimizerState, OwnedPart};
pub use weights::Weights;

use super::declared::Declared;
use tch::{Device, Kind, Tensor};

/// The weights of one stage, with the optimizer's state if it is trained.
pub struct Segment {
    /// What forward and backward read.
    pub weights: Weights,
    /// What the optimizer updates; none if the stage is not trained.
    pub state: Option<OptimizerState>,
}

/// What a segment's buffers are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Forward, backward and updates: weights and masters.
    Train,
    /// The same if each rank updates a share: weights, and masters of this rank's share alone.
    TrainShare(Share),
    /// Forward only: just the weights.
    Evaluate,
}

impl Use {
    /// Training on rank `rank` of `ranks`, with all masters or, if `sharded`, those of a share.
    pub fn training(sharded: bool, rank: usize, ranks: usize) -> Self {
        if sharded && ranks > 1 { Self::TrainShare(Share { rank, ranks }) } else { Self::Train }
    }

    /// Whether there is an optimizer's state.
    pub(crate) fn trains(self) -> bool {
        self != Self::Evaluate
    }

    fn share(self) -> Option<Share> {
        if let Self::TrainShare(share) = self { Some(share) } else { None }
    }
}

impl Segment {
    /// Zero-filled buffers for the given parameters, of these [`Sizes`].
    pub fn new(declared: Vec<Declared>, kind: Kind, device: Device, purpose: Use) -> Self {
        let parameters = Parameters::new(declared);
        let sizes = Sizes::of(parameters.elements(), kind, purpose);
        let weights = Weights::over(parameters, Tensor::zeros([sizes.weights as i64], (kind, device)));
        let state = purpose.trains().then(|| OptimizerState::of(&weights.flat, purpose.share()));
        Self { weights, state }
    }

    /// A zeroed bucket for its gradient sums; none if it is not trained.
    pub fn bucket(&self) -> Option<Bucket> {
        let Weights { parameters, flat, .. } = &self.weights;
        self.trains().then(|| Bucket::zeros(parameters.clone(), flat.numel(), flat.device()))
    }

    /// Whether it is trained.
    pub fn trains(&self) -> bool {
        self.state.is_some()
    }

    /// Whether this rank holds masters of a share only.
    pub(crate) fn is_share(&self) -> bool {
        self.state.as_ref().is_some_and(OptimizerState::is_share)
    }

    /// Whether these masters also have memory of their own: then they do not follow from the weights, which are rounded.
    pub fn holds_share_of_masters(&self) -> bool {
        self.is_share() && self.weights.flat.kind() != Kind::Float
    }

    /// Its parameters, in the order of its buffers.
    pub fn parameters(&self) -> &Parameters {
        &self.weights.parameters
    }

    /// Number of elements of its parameters.
    pub fn length(&self) -> usize {
        self.parameters().elements()
    }

    /// The values of the parameter at `index`: the master if this rank holds all of it, else the weights.
    pub fn value(&self, index: usize) -> Tensor {
        let whole = self.state.as_ref().filter(|state| !state.is_share()).map(|state| &state.master);
        self.parameters()[index].view(whole.unwrap_or(&self.weights.flat))
    }

    /// Sets the parameter at `index` from a tensor of its shape, in any kind.
    pub fn set(&mut self, index: usize, value: &Tensor) {
        if let Some(state) = &self.state {
            state.write_owned(&state.master, self.parameters(), index, value);
        }
        self.weights.view(index).shallow_clone().copy_(value);
    }

    /// Copies the masters to the weights after an update, in the range that this rank owns.
    pub(crate) fn refresh_weights(&mut self) {
        if let Some(state) = &self.state
            && self.weights.flat.kind() != Kind::Float
        {
            state.owned_of(&self.weights.flat).copy_(&state.master);
        }
    }
}
