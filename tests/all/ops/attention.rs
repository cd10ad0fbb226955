//! Attention of packed groups against one formula over all rows at once, differentiated by libtorch.
//!
//! Legend: T tokens, H query heads, G key/value heads, E head width.

use super::conformance::{distance, waves};
use haf_dist::ops::Ops;
use haf_dist::packing::{AttentionRules, Group, HeadCounts};
use tch::{Device, Kind, Tensor};

/// Relative distances that the order of f32 sums explains, and rounding to bf16.
const KINDS: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::BFloat16, 1.2e-2)];

const PLAIN: AttentionRules = AttentionRules { scale: 0.4, window: None, soft_cap: None };

/// Windows that hide nothing, a part of the prefix, all of it and more, and all but the query itself; a cap that
/// bends most scores.
const RULES: [AttentionRules; 8] = [
    PLAIN,
    AttentionRules { window: Some(200), ..PLAIN },
    AttentionRules { window: Some(40), ..PLAIN },
    AttentionRules { window: Some(17), ..PLAIN },
    AttentionRules { window: Some(5), ..PLAIN },
    AttentionRules { window: Some(1), ..PLAIN },
    AttentionRules { soft_cap: Some(1.5), ..PLAIN },
    AttentionRules { soft_cap: Some(1.5), window: Some(23), ..PLAIN },
];

const HEADS: HeadCounts = HeadCounts { query: 4, key: 2, width: 8 };
/// Wide enough for whole matrix tiles.
const WIDE: HeadCounts = HeadCounts { width: 64, ..HEADS };
const ROWS: i64 = 99;

/// Groups of odd sizes, one longer than a block of the loops, one without a prefix, one of a single row.
fn groups() -> Vec<Group> {
    vec![
        Group { start: 0, prefix: 37, suffixes: vec![6, 41, 1] },
        Group { start: 85, prefix: 0, suffixes: vec![3, 2] },
        Group { start: 90, prefix: 4, suffixes: vec![4] },
        Group { start: 98, prefix: 0, suffixes: vec![1] },
    ]
}

/// Rows for heads of a width, and a gradient of the output.
fn inputs(heads: HeadCounts, device: Device) -> (Tensor, Tensor) {
    let width = heads.width as i64;
    let rows = waves(&[ROWS, 8, width], 1.0, device);
    (if heads.width == HEADS.width { rows * 2.0 } else { rows }, waves(&[ROWS, 4, width], 4.0, device))
}

fn heads_of(rows: &Tensor) -> [Tensor; 3] {
    [rows.narrow(1, 0, 4), rows.narrow(1, 4, 2), rows.narrow(1, 6, 2)]
}

/// Whether each row sees each row: said of sequences and positions, not of runs of rows.
fn visible(groups: &[Group], window: Option<usize>) -> Tensor {
    let seen = Tensor::zeros([ROWS, ROWS], (Kind::Bool, Device::Cpu));
    for group in groups {
        let mut row = group.start + group.prefix;
        for suffix in &group.suffixes {
            let sequence: Vec<usize> = (group.start..group.start + group.prefix).chain(row..row + suffix).collect();
            for (position, &query) in sequence.iter().enumerate() {
                for (other, &key) in sequence.iter().enumerate() {
                    if other <= position && window.is_none_or(|window| other + window > position) {
                        let _ = seen.get(query as i64).get(key as i64).fill_(1);
                    }
                }
            }
            row += suffix;
        }
    }
    seen
}

/// Output and gradient of the rows, in f32 of the rounded inputs.
fn expected(rows: &Tensor, upstream: &Tensor, rules: AttentionRules) -> (Tensor, Tensor) {
    let leaf = rows.to_kind(Kind::Float).copy().detach().set_requires_grad(true);
    let [query, key, value] = heads_of(&leaf).map(|part| part.transpose(0, 1));
    let [key, value] = [key, value].map(|part| part.repeat_interleave_self_int(2, 0, None));
    let scores = query.matmul(&key.transpose(-2, -1)) * rules.scale;
    let scores = match rules.soft_cap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    };
    let hidden = visible(&groups(), rules.window).logical_not().to_device(rows.device());
    let scores = scores.masked_fill(&hidden, f64::NEG_INFINITY);
    let output = scores.softmax(-1, Kind::Float).matmul(&value).transpose(0, 1);
    let loss = (&output * upstream.to_kind(Kind::Float)).sum(Kind::Float);
    let gradient = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0);
    (output.detach(), gradient)
}

/// Output and gradient of the rows by the operations, in the rows' kind.
fn made(ops: &dyn Ops, rows: &Tensor, upstream: &Tensor, rules: AttentionRules) -> (Tensor, Tensor) {
    let heads = HeadCounts { width: rows.size()[2] as usize, ..HEADS };
    let plan = ops.plan_attention(&groups(), heads, rules, (rows.kind(), rows.device()));
    let (output, gradient) = (upstream.empty_like(), rows.empty_like());
    let sums = ops.attention(&plan, rows, &output).unwrap();
    ops.attention_backward(&plan, upstream, rows, &output, &sums, &gradient).unwrap();
    (output, gradient)
}

