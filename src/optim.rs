//! AdamW (arXiv 1711.05101) and learning-rate schedules over flat f32 buffers; global norm and clipping.
//!
//! On CPUs one pass over a segment reads the gradient, updates both moments and the master, and writes the compute
//! copy. Elsewhere the same formulas run as tensor operations on the flat buffers. Work is cut into pieces of a fixed
//! size, so results do not depend on the number of threads.

mod norm;
mod schedule;

use crate::config::TrainConfig;
use crate::error::Result;
use crate::kernels::Element as _;
use crate::model::decoder::Part;
use crate::model::segment::Segment;
use crate::model::weights::Model;
use crate::parallel;
use crate::tensor;
use half::bf16;
use multiversion::multiversion;
use tch::{Device, Kind, Tensor};

pub use norm::gradient_squares;
pub use schedule::schedule;

/// Elements a thread takes at a time.
const PIECE: usize = 1 << 16;

/// AdamW's moments for every trained segment.
pub struct AdamW {
    /// First and second moments, flat f32, a pair a segment; none where a segment is not trained.
    pub moments: Vec<Option<[Tensor; 2]>>,
    settings: Settings,
}

/// What the config says about AdamW.
#[derive(Clone, Copy)]
struct Settings {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
}

/// One update's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Number of this update, from 1: for the bias correction.
    pub number: usize,
    /// Learning rate of everything but the reward head.
    pub learning_rate: f64,
    /// Learning rate of the reward head.
    pub head_learning_rate: f64,
    /// What gradient sums are multiplied by: clipping and the division by the pair count together.
    pub gradient_scale: f64,
}

/// The constants of one piece's pass.
#[derive(Clone, Copy)]
struct Constants {
    learning_rate: f32,
    /// What a matrix keeps of itself: 1 - learning rate * weight decay.
    matrix_decay: f32,
    beta1: f32,
    beta2: f32,
    /// 1 - beta1 and 1 - beta2, taken in f64: in f32 the second would be 5e-5 too large.
    complements: [f32; 2],
    epsilon: f32,
    /// 1 / (1 - beta1^t).
    first_correction: f32,
    /// 1 / sqrt(1 - beta2^t).
    second_correction: f32,
    scale: f32,
}

impl AdamW {
    /// Zero moments for what this rank updates of a model.
    pub fn new(config: &TrainConfig, model: &Model) -> Self {
        let zeros =
            |segment: &Segment| segment.master.as_ref().map(|master| [master.zeros_like(), master.zeros_like()]);
        Self {
            moments: model.segments.iter().map(zeros).collect(),
            settings: Settings {
                beta1: config.adam_beta1,
                beta2: config.adam_beta2,
                epsilon: config.adam_epsilon,
                weight_decay: config.weight_decay,
            },
        }
    }

    /// Updates masters, moments and compute values of every trained segment from its gradient sum, as far as they are
    /// this rank's; says so to `updated`, segment after segment.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates.
    pub fn step(&mut self, model: &mut Model, update: &Update, mut updated: impl FnMut(usize, &Segment)) -> Result<()> {
        let parts = model.parts.clone();
        for (index, ((segment, moments), part)) in
            model.segments.iter_mut().zip(&mut self.moments).zip(parts).enumerate()
        {
            let Some(moments) = moments else { continue };
            let rate = if part == Part::RewardHead { update.head_learning_rate } else { update.learning_rate };
            let constants = self.settings.constants(rate, update);
            if segment.compute.device() == Device::Cpu {
                step_on_cpu(segment, moments, constants)?;
            } else {
                step_with_tensors(segment, moments, constants);
            }
            updated(index, segment);
        }
        Ok(())
    }

    /// Elements of all moments.
    pub fn elements(&self) -> usize {
        self.moments.iter().flatten().flatten().map(tensor::count).sum()
    }
}

impl Settings {
    fn constants(&self, rate: f64, update: &Update) -> Constants {
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(update.number as f64));
        Constants {
            learning_rate: rate as f32,
            matrix_decay: (1.0 - rate * self.weight_decay) as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            complements: [1.0 - self.beta1, 1.0 - self.beta2].map(|share| share as f32),
            epsilon: self.epsilon as f32,
            first_correction: correction(self.beta1) as f32,
            second_correction: correction(self.beta2).sqrt() as f32,
            scale: update.gradient_scale as f32,
        }
    }
}

/// Weight decay is for matrices: norms and biases keep none, as in Transformers' trainer.
fn decays(shape: &[i64]) -> bool {
    shape.len() >= 2
}

/// One thread's part of a parameter: gradient, moments, master and compute copy, all of the same length.
struct Piece<'a> {
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    master: &'a mut [f32],
    compute: Option<&'a mut [bf16]>,
    decay: f32,
}

