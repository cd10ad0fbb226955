//! One conformance suite for every communicator backend: each rank runs [`CASES`] in order, each case on its own.
//! A case panics if the backend breaks a promise. The expected values are calculated from the rank numbers alone.

use haf_dist::comm::CommThread;
use haf_dist::error::{Error, Result};
use haf_dist::tensor::{bytes, slice};
use tch::{Device, Kind, Tensor};

/// A case: every rank of a world calls it.
pub type Case = fn(&CommThread, Device);

/// All cases, by name.
pub const CASES: &[(&str, Case)] = &[
    ("broadcast_from_every_root", broadcast_from_every_root),
    ("all_reduce_sums_with_the_same_bits_everywhere", all_reduce_sums_with_the_same_bits_everywhere),
    ("all_reduce_of_a_view_leaves_its_neighbors_alone", all_reduce_of_a_view_leaves_its_neighbors_alone),
    ("reduce_scatter_gives_each_rank_its_share", reduce_scatter_gives_each_rank_its_share),
    ("reduce_scatter_in_shared_buffers", reduce_scatter_in_shared_buffers),
    ("all_gather_keeps_rank_order", all_gather_keeps_rank_order),
    ("many_all_reduces_may_be_in_flight", many_all_reduces_may_be_in_flight),
    ("shared_buffers_hold_the_sum_in_rank_order", shared_buffers_hold_the_sum_in_rank_order),
    ("parts_of_shared_buffers_leave_their_neighbors_alone", parts_of_shared_buffers_leave_their_neighbors_alone),
    ("barrier_waits_for_the_last", barrier_waits_for_the_last),
    ("host_values_are_shared", host_values_are_shared),
    ("agree_returns_one_error_everywhere", agree_returns_one_error_everywhere),
];

const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Int64, Kind::Uint8];

/// Every kind with nothing, one, odd, and more than MPI moves at once; Float also with more than a bucket holds.
fn sizes() -> impl Iterator<Item = (Kind, usize)> {
    let each = [0, 1, 1001].into_iter().flat_map(|size| KINDS.map(|kind| (kind, size)));
    let large = [(Kind::Float, 5_000_003), (Kind::Double, 300_003), (Kind::Int64, 300_003), (Kind::Uint8, 1_300_003)];
    each.chain(large)
}

/// The same, for operations that have such a buffer for each rank.
fn share_sizes() -> impl Iterator<Item = (Kind, usize)> {
    sizes().map(|(kind, size)| (kind, if size > 1_000_000 { size / 4 } else { size }))
}

/// What `rank` contributes at place `i`: numbers whose floating-point sums round.
fn value(rank: usize, i: usize) -> f64 {
    let mixed = (i as u64 + 1).wrapping_mul(2_654_435_761).wrapping_add(rank as u64 * 40_503) % 100_003;
    mixed as f64 / 97.0 - 500.0
}

/// `value` as `kind` holds it, back in f64.
fn held(kind: Kind, rank: usize, i: usize) -> f64 {
    match kind {
        Kind::Float => f64::from(value(rank, i) as f32),
        Kind::Double => value(rank, i),
        Kind::Int64 => (value(rank, i) * 1e6).trunc(),
        _ => f64::from(value(rank, i).abs() as u8 % 80), // Three ranks stay below 256.
    }
}

fn made(kind: Kind, device: Device, size: usize, at: impl Fn(usize) -> f64) -> Tensor {
    let values: Vec<f64> = (0..size).map(at).collect();
    Tensor::from_slice(&values).to_kind(kind).to_device(device)
}

fn own(comm: &CommThread, kind: Kind, device: Device, size: usize) -> Tensor {
    made(kind, device, size, |i| held(kind, comm.rank(), i))
}

fn read(tensor: &Tensor) -> Vec<f64> {
    slice::<f64>(&tensor.to_device(Device::Cpu).to_kind(Kind::Double).contiguous()).unwrap().to_vec()
}

