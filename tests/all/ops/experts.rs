//! A router's shares and products of rows sorted by expert, against automatic differentiation.
//!
//! Not here: which expert takes a token, and models with experts (`tests/all/experts.rs`).

use super::conformance::{distance, waves};
use haf_dist::ops::{Ops, Scratch};
use tch::{Device, Kind, Tensor};

/// Rows of each expert: none, one, a few, and more than a block of the loops.
const COUNTS: [i64; 4] = [0, 1, 37, 66];

/// Every comparison of this file.
pub fn all(ops: &dyn Ops, device: Device) {
    for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
        shares(ops, device, kind);
        // The second widths are aligned, as one product of all experts wants them.
        for widths in [(33, 45), (32, 48)] {
            products(ops, device, (kind, bound), widths);
        }
    }
}

/// In f32 whatever the values are: bf16 ones are no less exact.
fn shares(ops: &dyn Ops, device: Device, kind: Kind) {
    let (x, weight) = (waves(&[45, 33], 1.0, device).to_kind(kind), waves(&[7, 33], 2.0, device).to_kind(kind));
    let shares = Tensor::empty([45, 7], (Kind::Float, device));
    ops.route(&x, &weight, &shares).unwrap();
    let exact = x.to_kind(Kind::Double).matmul(&weight.to_kind(Kind::Double).tr()).softmax(-1, Kind::Double);
    assert!(distance(&shares, &exact) < 1e-6, "{kind:?}");
    // Control: rounded logits are further off.
    let rounded = exact.log().to_kind(Kind::BFloat16).softmax(-1, Kind::Float);
    assert!(distance(&rounded, &exact) > 1e-4);
}

fn products(ops: &dyn Ops, device: Device, (kind, bound): (Kind, f64), (inputs, outputs): (i64, i64)) {
    let rows = COUNTS.iter().sum::<i64>();
    let x = waves(&[rows, inputs], 1.0, device).to_kind(kind);
    let weights = waves(&[4, outputs, inputs], 2.0, device).to_kind(kind);
    let gradient = waves(&[rows, outputs], 3.0, device).to_kind(kind);
    let expected = |counts: &[i64]| {
        let leaves = [&x, &weights].map(|leaf| leaf.to_kind(Kind::Float).copy().detach().set_requires_grad(true));
        let parts = leaves[0].split_with_sizes(counts, 0).into_iter().enumerate();
        let parts: Vec<Tensor> = parts.map(|(expert, part)| part.mm(&leaves[1].get(expert as i64).tr())).collect();
        let output = Tensor::cat(&parts, 0);
        let loss = (&output * gradient.to_kind(Kind::Float)).sum(Kind::Float);
        let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
        [output.detach(), gradients[0].copy(), gradients[1].copy()]
    };
    let (output, input_gradient) = (gradient.empty_like(), x.empty_like());
    let sums = Tensor::ones([4, outputs, inputs], (Kind::Float, device));
    ops.grouped_product(&x, &weights, &COUNTS, &output).unwrap();
    ops.grouped_input_gradient(&gradient, &weights, &COUNTS, &input_gradient).unwrap();
    ops.add_grouped_product([&gradient, &x], &COUNTS, &sums, &mut Scratch::default()).unwrap();
    let found = [output, input_gradient, sums - 1.0];
    // Control: a row that goes to its neighbor's expert.
    let (wanted, other) = (expected(&COUNTS), expected(&[0, 2, 36, 66]));
    for (name, ((found, wanted), other)) in
        ["output", "input's gradient", "weights' gradient"].iter().zip(found.iter().zip(&wanted).zip(&other))
    {
        assert!(distance(found, wanted) < bound, "{name}, {kind:?}: off by {:.1e}", distance(found, wanted));
        assert!(distance(other, wanted) > 1e-2, "{name}: the control is not seen");
    }
}
