//! The verdict on a step's gradients: their norm, whether they are finite, how far they are clipped, and whether the update
//! is made. It is computed on the device that holds them; nothing here waits for it, and the host reads the result later.
//!
//! Not here: the update itself (`ops/`).

use crate::comm::CommThread;
use crate::error::{Result, libtorch};
use crate::ops::Verdict;
use crate::tensor::on_device;
use tch::{Device, Kind, Tensor};

/// One step's numbers that the host knows.
pub(crate) struct Clipping<'a> {
    /// Pairs of the global batch. Gradients are sums over them.
    pub(crate) pairs: f64,
    /// Norm above which the mean gradient is clipped; 0: never.
    pub(crate) clip_norm: f64,
    /// Whether this rank holds only its shares of the gradients.
    pub(crate) sharded: bool,
    /// AdamW's two bias corrections for each possible number of skipped updates that the host has not read yet: none, one, and so
    /// on up to the number of unread steps.
    pub(crate) corrections: &'a [[f32; 2]],
}

/// The decision.
pub(crate) struct Decided {
    /// For the update.
    pub(crate) verdict: Verdict,
    /// For the host: `[2]` f64, the norm of the mean gradient, the same bits on every rank, and 1 if the update is made.
    pub(crate) outcome: Tensor,
}

/// Decides about each step, and counts skipped updates on the device.
pub(crate) struct Judge {
    device: Device,
    /// `[1]` i64: skipped updates that the host has not read yet.
    unread_skips: Tensor,
}

impl Judge {
    /// For a model on `device`; no skipped update is unread.
    pub(crate) fn new(device: Device) -> Self {
        Self { device, unread_skips: Tensor::zeros([1], (Kind::Int64, device)) }
    }

    /// Notes that the host has read one more skipped update.
    ///
    /// # Errors
    /// A failed device.
    pub(crate) fn skip_was_read(&mut self) -> Result<()> {
        let _ = self.unread_skips.f_sub_scalar_(1)?;
        Ok(())
    }

    /// Decides from the sum of squares of this rank's gradient sums, `[1]` f64. Ranks vote through the communicator that reduces
    /// gradients; all must call it.
    ///
    /// # Errors
    /// A lost rank, or a failed device.
    pub(crate) fn decide(&mut self, squares: &Tensor, clipping: &Clipping, comm: &CommThread) -> Result<Decided> {
        let Clipping { pairs, clip_norm, sharded, corrections } = *clipping;
        let bad = squares.f_isfinite()?.f_logical_not()?.f_to_kind(Kind::Double)?;
        let votes = comm.all_reduce_together("the gradient norm".into(), vec![Tensor::f_cat(&[squares, &bad], 0)?]);
        let votes = votes.wait()?.swap_remove(0);
        libtorch(|| {
            let squares = if sharded { votes.narrow(0, 0, 1) } else { squares.shallow_clone() };
            // Both sides are tensors: a device may replace division by a number with multiplication by its reciprocal.
            let number = |value: f64| Tensor::full([1], value, (Kind::Double, self.device));
            let norm = squares.sqrt() / number(pairs);
            let made = norm.isfinite().logical_and(&votes.narrow(0, 1, 1).eq(0.0));
            let (one, limit) = (number(1.0), number(clip_norm));
            let clip = if clip_norm > 0.0 { (&limit / &norm).where_self(&norm.gt_tensor(&limit), &one) } else { one };
            let scale = (clip / number(pairs)).to_kind(Kind::Float);
            let corrections = on_device(corrections.as_flattened(), self.device).view([-1, 2]);
            let corrections = corrections.index_select(0, &self.unread_skips).view([2]);
            let scales = Tensor::cat(&[scale, corrections], 0);
            let _ = self.unread_skips.g_add_(&made.logical_not().to_kind(Kind::Int64));
            let outcome = Tensor::cat(&[norm, made.to_kind(Kind::Double)], 0);
            Ok(Decided { verdict: Verdict { scales, made }, outcome })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{CommThread, solo::Solo, threads};

    const CORRECTIONS: [[f32; 2]; 3] = [[10.0, 31.6], [5.3, 22.4], [3.7, 18.3]];

    fn clipping(clip_norm: f64, sharded: bool) -> Clipping<'static> {
        Clipping { pairs: 7.0, clip_norm, sharded, corrections: &CORRECTIONS }
    }

    fn scales(decided: &Decided) -> Vec<f32> {
        Vec::try_from(&decided.verdict.scales).unwrap()
    }

    fn outcome(decided: &Decided) -> Vec<f64> {
        Vec::try_from(&decided.outcome).unwrap()
    }

    #[test]
    fn the_numbers_are_those_of_the_formulas_to_the_last_bit() {
        let comm = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
        for (squares, clip) in [(12.3456789f64, 0.1), (12.3456789, 0.0), (12.3456789, 9.0), (1e-300, 1.0)] {
            let mut judge = Judge::new(Device::Cpu);
            let decided = judge.decide(&Tensor::from_slice(&[squares]), &clipping(clip, false), &comm).unwrap();
            let norm = squares.sqrt() / 7.0;
            let scale = (if clip > 0.0 && norm > clip { clip / norm } else { 1.0 }) / 7.0;
            assert_eq!(outcome(&decided), [norm, 1.0]);
            assert_eq!(scales(&decided), [scale as f32, 10.0, 31.6]);
        }
    }

    #[test]
    fn a_skipped_update_has_no_number_whether_the_host_has_read_it_or_not() {
        let comm = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
        let mut judge = Judge::new(Device::Cpu);
        let mut corrections_after = |squares: f64| {
            let decided = judge.decide(&Tensor::from_slice(&[squares]), &clipping(0.0, false), &comm).unwrap();
            let made = decided.verdict.made.int64_value(&[0]) == 1;
            assert_eq!(made, squares.is_finite());
            if made && squares == 4.0 {
                judge.skip_was_read().unwrap();
            }
            scales(&decided)[1]
        };
        assert_eq!(
            [1.0, f64::NAN, 1.0, f64::INFINITY, 4.0, 1.0].map(&mut corrections_after),
            [10.0, 10.0, 5.3, 5.3, 3.7, 5.3]
        );
    }

    #[test]
    fn one_rank_that_is_not_finite_decides_for_all_and_shares_add_up() {
        let decided = |squares: [f64; 2], sharded: bool| {
            std::thread::scope(|scope| {
                let rank = |(seat, squares): (threads::Seat, f64)| {
                    let comm = CommThread::start(|| Ok(seat.communicator())).unwrap();
                    let squares = Tensor::from_slice(&[squares]);
                    outcome(&Judge::new(Device::Cpu).decide(&squares, &clipping(0.0, sharded), &comm).unwrap())
                };
                let seats = threads::world(2).into_iter().zip(squares);
                let ranks: Vec<_> = seats.map(|each| scope.spawn(move || rank(each))).collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            })
        };
        for sharded in [false, true] {
            for outcome in decided([1.0, f64::NAN], sharded) {
                assert_eq!(outcome[1], 0.0, "{sharded}");
            }
        }
        assert_eq!(decided([9.0, 16.0], true), [vec![5.0 / 7.0, 1.0], vec![5.0 / 7.0, 1.0]]);
        assert_eq!(decided([9.0, 9.0], false), [vec![3.0 / 7.0, 1.0], vec![3.0 / 7.0, 1.0]]);
    }
}
