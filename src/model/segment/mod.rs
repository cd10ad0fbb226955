//! A segment: the parameters of one stage of the model (embedding, a block, ...), and where their values live.
//!
//! [`Weights`] are what forward and backward read, in the compute kind; [`OptimizerState`] is what the optimiser updates,
//! in f32; a [`Bucket`] holds the gradient sums of a step, and belongs to whoever reduces them. All three are flat buffers
//! with one layout, [`Parameters`]; named tensors are views into them.

mod bucket;
mod parameters;
mod state;
mod weights;

pub use bucket::Bucket;
pub use parameters::{Parameter, Parameters};
pub use state::OptimizerState;
pub use weights::Weights;

use super::declared::Declared;
use tch::{Device, Kind, Tensor};

/// The weights of one stage, with the optimiser's state where it is trained.
pub struct Segment {
    /// What forward and backward read.
    pub weights: Weights,
    /// What is updated; none where nothing is trained.
    pub state: Option<OptimizerState>,
}

/// What a segment's buffers are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Forward, backward and updates: weights and masters.
    Train,
    /// Forward only: just the weights.
    Evaluate,
}

impl Segment {
    /// Zero-filled buffers for the given parameters.
    pub fn new(declared: Vec<Declared>, kind: Kind, device: Device, purpose: Use) -> Self {
        let parameters = Parameters::new(declared);
        let weights = Weights::zeros(parameters, kind, device);
        let master = || match kind {
            Kind::Float => weights.flat.shallow_clone(),
            _ => Tensor::zeros([weights.flat.numel() as i64], (Kind::Float, device)),
        };
        let state = (purpose == Use::Train).then(|| OptimizerState::whole(master()));
        Self { weights, state }
    }

    /// Keeps the masters of share number `rank` of `ranks` equal shares and frees the others, and all moments. The weights
    /// stay whole, and grow until the shares are equal. Nothing happens where nothing is trained.
    pub fn keep_share(&mut self, rank: usize, ranks: usize) {
        let Some(state) = self.state.take() else { return };
        let Weights { parameters, flat, ops, .. } = &self.weights;
        let length = parameters.elements();
        let grown = Tensor::zeros([state::padded(length, ranks) as i64], (flat.kind(), flat.device()));
        grown.narrow(0, 0, length as i64).copy_(flat);
        self.state = Some(OptimizerState::share_of(&state.master, &grown, rank, ranks));
        let ops = *ops;
        self.weights = Weights::over(parameters.clone(), grown);
        self.weights.ops = ops;
    }

    /// A bucket for its gradient sums, zeroed; none where nothing is trained.
    pub fn bucket(&self) -> Option<Bucket> {
        let Weights { parameters, flat, .. } = &self.weights;
        self.trains().then(|| Bucket::zeros(parameters.clone(), flat.numel(), flat.device()))
    }

    /// Whether it is trained.
    pub fn trains(&self) -> bool {
        self.state.is_some()
    }

    /// Whether this rank holds masters of a share only.
    pub fn is_share(&self) -> bool {
        self.state.as_ref().is_some_and(OptimizerState::is_share)
    }

    /// Its parameters, in the order of its buffers.
    pub fn parameters(&self) -> &Parameters {
        &self.weights.parameters
    }

    /// Number of elements of its parameters.
    pub fn length(&self) -> usize {
        self.parameters().elements()
    }

    /// The values of the parameter at `index`: the master where this rank holds all of it, else the weights.
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
    pub fn refresh_weights(&mut self) {
        if let Some(state) = &self.state
            && self.weights.flat.kind() != Kind::Float
        {
            state.owned_of(&self.weights.flat).copy_(&state.master);
        }
    }
}
