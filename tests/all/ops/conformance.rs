//! Norms, rotation, activations, log-softmax and products against automatic differentiation.
//!
//! Every comparison has a control: a wrong variant is at least a hundred times as far off as the bound allows, in f32.

use haf_dist::ops::{
    Activation, Affine, AffineSums, Angles, Columns, Direction, LayerStatistics, Logits, MlpKind, NormGradients,
    NormWeight, Ops, Place, Places, Scratch,
};
use tch::{Device, Kind, Tensor};

/// Rows of the tests: three blocks of the loops, the last of them short.
const ROWS: i64 = 130;
/// Columns: a rest is left after whole lanes.
const WIDTH: i64 = 37;
const EPSILON: f64 = 1e-5;

/// Relative distances that rounding explains: of f32, and of bf16 values and gradients with f32 arithmetic.
const KINDS: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)];

/// Values that look random and are the same in every run.
pub fn waves(shape: &[i64], phase: f64, device: Device) -> Tensor {
    let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    ((&index * 12.9898 + phase).sin() * 43.758).sin().to_kind(Kind::Float).view(shape).to_device(device)
}

/// Relative distance in doubles.
pub fn distance(left: &Tensor, right: &Tensor) -> f64 {
    let (left, right) = (left.to_kind(Kind::Double), right.to_kind(Kind::Double));
    let size = right.norm().double_value(&[]);
    (left - right).norm().double_value(&[]) / if size == 0.0 { 1.0 } else { size }
}

/// Leaves in f32 of the rounded values.
fn leaves<const N: usize>(values: [&Tensor; N]) -> [Tensor; N] {
    values.map(|value| value.to_kind(Kind::Float).copy().detach().set_requires_grad(true))
}

fn gradients(output: &Tensor, upstream: &Tensor, leaves: &[Tensor]) -> Vec<Tensor> {
    let loss = (output * upstream.to_kind(Kind::Float)).sum(Kind::Float);
    Tensor::run_backward(&[loss], leaves, false, false)
}

fn near(what: &str, found: &Tensor, expected: &Tensor, bound: f64) {
    let far = distance(found, expected);
    assert!(far < bound, "{what}: off by {far:.1e}, the bound is {bound:.0e}");
}

fn far(what: &str, found: &Tensor, other: &Tensor, bound: f64) {
    let distance = distance(found, other);
    assert!(distance > 100.0 * bound, "{what}: the control is off by {distance:.1e} only");
}

/// Every comparison of this file.
pub fn all(ops: &dyn Ops, device: Device) {
    for (kind, bound) in KINDS {
        for plus_one in [false, true] {
            rms_norm(ops, device, kind, bound, plus_one);
        }
        layer_norm(ops, device, kind, bound);
        rotation(ops, device, kind, bound);
        use Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu};
        for activation in [Silu, GeluTanh, Gelu, QuickGelu, Relu] {
            for gated in [true, false] {
                activate(ops, device, kind, bound, MlpKind { activation, gated });
            }
        }
        for soft_cap in [None, Some(2.5)] {
            log_softmax(ops, device, kind, bound, soft_cap);
        }
        products(ops, device, kind, bound);
        for rank in [1, 6, 13] {
            low_rank(ops, device, kind, bound, rank);
        }
    }
}

