//! Starts the reduction of a gradient bucket the moment it is complete, and waits for all of them at the step's end;
//! and puts the buckets where they are reduced fastest. With sharded optimiser state (`sharding.rs`) a rank gets the sums
//! of its share only.
//!
//! A bucket belongs to the communication thread from `complete` to `finish`; nothing else may touch it between.

use crate::comm::{CommThread, Pending};
use crate::engine::GradientSink;
use crate::error::Result;
use crate::model::segment::Segment;
use crate::model::weights::Model;
use crate::tensor;
use tch::{Device, Kind, Tensor};
use tracing::info;

/// Elements below which a bucket goes together with the next: a final norm and a reward head are worth no call each.
const SMALL: usize = 1 << 14;

/// Moves the gradient buckets of a model on the CPU to memory that the ranks of a node share, where the backend has
/// such. What they hold is lost. All ranks must call it, with the same model, before its first forward pass.
///
/// # Errors
/// A rank or the network is gone.
pub fn share_gradients(model: &mut Model, comm: &CommThread) -> Result<()> {
    if model.device != Device::Cpu {
        return Ok(());
    }
    let mut trained: Vec<&mut Segment> = model.segments.iter_mut().filter(|segment| segment.trains()).collect();
    let lengths: Vec<usize> =
        trained.iter().map(|segment| segment.gradient.as_ref().map_or(0, tensor::count)).collect();
    let Some(buffers) = comm.shared_buffers(&lengths)? else { return Ok(()) };
    trained.iter_mut().zip(buffers).for_each(|(segment, buffer)| segment.adopt_gradient(buffer));
    let megabytes = (lengths.iter().sum::<usize>() * size_of::<f32>()) as f64 / 1e6;
    info!("the {} ranks of a node share the memory of their gradients, {megabytes:.0} MB each", comm.local().1);
    Ok(())
}

/// The reductions of one step.
pub struct Reducer<'a> {
    comm: &'a CommThread,
    kind: Kind,
    /// Whether a rank gets its own shares only.
    scatters: bool,
    /// Complete, but too small to go alone.
    held: Vec<(usize, Tensor)>,
    pending: Vec<Sent>,
}

/// Buckets that are reduced together.
struct Sent {
    gradients: Vec<Tensor>,
    sums: Pending<Vec<Tensor>>,
}

impl<'a> Reducer<'a> {
    /// A reducer with nothing under way, which adds up in f32.
    pub fn new(comm: &'a CommThread) -> Self {
        Self { comm, kind: Kind::Float, scatters: false, held: Vec::new(), pending: Vec::new() }
    }

    /// The same, which adds up in `kind`: bf16 halves what is sent and keeps 8 bits of each partial sum.
    pub fn summing_in(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The same, which leaves a rank with the sums of its own share of each bucket, where `scatters`. The other shares
    /// are undefined afterwards.
    pub fn scattering(self, scatters: bool) -> Self {
        Self { scatters, ..self }
    }

    /// Waits until every bucket holds the sum over all ranks, as far as this rank gets it.
    ///
    /// # Errors
    /// A rank or the network is gone.
    pub fn finish(mut self) -> Result<()> {
        self.send()?;
        for Sent { gradients, sums } in self.pending {
            let sums = sums.wait()?;
            if self.kind != Kind::Float {
                for (mut gradient, sum) in gradients.into_iter().zip(sums) {
                    gradient.f_copy_(&sum)?;
                }
            }
        }
        Ok(())
    }

    /// Starts the reduction of what is held.
    fn send(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let (numbers, gradients): (Vec<_>, Vec<_>) = self.held.drain(..).unzip();
        let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
        let purpose = format!("bucket{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(" and "));
        // In f32 a shallow clone of the bucket: the sum comes to be in its memory.
        let sent =
            gradients.iter().map(|gradient| gradient.f_to_kind(self.kind)).collect::<std::result::Result<_, _>>()?;
        let sums = match self.scatters {
            true => self.comm.reduce_scatter_together(purpose, sent),
            false => self.comm.all_reduce_together(purpose, sent),
        };
        self.pending.push(Sent { gradients, sums });
        Ok(())
    }
}

impl GradientSink for Reducer<'_> {
    fn complete(&mut self, segment: usize, gradient: Tensor) -> Result<()> {
        let small = tensor::count(&gradient) < SMALL;
        self.held.push((segment, gradient));
        if small { Ok(()) } else { self.send() }
    }
}