/// Places i of `tensor` must hold the sum over ranks of `held` at `offset + i`, up to rounding of the kind.
fn assert_sum(comm: &CommThread, tensor: &Tensor, offset: usize) {
    let kind = tensor.kind();
    let rounding = match kind {
        Kind::Float => 2f64.powi(-24),
        Kind::Double => 2f64.powi(-53),
        _ => 0.0,
    };
    for (i, got) in read(tensor).into_iter().enumerate() {
        let parts = (0..comm.world_size()).map(|rank| held(kind, rank, offset + i));
        let (sum, size) = parts.fold((0.0, 0.0), |(sum, size), part| (sum + part, size + part.abs()));
        // A sum of n numbers rounds n - 1 times, the expected one too.
        let slack = 2.0 * (comm.world_size() - 1) as f64 * rounding * size;
        assert!((got - sum).abs() <= slack, "{kind:?} at {i}: {got}, expected {sum}");
    }
}

/// A hash of every rank's bytes, in rank order.
fn hashes(comm: &CommThread, tensor: &Tensor) -> Vec<i64> {
    let own = xxhash_rust::xxh3::xxh3_64(&bytes(&tensor.to_device(Device::Cpu)).unwrap()) as i64;
    let mut all = Tensor::from_slice(&vec![own; comm.world_size()]).to_device(tensor.device());
    comm.all_gather_blocking(&mut all).unwrap();
    slice::<i64>(&all.to_device(Device::Cpu)).unwrap().to_vec()
}

fn broadcast_from_every_root(comm: &CommThread, device: Device) {
    for (kind, size) in sizes() {
        for root in 0..comm.world_size() {
            let mut buffer = own(comm, kind, device, size);
            comm.broadcast(&mut buffer, root).unwrap();
            assert!(buffer == made(kind, device, size, |i| held(kind, root, i)), "{kind:?}, {size}, root {root}");
        }
    }
    let mut half = made(Kind::BFloat16, device, 5, |i| value(comm.rank(), i));
    comm.broadcast(&mut half, 0).unwrap();
    assert!(half == made(Kind::BFloat16, device, 5, |i| value(0, i)), "any kind can be broadcast");
}

fn all_reduce_sums_with_the_same_bits_everywhere(comm: &CommThread, device: Device) {
    for (kind, size) in sizes() {
        let mut buffer = own(comm, kind, device, size);
        if size > 1 && comm.world_size() > 1 {
            // The control: the hashes tell ranks apart that differ.
            let before = hashes(comm, &buffer);
            assert!(before.iter().any(|hash| *hash != before[0]), "{kind:?}, {size}");
        }
        comm.all_reduce_blocking(&mut buffer).unwrap();
        assert_sum(comm, &buffer, 0);
        let after = hashes(comm, &buffer);
        assert!(after.iter().all(|hash| *hash == after[0]), "{kind:?}, {size}: the ranks' bits differ");
    }
}

fn all_reduce_of_a_view_leaves_its_neighbors_alone(comm: &CommThread, device: Device) {
    let flat = own(comm, Kind::Float, device, 3000);
    let reduced = comm.all_reduce(flat.narrow(0, 1000, 1000)).wait().unwrap();
    assert_sum(comm, &reduced, 1000);
    assert!(reduced == flat.narrow(0, 1000, 1000), "the sum is in the flat tensor's memory");
    let before = own(comm, Kind::Float, device, 3000);
    assert!(flat.narrow(0, 0, 1000) == before.narrow(0, 0, 1000));
    assert!(flat.narrow(0, 2000, 1000) == before.narrow(0, 2000, 1000));
}

fn reduce_scatter_gives_each_rank_its_share(comm: &CommThread, device: Device) {
    for (kind, size) in share_sizes() {
        let buffer = own(comm, kind, device, size * comm.world_size());
        let reduced = comm.reduce_scatter_together("a buffer".into(), vec![buffer]).wait().unwrap();
        assert_sum(comm, &share(comm, &reduced[0]), comm.rank() * size);
    }
    let size = |i: usize| (1 + i * 37) * comm.world_size();
    let buffers = |i: usize| vec![own(comm, Kind::Float, device, size(i)), own(comm, Kind::Float, device, size(2 * i))];
    let pending: Vec<_> = (0..40).map(|i| comm.reduce_scatter_together(format!("buffers {i}"), buffers(i))).collect();
    for pending in pending {
        for reduced in pending.wait().unwrap() {
            let own = share(comm, &reduced);
            assert_sum(comm, &own, comm.rank() * own.size()[0] as usize);
        }
    }
}

