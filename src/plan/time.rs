//! Predicts the time of a step: products at the assumed rate, the update at the memory's bandwidth, and reductions that overlap
//! with the last micro-batch's backward pass.
//!
//! The timeline follows the step plan (`model/order.rs`): one bucket per segment, reduced in groups as soon as their
//! gradients are complete, from the last segment to the first, one group after the other on one stream. Not here: memory.

use super::hardware::Hardware;
use super::workload::Shape;
use super::{Bucket, Job};
use crate::model::decoder::Part;
use crate::model::order::{completions, reductions};
use crate::ops::cuda::{self, Libtorch, launches::BLOCK};
use serde::Serialize;

/// Kernels that a block starts if attention is not one call, forward and backward: (fixed, and for each pair). Estimates.
const LAUNCHES: [(f64, f64); 2] = [(40.0, 20.0), (75.0, 50.0)];

/// Bytes that an update moves per parameter, without the compute copy. On the CPU, in one pass (`optim::update_piece`): the
/// gradient is read for the norm and for the update, then cleared (12), masters and moments are read and written (24).
const CPU_UPDATE: f64 = 36.0;

/// The same on a GPU, where `ops/tensors/adamw.rs` runs about seventeen tensor operations, each of which reads and writes memory.
const GPU_UPDATE: f64 = 171.0;

/// Two small reductions a step: the metrics, and the gradient norm with the vote on it.
const SMALL_REDUCTIONS: f64 = 2.0;

/// The parts of a step's time in seconds, for the rank that finishes last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StepTime {
    /// Forward and backward of all micro-batches.
    pub(crate) compute: f64,
    /// Reducing all buckets; with sharded state also gathering the new values.
    pub communication: f64,
    /// Of `communication`, the part that overlaps with the backward pass or the update.
    pub hidden: f64,
    /// Of `communication`, the part that the step waits for.
    pub exposed: f64,
    /// The optimizer's update.
    pub update: f64,
    /// Small messages.
    pub(crate) control: f64,
    /// FLOPs for this rank's pairs, without recomputation.
    pub(crate) useful_flops: f64,
}

impl StepTime {
    /// The whole step.
    pub fn seconds(&self) -> f64 {
        self.compute + self.exposed + self.update + self.control
    }

    /// The time of a step with `ranks` ranks, for one rank's micro-batches.
    pub fn of(counted: &Counted, hardware: &Hardware, ranks: usize, micro_batches: &[Shape]) -> Self {
        let Counted { job, buckets, .. } = counted;
        let trained: usize = buckets.iter().filter(|bucket| bucket.trains).map(|bucket| bucket.elements).sum();
        let trained = trained as f64;
        let copies = if job.compute_bytes() == 4 { 0.0 } else { job.compute_bytes() as f64 };
        let update = if hardware.cpu { CPU_UPDATE } else { GPU_UPDATE };
        // Sharded, a rank updates only its share. A reduce-scatter of the gradients is half an all-reduce, and the all-gather
        // of the new values is the other half.
        let (shares, half) = if job.sharded { (ranks as f64, 0.5) } else { (1.0, 1.0) };
        let mut time = Self {
            update: hardware.stream(trained * (update + copies) / shares),
            control: SMALL_REDUCTIONS * hardware.all_reduce(ranks, 0.0),
            useful_flops: micro_batches.iter().map(|shape| counted.useful_flops(shape)).sum(),
            ..Self::default()
        };
        for shape in micro_batches {
            time.compute += Costs::of(counted, hardware, shape).all(job.architecture.blocks.len());
        }
        let ready = ready_times(counted, hardware, micro_batches, time.compute);
        let mut stream_free: f64 = 0.0;
        let parts: Vec<Part> = buckets.iter().map(|bucket| bucket.part).collect();
        let trains = |at: usize| buckets[at].trains.then_some(buckets[at].elements);
        for group in reductions(&completions(&parts), trains) {
            let elements: usize = group.iter().map(|&at| buckets[at].elements).sum();
            let ready = group.iter().map(|&at| ready[at]).fold(0.0, f64::max);
            let seconds = half * hardware.all_reduce(ranks, 4.0 * elements as f64);
            time.communication += seconds;
            stream_free = stream_free.max(ready) + seconds;
        }
        let waited = if hardware.overlaps { stream_free - time.compute } else { time.communication };
        time.exposed = waited.clamp(0.0, time.communication);
        if job.sharded {
            let values = |bucket: &Bucket| (bucket.kind.elt_size_in_bytes() * bucket.elements) as f64;
            let gathers = buckets.iter().filter(|bucket| bucket.trains).map(values);
            let gathering: f64 = gathers.map(|bytes| 0.5 * hardware.all_reduce(ranks, bytes)).sum();
            // A segment's values are gathered while the next one is updated.
            let hidden = if hardware.overlaps { time.update.min(gathering) } else { 0.0 };
            time.communication += gathering;
            time.exposed += gathering - hidden;
        }
        time.hidden = time.communication - time.exposed;
        time
    }
}