fn rms_norm(ops: &dyn Ops, device: Device, kind: Kind, bound: f64, plus_one: bool) {
    let what = |part: &str| format!("rms norm, {kind:?}, plus one {plus_one}, {part}");
    let [x, change, upstream] = [1.0, 2.0, 3.0].map(|phase| waves(&[ROWS, WIDTH], phase, device).to_kind(kind));
    let values = waves(&[WIDTH], 4.0, device).to_kind(kind);
    let weight = NormWeight { values: &values, plus_one };
    let new = || x.empty_like();
    let (sum, output, scale) = (new(), new(), Tensor::empty([ROWS], (Kind::Float, device)));
    ops.add_rms_norm((&x, &change), weight, EPSILON, &sum, &output, &scale).unwrap();
    near(&what("sum"), &sum, &(x.to_kind(Kind::Float) + &change), bound);
    let (alone, again) = (new(), new());
    ops.rms_norm(&sum, weight, EPSILON, &alone, &scale).unwrap();
    ops.apply_rms_norm(&sum, weight, &scale, &again).unwrap();
    assert!(alone.equal(&output) && again.equal(&output), "{}", what("computed again"));

    let expected = |plus_one: bool| {
        let leaves = leaves([&sum, &values]);
        let rms = (leaves[0].square().mean_dim(-1, true, Kind::Float) + EPSILON).rsqrt();
        let factor = if plus_one { &leaves[1] + 1.0 } else { leaves[1].shallow_clone() };
        let normed = &leaves[0] * rms * factor;
        let gradients = gradients(&normed, &upstream, &leaves);
        (normed.detach(), gradients)
    };
    let (normed, wanted) = expected(plus_one);
    near(&what("output"), &output, &normed, bound);
    let (input, weight_sum) = (new(), Tensor::ones([WIDTH], (Kind::Float, device)));
    let gradients = |residual| NormGradients { output: &upstream, residual, input: &input };
    ops.rms_norm_backward(gradients(None), &sum, weight, &scale, None).unwrap();
    near(&what("gradient"), &input, &wanted[0], bound);
    ops.rms_norm_backward(gradients(Some(&change)), &sum, weight, &scale, Some(&weight_sum)).unwrap();
    near(&what("gradient and residual"), &input, &(&wanted[0] + change.to_kind(Kind::Float)), bound);
    near(&what("weight's gradient, added"), &(weight_sum - 1.0), &wanted[1], bound);
    if kind == Kind::Float {
        let (other, other_gradients) = expected(!plus_one);
        far(&what("output"), &output, &other, bound);
        far(&what("gradient"), &input, &other_gradients[0], bound);
    }
}

fn layer_norm(ops: &dyn Ops, device: Device, kind: Kind, bound: f64) {
    let what = |part: &str| format!("layer norm, {kind:?}, {part}");
    // A mean far from 0 is where a bad variance shows.
    let x = (waves(&[ROWS, WIDTH], 1.0, device) + 3.0).to_kind(kind);
    let [upstream, residual] = [2.0, 3.0].map(|phase| waves(&[ROWS, WIDTH], phase, device).to_kind(kind));
    let [weight, bias] = [4.0, 5.0].map(|phase| waves(&[WIDTH], phase, device).to_kind(kind));
    let leaves = leaves([&x, &weight, &bias]);
    let normed = leaves[0].layer_norm([WIDTH], Some(&leaves[1]), Some(&leaves[2]), EPSILON, false);
    let wanted = gradients(&normed, &upstream, &leaves);

    let statistic = || Tensor::empty([ROWS], (Kind::Float, device));
    let (output, again, mean, scale) = (x.empty_like(), x.empty_like(), statistic(), statistic());
    let statistics = LayerStatistics { mean: &mean, scale: &scale };
    let without = leaves[0].layer_norm([WIDTH], Some(&leaves[1]), None::<&Tensor>, EPSILON, false);
    for (bias, normed) in [(None, &without), (Some(&bias), &normed)] {
        let affine = Affine { weight: &weight, bias };
        ops.layer_norm(&x, affine, EPSILON, &output, statistics).unwrap();
        ops.apply_layer_norm(&x, affine, statistics, &again).unwrap();
        near(&what("output"), &output, &normed.detach(), bound);
        assert!(output.equal(&again), "{}", what("computed again"));
    }
    far(&what("a bias is added"), &output, &without.detach(), 1e-3);

    let ones = || Tensor::ones([WIDTH], (Kind::Float, device));
    let (input, weight_sum, bias_sum) = (x.empty_like(), ones(), ones());
    let gradients = |residual| NormGradients { output: &upstream, residual, input: &input };
    let nowhere = AffineSums { weight: None, bias: None };
    ops.layer_norm_backward(gradients(None), &x, &weight, statistics, nowhere).unwrap();
    near(&what("gradient"), &input, &wanted[0], bound);
    let sums = AffineSums { weight: Some(&weight_sum), bias: Some(&bias_sum) };
    ops.layer_norm_backward(gradients(Some(&residual)), &x, &weight, statistics, sums).unwrap();
    near(&what("gradient and residual"), &input, &(&wanted[0] + residual.to_kind(Kind::Float)), bound);
    near(&what("weight's gradient, added"), &(weight_sum - 1.0), &wanted[1], bound);
    near(&what("bias's gradient, added"), &(bias_sum - 1.0), &wanted[2], bound);
    far(&what("the residual is not the gradient"), &input, &wanted[0], 1e-3);
}

