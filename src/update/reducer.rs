//! Starts the reduction of gradient buckets as soon as they are complete, grouped by the step plan, and waits for all of
//! them at the step's end. Also places the buckets in the memory where reduction is fastest. With sharded optimizer state
//! (`sharding.rs`) a rank gets only the sums of its share.
//!
//! A bucket is moved in by `complete` and moved back by `finish`, so that nobody else adds to it in between.

use crate::comm::{CommThread, Pending};
use crate::engine::{Buckets, GradientSink};
use crate::error::Result;
use crate::model::order::Reductions;
use crate::model::segment::Bucket;
use crate::model::weights::Model;
use tch::{Kind, Tensor};
use tracing::info;

/// Zeroed buckets for a model; on the CPU in memory that the ranks of a node share, if the backend has it. All ranks must
/// call it, with the same model.
///
/// # Errors
/// A lost rank or network, or a device out of memory.
pub fn buckets(model: &Model, comm: &CommThread) -> Result<Buckets> {
    let trained = model.segments.iter().filter(|segment| segment.trains());
    let lengths: Vec<usize> = trained.map(|segment| segment.weights.flat.numel()).collect();
    let Some(flats) = comm.shared_buffers_on(model.device, &lengths)? else { return Buckets::of(model) };
    let mut flats = flats.into_iter();
    let shared = model.segments.iter().map(|segment| {
        let flat = segment.trains().then(|| flats.next())??;
        Some(Bucket::over(segment.parameters().clone(), flat))
    });
    let megabytes = (lengths.iter().sum::<usize>() * size_of::<f32>()) as f64 / 1e6;
    info!("the {} ranks of a node share the memory of their gradients, {megabytes:.0} MB each", comm.local().size);
    Ok(Buckets::from_each(shared))
}

/// The reductions of one step.
pub struct Reducer<'a> {
    comm: &'a CommThread,
    /// Where buckets come from, and go back to when they are reduced.
    buckets: &'a mut Buckets,
    /// Which of them are reduced together.
    plan: Reductions,
    kind: Kind,
    /// Whether a rank gets only its own shares.
    scatters: bool,
    /// Complete buckets whose group is not complete.
    held: Vec<(usize, Bucket)>,
    pending: Vec<Sent>,
}

/// Buckets that are reduced together.
struct Sent {
    buckets: Vec<(usize, Bucket)>,
    sums: Pending<Vec<Tensor>>,
}

impl<'a> Reducer<'a> {
    /// A reducer of these buckets with nothing under way, which adds up in f32.
    pub fn new(comm: &'a CommThread, buckets: &'a mut Buckets, plan: Reductions) -> Self {
        Self { comm, buckets, plan, kind: Kind::Float, scatters: false, held: Vec::new(), pending: Vec::new() }
    }

    /// The same, adding up in `kind`: bf16 halves the data sent and keeps 8 significant bits of each partial sum.
    pub fn summing_in(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The same; if `scatters`, a rank gets only the sums of its own share of each bucket, and the other shares are
    /// undefined afterwards.
    pub(crate) fn scattering(self, scatters: bool) -> Self {
        Self { scatters, ..self }
    }

    /// Waits until every bucket holds the sum over all ranks, or this rank's share of it, and puts it back.
    ///
    /// # Errors
    /// A lost rank or network.
    pub fn finish(mut self) -> Result<()> {
        self.send()?;
        for Sent { buckets, sums } in self.pending {
            for ((segment, bucket), sum) in buckets.into_iter().zip(sums.wait()?) {
                if self.kind != Kind::Float {
                    bucket.flat().shallow_clone().f_copy_(&sum)?;
                }
                self.buckets.complete(segment, bucket)?;
            }
        }
        Ok(())
    }

    /// Starts the reduction of the held buckets.
    fn send(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let buckets: Vec<_> = self.held.drain(..).collect();
        let numbers: Vec<_> = buckets.iter().map(|(segment, _)| segment.to_string()).collect();
        let purpose = format!("bucket{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(" and "));
        // In f32 this is a shallow clone: the sum is written to the bucket's own memory.
        let sent = buckets.iter().map(|(_, bucket)| bucket.flat().f_to_kind(self.kind));
        let sent = sent.collect::<std::result::Result<_, _>>()?;
        let sums = match self.scatters {
            true => self.comm.reduce_scatter_together(purpose, sent),
            false => self.comm.all_reduce_together(purpose, sent),
        };
        self.pending.push(Sent { buckets, sums });
        Ok(())
    }
}

impl GradientSink for Reducer<'_> {
    fn lend(&mut self, segment: usize) -> Result<Option<Bucket>> {
        self.buckets.lend(segment)
    }

    fn complete(&mut self, segment: usize, bucket: Bucket) -> Result<()> {
        self.held.push((segment, bucket));
        let whole = self.plan.iter().any(|group| group.last() == Some(&segment));
        if whole { self.send() } else { Ok(()) }
    }
}
