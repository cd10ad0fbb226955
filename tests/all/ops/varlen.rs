//! Promise: attention on a GPU, one call over gathered runs, is the attention of the plain formulas: its index plan, its windows
//! and the sums of its gradients are right for every shape of pairs. Tested with the call written out as tensor operations; the
//! call itself has run on no GPU.

use super::attention;
use super::conformance::{distance, waves};
use crate::steps;
use haf_dist::comm::CommThread;
use haf_dist::comm::solo::Solo;
use haf_dist::error::Result;
use haf_dist::ops::cuda::{Cuda, Library, Plain, VarlenCall};
use haf_dist::ops::{Ops, Tensors};
use haf_dist::packing::{AttentionRules, Group, HeadCounts};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tch::{Device, Kind, Tensor};

/// A mistake that can be made around the call, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mistake {
    /// A window of one key more.
    Window,
    /// Runs whose first query sees the first key alone, as in a mask aligned to the upper left; seen in the output.
    UpperLeft,
    /// A further suffix that gives its prefix no gradient.
    Gradient,
}

/// [`Plain`], asked with a mistake.
struct Mistaken(Mistake);

impl Mistaken {
    fn call(&self, call: &VarlenCall) -> VarlenCall {
        let Self(mistake) = self;
        VarlenCall {
            queries: call.queries.shallow_clone(),
            keys: if *mistake == Mistake::UpperLeft { &call.queries } else { &call.keys }.shallow_clone(),
            before: call.before.map(|before| before + i64::from(*mistake == Mistake::Window)),
            ..*call
        }
    }
}

impl Library for Mistaken {
    fn attends(&self, kind: Kind) -> bool {
        Plain.attends(kind)
    }

    fn attention(&self, call: &VarlenCall, rows: [&Tensor; 3], output: &Tensor) -> Result<Tensor> {
        Plain.attention(&self.call(call), rows, output)
    }

    fn attention_backward(
        &self,
        call: &VarlenCall,
        gradient: &Tensor,
        rows: [&Tensor; 3],
        output: &Tensor,
        log_sums: &Tensor,
    ) -> Result<[Tensor; 3]> {
        if self.0 == Mistake::UpperLeft {
            return Plain.attention_backward(call, gradient, rows, output, log_sums);
        }
        let made = Plain.attention_backward(&self.call(call), gradient, rows, output, log_sums)?;
        if self.0 == Mistake::Gradient {
            let first = call.keys.int64_value(&[1]);
            let _ = made[1].narrow(0, first, call.keys.int64_value(&[2]) - first).zero_();
        }
        Ok(made)
    }

    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()> {
        Plain.add_product(left, right, sum)
    }
}

/// [`Plain`], counted.
#[derive(Default)]
struct Counted {
    forward: AtomicUsize,
    backward: AtomicUsize,
}

impl Library for &'static Counted {
    fn attends(&self, kind: Kind) -> bool {
        Plain.attends(kind)
    }

    fn attention(&self, call: &VarlenCall, rows: [&Tensor; 3], output: &Tensor) -> Result<Tensor> {
        self.forward.fetch_add(1, Relaxed);
        Plain.attention(call, rows, output)
    }

    fn attention_backward(
        &self,
        call: &VarlenCall,
        gradient: &Tensor,
        rows: [&Tensor; 3],
        output: &Tensor,
        log_sums: &Tensor,
    ) -> Result<[Tensor; 3]> {
        self.backward.fetch_add(1, Relaxed);
        Plain.attention_backward(call, gradient, rows, output, log_sums)
    }

    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor) -> Result<()> {
        Plain.add_product(left, right, sum)
    }
}

fn group(start: usize, prefix: usize, suffixes: &[usize]) -> Group {
    Group { start, prefix, suffixes: suffixes.to_vec() }
}

/// Output and gradient of the rows.
fn made(ops: &dyn Ops, groups: &[Group], heads: HeadCounts, rules: AttentionRules, kind: Kind) -> [Tensor; 2] {
    let [count, query, key, width] =
        [groups.iter().map(Group::rows).sum(), heads.query, heads.key, heads.width].map(|number| number as i64);
    let rows = waves(&[count, query + 2 * key, width], 1.0, Device::Cpu).to_kind(kind);
    let upstream = waves(&[count, query, width], 2.0, Device::Cpu).to_kind(kind);
    let plan = ops.plan_attention(groups, heads, rules, (kind, Device::Cpu));
    let (output, gradient) = (upstream.empty_like(), rows.empty_like());
    let sums = ops.attention(&plan, &rows, &output).unwrap();
    ops.attention_backward(&plan, &upstream, &rows, &output, &sums, &gradient).unwrap();
    [output, gradient]
}

