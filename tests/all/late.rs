//! Promise: the time at which a step is read changes nothing that is trained or reported, even if updates are skipped meanwhile; a
//! skipped update leaves weights and moments bit for bit as they were. In whole runs on GPUs: tests/nccl.rs, through the stand-in.

use crate::steps;
use haf_dist::comm::{CommThread, threads};
use haf_dist::train::Trainer;
use std::sync::Arc;
use tch::Tensor;

const STEPS: usize = 5;
/// The step that has a pair whose gradients are not finite, from 0.
const BAD: usize = 1;

/// Loss, norm and whether the update was made of every step, as bits; masters and moments after the run.
type Trained = (Vec<(u64, u64, bool)>, Vec<Tensor>);

/// Bits of masters and moments.
fn state(trainer: &Trainer) -> Vec<Tensor> {
    let states = trainer.engine.model.segments.iter().filter_map(|segment| segment.state.as_ref());
    states
        .flat_map(|state| std::iter::once(&state.master).chain(state.moments.as_ref().unwrap()))
        .map(|values| values.view_dtype(tch::Kind::Int).copy())
        .collect()
}

/// Gives a pair of that step alone a reference without which there is no loss.
fn spoil(trainer: &mut Trainer) {
    let mut of = |step: usize| trainer.sampler.global_batch(step);
    let others: Vec<usize> = (0..STEPS).filter(|&step| step != BAD).flat_map(&mut of).collect();
    let pair = of(BAD).into_iter().find(|pair| !others.contains(pair)).expect("a pair of that step alone");
    Arc::get_mut(&mut trainer.train).expect("nobody packs yet").references[pair] = [f32::NAN; 2];
}

/// Five steps, of which up to `unread` are read later; two ranks.
fn trained(line: &str, unread: usize) -> Vec<Trained> {
    let config = steps::config("llama-tied", &[line, "train.clip_norm=0.5"]);
    let rank = |seat: threads::Seat| -> Trained {
        let comm = CommThread::start(|| Ok(seat.communicator())).unwrap();
        let mut trainer = steps::trainer(&config, &comm, steps::engine(&config));
        spoil(&mut trainer);
        let mut read = Vec::new();
        for step in 0..STEPS {
            let before = state(&trainer);
            trainer.queue_step(STEPS).unwrap();
            let same = before.iter().zip(state(&trainer)).all(|(before, after)| before.equal(&after));
            assert_eq!(same, step == BAD, "step {step}");
            read.extend(trainer.read_steps(unread).unwrap());
        }
        read.extend(trainer.read_steps(0).unwrap());
        assert_eq!((trainer.state.updates_skipped, trainer.state.step), (1, STEPS));
        assert!(read.iter().map(|(metrics, _)| metrics.step).eq(1..=STEPS));
        let bits = |(metrics, made): (haf_dist::metrics::StepMetrics, bool)| {
            (metrics.loss.to_bits(), metrics.grad_norm.to_bits(), made)
        };
        (read.into_iter().map(bits).collect(), state(&trainer))
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = threads::world(2).into_iter().map(|seat| scope.spawn(move || rank(seat))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn steps_that_are_read_later_are_the_same_to_the_last_bit() {
    for line in ["parallel.shard_optimizer=false", "parallel.shard_optimizer=true"] {
        let at_once = trained(line, 0);
        let made: Vec<bool> = at_once[0].0.iter().map(|(_, _, made)| *made).collect();
        assert_eq!(made, [true, false, true, true, true]);
        for unread in [1, STEPS] {
            for ((steps, state), (later, later_state)) in at_once.iter().zip(trained(line, unread)) {
                assert_eq!(*steps, later, "{line}, {unread} unread");
                assert!(state.iter().zip(&later_state).all(|(one, other)| one.equal(other)), "{line}, {unread} unread");
            }
        }
    }
}
