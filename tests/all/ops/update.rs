//! AdamW and the squares of gradients against their formulas in doubles.

use super::conformance::{distance, waves};
use haf_dist::ops::{AdamWConstants, AdamWPart, AdamWStep, Ops, Verdict};
use tch::{Device, Kind, Tensor};

/// A matrix longer than a thread takes at a time, and a norm.
const LENGTHS: [usize; 2] = [(1 << 16) + 37, 17];

fn constants() -> AdamWConstants {
    AdamWConstants {
        learning_rate: 0.01,
        decay: 0.9,
        beta1: 0.9,
        beta2: 0.999,
        complements: [0.1, 0.001],
        epsilon: 1e-5,
    }
}

/// What gradients are multiplied by, and the two corrections.
const SCALES: [f32; 3] = [0.5, 10.0, 31.6];

fn verdict(made: bool, device: Device) -> Verdict {
    Verdict {
        scales: Tensor::from_slice(&SCALES).to_device(device),
        made: Tensor::from_slice(&[made]).to_device(device),
    }
}

/// Every comparison of this file.
pub fn all(ops: &dyn Ops, device: Device) {
    for kind in [Kind::Float, Kind::BFloat16] {
        adamw(ops, device, kind);
        skipped(ops, device, kind);
    }
    squares(ops, device);
    for kind in [Kind::Float, Kind::BFloat16] {
        hash(ops, device, kind);
    }
}

fn adamw(ops: &dyn Ops, device: Device, kind: Kind) {
    let length: usize = LENGTHS.iter().sum();
    let values = |phase| waves(&[length as i64], phase, device);
    let zeros = || Tensor::zeros([length as i64], (Kind::Float, device));
    let (master, gradient, moments) = (values(1.0), values(2.0), [zeros(), zeros()]);
    let compute = (kind != Kind::Float).then(|| master.to_kind(kind));
    let parts =
        vec![AdamWPart { range: 0..LENGTHS[0], decays: true }, AdamWPart { range: LENGTHS[0]..length, decays: false }];
    let before = master.to_kind(Kind::Double).copy();
    for _ in 0..3 {
        let step = AdamWStep {
            gradient: gradient.shallow_clone(),
            moments: &moments,
            master: &master,
            compute: compute.as_ref().map(Tensor::shallow_clone),
            parts: parts.clone(),
            constants: constants(),
            verdict: &verdict(true, device),
        };
        ops.adamw(&step).unwrap();
    }
    // The formulas in doubles, with weight decay on everything or on the matrix alone.
    let c = constants();
    let expected = |decayed: usize| {
        let gradient = gradient.to_kind(Kind::Double) * f64::from(SCALES[0]);
        let (mut first, mut second, mut values) = (gradient.zeros_like(), gradient.zeros_like(), before.copy());
        for _ in 0..3 {
            first = first * 0.9 + &gradient * 0.1;
            second = second * 0.999 + gradient.square() * 0.001;
            let mut decayed = values.narrow(0, 0, decayed as i64);
            let _ = decayed.g_mul_scalar_(f64::from(c.decay));
            let denominator = second.sqrt() * f64::from(SCALES[2]) + f64::from(c.epsilon);
            values -= &first * f64::from(SCALES[1] * c.learning_rate) / denominator;
        }
        (values, second)
    };
    let (wanted, second) = expected(LENGTHS[0]);
    assert!(distance(&master, &wanted) < 1e-5, "{kind:?}: {:.1e}", distance(&master, &wanted));
    assert!(distance(&moments[1], &second) < 1e-5);
    assert!(compute.is_none_or(|compute| compute.equal(&master.to_kind(kind))), "the copy is the master, rounded");
    // Control: norms that decay too would be seen.
    let tail = |values: &Tensor| values.narrow(0, LENGTHS[0] as i64, LENGTHS[1] as i64);
    assert!(distance(&tail(&master), &tail(&expected(length).0)) > 1e-2);
}

/// Nothing changes by a bit, not even the sign of a zero, whatever the gradients and scales are.
fn skipped(ops: &dyn Ops, device: Device, kind: Kind) {
    let length = LENGTHS[1] as i64;
    let (master, gradient) = (waves(&[length], 1.0, device), waves(&[length], 2.0, device));
    for (place, value) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
        let _ = gradient.get(place as i64).fill_(value);
    }
    let moments = [waves(&[length], 3.0, device), waves(&[length], 4.0, device).square()];
    for values in [&master, &moments[0]] {
        let _ = values.get(5).fill_(-0.0);
    }
    let compute = (kind != Kind::Float).then(|| master.to_kind(kind));
    let bits = || -> Vec<Tensor> {
        let wide = [&master, &moments[0], &moments[1]].map(|values| values.view_dtype(Kind::Int).copy());
        wide.into_iter().chain(compute.iter().map(|values| values.view_dtype(Kind::Int16).copy())).collect()
    };
    let before = bits();
    for made in [false, true] {
        let mut verdict = verdict(made, device);
        verdict.scales = if made { verdict.scales } else { verdict.scales * f64::NAN };
        let step = AdamWStep {
            gradient: gradient.shallow_clone(),
            moments: &moments,
            master: &master,
            compute: compute.as_ref().map(Tensor::shallow_clone),
            parts: vec![AdamWPart { range: 0..LENGTHS[1], decays: true }],
            constants: constants(),
            verdict: &verdict,
        };
        ops.adamw(&step).unwrap();
        let same = before.iter().zip(bits()).all(|(before, after)| before.equal(&after));
        // The control: what is made changes them.
        assert_eq!(same, !made, "{kind:?}");
    }
}

fn squares(ops: &dyn Ops, device: Device) {
    let sum = |tensors: &[Tensor]| ops.sum_of_squares(tensors).unwrap().double_value(&[0]);
    let tensors = [waves(&[(1 << 17) + 5], 1.0, device), waves(&[3], 2.0, device)];
    let exact: f64 =
        tensors.iter().map(|values| values.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[])).sum();
    let found = sum(&tensors);
    assert!((found / exact - 1.0).abs() < 1e-7, "{found} is not {exact}");
    assert_eq!(sum(&[]), 0.0);
    let _ = tensors[1].get(0).fill_(f64::NAN);
    assert!(!sum(&tensors).is_finite());
}

fn hash(ops: &dyn Ops, device: Device, kind: Kind) {
    let of = |values: &Tensor| ops.hash(values).unwrap().int64_value(&[]);
    let values = waves(&[(1 << 17) + 5], 1.0, device).to_kind(kind);
    let (word, last) = (if kind == Kind::Float { Kind::Int } else { Kind::Int16 }, values.size()[0] - 1);
    assert_eq!(of(&values), of(&values.copy()));
    let swapped = values.copy();
    swapped.narrow(0, 3, 1).copy_(&values.narrow(0, last, 1));
    swapped.narrow(0, last, 1).copy_(&values.narrow(0, 3, 1));
    assert_ne!(of(&swapped), of(&values), "two values have changed places");
    for bit in [1, 1 << 14] {
        let flipped = values.copy();
        let _ = flipped.view_dtype(word).narrow(0, last, 1).bitwise_xor_(bit);
        assert_ne!(of(&flipped), of(&values), "a bit of the last value has changed");
    }
}