/// The larger of the distances of output and gradient from the formulas'.
fn far(ops: &dyn Ops, groups: &[Group], heads: HeadCounts, rules: AttentionRules, kind: Kind) -> f64 {
    let [found, wanted] = [ops, &Tensors].map(|ops| made(ops, groups, heads, rules, kind));
    found.iter().zip(&wanted).map(|(found, wanted)| distance(found, wanted)).fold(0.0, f64::max)
}

#[test]
fn every_shape_of_pairs_agrees_with_the_formulas() {
    let shapes = [
        vec![group(0, 9, &[4])],
        vec![group(0, 0, &[1]), group(1, 0, &[1, 1])],
        vec![group(0, 11, &[5, 3])],
        vec![group(0, 4, &[2, 7]), group(13, 0, &[3, 5]), group(21, 1, &[1]), group(23, 6, &[1, 2, 3, 4])],
    ];
    let heads = [(4, 4, 8), (6, 2, 24), (5, 1, 16)].map(|(query, key, width)| HeadCounts { query, key, width });
    for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
        for (groups, heads) in shapes.iter().flat_map(|groups| heads.map(|heads| (groups, heads))) {
            for window in [None, Some(1), Some(3), Some(6), Some(60)] {
                let rules = AttentionRules { window, ..AttentionRules::plain(heads.width) };
                let far = far(&Cuda(Plain), groups, heads, rules, kind);
                assert!(far < bound, "{kind:?} {groups:?} {heads:?} {window:?}: {far:.1e}");
            }
        }
    }
}

#[test]
fn control_a_mistake_around_the_call_is_seen() {
    let (groups, heads) = ([group(0, 7, &[4, 5])], HeadCounts { query: 4, key: 2, width: 8 });
    let rules = AttentionRules { window: Some(6), ..AttentionRules::plain(8) };
    for mistake in [Mistake::Window, Mistake::UpperLeft, Mistake::Gradient] {
        let far = far(&Cuda(Mistaken(mistake)), &groups, heads, rules, Kind::Float);
        assert!(far > 1e-2, "{mistake:?}: {far:.1e}");
    }
}

#[test]
#[should_panic = "window: Some(40)"]
fn control_the_conformance_suite_sees_a_window_of_one_key_more() {
    attention::all(&Cuda(Mistaken(Mistake::Window)), Device::Cpu);
}

#[test]
fn rows_that_were_not_planned_for_are_refused() {
    let heads = HeadCounts { query: 4, key: 2, width: 8 };
    let ops = Cuda(Plain);
    let place = (Kind::Float, Device::Cpu);
    let plan = ops.plan_attention(&[group(0, 3, &[2])], heads, AttentionRules::plain(8), place);
    let attend = |rows| ops.attention(&plan, &Tensor::zeros([rows, 8, 8], place), &Tensor::zeros([rows, 4, 8], place));
    assert!(attend(5).is_ok());
    assert!(attend(6).unwrap_err().message.contains("planned for 5 rows"));
}

/// Losses and gradient norms of three steps with these operations in every segment.
fn trajectory(case: &str, ops: &'static dyn Ops) -> Vec<f64> {
    let config = steps::config(case, &[]);
    let comm = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
    let mut trainer = steps::trainer(&config, &comm, steps::engine(&config));
    trainer.engine.model.segments.iter_mut().for_each(|segment| segment.weights.ops = ops);
    let step = |_| trainer.step(5).unwrap().0;
    (0..3).map(step).flat_map(|metrics| [metrics.loss, metrics.grad_norm]).collect()
}

/// Whole steps, with windows in one block and none in the other, and one call a block and pass.
#[test]
fn steps_with_a_gpus_operations_are_those_of_the_formulas() {
    for case in ["llama-tied", "olmo3", "llama-yarn"] {
        let calls: &'static Counted = Box::leak(Box::default());
        let found = trajectory(case, Box::leak(Box::new(Cuda(calls))));
        let wanted = trajectory(case, &Tensors);
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() < 1e-4 * wanted.abs(), "{case}: {found} is not {wanted}");
        }
        let counts = [&calls.forward, &calls.backward].map(|count| count.load(Relaxed));
        let blocks = steps::engine(&steps::config(case, &[])).order.blocks.len();
        assert!(counts[0] == counts[1] && counts[0] > 0 && counts[0].is_multiple_of(blocks), "{case}: {counts:?}");
    }
}