fn step_on_cpu(segment: &mut Segment, moments: &mut [Tensor; 2], constants: Constants) -> Result<()> {
    // By parameter: where its elements begin in the gradient, how many are this rank's, and their decay.
    let mut parts = Vec::with_capacity(segment.parameters.len());
    for (index, parameter) in segment.parameters.iter().enumerate() {
        let (_, owned) = segment.owned_part(index);
        let decay = if decays(&parameter.shape) { constants.matrix_decay } else { 1.0 };
        parts.push((parameter.offset + owned.start, owned.len(), decay));
    }
    let before = segment.owned.start;
    let (Some(gradient), Some(master)) = (&segment.gradient, &mut segment.master) else { return Ok(()) };
    let [first, second] = moments;
    let gradient = tensor::slice::<f32>(gradient)?;
    let mut first = tensor::slice_mut::<f32>(first)?;
    let mut second = tensor::slice_mut::<f32>(second)?;
    let mut master = tensor::slice_mut::<f32>(master)?;
    let mut compute = match segment.compute.kind() {
        Kind::BFloat16 => Some(tensor::slice_mut::<bf16>(&mut segment.compute)?),
        _ => None,
    };
    if let Some(compute) = &mut compute {
        take(compute, before.min(compute.len()));
    }
    let mut pieces = Vec::new();
    for (from, count, decay) in parts {
        for offset in (0..count).step_by(PIECE) {
            let length = PIECE.min(count - offset);
            let start = from + offset;
            pieces.push(Piece {
                gradient: &gradient[start..start + length],
                first: take(&mut first, length),
                second: take(&mut second, length),
                master: take(&mut master, length),
                compute: compute.as_mut().map(|rest| take(rest, length)),
                decay,
            });
        }
    }
    parallel::for_each(pieces.into_iter(), |piece| update_piece(piece, constants));
    Ok(())
}

/// Cuts `length` elements off the front of a slice.
fn take<'a, T>(rest: &mut &'a mut [T], length: usize) -> &'a mut [T] {
    let (front, back) = std::mem::take(rest).split_at_mut(length);
    *rest = back;
    front
}

