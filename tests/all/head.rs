//! Promise: the heads' losses and gradients agree with the plain formulas, whatever is applied to the logits: a bias (Phi-2), a
//! scale (Granite), a soft cap (Gemma 2), all or none; and if rewards are trained at two positions.
//!
//! Legend: T tokens, D width, V vocabulary.

use haf_dist::config::LossConfig;
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::{AnswerSpan, TokenPair};
use haf_dist::engine::head::{HeadBuckets, Heads, Objective};
use haf_dist::model::declared::Declared;
use haf_dist::model::segment::{Bucket, Segment, Use};
use haf_dist::ops::Scratch;
use tch::{Device, Kind, Tensor};

const WIDTH: i64 = 8;
/// More than a thread takes at a time of a bias.
const VOCABULARY: i64 = 4500;
/// Bends most logits.
const CAP: f64 = 1.5;
/// What logits are multiplied by.
const SCALE: f64 = 0.6;

/// Values that look random.
fn waves(shape: &[i64], phase: f64) -> Tensor {
    let index = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    ((&index * 12.9898 + phase).sin() * 43.758).sin().to_kind(Kind::Float).view(shape)
}

/// Two pairs; `twice`: the first one's answers are rewarded at their last two tokens.
fn batch(twice: bool) -> PackedBatch {
    let answers: [[&[u32]; 3]; 2] = [[&[5, 9, 4499], &[17, 4100, 3], &[21]], [&[8], &[4096, 2], &[4095, 7, 7, 11]]];
    let pack = |(index, [prefix, chosen, rejected]): (usize, [&'static [u32]; 3])| {
        let mut spans = AnswerSpan::of_pair(1, prefix.len(), chosen.len(), rejected.len());
        if twice && index == 0 {
            spans = spans.map(|span| AnswerSpan { reward: span.reward - 1, second_reward: Some(span.reward), ..span });
        }
        let pair = TokenPair { prefix, chosen, rejected, spans, margin: 0.0, tied: false, domain: 0, prompt_hash: 0 };
        PairToPack { index, pair, reference: [-20.0, -12.0 - index as f32] }
    };
    PackedBatch::new(answers.into_iter().enumerate().map(pack), Packing::Shared, Device::Cpu)
}

fn segment(parameters: &[(&str, Tensor)], kind: Kind) -> Segment {
    let declared = parameters.iter().map(|(name, value)| Declared::new(*name, &value.size())).collect();
    let mut segment = Segment::new(declared, kind, Device::Cpu, Use::Train);
    parameters.iter().enumerate().for_each(|(index, (_, value))| segment.set(index, value));
    segment
}

/// Hidden states, reward weight, vocabulary matrix and bias, rounded to the kind.
fn leaves(kind: Kind) -> [Tensor; 4] {
    let rounded = |values: Tensor| values.to_kind(kind).to_kind(Kind::Float);
    [
        rounded(waves(&[batch(false).token_count() as i64, WIDTH], 1.0)),
        waves(&[1, WIDTH], 2.0),
        rounded(waves(&[VOCABULARY, WIDTH], 3.0)),
        rounded(waves(&[VOCABULARY], 4.0)),
    ]
}

/// What the logits have besides a product.
#[derive(Debug, Clone, Copy, Default)]
struct Form {
    bias: bool,
    scale: Option<f64>,
    soft_cap: Option<f64>,
}

/// Sum of the hybrid losses and its gradients, by libtorch.
fn expected(kind: Kind, config: &LossConfig, form: Form, twice: bool) -> (f64, Vec<Tensor>) {
    let Form { bias, scale, soft_cap } = form;
    let leaves = leaves(kind).map(|leaf| leaf.set_requires_grad(true));
    let [hidden, reward, vocabulary, biases] = &leaves;
    // Without a bias its leaf still takes part, so that it has a gradient: of nothing.
    let logits = hidden.matmul(&vocabulary.tr()) + biases * f64::from(u8::from(bias));
    let logits = logits * scale.unwrap_or(1.0);
    let logits = match soft_cap {
        Some(cap) => (logits / cap).tanh() * cap,
        None => logits,
    };
    let log_probs = logits.log_softmax(-1, Kind::Float);
    let mut gains = Vec::new();
    for pair in batch(twice).pairs {
        let read = |answer: usize| {
            let targets = pair.answers[answer].targets.iter();
            targets.fold(Tensor::from(-pair.reference[answer] as f32), |sum, target| {
                sum + log_probs.get(pair.response_rows[target.row as usize]).get(target.token)
            })
        };
        let rewards = |answer: usize| (hidden.get(pair.answers[answer].reward_row as i64) * reward).sum(Kind::Float);
        let seconds = |answer: usize| {
            let row = pair.answers[answer].second_reward_row.unwrap_or(pair.answers[answer].reward_row);
            (hidden.get(row as i64) * reward).sum(Kind::Float)
        };
        gains.push(((read(0) - read(1)) * config.beta).log_sigmoid() * config.alpha);
        let both = (rewards(0) - rewards(1)).log_sigmoid() + (seconds(0) - seconds(1)).log_sigmoid();
        gains.push(both * (config.reward_weight / 2.0));
    }
    let loss = Tensor::stack(&gains, 0).sum(Kind::Float).neg();
    let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
    (loss.double_value(&[]), gradients)
}

/// The same by [`Heads`].
fn made(kind: Kind, config: &LossConfig, form: Form, twice: bool) -> (f64, Vec<Tensor>) {
    let Form { bias, scale: logit_scale, soft_cap } = form;
    let [hidden, reward, vocabulary, biases] = leaves(kind);
    let mut parameters = vec![("lm_head.weight", vocabulary)];
    if bias {
        parameters.push(("lm_head.bias", biases.shallow_clone()));
    }
    let vocabulary = segment(&parameters, kind);
    let reward = segment(&[("score.weight", reward)], Kind::Float);
    let [mut logits, mut scratch] = [(); 2].map(|()| Scratch::default());
    let mut buckets = HeadBuckets { reward: reward.bucket(), vocabulary: vocabulary.bucket() };
    let mut heads = Heads {
        reward: &reward.weights,
        vocabulary: Some(&vocabulary.weights),
        logit_scale,
        soft_cap,
        most_rows: 0,
        logits: &mut logits,
        scratch: &mut scratch,
    };
    let objective = Objective { config, reward_weight: config.reward_weight, alpha: config.alpha, log_probs: true };
    let hidden = hidden.to_kind(kind);
    let (losses, gradient) = heads.forward_backward(&hidden, &batch(twice).pairs, &objective, &mut buckets).unwrap();
    let loss = |losses: &haf_dist::engine::head::PairLosses| {
        config.reward_weight * losses.reward_loss + config.alpha * losses.policy_loss.unwrap_or(f64::NAN)
    };
    let of =
        |bucket: &Option<Bucket>, index: usize| bucket.as_ref().unwrap().views().get(index).map(Tensor::shallow_clone);
    let HeadBuckets { reward, vocabulary } = &buckets;
    let bias_gradient = of(vocabulary, 1).unwrap_or_else(|| biases.zeros_like());
    let gradients = vec![gradient, of(reward, 0).unwrap(), of(vocabulary, 0).unwrap(), bias_gradient];
    (losses.read().unwrap().iter().map(loss).sum(), gradients)
}

#[test]
fn losses_and_gradients_agree_with_automatic_differentiation() {
    let config = LossConfig { alpha: 1.0, ..LossConfig::default() };
    let distance = |left: &Tensor, right: &Tensor| {
        // A bias that is not there has no gradient on either side.
        let size = right.norm().double_value(&[]);
        (left.to_kind(Kind::Float) - right).norm().double_value(&[]) / if size == 0.0 { 1.0 } else { size }
    };
    for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1.5e-2)] {
        let cap = Some(CAP);
        for (form, twice) in [
            (Form::default(), false),
            (Form { bias: true, ..Form::default() }, false),
            (Form { soft_cap: cap, ..Form::default() }, false),
            (Form { bias: true, soft_cap: cap, ..Form::default() }, false),
            (Form { bias: true, scale: Some(SCALE), soft_cap: cap }, false),
            (Form::default(), true),
        ] {
            let (loss, gradients) = made(kind, &config, form, twice);
            let (wanted, wanted_gradients) = expected(kind, &config, form, twice);
            assert!((loss / wanted - 1.0).abs() < bound, "{kind:?} {form:?}: {loss} is not {wanted}");
            for (place, (gradient, wanted)) in gradients.iter().zip(&wanted_gradients).enumerate() {
                let far = distance(gradient, wanted);
                assert!(far < bound, "{kind:?} {form:?}: gradient {place} is off by {far}");
            }
            // Control: one reward an answer, or two, are not the same.
            let (_, others) = expected(kind, &config, form, !twice);
            let far = distance(&gradients[1], &others[1]);
            assert!(kind != Kind::Float || far > 100.0 * bound, "{far}");
            // Controls: with one of them added or left out the gradients are others. In bf16 rounding may hide it.
            let other = |value: Option<f64>, if_none: f64| if value.is_some() { None } else { Some(if_none) };
            for changed in [
                Form { bias: !form.bias, ..form },
                Form { scale: other(form.scale, SCALE), ..form },
                Form { soft_cap: other(form.soft_cap, CAP), ..form },
            ] {
                let (_, others) = expected(kind, &config, changed, twice);
                let far = [0, 2].map(|place| distance(&gradients[place], &others[place]));
                let all_far = far.iter().all(|far| *far > 100.0 * bound);
                assert!(kind != Kind::Float || all_far, "{form:?}, {changed:?}: {far:?}");
            }
        }
    }
}