fn rotation(ops: &dyn Ops, device: Device, kind: Kind, bound: f64) {
    let frequencies = Tensor::from_slice(&[1.0f32, 0.3, 0.02]).to_device(device);
    let positions = Tensor::arange(ROWS, (Kind::Float, device));
    let turned = positions.outer(&frequencies);
    let angles = Angles { cosine: turned.cos(), sine: turned.sin() };
    // Of five heads the first three are turned: of 6 columns all, of 10 the first 6.
    for width in [6, 10] {
        let what = |part: &str| format!("rotation of heads {width} wide, {kind:?}, {part}");
        let [before, upstream] = [1.0, 2.0].map(|phase| waves(&[ROWS, 5, width], phase, device).to_kind(kind));
        let [leaf] = leaves([&before]);
        let both = Tensor::cat(&[&turned, &turned], -1).unsqueeze(1);
        let part = leaf.narrow(1, 0, 3).narrow(2, 0, 6);
        let across = Tensor::cat(&[&part.narrow(2, 3, 3).neg(), &part.narrow(2, 0, 3)], -1);
        let part = part * both.cos() + across * both.sin();
        let rest = leaf.narrow(1, 0, 3).narrow(2, 6, width - 6);
        let output = Tensor::cat(&[Tensor::cat(&[part, rest], 2), leaf.narrow(1, 3, 2)], 1);
        let wanted = gradients(&output, &upstream, &[leaf]);

        let (rows, gradient) = (before.copy(), upstream.copy());
        ops.rotate(&rows, 3, &angles, Direction::Forward).unwrap();
        ops.rotate(&gradient, 3, &angles, Direction::Backward).unwrap();
        near(&what("forward"), &rows, &output.detach(), bound);
        near(&what("backward"), &gradient, &wanted[0], bound);
        // What is not turned keeps its bits.
        let still = |rows: &Tensor| (rows.narrow(1, 3, 2), rows.narrow(1, 0, 3).narrow(2, 6, width - 6));
        assert!(still(&rows).0.equal(&still(&before).0) && still(&rows).1.equal(&still(&before).1), "{}", what("rest"));
        far(&what("the two ways differ"), &gradient, &rows, 1e-3);
    }
}