/// This rank's share of a flat tensor.
fn share(comm: &CommThread, whole: &Tensor) -> Tensor {
    let share = whole.size()[0] / comm.world_size() as i64;
    whole.narrow(0, comm.rank() as i64 * share, share)
}

/// In shared memory a share is summed in rank order too, and the memory around the part stays as it is.
fn reduce_scatter_in_shared_buffers(comm: &CommThread, device: Device) {
    let ranks = comm.world_size();
    let lengths = [5 * ranks + 2, 400_001 * ranks];
    let Some(buffers) = comm.shared_buffers(&lengths).unwrap() else { return };
    for (buffer, length) in buffers.iter().zip(lengths) {
        let inner = (length - length % ranks) as i64;
        buffer.shallow_clone().copy_(&own(comm, Kind::Float, device, length));
        let pending = comm.reduce_scatter_together("a part".into(), vec![buffer.narrow(0, 0, inner)]);
        let own_share = share(comm, &pending.wait().unwrap()[0]);
        let first = comm.rank() * (inner as usize / ranks);
        assert_sum(comm, &own_share, first);
        let in_rank_order = |i| (0..ranks).map(|rank| held(Kind::Float, rank, i) as f32).sum::<f32>();
        if comm.local().size == ranks {
            let expected = made(Kind::Float, device, inner as usize / ranks, |i| f64::from(in_rank_order(first + i)));
            assert!(own_share == expected, "{length}");
        }
        let rest = length as i64 - inner;
        let before = own(comm, Kind::Float, device, length);
        assert!(buffer.narrow(0, inner, rest) == before.narrow(0, inner, rest));
    }
}

fn all_gather_keeps_rank_order(comm: &CommThread, device: Device) {
    for (kind, size) in share_sizes() {
        let mut buffer = own(comm, kind, device, size * comm.world_size());
        comm.all_gather_blocking(&mut buffer).unwrap();
        let expected = made(kind, device, size * comm.world_size(), |i| held(kind, i / size.max(1), i));
        assert!(buffer == expected, "{kind:?}, {size}");
    }
    let half = |rank: usize| made(Kind::BFloat16, device, 3 * comm.world_size(), |i| value(rank, i));
    let gathered =
        comm.all_gather_together("halves".into(), vec![half(comm.rank()), half(comm.rank())]).wait().unwrap();
    for (i, got) in read(&gathered[1]).into_iter().enumerate() {
        assert_eq!(got, read(&half(i / 3))[i], "any kind can be gathered");
    }
}

fn many_all_reduces_may_be_in_flight(comm: &CommThread, device: Device) {
    let size = |i: usize| 1 + i * 37 % 5000;
    let pending: Vec<_> = (0..100).map(|i| comm.all_reduce(own(comm, Kind::Float, device, size(i)))).collect();
    for (i, pending) in pending.into_iter().enumerate() {
        let reduced = pending.wait().unwrap();
        assert_eq!(reduced.size(), [size(i) as i64]);
        assert_sum(comm, &reduced, 0);
    }
}

/// Nothing, one, fewer than a cache line, one more than many pages, and more than MPI moves at once.
const SHARED: [usize; 5] = [0, 1, 7, 65_537, 1_300_003];

fn shared_buffers_hold_the_sum_in_rank_order(comm: &CommThread, device: Device) {
    let Some(buffers) = comm.shared_buffers(&SHARED).unwrap() else { return };
    let mut pending = Vec::new();
    for (buffer, size) in buffers.iter().zip(SHARED) {
        assert_eq!((buffer.kind(), buffer.device(), buffer.size()), (Kind::Float, device, vec![size as i64]));
        assert!(size == 0 || (buffer.data_ptr() as usize).is_multiple_of(64));
        assert!(*buffer == buffer.zeros_like(), "zeroed");
        buffer.shallow_clone().copy_(&own(comm, Kind::Float, device, size));
        if size > 1 && comm.world_size() > 1 {
            let before = hashes(comm, buffer);
            assert!(before.iter().any(|hash| *hash != before[0]), "the control: the ranks differ");
        }
    }
    // All in flight, and in another order than they lie.
    for (buffer, size) in buffers.into_iter().zip(SHARED).rev() {
        pending.push((comm.all_reduce(buffer), size));
    }
    for (pending, size) in pending {
        let reduced = pending.wait().unwrap();
        assert_sum(comm, &reduced, 0);
        let after = hashes(comm, &reduced);
        assert!(after.iter().all(|hash| *hash == after[0]), "{size}: the ranks' bits differ");
        let mut plain = own(comm, Kind::Float, device, size);
        comm.all_reduce_blocking(&mut plain).unwrap();
        // Two numbers have one sum; of more, the order counts.
        assert!(comm.world_size() > 2 || reduced == plain, "{size}: not the sum of buffers that are not shared");
        if comm.local().size == comm.world_size() {
            let in_rank_order = |i| (0..comm.world_size()).map(|rank| held(Kind::Float, rank, i) as f32).sum::<f32>();
            assert!(reduced == made(Kind::Float, device, size, |i| f64::from(in_rank_order(i))), "{size}");
        }
    }
}