fn update_piece(piece: Piece, c: Constants) {
    let Piece { gradient, first, second, master, compute, decay } = piece;
    update_values(gradient, (first, second, master), decay, c);
    if let Some(compute) = compute {
        narrow_values(master, compute);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn update_values(
    gradient: &[f32],
    (first, second, master): (&mut [f32], &mut [f32], &mut [f32]),
    decay: f32,
    c: Constants,
) {
    let values = gradient.iter().zip(first.iter_mut()).zip(second.iter_mut()).zip(master.iter_mut());
    for (((gradient, first), second), master) in values {
        let gradient = gradient * c.scale;
        *first = c.beta1 * *first + c.complements[0] * gradient;
        *second = c.beta2 * *second + c.complements[1] * gradient * gradient;
        let denominator = second.sqrt() * c.second_correction + c.epsilon;
        *master = *master * decay - c.learning_rate * (*first * c.first_correction) / denominator;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn narrow_values(master: &[f32], compute: &mut [bf16]) {
    for (compute, master) in compute.iter_mut().zip(master) {
        *compute = bf16::narrow(*master);
    }
}

/// The formulas of [`update_piece`] as tensor operations, for devices whose memory the CPU cannot walk.
fn step_with_tensors(segment: &mut Segment, moments: &mut [Tensor; 2], c: Constants) {
    let (Some(gradient), Some(master)) = (segment.owned_gradient(), &segment.master) else { return };
    let gradient = gradient * f64::from(c.scale);
    let [first, second] = moments;
    let _ = first.g_mul_scalar_(f64::from(c.beta1)).g_add_(&(&gradient * f64::from(c.complements[0])));
    let _ = second.g_mul_scalar_(f64::from(c.beta2)).g_add_(&(gradient.square() * f64::from(c.complements[1])));
    for (index, _) in segment.parameters.iter().enumerate().filter(|(_, parameter)| decays(&parameter.shape)) {
        let (owned, _) = segment.owned_part(index);
        let mut values = master.narrow(0, owned.start as i64, owned.len() as i64);
        let _ = values.g_mul_scalar_(f64::from(c.matrix_decay));
    }
    let denominator = second.sqrt() * f64::from(c.second_correction) + f64::from(c.epsilon);
    let change = &*first * f64::from(c.first_correction * c.learning_rate) / denominator;
    let _ = master.shallow_clone().g_sub_(&change);
    segment.refresh_compute();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Schedule;
    use crate::model::layout::Declared;
    use crate::model::segment::Use;

    fn segment(kind: Kind) -> Segment {
        let parameters = vec![Declared::new("matrix", &[300, 400]), Declared::new("norm", &[17])];
        let mut segment = Segment::new(parameters, kind, Device::Cpu, Use::Train);
        for index in 0..2 {
            let shape = segment.parameters[index].shape.clone();
            segment.set(index, &crate::tensor::waves(&shape, 1.0));
            segment.add_gradient(index, &crate::tensor::waves(&shape, 2.0));
        }
        segment
    }

    fn constants(matrix_decay: f32) -> Constants {
        Constants {
            learning_rate: 0.01,
            matrix_decay,
            beta1: 0.9,
            beta2: 0.999,
            complements: [0.1, 0.001],
            epsilon: 1e-5,
            first_correction: 10.0,
            second_correction: 31.6,
            scale: 0.5,
        }
    }

    fn moments(segment: &Segment) -> [Tensor; 2] {
        let zeros = || segment.master.as_ref().unwrap().zeros_like();
        [zeros(), zeros()]
    }

    fn distance(left: &Tensor, right: &Tensor) -> f64 {
        ((left - right).norm() / right.norm()).double_value(&[])
    }

    #[test]
    fn the_fused_pass_equals_the_tensor_formulas() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let (mut fused, mut plain) = (segment(kind), segment(kind));
            let (mut fused_moments, mut plain_moments) = (moments(&fused), moments(&plain));
            for _ in 0..3 {
                step_on_cpu(&mut fused, &mut fused_moments, constants(0.9)).unwrap();
                step_with_tensors(&mut plain, &mut plain_moments, constants(0.9));
            }
            assert!(distance(fused.master.as_ref().unwrap(), plain.master.as_ref().unwrap()) < 1e-6);
            assert!(distance(&fused_moments[1], &plain_moments[1]) < 1e-6);
            assert!(distance(&fused.compute.to_kind(Kind::Float), &plain.compute.to_kind(Kind::Float)) < 1e-3);
        }
    }

    #[test]
    fn three_shares_are_updated_as_the_whole_to_the_last_bit() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for step in [
                |segment: &mut Segment, moments: &mut _| step_on_cpu(segment, moments, constants(0.9)).unwrap(),
                |segment: &mut Segment, moments: &mut _| step_with_tensors(segment, moments, constants(0.9)),
            ] {
                let mut whole = segment(kind);
                let mut whole_moments = moments(&whole);
                step(&mut whole, &mut whole_moments);
                let (mut first, mut values, mut elements) = (Vec::new(), Vec::new(), 0);
                for rank in 0..3 {
                    let mut share = segment(kind);
                    share.keep_share(rank, 3);
                    (0..2)
                        .for_each(|at| share.add_gradient(at, &crate::tensor::waves(&share.parameters[at].shape, 2.0)));
                    let mut share_moments = moments(&share);
                    step(&mut share, &mut share_moments);
                    elements += tensor::count(share.master.as_ref().unwrap());
                    first.push(share_moments[0].shallow_clone());
                    values.push(share.owned_of(&share.compute));
                }
                let length = whole.length() as i64;
                assert!(elements - whole.length() < 3 * 16, "{elements} elements of {length}");
                let joined = |parts: &[Tensor]| Tensor::cat(parts, 0).narrow(0, 0, length);
                assert!(joined(&first).equal(&whole_moments[0]), "{kind:?}");
                assert!(joined(&values).equal(&whole.compute), "{kind:?}");
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
        let mut moments = moments(&segment);
        for (done, row) in
            [[0.3f32, -0.2, 1e-4, 4.0], [-0.1, -0.4, 2e-4, 1.0], [0.6, 0.0, -1e-4, -3.0]].iter().enumerate()
        {
            segment.clear_gradient();
            // Sums over two pairs: the update divides them again.
            segment.add_gradient(0, &(Tensor::from_slice(row).view([2, 2]) * 2.0));
            segment.add_gradient(1, &(Tensor::from_slice(&row[..1]) * 4.0));
            let update = Update { number: done + 1, learning_rate: 0.01, head_learning_rate: 0.0, gradient_scale: 0.5 };
            let constants =
                Settings { beta1: 0.9, beta2: 0.999, epsilon: 1e-5, weight_decay: 0.1 }.constants(0.01, &update);
            step_on_cpu(&mut segment, &mut moments, constants).unwrap();
        }
        let expected = [0.477_430_2f32, -1.219_171_8, 1.971_941_2, -0.019_706_74, 0.728_904_4];
        let found = Vec::<f32>::try_from(segment.master.as_ref().unwrap()).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-7, "{found} is not {expected}");
        }
    }

    #[test]
    fn decay_is_for_matrices_only() {
        let mut decayed = segment(Kind::Float);
        let mut plain = segment(Kind::Float);
        let (mut decayed_moments, mut plain_moments) = (moments(&decayed), moments(&plain));
        step_on_cpu(&mut decayed, &mut decayed_moments, constants(0.5)).unwrap();
        step_on_cpu(&mut plain, &mut plain_moments, constants(1.0)).unwrap();
        assert!(distance(decayed.weight(0), plain.weight(0)) > 0.1);
        assert_eq!(distance(decayed.weight(1), plain.weight(1)), 0.0);
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