fn activate(ops: &dyn Ops, device: Device, kind: Kind, bound: f64, mlp: MlpKind) {
    let what = |part: &str| format!("{mlp:?}, {kind:?}, {part}");
    let upstream = waves(&[70, WIDTH], 2.0, device).to_kind(kind);
    let inner = (waves(&[70, if mlp.gated { 2 * WIDTH } else { WIDTH }], 1.0, device) * 4.0).to_kind(kind);
    let expected = |activation: Activation| {
        let [leaf] = leaves([&inner]);
        let halves = leaf.chunk(2, -1);
        let x = if mlp.gated { &halves[0] } else { &leaf };
        let activated = match activation {
            Activation::Silu => x * x.sigmoid(),
            Activation::GeluTanh => {
                let inside: Tensor = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.pow_tensor_scalar(3));
                0.5 * x * (1.0 + inside.tanh())
            }
            Activation::Gelu => 0.5 * x * (1.0 + (x / std::f64::consts::SQRT_2).erf()),
            Activation::QuickGelu => x * (x * 1.702).sigmoid(),
            Activation::Relu => x.relu(),
        };
        let output = if mlp.gated { activated * &halves[1] } else { activated };
        let gradient = gradients(&output, &upstream, &[leaf]).remove(0);
        (output.detach(), gradient)
    };
    let (output, again, gradient) = (upstream.empty_like(), upstream.empty_like(), inner.empty_like());
    ops.activate(mlp, &inner, &output).unwrap();
    ops.activate_backward(mlp, &inner, &upstream, &again, &gradient).unwrap();
    let (wanted, wanted_gradient) = expected(mlp.activation);
    near(&what("output"), &output, &wanted, bound);
    near(&what("gradient"), &gradient, &wanted_gradient, bound);
    assert!(output.equal(&again), "{}", what("computed again"));
    if kind == Kind::Float {
        let other = if mlp.activation == Activation::Silu { Activation::Gelu } else { Activation::Silu };
        far(&what("another activation"), &output, &expected(other).0, bound);
    }
}

fn log_softmax(ops: &dyn Ops, device: Device, kind: Kind, bound: f64, soft_cap: Option<f64>) {
    let what = |part: &str| format!("log-softmax, cap {soft_cap:?}, {kind:?}, {part}");
    // (1, 5) is the target of two answers.
    let (places, slopes) = ([(0, 3), (1, 5), (1, 5), (1, 66), (3, 0)], [0.5f32, -0.25, 1.0, 2.0, -1.5]);
    let values = (waves(&[4, 67], 1.0, device) * 3.0).to_kind(kind);
    let at = Places::new(&places.map(|(row, token)| Place { row, token }), &values).unwrap();
    let slopes = Tensor::from_slice(&slopes).to_device(device);
    let expected = |soft_cap: Option<f64>| {
        let [leaf] = leaves([&values]);
        let capped = match soft_cap {
            Some(cap) => (&leaf / cap).tanh() * cap,
            None => leaf.shallow_clone(),
        };
        let read = capped.log_softmax(-1, Kind::Float).index(&[Some(&at.rows), Some(&at.tokens)]);
        let gradient = gradients(&read, &slopes, &[leaf]).remove(0);
        (read.detach(), gradient)
    };
    let sums = ops.log_sum_exp(&values, soft_cap).unwrap();
    let logits = Logits { values: values.copy(), sums, soft_cap };
    let (wanted, wanted_gradient) = expected(soft_cap);
    near(&what("log-probs"), &ops.log_probs(&logits, &at).unwrap(), &wanted, 1e-5);
    let gradient = ops.log_probs_backward(logits, &at, &slopes).unwrap();
    near(&what("gradient"), &gradient, &wanted_gradient, bound);
    if kind == Kind::Float {
        far(&what("another cap"), &gradient, &expected(Some(2.0)).1, bound);
    }
    let outside = |row, token| Places::new(&[Place { row, token }], &values).is_err();
    assert!(outside(4, 0) && outside(0, 67));
}

fn products(ops: &dyn Ops, device: Device, kind: Kind, bound: f64) {
    let right = waves(&[70, 33], 1.0, device).to_kind(kind);
    // Rows of their own, and rows that lie in wider ones.
    let wide = waves(&[70, 60], 2.0, device).to_kind(kind);
    let narrow = wide.narrow(1, 5, 49);
    for left in [narrow.contiguous(), narrow] {
        let what = |part: &str| format!("{part}, {kind:?}, contiguous {}", left.is_contiguous());
        let exact = left.to_kind(Kind::Float).tr().mm(&right.to_kind(Kind::Float));
        let sum = Tensor::ones([49, 33], (Kind::Float, device));
        // Twice: it adds.
        for _ in 0..2 {
            ops.add_product(&left, &right, &sum, &mut Scratch::default()).unwrap();
        }
        near(&what("weight's gradient"), &(&sum - 1.0), &(&exact * 2.0), bound);
        far(&what("added once"), &(&sum - 1.0), &exact, 1e-3);
    }
    // More columns than a thread takes at a time.
    let rows = waves(&[9, 4500], 3.0, device).to_kind(kind);
    let sum = Tensor::ones([4500], (Kind::Float, device));
    ops.add_column_sums(&rows, &sum).unwrap();
    near(
        &format!("bias's gradient, {kind:?}"),
        &(sum - 1.0),
        &rows.to_kind(Kind::Float).sum_dim_intlist(0, false, Kind::Float),
        bound,
    );
    let sum = rows.empty_like();
    ops.add(&rows, &rows, &sum).unwrap();
    near(&format!("sum, {kind:?}"), &sum, &(rows.to_kind(Kind::Float) * 2.0), bound);
}