/// Every comparison of this file.
pub fn all(ops: &dyn Ops, device: Device) {
    agrees_with_automatic_differentiation(ops, device);
    leaves_out_what_a_window_hides(ops, device);
    suffixes_see_their_prefix_and_themselves_only(ops, device);
}

fn agrees_with_automatic_differentiation(ops: &dyn Ops, device: Device) {
    for (kind, bound) in KINDS {
        for (heads, rules) in [HEADS, WIDE].into_iter().flat_map(|heads| RULES.map(|rules| (heads, rules))) {
            let (rows, upstream) = inputs(heads, device);
            let (rows, upstream) = (rows.to_kind(kind), upstream.to_kind(kind));
            let (wanted, wanted_gradient) = expected(&rows, &upstream, rules);
            let (output, gradient) = made(ops, &rows, &upstream, rules);
            let far = [distance(&output, &wanted), distance(&gradient, &wanted_gradient)];
            assert!(far.iter().all(|far| *far < bound), "{kind:?} {rules:?}: {far:?}");
        }
    }
    // Control: a window of one position less, and another cap, are seen by far.
    let (rows, upstream) = inputs(HEADS, device);
    let (output, gradient) = made(ops, &rows, &upstream, RULES[7]);
    for other in [AttentionRules { window: Some(22), ..RULES[7] }, AttentionRules { soft_cap: Some(1.6), ..RULES[7] }] {
        let (wanted, wanted_gradient) = expected(&rows, &upstream, other);
        assert!(distance(&output, &wanted) > 1e-3 && distance(&gradient, &wanted_gradient) > 1e-3);
    }
}

/// What is hidden from a suffix changes nothing of it, whatever it is.
fn leaves_out_what_a_window_hides(ops: &dyn Ops, device: Device) {
    for (kind, bound) in KINDS {
        let output = |window, change: bool| {
            let (rows, upstream) = inputs(HEADS, device);
            let [_, keys, values] = heads_of(&rows);
            if change {
                // The second suffix sees rows 33 to 36 of the prefix at most.
                [keys, values].iter().for_each(|part| drop(part.narrow(0, 0, 32).fill_(7.0)));
            }
            let rules = AttentionRules { window, ..PLAIN };
            made(ops, &rows.to_kind(kind), &upstream.to_kind(kind), rules).0.narrow(0, 43, 41)
        };
        assert!(distance(&output(Some(5), true), &output(Some(5), false)) < bound, "{kind:?}");
        // Control: without a window it shows.
        assert!(distance(&output(None, true), &output(None, false)) > 0.1);
    }
}

fn suffixes_see_their_prefix_and_themselves_only(ops: &dyn Ops, device: Device) {
    let group = Group { start: 0, prefix: 4, suffixes: vec![3, 2] };
    let plan = ops.plan_attention(std::slice::from_ref(&group), HEADS, PLAIN, (Kind::Float, device));
    let rows = waves(&[9, 8, 8], 1.0, device);
    let [_, key, _] = heads_of(&rows);
    let forward = || {
        let output = Tensor::empty([9, 4, 8], (Kind::Float, device));
        ops.attention(&plan, &rows, &output).unwrap();
        output
    };
    let before = forward();
    // The first suffix's keys change: the second suffix's rows must not.
    let _ = key.narrow(0, 4, 3).fill_(3.0);
    let after = forward();
    assert_eq!(distance(&after.narrow(0, 7, 2), &before.narrow(0, 7, 2)), 0.0);
    assert!(distance(&after.narrow(0, 4, 3), &before.narrow(0, 4, 3)) > 1e-3);
    // Control: the prefix's keys change, and every suffix must notice.
    let _ = key.narrow(0, 0, 4).fill_(-2.0);
    assert!(distance(&forward().narrow(0, 7, 2), &before.narrow(0, 7, 2)) > 1e-3);
}

/// Loops only: a window that hides nothing changes no bit, and what no row of a block sees is not read at all.
#[test]
fn the_loops_read_nothing_that_no_row_sees() {
    let ops = &haf_dist::ops::cpu::Cpu;
    for (kind, _) in KINDS {
        let (rows, upstream) = inputs(HEADS, Device::Cpu);
        let (rows, upstream) = (rows.to_kind(kind), upstream.to_kind(kind));
        assert_eq!(made(ops, &rows, &upstream, RULES[0]), made(ops, &rows, &upstream, RULES[1]));
        let output = |window| made(ops, &rows, &upstream, AttentionRules { window, ..PLAIN }).0.narrow(0, 43, 41);
        let before = [None, Some(5)].map(|window| output(window).copy());
        // Whatever is multiplied by what is not a number shows, even where its weight is 0.
        let [_, keys, values] = heads_of(&rows);
        [keys, values].iter().for_each(|part| drop(part.narrow(0, 0, 32).fill_(f64::NAN)));
        assert_eq!(output(Some(5)), before[1]);
        assert_ne!(output(None), before[0]);
    }
}
