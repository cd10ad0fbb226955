//! Packs a rank's micro-batches on a thread of its own, a few ahead and across the borders of steps, so that no step
//! waits for its data.
//!
//! The batches depend on the step's number alone, not on how far ahead the thread is.
//! Not here: which pairs make a step (`sampler.rs`), and what is done with them.

use super::batch::{PackedBatch, Packing};
use super::sampler::{self, Sampler};
use super::split::Split;
use crate::error::{Error, Result};
use crossbeam::channel::{Receiver, bounded};
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use tch::Device;
use tracing::trace_span;

/// Most packed micro-batches that wait; the thread works on one more.
const AHEAD: usize = 4;

/// The pairs that one rank computes at a time.
pub struct MicroBatch {
    /// The step it belongs to, from 0.
    pub step: usize,
    /// Whether it is this rank's last of the step.
    pub last: bool,
    /// Pairs of the step's global batch, on all ranks together.
    pub(crate) global_pairs: usize,
    /// Its pairs. A rank that a step leaves without pairs gets one batch without pairs.
    pub batch: PackedBatch,
}

/// How a rank's share of the global batches becomes micro-batches.
#[derive(Clone)]
pub struct Share {
    /// Which pairs make a global batch.
    pub sampler: Sampler,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Most tokens of a micro-batch, unless one pair has more.
    pub tokens_per_micro_batch: usize,
    /// How pairs are packed.
    pub packing: Packing,
    /// The tensors' device.
    pub device: Device,
}

/// The packing thread. Dropping it stops the thread and waits for its end.
pub struct Prefetch {
    /// `None` only while it is dropped.
    batches: Option<Receiver<MicroBatch>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts packing the micro-batches of these steps, in order.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(split: Arc<Split>, mut share: Share, steps: Range<usize>) -> Result<Self> {
        let (sender, batches) = bounded(AHEAD);
        let body = move || {
            for step in steps {
                // The receiver is gone if the run ends before its last step.
                if share.of_step(&split, step).try_for_each(|micro_batch| sender.send(micro_batch)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("prefetch".into())
            .spawn(body)
            .map_err(|error| Error::runtime(format!("cannot start the prefetch thread: {error}")))?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// The next micro-batch.
    ///
    /// # Errors
    /// All micro-batches are delivered, or the thread has ended early.
    pub fn next(&self) -> Result<MicroBatch> {
        let _span = trace_span!("wait for batch").entered();
        let next = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        next.ok_or_else(|| Error::runtime("no micro-batch is left: the prefetch thread has ended"))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // The thread may be waiting for room in the channel: without a receiver it stops.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Share {
    /// This rank's micro-batches of a step, from 0, packed one after the other.
    pub(crate) fn of_step<'a>(&'a mut self, split: &'a Split, step: usize) -> impl Iterator<Item = MicroBatch> + 'a {
        let pairs = self.sampler.global_batch(step);
        let tokens: Vec<usize> = pairs.iter().map(|&pair| split.tokens(pair, self.packing)).collect();
        let mut shares = sampler::share_out(&tokens, self.world_size, self.tokens_per_micro_batch);
        let mut mine = shares.swap_remove(self.rank);
        if mine.is_empty() {
            mine.push(Vec::new());
        }
        let last = mine.len() - 1;
        let (packing, device, global_pairs) = (self.packing, self.device, pairs.len());
        mine.into_iter().enumerate().map(move |(number, places)| {
            let members: Vec<usize> = places.into_iter().map(|place| pairs[place]).collect();
            let batch = trace_span!("pack").in_scope(|| split.pack(&members, packing, device));
            MicroBatch { step, last: number == last, global_pairs, batch }
        })
    }
}
