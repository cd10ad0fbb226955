//! Promise: ranks whose weights or metrics have drifted apart, by a bit, stop within `train.check_every` steps.

#[allow(dead_code)]
use crate::steps;
use haf_dist::comm::{CommThread, threads};
use haf_dist::error::Result;
use haf_dist::train::{Trainer, check_replicas};
use tch::{Device, Kind};

/// What each of two ranks gets of `run`.
fn on_two_ranks(run: impl Fn(CommThread) -> Result<()> + Send + Sync) -> Vec<Result<()>> {
    let run = &run;
    std::thread::scope(|scope| {
        let start = |seat: threads::Seat| CommThread::start(|| Ok(seat.communicator())).unwrap();
        let ranks: Vec<_> = threads::world(2).into_iter().map(|seat| scope.spawn(move || run(start(seat)))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Two values of a rank's weights change places: no sum sees that.
fn swap_two_weights(trainer: &Trainer) {
    let segment = &trainer.engine.model.segments[1];
    let state = segment.state.as_ref().unwrap();
    let values = if state.is_share() { &segment.weights.flat } else { &state.master };
    let before = values.sum(Kind::Double);
    let (mut first, mut other) = (values.narrow(0, 0, 1), values.narrow(0, 9, 1));
    let kept = first.copy();
    assert_ne!(kept, other, "nothing would change");
    first.copy_(&other);
    other.copy_(&kept);
    assert_eq!(values.sum(Kind::Double), before, "the control: their sum is the same");
}

/// Four steps; after the first, weights of rank 1 change.
fn drifting(comm: CommThread, every: &str) -> Result<()> {
    let config = steps::config("llama-tied", &[every]);
    let mut trainer = steps::trainer(&config, &comm, steps::engine(&config));
    for step in 0..4 {
        trainer.step(5)?;
        if step == 0 && comm.rank() == 1 {
            swap_two_weights(&trainer);
        }
    }
    Ok(())
}

#[test]
fn weights_that_change_places_on_one_rank_are_noticed() {
    for result in on_two_ranks(|comm| drifting(comm, "train.check_every=1")) {
        let error = result.expect_err("rank 1 has drifted");
        let said = "the ranks' replicas differ after step 2: in the weights of bucket";
        assert!(error.message.starts_with(said) && error.message.contains("between rank 0 and rank 1"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
    // The control: they are noticed because they are looked for.
    assert!(on_two_ranks(|comm| drifting(comm, "train.check_every=0")).iter().all(Result::is_ok));
}

#[test]
fn before_a_checkpoint_whole_and_sharded_weights_are_compared() {
    for shard in ["parallel.shard_optimizer=false", "parallel.shard_optimizer=true"] {
        let compared = |drifts: bool| {
            on_two_ranks(|comm| {
                let config = steps::config("llama-tied", &[shard]);
                let engine = steps::engine_of_rank(&config, (Kind::Float, Device::Cpu), &comm);
                let mut trainer = steps::trainer(&config, &comm, engine);
                trainer.step(5)?;
                if drifts && comm.rank() == 1 {
                    swap_two_weights(&trainer);
                }
                check_replicas(&trainer.engine, 1, &comm)
            })
        };
        let said = "the ranks' replicas differ after step 1: in the weights of bucket 1";
        assert!(compared(true).iter().all(|result| result.as_ref().unwrap_err().message.starts_with(said)), "{shard}");
        assert!(compared(false).iter().all(Result::is_ok), "{shard}: the control");
    }
}

#[test]
fn comparing_changes_no_bit_and_finds_nothing_where_nothing_is_wrong() {
    let trained = |every: &str| {
        let config = steps::config("llama-tied", &[every]);
        let masters = std::sync::Mutex::new(Vec::new());
        let results = on_two_ranks(|comm| {
            let mut trainer = steps::trainer(&config, &comm, steps::engine(&config));
            for _ in 0..5 {
                trainer.step(5)?;
            }
            if comm.rank() == 0 {
                let values = trainer.engine.model.segments.iter().filter_map(|segment| segment.state.as_ref());
                *masters.lock().unwrap() = values.map(|state| state.master.copy()).collect();
            }
            Ok(())
        });
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        masters.into_inner().unwrap()
    };
    assert!(trained("train.check_every=0") == trained("train.check_every=2"));
}
