//! What one rank does in the jobs of tests/nccl.rs: joins NCCL's group, which is the shim's, with tensors in CPU memory.

use crate::common::conformance::CASES;
use crate::steps;
use haf_dist::comm::{CommThread, connect, install_panic_hook, nccl};
use haf_dist::config::Config;
use haf_dist::engine::{Buckets, GradientSink};
use haf_dist::error::Result;
use haf_dist::machine::late::Queue;
use haf_dist::model::declared::Declared;
use haf_dist::model::order::reductions;
use haf_dist::model::segment::{Bucket, Parameters};
use haf_dist::ops::cuda::{Cuda, Library, Plain, VarlenCall};
use haf_dist::ops::{Ops, Tensors};
use haf_dist::update::reducer::Reducer;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Names the part that a rank plays.
pub const PART: &str = "HAF_DIST_TEST_NCCL_PART";

/// Elements of the buckets that are reduced: the third and the fourth can be mixed up, the last two go together.
pub const BUCKETS: [i64; 6] = [70_000, 40_000, 40_000, 100_000, 3, 7];

/// Steps of a training.
pub const STEPS: usize = 5;

/// Whether the loader finds the library.
pub fn can_load(name: &str) -> bool {
    // SAFETY: opening one of NCCL's or CUDA's libraries runs their initializers only.
    unsafe { libloading::Library::new(name) }.is_ok()
}

/// Puts the shim in front of MPI, for all tensors.
fn join(comm: &CommThread, gpu: usize, timeout: u64) -> Result<()> {
    let timeout = Duration::from_secs(timeout);
    nccl::join(comm, nccl::Settings { device: Device::Cpu, gpu, timeout }).map(drop)
}

/// Plays one rank's part; ends the process where the part is to fail.
pub fn play(part: &str) {
    install_panic_hook();
    let comm = CommThread::start(connect).expect("MPI starts");
    let (rank, local) = (comm.rank(), comm.local().rank);
    match part {
        "joining" | "sharing" => {
            let gpu = if part == "sharing" { 0 } else { local };
            let error = join(&comm, gpu, 60).expect_err("it cannot be joined");
            if rank == 0 {
                eprintln!("error: {error}");
            }
            drop(comm); // All ranks agree, and finalize MPI in good order.
            std::process::exit(error.exit_code());
        }
        "suite" => {
            join(&comm, local, 60).expect("all join");
            for (name, case) in CASES {
                eprintln!("rank {rank}: {name}");
                case(&comm, Device::Cpu);
            }
            println!("conforms as {rank} of {}", comm.world_size());
        }
        "reducer" | "swapped" => reduce_twice(&comm, part == "swapped"),
        "training" => train_twice(&comm, &[false, true]),
        "sharded training" => train_twice(&comm, &[true]),
        "dropped" => drop_early(&comm),
        part if part.starts_with("queued") => train_queued(&comm, part.strip_prefix("queued ").unwrap_or_default()),
        // What becomes of it is the shim's to say; a program reports the error and aborts, as main does.
        "failing" | "absent" => {
            join(&comm, local, 1).expect("all join");
            if part == "absent" && rank == 1 {
                std::thread::sleep(Duration::from_secs(600));
            }
            if let Err(error) = reduce(&comm, Kind::Float, false) {
                eprintln!("error: {error}");
                comm.abort(error.exit_code());
            }
        }
        part => panic!("there is no part {part}"),
    }
}

/// What `rank` brings to a bucket: whole numbers, so that every order of adding up gives the same, in bf16 too.
fn bucket(number: usize, rank: usize) -> Tensor {
    let places = Tensor::arange(BUCKETS[number], (Kind::Int64, Device::Cpu));
    ((places * 7 + (rank * 13 + number * 5) as i64).remainder(61)).to_kind(Kind::Float)
}

/// The sums of all buckets, read at once as the optimizer does. A swap mixes two buckets up on rank 1.
fn reduce(comm: &CommThread, kind: Kind, swap: bool) -> Result<Vec<Tensor>> {
    let of_one = |number: usize| {
        let parameters = Parameters::new(vec![Declared::new("weight", &[BUCKETS[number]])]);
        Some(Bucket::over(parameters, bucket(number, comm.rank())))
    };
    let mut buckets = Buckets::from_each((0..BUCKETS.len()).map(of_one));
    let mut order: Vec<usize> = (0..BUCKETS.len()).collect();
    if swap && comm.rank() == 1 {
        order.swap(1, 2);
    }
    let plan = reductions(&order, |number| Some(BUCKETS[number] as usize));
    let mut reducer = Reducer::new(comm, &mut buckets, plan.into()).summing_in(kind);
    for number in order {
        let bucket = reducer.lend(number)?.expect("every bucket is trained");
        reducer.complete(number, bucket)?;
    }
    reducer.finish()?;
    Ok(buckets.iter().map(|(_, bucket)| bucket.flat().copy()).collect())
}

