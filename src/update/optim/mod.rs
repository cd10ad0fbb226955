//! AdamW (arXiv 1711.05101) and learning-rate schedules over flat f32 buffers; global norm and clipping.
//!
//! Not here: the arithmetic of an update (`ops/`).

mod norm;
mod schedule;
mod verdict;

use crate::config::TrainConfig;
use crate::engine::Buckets;
use crate::error::{Error, Result, libtorch};
use crate::model::decoder::Part;
use crate::model::segment::{Bucket, OptimizerState, Parameter, Segment, Weights};
use crate::model::weights::Model;
use crate::ops::{AdamWConstants, AdamWPart, AdamWStep, Verdict};
use tch::Kind;

pub use norm::gradient_squares;
pub(crate) use schedule::schedule;
pub(crate) use verdict::{Clipping, Decided, Judge};

/// AdamW with the config's constants. Its moments are stored with the segments' masters ([`OptimizerState`]).
#[derive(Clone, Copy)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
}

/// The learning rates of one update, and the verdict on it.
pub struct Update {
    /// Learning rate of everything but the reward head.
    pub learning_rate: f64,
    /// Learning rate of the reward head.
    pub head_learning_rate: f64,
    /// The verdict on the gradients.
    pub verdict: Verdict,
}

impl AdamW {
    /// Also allocates zero moments for the parameters that this rank updates.
    ///
    /// # Errors
    /// A device out of memory.
    pub fn new(config: &TrainConfig, model: &mut Model) -> Result<Self> {
        let states = model.segments.iter_mut().filter_map(|segment| segment.state.as_mut());
        libtorch(|| {
            states.for_each(OptimizerState::start_moments);
            Ok(())
        })?;
        Ok(Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.weight_decay,
        })
    }

    /// Updates this rank's masters, moments and weights of every trained segment from its bucket; calls `updated` after each
    /// segment.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn step(
        &self,
        model: &mut Model,
        buckets: &Buckets,
        update: &Update,
        mut updated: impl FnMut(usize, &Segment),
    ) -> Result<()> {
        let Model { segments, parts, .. } = model;
        for (index, (segment, part)) in segments.iter_mut().zip(parts).enumerate() {
            let Some(state) = &segment.state else { continue };
            let bucket = buckets.get(index).ok_or_else(|| unready(index))?;
            let reward_head = *part == Part::RewardHead;
            let rate = if reward_head { update.head_learning_rate } else { update.learning_rate };
            let step = step_of(&segment.weights, state, bucket, self.constants(rate), &update.verdict);
            let step = step.ok_or_else(|| unready(index))?;
            libtorch(|| segment.weights.ops.adamw(&step))?;
            updated(index, segment);
        }
        Ok(())
    }

    /// 1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t) for the update with number t, from 1.
    pub(crate) fn corrections(&self, number: usize) -> [f32; 2] {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(number as f64));
        [correction(self.beta1) as f32, correction(self.beta2).sqrt() as f32]
    }

    fn constants(&self, rate: f64) -> AdamWConstants {
        AdamWConstants {
            learning_rate: rate as f32,
            decay: (1.0 - rate * self.weight_decay) as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            complements: [1.0 - self.beta1, 1.0 - self.beta2].map(|share| share as f32),
            epsilon: self.epsilon as f32,
        }
    }
}

fn unready(segment: usize) -> Error {
    Error::runtime(format!("segment {segment} cannot be updated: its bucket is out, or it has no moments"))
}

/// Weight decay is for matrices: norms and biases keep none, as in Transformers' trainer.
fn decays(shape: &[i64]) -> bool {
    shape.len() >= 2
}

