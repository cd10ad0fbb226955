//! Predicts the memory and time of a run, on this machine or on hardware known only from its data sheet.
//!
//! Pure functions on plain values, except `here.rs`. Facts come from the model's description and the data's lengths; assumptions
//! are named values in `hardware.rs`, `memory.rs` or `time.rs`. Not here: reading files and printing
//! (`commands/plan/`).

pub(crate) mod assumptions;
pub mod hardware;
pub(crate) mod here;
pub mod memory;
pub mod scaling;
pub mod shapes;
pub(crate) mod stages;
pub mod time;
pub mod workload;

use crate::config::Config;
use crate::error::Result;
use crate::model::architecture::Architecture;
use crate::model::declared::Declared;
use crate::model::layout::{Part, active_elements};
use crate::model::lora::Lora;
use crate::model::segment::{Sizes, Use};
use tch::Kind;

/// What is trained and how: everything that memory and time depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The model.
    pub architecture: Architecture,
    /// Kind that the model computes in.
    pub kind: Kind,
    /// Whether answer log-probs are computed, with the language-model head.
    pub policy: bool,
    /// Whether blocks are recomputed in the backward pass.
    pub checkpointing: bool,
    /// Tokens of a micro-batch.
    pub tokens_per_micro_batch: usize,
    /// Whether each rank keeps masters and moments for its share only.
    pub sharded: bool,
    /// Whether a GPU computes in one order every time.
    pub deterministic: bool,
    /// The adapters that are trained in place of the weights.
    pub lora: Option<Lora>,
}

/// One segment of the model: a bucket of the reducer if it trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The part of the model.
    pub part: Part,
    /// Its number of parameters.
    pub elements: usize,
    /// Elements of its largest parameter.
    pub(crate) largest_parameter: usize,
    /// The kind that it is computed in.
    pub(crate) kind: Kind,
    /// Whether it has a gradient, a master and moments.
    pub(crate) trains: bool,
}

impl Bucket {
    /// Elements of its buffers on one of `ranks` ranks, each of which keeps a share of the state if it is `sharded`.
    pub(crate) fn sizes(&self, sharded: bool, ranks: usize) -> Sizes {
        let purpose = if self.trains { Use::training(sharded, 0, ranks) } else { Use::Evaluate };
        Sizes::of(self.elements, self.kind, purpose)
    }
}

impl Job {
    /// The job of a config, computed in `kind`.
    ///
    /// # Errors
    /// An adapter on a projection that the model does not have.
    pub(crate) fn new(config: &Config, architecture: Architecture, kind: Kind) -> Result<Self> {
        Ok(Self {
            lora: config.lora.as_ref().map(|lora| Lora::new(lora, &architecture)).transpose()?,
            architecture,
            kind,
            policy: config.loss.needs_policy(),
            checkpointing: config.train.activation_checkpointing,
            tokens_per_micro_batch: config.train.tokens_per_micro_batch,
            sharded: config.parallel.shard_optimizer,
            deterministic: config.parallel.deterministic,
        })
    }

    /// The model's segments in the order of the forward pass, as `Model::load` makes them from a folder that holds every
    /// weight: an untied language-model head that the loss does not need is loaded, but not trained.
    pub fn buckets(&self) -> Vec<Bucket> {
        let frozen = self.lora.is_some();
        let elements = |one: &Declared| one.shape.iter().product::<i64>() as usize;
        let bucket = |part: Part, parameters: &[Declared]| Bucket {
            part,
            elements: parameters.iter().map(elements).sum(),
            largest_parameter: parameters.iter().map(elements).max().unwrap_or(0),
            kind: match part {
                Part::RewardHead | Part::Adapter(_) => Kind::Float,
                _ => self.kind,
            },
            trains: match part {
                Part::RewardHead | Part::Adapter(_) => true,
                Part::LanguageModelHead => !frozen && self.policy,
                _ => !frozen,
            },
        };
        let base = Part::all(&self.architecture);
        let mut buckets: Vec<Bucket> =
            base.into_iter().map(|part| bucket(part, &part.parameters(&self.architecture))).collect();
        if let Some(lora) = &self.lora {
            let blocks = 0..self.architecture.blocks.len();
            buckets
                .extend(blocks.map(|block| bucket(Part::Adapter(block), &lora.parameters(&self.architecture, block))));
        }
        buckets
    }

    /// Bytes per number in the compute kind.
    pub(crate) fn compute_bytes(&self) -> usize {
        self.kind.elt_size_in_bytes()
    }

    /// Parameters that a token passes: those of all blocks and the final norm; of experts only those chosen for it.
    pub fn backbone(&self) -> usize {
        let passed = |bucket: &Bucket| match bucket.part {
            Part::Block(number) => active_elements(&self.architecture, number),
            Part::Norm => bucket.elements,
            _ => 0,
        };
        self.buckets().iter().map(passed).sum()
    }

    /// All parameters.
    pub(crate) fn parameters(&self) -> usize {
        self.buckets().iter().map(|bucket| bucket.elements).sum()
    }

    /// Parameters that are trained.
    pub(crate) fn trained(&self) -> usize {
        self.buckets().iter().filter(|bucket| bucket.trains).map(|bucket| bucket.elements).sum()
    }
}