fn reduce_twice(comm: &CommThread, swap: bool) {
    let over_mpi = reduce(comm, Kind::Float, false).expect("MPI reduces");
    join(comm, comm.local().rank, 60).expect("all join");
    for kind in [Kind::Float, Kind::BFloat16] {
        let sums = reduce(comm, kind, swap).expect("NCCL reduces");
        for (number, (sum, expected)) in sums.iter().zip(&over_mpi).enumerate() {
            assert!(sum.equal(expected), "{kind:?}: bucket {number} differs");
        }
    }
    // The initial weights go together.
    let weights: Vec<Tensor> = (0..BUCKETS.len()).map(|number| bucket(number, comm.rank())).collect();
    comm.broadcast_together("the weights".into(), &weights, 1).expect("NCCL broadcasts");
    for (number, weight) in weights.iter().enumerate() {
        assert!(weight.equal(&bucket(number, 1)), "bucket {number} differs after the broadcast");
    }
    println!("the sums are right");
}

/// Losses, gradient norms and final masters of a few steps.
fn train(config: &Config, comm: &CommThread) -> (Vec<f64>, Vec<Tensor>) {
    let mut trainer = steps::trainer(config, comm, steps::engine_of_rank(config, (Kind::Float, Device::Cpu), comm));
    let mut scalars = Vec::new();
    for _ in 0..STEPS {
        let (metrics, _) = trainer.step(STEPS).expect("a step");
        scalars.extend([metrics.loss, metrics.grad_norm]);
    }
    (scalars, trainer.engine.model.named_values().into_iter().map(|(_, master)| master.copy()).collect())
}

/// With optimizer state sharded or not.
fn train_twice(comm: &CommThread, shards: &[bool]) {
    let config = |shard: &bool| steps::config("llama-tied", &[&format!("parallel.shard_optimizer={shard}")]);
    let configs: Vec<Config> = shards.iter().map(config).collect();
    let over_mpi: Vec<_> = configs.iter().map(|config| train(config, comm)).collect();
    join(comm, comm.local().rank, 60).expect("all join");
    for (config, over_mpi) in configs.iter().zip(&over_mpi) {
        compare(&train(config, comm), over_mpi, comm.world_size());
    }
    println!("the trajectories are the same");
}

fn compare(over_nccl: &(Vec<f64>, Vec<Tensor>), over_mpi: &(Vec<f64>, Vec<Tensor>), ranks: usize) {
    let scalars = over_nccl.0.iter().zip(&over_mpi.0).map(|(left, right)| (left - right).abs() / right.abs());
    let masters = over_nccl
        .1
        .iter()
        .zip(&over_mpi.1)
        .map(|(left, right)| ((left - right).norm() / right.norm().clamp_min(1e-12)).double_value(&[]));
    let far = scalars.chain(masters).fold(0.0, f64::max);
    // Two numbers have one sum; three have one for each order.
    let bound = if ranks == 2 { 0.0 } else { 2e-5 };
    assert!(far <= bound, "the trajectories differ by {far:.1e}");
}

/// The calls of a GPU that CPUs do not have: tensors of the right kind and size, of which no value is read.
struct Unread;

/// How often the attention of [`Unread`] was called.
static ATTENDED: AtomicUsize = AtomicUsize::new(0);

impl Library for Unread {
    fn attends(&self, kind: Kind) -> bool {
        kind == Kind::BFloat16
    }

    fn attention(&self, _: &VarlenCall, [query, _, _]: [&Tensor; 3], output: &Tensor) -> Result<Tensor> {
        ATTENDED.fetch_add(1, Ordering::Relaxed);
        output.shallow_clone().copy_(query);
        Ok(Tensor::zeros([query.size()[1], query.size()[0]], (Kind::Float, query.device())))
    }

    fn attention_backward(
        &self,
        _: &VarlenCall,
        gradient: &Tensor,
        [_, key, value]: [&Tensor; 3],
        _: &Tensor,
        _: &Tensor,
    ) -> Result<[Tensor; 3]> {
        Ok([gradient.copy(), key.zeros_like(), value.zeros_like()])
    }

    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()> {
        Plain.add_product(left, right, sum)
    }
}

/// The formulas that GPUs compute with, and a wait in them.
struct Waiting(fn(&Tensor));

impl Ops for Waiting {
    fn sum_of_squares(&self, tensors: &[Tensor]) -> Result<Tensor> {
        let squares = Tensors.sum_of_squares(tensors)?;
        (self.0)(&squares);
        Ok(squares)
    }
}

/// Of the device that is waited for.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Waits in the middle of a step, by name.
static WAITS: [(&str, Waiting); 4] = [
    ("and read", Waiting(|values| assert!(values.double_value(&[0]) >= 0.0))),
    ("and compared", Waiting(|values| assert!(values.equal(values)))),
    ("and copied", Waiting(|values| drop(values.to_device(Device::Cpu)))),
    ("and awaited", Waiting(|_| QUEUE.get().unwrap().mark().unwrap().wait().unwrap())),
];