/// An adapter beside columns of wider rows, in f32 products of rounded rows.
fn low_rank(ops: &dyn Ops, device: Device, kind: Kind, bound: f64, rank: i64) {
    let what = |part: &str| format!("adapter of rank {rank}, {part}, {kind:?}");
    // More than two blocks of columns, and a rest.
    let (wide, first, count) = (150, 7, 139);
    let rows = waves(&[ROWS, wide], 1.0, device).to_kind(kind);
    let columns = Columns { rows: &rows, first, count };
    let (factor, inner) = (waves(&[rank, count], 2.0, device), waves(&[ROWS, rank], 3.0, device));
    let of_rows = rows.narrow(1, first, count).to_kind(Kind::Float);

    let found = ops.low_rank(columns, &factor).unwrap();
    assert_eq!(found.kind(), Kind::Float);
    near(&what("product"), &found, &of_rows.mm(&factor.tr()), 1e-5);
    let turned = ops.low_rank(columns, &factor.tr().contiguous().tr()).unwrap();
    near(&what("product with a turned factor"), &turned, &found, 1e-6);
    let beside = rows.narrow(1, first + 1, count).to_kind(Kind::Float);
    far(&what("columns beside them"), &found, &beside.mm(&factor.tr()), 1e-4);

    let sum = rows.copy();
    ops.add_low_rank(&inner, &factor, Columns { rows: &sum, first, count }).unwrap();
    let exact = &of_rows + inner.mm(&factor);
    near(&what("sum"), &sum.narrow(1, first, count), &exact, bound);
    // Half a unit in the last place of bf16, and what the order of f32 sums leaves; rounded on the way it would be more.
    if kind == Kind::BFloat16 {
        let size = exact.abs().clamp_min(0.05);
        let apart = |sum: &Tensor| ((sum.to_kind(Kind::Float) - &exact).abs() / &size).max().double_value(&[]);
        let once = 1.01 * 2f64.powi(-8);
        assert!(apart(&sum.narrow(1, first, count)) < once, "{}", what("rounded once"));
        assert!(apart(&(rows.narrow(1, first, count) + inner.mm(&factor).to_kind(kind))) > once, "{}", what("control"));
    }
    for (first, count) in [(0, first), (first + count, wide - first - count)] {
        assert!(sum.narrow(1, first, count).equal(&rows.narrow(1, first, count)), "{}", what("other columns"));
    }
    far(&what("nothing is added"), &sum, &rows, 1e-4);

    let gradient = inner.tr().mm(&of_rows);
    let (sum, turned) =
        (Tensor::ones([rank, count], (Kind::Float, device)), Tensor::ones([count, rank], (Kind::Float, device)));
    // Twice: it adds.
    for _ in 0..2 {
        ops.add_low_rank_gradient(&inner, columns, &sum).unwrap();
        ops.add_low_rank_gradient(&inner, columns, &turned.tr()).unwrap();
    }
    near(&what("gradient"), &(&sum - 1.0), &(&gradient * 2.0), 1e-5);
    near(&what("gradient, turned"), &(turned.tr() - 1.0), &(&gradient * 2.0), 1e-5);
    far(&what("added once"), &(&sum - 1.0), &gradient, 1e-4);
}