/// This rank's update of a segment; none if it has no moments yet.
fn step_of<'a>(
    weights: &Weights,
    state: &'a OptimizerState,
    bucket: &Bucket,
    constants: AdamWConstants,
    verdict: &'a Verdict,
) -> Option<AdamWStep<'a>> {
    let part = |(index, parameter): (usize, &Parameter)| {
        let range = state.owned_part(&weights.parameters, index).in_owned;
        AdamWPart { range, decays: decays(&parameter.shape) }
    };
    let parts = weights.parameters.iter().enumerate().map(part).collect();
    let compute = (weights.flat.kind() != Kind::Float).then(|| state.owned_of(&weights.flat));
    let OptimizerState { master, moments, .. } = state;
    Some(AdamWStep {
        gradient: state.owned_of(bucket.flat()),
        moments: moments.as_ref()?,
        master,
        compute,
        parts,
        constants,
        verdict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Schedule;
    use crate::model::declared::Declared;
    use crate::model::segment::Use;
    use crate::ops::cpu::Cpu;
    use crate::ops::{Ops, Tensors};
    use tch::{Device, Tensor};

    fn segment(kind: Kind) -> Segment {
        segment_for(kind, Use::Train)
    }

    fn segment_for(kind: Kind, purpose: Use) -> Segment {
        let parameters = vec![Declared::new("matrix", &[300, 400]), Declared::new("norm", &[17])];
        let mut segment = Segment::new(parameters, kind, Device::Cpu, purpose);
        for index in 0..2 {
            let shape = segment.parameters()[index].shape.clone();
            segment.set(index, &crate::tensor::waves(&shape, 1.0));
        }
        segment
    }

    fn gradients(segment: &Segment) -> Bucket {
        let mut bucket = segment.bucket().unwrap();
        for (sum, parameter) in bucket.sums().iter_mut().zip(segment.parameters().iter()) {
            sum.copy_(&crate::tensor::waves(&parameter.shape, 2.0));
        }
        bucket
    }

    fn constants(decay: f32) -> AdamWConstants {
        AdamWConstants {
            learning_rate: 0.01,
            decay,
            beta1: 0.9,
            beta2: 0.999,
            complements: [0.1, 0.001],
            epsilon: 1e-5,
        }
    }

    fn verdict(gradient_scale: f32, corrections: [f32; 2], made: bool) -> Verdict {
        let scales = Tensor::from_slice(&[gradient_scale, corrections[0], corrections[1]]);
        Verdict { scales, made: Tensor::from_slice(&[made]) }
    }

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        ((left - right).norm() / right.norm()).double_value(&[])
    }

    fn step(segment: &mut Segment, bucket: &Bucket, constants: AdamWConstants) {
        step_by(segment, bucket, constants, &verdict(0.5, [10.0, 31.6], true));
    }

    fn step_by(segment: &mut Segment, bucket: &Bucket, constants: AdamWConstants, verdict: &Verdict) {
        let Segment { weights, state } = segment;
        let state = state.as_mut().unwrap();
        state.start_moments();
        weights.ops.adamw(&step_of(weights, state, bucket, constants, verdict).unwrap()).unwrap();
    }

    #[test]
    fn three_shares_are_updated_as_the_whole_to_the_last_bit() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for ops in [&Cpu as &'static dyn Ops, &Tensors] {
                let mut whole = segment(kind);
                whole.weights.ops = ops;
                let gradient = gradients(&whole);
                step(&mut whole, &gradient, constants(0.9));
                let (mut first, mut values, mut elements) = (Vec::new(), Vec::new(), 0);
                for rank in 0..3 {
                    let mut share = segment_for(kind, Use::training(true, rank, 3));
                    share.weights.ops = ops;
                    let gradient = gradients(&share);
                    step(&mut share, &gradient, constants(0.9));
                    let Segment { weights, state } = share;
                    let state = state.unwrap();
                    elements += state.master.numel();
                    values.push(state.owned_of(&weights.flat));
                    first.push(state.moments.unwrap().into_iter().next().unwrap());
                }
                let length = whole.length() as i64;
                assert!(elements - whole.length() < 3 * 16, "{elements} elements of {length}");
                let joined = |parts: &[Tensor]| Tensor::cat(parts, 0).narrow(0, 0, length);
                let moments = whole.state.as_ref().unwrap().moments.as_ref().unwrap();
                assert!(joined(&first).equal(&moments[0]), "{kind:?}");
                assert!(joined(&values).equal(&whole.weights.flat), "{kind:?}");
            }
        }
    }

    /// Three updates of torch.optim.AdamW (torch 2.13): lr 0.01, eps 1e-5, weight decay 0.1 on the matrix alone.
    #[test]
    fn three_updates_equal_pytorchs() {
        let parameters = vec![Declared::new("matrix", &[2, 2]), Declared::new("bias", &[1])];
        let mut segment = Segment::new(parameters, Kind::Float, Device::Cpu, Use::Train);
        segment.set(0, &Tensor::from_slice(&[0.5f32, -1.25, 2.0, 0.0]).view([2, 2]));
        segment.set(1, &Tensor::from_slice(&[0.75f32]));
        for (done, row) in
            [[0.3f32, -0.2, 1e-4, 4.0], [-0.1, -0.4, 2e-4, 1.0], [0.6, 0.0, -1e-4, -3.0]].iter().enumerate()
        {
            let mut bucket = segment.bucket().unwrap();
            // Sums over two pairs: the update divides them again.
            bucket.sums()[0].copy_(&(Tensor::from_slice(row).view([2, 2]) * 2.0));
            bucket.sums()[1].copy_(&(Tensor::from_slice(&row[..1]) * 4.0));
            let adamw = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-5, weight_decay: 0.1 };
            let verdict = verdict(0.5, adamw.corrections(done + 1), true);
            step_by(&mut segment, &bucket, adamw.constants(0.01), &verdict);
        }
        let expected = [0.477_430_2f32, -1.219_171_8, 1.971_941_2, -0.019_706_74, 0.728_904_4];
        let found = Vec::<f32>::try_from(&segment.state.as_ref().unwrap().master).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-7, "{found} is not {expected}");
        }
    }

    #[test]
    fn decay_is_for_matrices_only() {
        let (mut decayed, mut plain) = (segment(Kind::Float), segment(Kind::Float));
        let gradient = gradients(&plain);
        step(&mut decayed, &gradient, constants(0.5));
        step(&mut plain, &gradient, constants(1.0));
        assert!(distance(decayed.weights.view(0), plain.weights.view(0)) > 0.1);
        assert_eq!(distance(decayed.weights.view(1), plain.weights.view(1)), 0.0);
    }

    #[test]
    fn schedules_start_at_the_peak_and_end_near_zero() {
        assert_eq!(schedule(Schedule::Linear, 0, 0, 10), 1.0);
        assert!((schedule(Schedule::Linear, 9, 0, 10) - 0.1).abs() < 1e-12);
        assert_eq!(schedule(Schedule::Linear, 1, 4, 10), 0.5);
        assert_eq!(schedule(Schedule::Cosine, 4, 4, 10), 1.0);
        assert!((schedule(Schedule::Cosine, 7, 4, 10) - 0.5).abs() < 1e-12);
        assert_eq!(schedule(Schedule::Constant, 9, 0, 10), 1.0);
    }
}