/// Marks the first launch of a step, or its last, in the shim's record.
fn mark(first: bool) {
    // SAFETY: the shim is loaded already, and has the function.
    unsafe {
        let shim = libloading::Library::new("libnccl.so").expect("the shim");
        shim.get::<unsafe extern "C" fn(i32)>(b"shim_mark").expect("the shim's mark")(i32::from(first));
    }
}

/// A training whose steps are queued: a model, changes of its config, and what it computes with.
type Queued = (&'static str, &'static [&'static str], Kind, &'static dyn Ops);

/// In f32 with the formulas, as a GPU whose kernels were replaced; in bf16 as any other GPU.
const QUEUED: [Queued; 6] = [
    ("llama-tied", &["parallel.shard_optimizer=false"], Kind::Float, &Tensors),
    ("llama-tied", &["parallel.shard_optimizer=true"], Kind::Float, &Tensors),
    ("llama-tied", &["parallel.shard_optimizer=true"], Kind::BFloat16, &Cuda(Unread)),
    (
        "llama-tied",
        &["lora.rank=4", "lora.targets='all-linear'", "train.activation_checkpointing=true"],
        Kind::BFloat16,
        &Cuda(Unread),
    ),
    // Layer norm; then capped scores and windows.
    ("phi", &[], Kind::BFloat16, &Cuda(Unread)),
    ("gemma2", &[], Kind::BFloat16, &Cuda(Unread)),
];

/// Steps of all trainings that are queued.
pub const QUEUED_STEPS: usize = STEPS * QUEUED.len();

/// Steps as a run queues them, each read when the next one is queued; their metrics are those of steps that are read at once.
fn train_queued(comm: &CommThread, wait: &str) {
    join(comm, comm.local().rank, 60).expect("all join");
    let _ = QUEUE.set(Queue::of(Device::Cpu, comm).expect("a queue"));
    let wait = WAITS.iter().find(|(name, _)| *name == wait);
    // A control needs one of them.
    for (case, lines, kind, ops) in &QUEUED[..if wait.is_some() { 1 } else { QUEUED.len() }] {
        let ops = wait.map_or(*ops, |(_, waiting)| waiting);
        let lines = [*lines, &["train.check_every=1", "train.clip_norm=0.5"]].concat();
        let config = steps::config(case, &lines);
        let trainer = || {
            let engine = steps::engine_of_rank(&config, (*kind, Device::Cpu), comm);
            let mut trainer = steps::trainer(&config, comm, engine);
            trainer.engine.model.segments.iter_mut().for_each(|segment| segment.weights.ops = ops);
            trainer
        };
        let (mut queued, mut at_once) = (trainer(), trainer());
        assert_eq!(queued.ahead(), 1, "a device with a queue is read one step later");
        let attended = ATTENDED.load(Ordering::Relaxed);
        let mut read = Vec::new();
        for _ in 0..STEPS {
            mark(true);
            queued.queue_step(STEPS).expect("a step");
            mark(false);
            read.extend(queued.read_steps(1).expect("a step"));
        }
        let is_flash = *kind == Kind::BFloat16 && *case == "llama-tied";
        assert_eq!(ATTENDED.load(Ordering::Relaxed) > attended, is_flash, "what attention is computed with");
        assert_eq!(read.len(), STEPS - 1);
        read.extend(queued.read_steps(0).expect("the last step"));
        for (queued, _) in read {
            let (expected, _) = at_once.step(STEPS).expect("a step");
            assert!(queued.loss.is_finite() && queued.grad_norm > 0.0, "{case}: {queued:?}");
            assert_eq!(
                (queued.step, queued.loss, queued.grad_norm),
                (expected.step, expected.loss, expected.grad_norm)
            );
        }
    }
    println!("queued and read");
}

/// Starts reductions of memory that nobody else holds, and takes new memory at once.
fn drop_early(comm: &CommThread) {
    join(comm, comm.local().rank, 60).expect("all join");
    let mut taken = Vec::new();
    for number in 0..30 {
        let float = (Kind::Float, Device::Cpu);
        drop(comm.all_reduce(Tensor::full([50_000], comm.rank() as f64 + 1.0, float)));
        taken.push(Tensor::full([50_000], f64::from(number), float));
    }
    let mut last = Tensor::ones([1], (Kind::Float, Device::Cpu));
    comm.all_reduce_blocking(&mut last).expect("NCCL reduces");
    for (number, taken) in taken.iter().enumerate() {
        assert!(taken.eq(number as f64).all().int64_value(&[]) == 1, "tensor {number} was overwritten");
    }
    println!("nothing was overwritten");
}