/// A job and its parameter counts, computed once for many micro-batches.
#[derive(Debug, Clone)]
pub struct Counted<'j> {
    job: &'j Job,
    buckets: Vec<Bucket>,
    /// Parameters of all blocks and the final norm.
    backbone: usize,
    /// Parameters of all adapters.
    adapters: usize,
}

impl<'j> Counted<'j> {
    /// Counts the parameters of a job.
    pub fn new(job: &'j Job) -> Self {
        let buckets = job.buckets();
        let of_adapters = |bucket: &&Bucket| matches!(bucket.part, Part::Adapter(_));
        let adapters = buckets.iter().filter(of_adapters).map(|bucket| bucket.elements).sum();
        Self { job, backbone: job.backbone(), adapters, buckets }
    }

    /// [`useful_flops`].
    fn useful_flops(&self, shape: &Shape) -> f64 {
        let Flops { block, block_backward, head, head_backward } = Flops::of(self, shape);
        self.job.architecture.blocks.len() as f64 * (block + block_backward) + head + head_backward
    }
}

/// Useful FLOPs of a micro-batch: 6 per backbone parameter and token, 6 V D per answer token with log-probs, and attention; 4
/// instead of 6 for a frozen parameter. Too high where an attention window is shorter than the sequences, and for the last block,
/// whose MLP is computed only for the rows that are read.
pub fn useful_flops(job: &Job, shape: &Shape) -> f64 {
    Counted::new(job).useful_flops(shape)
}

/// FLOPs of both passes.
struct Flops {
    block: f64,
    block_backward: f64,
    head: f64,
    head_backward: f64,
}

impl Flops {
    fn of(counted: &Counted, shape: &Shape) -> Self {
        let job = counted.job;
        let a = &job.architecture;
        let linear = 2.0 * counted.backbone as f64 / a.blocks.len() as f64 * shape.tokens as f64;
        // Query times key and weight times value: two products of E for each head and visible pair.
        let heads = a.blocks[0].heads;
        let attention = 4.0 * (heads.query * heads.width) as f64 * shape.visible as f64;
        let head = if job.policy { 2.0 * (a.vocabulary * a.width) as f64 * shape.answers as f64 } else { 0.0 };
        // A backward pass has two products for each forward one; a frozen weight needs only that for the input's gradient.
        let backward = if job.lora.is_some() { 1.0 } else { 2.0 };
        let adapters = 2.0 * counted.adapters as f64 / a.blocks.len() as f64 * shape.tokens as f64;
        Self {
            block: linear + attention + adapters,
            block_backward: backward * linear + 2.0 * (attention + adapters),
            head,
            head_backward: backward * head,
        }
    }
}

/// Kernels that a block starts on a GPU for `pairs` pairs, forward and backward: counted for Llama (`ops/cuda/launches.rs`)
/// and assumed for all families.
pub(crate) fn launches(job: &Job, pairs: f64) -> [f64; 2] {
    let mut blocks = job.architecture.blocks.iter();
    match blocks.all(|block| cuda::takes(&Libtorch, job.kind, block.heads, &block.rules)) {
        true => BLOCK.map(|kernels| kernels as f64),
        false => LAUNCHES.map(|(fixed, each)| fixed + each * pairs),
    }
}

/// Seconds per stage of a micro-batch.
struct Costs {
    block_forward: f64,
    /// Recomputation included.
    block_backward: f64,
    /// Both heads, forward and backward.
    heads: f64,
}

impl Costs {
    fn of(counted: &Counted, hardware: &Hardware, shape: &Shape) -> Self {
        let flops = Flops::of(counted, shape);
        let pairs = shape.pairs as f64;
        let [forward, backward] = launches(counted.job, pairs).map(|kernels| kernels * hardware.launch);
        let block_forward = (flops.block / hardware.rate()).max(forward);
        let recomputed = if counted.job.checkpointing { block_forward } else { 0.0 };
        let block_backward = (flops.block_backward / hardware.rate()).max(backward) + recomputed;
        Self { block_forward, block_backward, heads: (flops.head + flops.head_backward) / hardware.rate() }
    }

    fn all(&self, layers: usize) -> f64 {
        layers as f64 * (self.block_forward + self.block_backward) + self.heads
    }
}

/// When each bucket is complete, in the order of [`Job::buckets`], on a clock on which the last backward pass ends at
/// `end`. A tied vocabulary weight is in the embedding's bucket, which is complete last.
fn ready_times(counted: &Counted, hardware: &Hardware, micro_batches: &[Shape], end: f64) -> Vec<f64> {
    let last = micro_batches.last().copied().unwrap_or_default();
    let block = Costs::of(counted, hardware, &last).block_backward;
    let layers = counted.job.architecture.blocks.len() as f64;
    let ready = |bucket: &Bucket| match bucket.part {
        Part::Embedding => end,
        Part::Block(index) | Part::Adapter(index) => end - index as f64 * block,
        Part::Norm | Part::LanguageModelHead | Part::RewardHead => end - layers * block,
    };
    counted.buckets.iter().map(ready).collect()
}
