//! The conformance suite on the backends that need no launcher, and the errors that callers get when a rank is lost.

use crate::common;
use common::conformance::CASES;
use haf_dist::comm::{CommThread, Communicator, Local, solo::Solo, threads};
use haf_dist::error::{Error, Result};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Runs `body`, and fails where it hangs.
fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = std::sync::mpsc::channel();
    let runner = std::thread::spawn(move || {
        let _ = done.send(body());
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(_) => std::panic::resume_unwind(runner.join().unwrap_err()),
    }
}

/// Runs `body` on every rank of a world of threads, and returns what each returned.
fn on_ranks<T: Send + 'static>(ranks: usize, body: impl Fn(CommThread) -> T + Send + Sync + Copy + 'static) -> Vec<T> {
    in_time(move || {
        let start = |seat: threads::Seat| std::thread::spawn(move || body(comm_thread(seat)));
        let running: Vec<_> = threads::world(ranks).into_iter().map(start).collect();
        running.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
    })
}

fn comm_thread(seat: threads::Seat) -> CommThread {
    CommThread::start(move || Ok(seat.communicator())).expect("a seat is ready")
}

fn conform(comm: &CommThread) {
    for (name, case) in CASES {
        println!("rank {}: {name}", comm.rank());
        case(comm, Device::Cpu);
    }
}

#[test]
fn solo_conforms() {
    let comm = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
    assert_eq!((comm.rank(), comm.world_size(), comm.local()), (0, 1, Local { rank: 0, size: 1 }));
    in_time(move || conform(&comm));
}

#[test]
fn one_thread_conforms() {
    on_ranks(1, |comm| conform(&comm));
}

#[test]
fn two_threads_conform() {
    on_ranks(2, |comm| conform(&comm));
}

#[test]
fn three_threads_conform() {
    let places = on_ranks(3, |comm| {
        conform(&comm);
        (comm.rank(), comm.world_size(), comm.local())
    });
    assert_eq!(places, [0, 1, 2].map(|rank| (rank, 3, Local { rank, size: 3 })));
}

#[test]
fn a_rank_that_leaves_gives_the_others_an_error() {
    let results = on_ranks(3, |comm| if comm.rank() == 1 { Ok(()) } else { comm.barrier() });
    for rank in [0, 2] {
        let error = results[rank].as_ref().unwrap_err();
        assert!(error.message.contains("has left"), "{error}");
    }
}

#[test]
fn a_rank_that_panics_gives_the_others_an_error() {
    let result = in_time(|| {
        let mut seats = threads::world(2);
        let (last, first) = (seats.pop().unwrap(), seats.pop().unwrap());
        let lost = std::thread::spawn(move || {
            let _comm = comm_thread(last);
            panic!("this panic belongs to the test");
        });
        let mut buffer = Tensor::ones([5], (Kind::Float, Device::Cpu));
        let result = comm_thread(first).all_reduce_blocking(&mut buffer);
        assert!(lost.join().is_err());
        result
    });
    assert!(result.unwrap_err().message.contains("rank 1 has left"));
}

#[test]
fn ranks_that_call_different_collectives_all_get_an_error() {
    let results = on_ranks(2, |comm| match comm.rank() {
        0 => comm.barrier(),
        _ => comm.all_reduce_blocking(&mut Tensor::ones([5], (Kind::Float, Device::Cpu))),
    });
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().message.contains("different collectives")));
}

#[test]
fn ranks_that_vote_on_different_things_all_get_an_error() {
    let results = on_ranks(2, |comm| match comm.rank() {
        0 => comm.all_true(true),
        _ => comm.all_true(true),
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(error.message.contains("different collectives"), "{error}");
        assert_eq!(error.message.matches("tests/all/communicator.rs:").count(), 2, "{error}");
    }
    // The control: the same vote, and one of another step.
    assert!(on_ranks(2, |comm| comm.all_true(true)).iter().all(Result::is_ok));
    let results = on_ranks(2, |comm| {
        comm.set_stage(format!("step {}", 3 + comm.rank()));
        comm.all_true(true)
    });
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().message.contains("of step 3")));
}

#[test]
fn facts_that_differ_are_named_on_every_rank() {
    let results = on_ranks(3, |comm| {
        let seed = if comm.rank() == 1 { "7" } else { "0" };
        comm.same(&[("data.seed".into(), seed.into()), ("train.steps".into(), "5".into())])
    });
    let expected = "ranks differ: data.seed is 0 on ranks 0 and 2 and 7 on rank 1";
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().message == expected), "{results:?}");
    assert!(on_ranks(3, |comm| comm.same(&[("data.seed".into(), "0".into())])).iter().all(Result::is_ok));
}

#[test]
fn wrong_arguments_are_errors_and_nothing_runs_after_one() {
    let fresh = || CommThread::start(|| Ok(Box::new(Solo))).unwrap();
    let ones = |size: &[i64], kind| Tensor::ones(size, (kind, Device::Cpu));
    let comm = fresh();
    let first = comm.all_reduce_blocking(&mut ones(&[3], Kind::BFloat16)).unwrap_err();
    assert!(first.message.contains("BFloat16"), "{first}");
    assert_eq!(comm.barrier(), Err(first), "later calls return the first error");
    assert!(fresh().broadcast(&mut ones(&[3], Kind::Float), 1).is_err(), "no such root");
    assert!(fresh().all_reduce_blocking(&mut ones(&[3, 4], Kind::Float).transpose(0, 1)).is_err(), "not contiguous");
    let scatter = |kind| fresh().reduce_scatter_together("ones".into(), vec![ones(&[3], kind)]).wait();
    assert!(scatter(Kind::Float).is_ok() && scatter(Kind::BFloat16).is_err(), "kinds");
    let seats = threads::world(2).into_iter().map(|seat| CommThread::start(move || Ok(seat.communicator())).unwrap());
    for comm in seats.collect::<Vec<_>>() {
        let error = comm.all_gather_blocking(&mut ones(&[3], Kind::Float)).unwrap_err();
        assert!(error.message.contains("3 elements do not divide into 2 equal shares"), "{error}");
    }
}

/// A backend whose all-reduce panics.
struct Broken;

impl Communicator for Broken {
    fn rank(&self) -> usize {
        0
    }
    fn world_size(&self) -> usize {
        1
    }
    fn local(&self) -> Local {
        Local { rank: 0, size: 1 }
    }
    fn broadcast(&mut self, _: &mut Tensor, _: usize) -> Result<()> {
        Ok(())
    }
    fn all_reduce(&mut self, _: &mut Tensor) -> Result<()> {
        panic!("this panic belongs to the test")
    }
    fn reduce_scatter(&mut self, _: &mut Tensor) -> Result<()> {
        Ok(())
    }
    fn all_gather(&mut self, _: &mut Tensor) -> Result<()> {
        Ok(())
    }
    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_lost_communication_thread_gives_every_caller_an_error() {
    in_time(|| {
        let comm = CommThread::start(|| Ok(Box::new(Broken))).unwrap();
        comm.barrier().expect("the control: it works before");
        let pending: Vec<_> = (0..20).map(|_| comm.all_reduce(Tensor::from(1.0))).collect();
        assert!(pending.into_iter().all(|pending| pending.wait().is_err()));
        assert!(comm.barrier().is_err());
    });
}

#[test]
fn a_backend_that_does_not_start_is_an_error() {
    let refused = CommThread::start(|| Err(Error::input("no such backend"))).err();
    assert_eq!(refused, Some(Error::input("no such backend")));
    assert!(CommThread::start(|| panic!("this panic belongs to the test")).is_err());
}
