//! The prefetch thread's promises: the same batches as without it, from any step on, and it ends whenever it is dropped.

use crate::steps;
use haf_dist::data::batch::Packing;
use haf_dist::data::prefetch::{Prefetch, Share};
use haf_dist::data::sampler::Sampler;
use haf_dist::data::split::Split;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tch::Device;

const PAIRS_PER_STEP: usize = 8;

fn split() -> Arc<Split> {
    Arc::new(Split { name: "train", data: steps::pairs(50), references: Vec::new() })
}

fn share(split: &Split, (rank, world_size): (usize, usize)) -> Share {
    let sampler = Sampler::new(split.data.source_ranges(), &[1.0], PAIRS_PER_STEP, true, 3).unwrap();
    let (packing, device) = (Packing::Shared, Device::Cpu);
    Share { sampler, rank, world_size, tokens_per_micro_batch: 40, packing, device }
}

/// Step, whether it is the step's last, pairs and tokens of every micro-batch of these steps.
fn batches(place: (usize, usize), from: usize, to: usize) -> Vec<(usize, bool, Vec<usize>, Vec<i64>)> {
    let split = split();
    let prefetch = Prefetch::start(split.clone(), share(&split, place), from..to).unwrap();
    let mut seen = Vec::new();
    while let Ok(next) = prefetch.next() {
        let pairs = next.batch.pairs.iter().map(|pair| pair.index).collect();
        seen.push((next.step, next.last, pairs, Vec::try_from(&next.batch.tokens).unwrap()));
    }
    seen
}

#[test]
fn each_step_brings_its_global_batch_once_over_all_ranks_and_says_where_it_ends() {
    let split = split();
    for ranks in [1, 2, 3] {
        let of_ranks: Vec<_> = (0..ranks).map(|rank| batches((rank, ranks), 0, 7)).collect();
        for step in 0..7 {
            let of_step = of_ranks.iter().map(|seen| seen.iter().filter(|it| it.0 == step).collect::<Vec<_>>());
            let mut pairs = Vec::new();
            for seen in of_step {
                let lasts: Vec<bool> = seen.iter().map(|it| it.1).collect();
                assert_eq!(lasts.iter().position(|&last| last), Some(lasts.len() - 1), "step {step}");
                pairs.extend(seen.iter().flat_map(|it| it.2.clone()));
            }
            let mut expected = share(&split, (0, 1)).sampler.global_batch(step);
            pairs.sort_unstable();
            expected.sort_unstable();
            assert_eq!(pairs, expected, "step {step} on {ranks} ranks");
        }
    }
}

#[test]
fn a_later_start_brings_what_the_whole_run_had_from_there_on() {
    let whole = batches((1, 2), 0, 9);
    let rest: Vec<_> = whole.iter().filter(|it| it.0 >= 4).cloned().collect();
    assert_eq!(batches((1, 2), 4, 9), rest);
    assert_ne!(batches((0, 2), 4, 9), rest, "the control: another rank has other pairs");
}

#[test]
fn a_rank_without_pairs_gets_one_empty_batch_a_step() {
    // 23 pairs, 8 a step: the third step has 7 for 8 ranks.
    let seen = batches((7, 8), 2, 3);
    assert_eq!(seen, [(2, true, vec![], vec![])]);
}

#[test]
fn dropped_before_its_end_it_stops_at_once() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let split = split();
        let prefetch = Prefetch::start(split.clone(), share(&split, (0, 1)), 0..usize::MAX).unwrap();
        let first = prefetch.next().unwrap();
        drop(prefetch);
        // The thread has given its data back, so it has ended.
        let _ = done.send((first.step, Arc::strong_count(&split)));
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok((0, 1)));
}