fn parts_of_shared_buffers_leave_their_neighbors_alone(comm: &CommThread, device: Device) {
    let Some(buffers) = comm.shared_buffers(&[100, 3000]).unwrap() else { return };
    let flat = &buffers[1];
    let before = own(comm, Kind::Float, device, 3000);
    flat.shallow_clone().copy_(&before);
    for (start, length) in [(1000, 1), (1001, 998), (2000, 0)] {
        let reduced = comm.all_reduce(flat.narrow(0, start, length)).wait().unwrap();
        assert_sum(comm, &reduced, start as usize);
    }
    assert!(flat.narrow(0, 0, 1000) == before.narrow(0, 0, 1000));
    assert!(flat.narrow(0, 1999, 1001) == before.narrow(0, 1999, 1001));
    assert!(buffers[0] == buffers[0].zeros_like());
    // What is not a sum of floats works in that memory too.
    let mut flat = flat.shallow_clone();
    comm.broadcast(&mut flat, comm.world_size() - 1).unwrap();
    let after = hashes(comm, &flat);
    assert!(after.iter().all(|hash| *hash == after[0]));
}

fn barrier_waits_for_the_last(comm: &CommThread, _: Device) {
    let late = std::time::Duration::from_millis(100);
    comm.barrier().unwrap();
    let start = std::time::Instant::now();
    if comm.rank() == comm.world_size() - 1 {
        std::thread::sleep(late);
    }
    comm.barrier().unwrap();
    // The first barrier lets ranks go at slightly different times.
    assert!(start.elapsed() > late / 2, "rank {} did not wait", comm.rank());
}

fn host_values_are_shared(comm: &CommThread, _: Device) {
    let (rank, ranks) = (comm.rank(), comm.world_size());
    let mut values = [rank as f64, 1.0];
    comm.sum_f64(&mut values).unwrap();
    assert_eq!(values, [(ranks * (ranks - 1) / 2) as f64, ranks as f64]);
    assert!(comm.all_true(true).unwrap());
    assert!(!comm.all_true(rank != ranks - 1).unwrap());
    for text in [b"".to_vec(), b"from rank 0".to_vec()] {
        let passed = (rank == 0).then(|| text.clone());
        assert_eq!(comm.broadcast_bytes(passed).unwrap(), text);
    }
    assert!(comm.broadcast_bytes(None).is_err());
}

fn agree_returns_one_error_everywhere(comm: &CommThread, _: Device) {
    assert_eq!(comm.agree(Ok(comm.rank())), Ok(comm.rank()), "everybody keeps its own value");
    let wrong = || Error::input("data.jsonl:7: \"quoted\" – ü").hint("mend it");
    assert_eq!(comm.agree::<()>(Err(wrong())), Err(wrong()), "all fail: rank 0's error as it is");
    let last = comm.world_size() - 1;
    let outcome: Result<()> = if comm.rank() == last { Err(wrong()) } else { Ok(()) };
    let expected = if last == 0 { wrong() } else { wrong().at(format_args!("rank {last}")) };
    assert_eq!(comm.agree(outcome), Err(expected));
    let outcome: Result<()> = Err(Error::runtime(format!("rank {}'s", comm.rank())));
    assert_eq!(comm.agree(outcome), Err(Error::runtime("rank 0's")), "the lowest failing rank's error counts");
    assert_eq!(comm.agree(Ok(())), Ok(()), "an error that all agreed on leaves the communicator usable");
}
