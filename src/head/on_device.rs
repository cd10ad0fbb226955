//! The heads' forward and backward pass for a GPU: the losses' derivatives are tensors too, so that the pass is queued
//! whole and nothing is waited for. What it scored is read later ([`Losses::read`]).
//!
//! The maths is that of `head.rs`, where the CPU walks the numbers itself. Legend: B pairs, D width, V vocabulary.

use super::{Heads, Losses, Objective, PairScores, chunks, reward_rows, rows};
use crate::data::batch::PackedPair;
use crate::error::Result;
use crate::head::places;
use crate::loss::tensors::{policy_slopes, reward_slopes};
use crate::tensor::on_device;
use tch::{Device, Kind, Tensor};

/// Scores of a micro-batch that may still be computed.
pub struct Scores {
    /// Rewards [B, 2], f64.
    rewards: Tensor,
    /// Summed log-probs [B, 2], f64, where they are asked for; a tensor for each chunk of pairs.
    log_probs: Vec<Tensor>,
}

impl Scores {
    /// Waits for them.
    pub fn read(&self, pairs: &[PackedPair]) -> Result<Vec<PairScores>> {
        let host = |scores: &Tensor| -> Result<Vec<f64>> {
            let scores = scores.f_to_device(Device::Cpu)?.f_contiguous()?;
            Ok(crate::tensor::slice::<f64>(&scores)?.to_vec())
        };
        let rewards = host(&self.rewards)?;
        let log_probs = match self.log_probs.is_empty() {
            true => vec![0.0; rewards.len()],
            false => host(&Tensor::f_cat(&self.log_probs, 0)?)?,
        };
        let two = |values: &[f64], place: usize| [values[2 * place], values[2 * place + 1]];
        let score = |(place, pair): (usize, &PackedPair)| PairScores {
            index: pair.index,
            rewards: two(&rewards, place),
            log_probs: two(&log_probs, place),
            tokens: if self.log_probs.is_empty() { [0; 2] } else { tokens(pair) },
        };
        Ok(pairs.iter().enumerate().map(score).collect())
    }
}

/// Tokens of a pair's two answers.
fn tokens(pair: &PackedPair) -> [usize; 2] {
    [0, 1].map(|answer| pair.answers[answer].targets.len())
}

/// f64 values of every pair on the device of `hidden`, [B, columns].
fn of_pairs<const N: usize>(pairs: &[PackedPair], hidden: &Tensor, of: impl Fn(&PackedPair) -> [f64; N]) -> Tensor {
    let values: Vec<f64> = pairs.iter().flat_map(of).collect();
    on_device(&values, hidden.device()).view([-1, N as i64])
}

impl Heads<'_> {
    /// [`Heads::forward_backward`] without waiting for the device. Every pair has two answers.
    pub(super) fn forward_backward_on_device<'o>(
        &self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective<'o>,
    ) -> Result<(Losses<'o>, Tensor)> {
        let mut hidden_gradient = hidden.zeros_like().to_kind(Kind::Float);
        let at = reward_rows(pairs, hidden);
        let reward_hidden = hidden.index_select(0, &at).to_kind(Kind::Float);
        let rewards = (&reward_hidden * self.reward.weight(0)).sum_dim_intlist(-1, false, Kind::Float);
        let rewards = rewards.to_kind(Kind::Double).view([-1, 2]);
        let margins = of_pairs(pairs, hidden, |pair| [pair.margin]).squeeze_dim(-1);
        let slopes = reward_slopes(objective.config, &rewards, &margins) * objective.reward_weight;
        let slopes = slopes.to_kind(Kind::Float).view([-1, 1]);
        self.reward.add_product(0..1, &slopes, &reward_hidden, self.scratch)?;
        let _ = hidden_gradient.index_add_(0, &at, &(slopes * self.reward.weight(0)));
        let mut log_probs = Vec::new();
        if objective.log_probs {
            for chunk in chunks(pairs) {
                log_probs.push(self.policy_on_device(hidden, &pairs[chunk], objective, &mut hidden_gradient)?);
            }
        }
        let scores = Scores { rewards, log_probs };
        let losses = Losses::OnDevice { scores, pairs: pairs.to_vec(), objective: *objective };
        Ok((losses, hidden_gradient.to_kind(hidden.kind())))
    }

    /// The policy loss of a few pairs; returns their summed log-probs [pairs, 2], f64.
    fn policy_on_device(
        &self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective,
        hidden_gradient: &mut Tensor,
    ) -> Result<Tensor> {
        let vocabulary = self.vocabulary()?;
        let rows = rows(pairs, hidden);
        let response = hidden.index_select(0, &rows);
        let logits = self.logits(&response, vocabulary)?;
        let places = logits.indices(&places(pairs))?;
        // Which answer each place belongs to, counted through the pairs.
        let answers = pairs.iter().flat_map(|pair| &pair.answers).enumerate();
        let owners: Vec<i64> =
            answers.flat_map(|(number, answer)| answer.targets.iter().map(move |_| number as i64)).collect();
        let owners = on_device(&owners, hidden.device());
        let read = logits.log_probs_at(&places).to_kind(Kind::Double);
        let sums =
            Tensor::zeros([2 * pairs.len() as i64], (Kind::Double, hidden.device())).index_add(0, &owners, &read);
        let log_probs = sums.view([-1, 2]);
        if objective.alpha == 0.0 {
            return Ok(log_probs);
        }
        let references = of_pairs(pairs, hidden, |pair| pair.reference);
        let tokens = of_pairs(pairs, hidden, |pair| tokens(pair).map(|count| count as f64));
        let slopes = policy_slopes(objective.config, &log_probs, &references, &tokens) * objective.alpha;
        let slopes = slopes.view([-1]).index_select(0, &owners).to_kind(Kind::Float);
        let gradient = logits.into_gradient_at(&places, &slopes);
        self.add_vocabulary_gradient(vocabulary, &gradient, &response)?;
        let rows_gradient = gradient.mm(vocabulary.weight(0)).to_kind(Kind::Float);
        let _ = hidden_gradient.index_add_(0, &rows, &rows_gradient);
        Ok(log_probs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LossConfig, PolicyLoss};
    use crate::data::TokenPair;
    use crate::data::batch::{PackedBatch, Packing, PairToPack};
    use crate::model::layout::Declared;
    use crate::model::segment::{Segment, Use};
    use crate::tensor::waves;

    const WIDTH: i64 = 6;
    const VOCABULARY: i64 = 11;

    /// Three pairs: the second's answers share a target, the third's first answer is one token.
    fn batch() -> PackedBatch {
        let tokens: [[&'static [u32]; 3]; 3] =
            [[&[1, 2, 3], &[4, 5], &[6, 7, 8]], [&[2, 9], &[3, 3], &[3, 10, 1]], [&[5], &[7], &[8, 2]]];
        let item = |(index, [prefix, chosen, rejected]): (usize, [&'static [u32]; 3])| {
            let pair = TokenPair { prefix, chosen, rejected, prompt_length: 1, margin: 0.3, domain: 0, prompt_hash: 1 };
            PairToPack { index, pair, reference: [-5.0 + index as f32, -6.5] }
        };
        PackedBatch::new(tokens.into_iter().enumerate().map(item), Packing::Shared, Device::Cpu)
    }

    fn segment(shapes: &[&[i64]], kind: Kind) -> Segment {
        let declared =
            shapes.iter().enumerate().map(|(index, shape)| Declared::new(index.to_string(), shape)).collect();
        let mut segment = Segment::new(declared, kind, Device::Cpu, Use::Train);
        (0..shapes.len()).for_each(|index| segment.set(index, &waves(shapes[index], index as f64 + 1.0)));
        segment
    }

    #[test]
    fn the_queued_pass_equals_the_pass_that_walks_the_numbers() {
        let batch = batch();
        for policy in [PolicyLoss::Dpo, PolicyLoss::Simpo, PolicyLoss::Hinge] {
            let config = LossConfig { policy, centering: 0.02, ..LossConfig::default() };
            for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
                for (log_probs, alpha, soft_cap) in
                    [(true, 0.7, None), (true, 0.7, Some(2.0)), (true, 0.0, None), (false, 0.0, None)]
                {
                    let objective = Objective { config: &config, reward_weight: 0.9, alpha, log_probs };
                    let hidden = (waves(&[batch.token_count() as i64, WIDTH], 3.0) * 2.0).to_kind(kind);
                    let run = |queued: bool| {
                        let reward = segment(&[&[1, WIDTH]], Kind::Float);
                        let vocabulary = segment(&[&[VOCABULARY, WIDTH], &[VOCABULARY]], kind);
                        let (logits, scratch) = Default::default();
                        let heads = Heads {
                            reward: &reward,
                            vocabulary: Some(&vocabulary),
                            soft_cap,
                            most_rows: 0,
                            logits: &logits,
                            scratch: &scratch,
                        };
                        let (losses, gradient) = match queued {
                            true => heads.forward_backward_on_device(&hidden, &batch.pairs, &objective).unwrap(),
                            false => heads.forward_backward(&hidden, &batch.pairs, &objective).unwrap(),
                        };
                        let buckets = [&reward, &vocabulary].map(|segment| segment.gradient.as_ref().unwrap().copy());
                        let [reward, vocabulary] = buckets;
                        (losses.read().unwrap(), [gradient.to_kind(Kind::Float), reward, vocabulary])
                    };
                    let (expected, gradients) = run(false);
                    let (found, queued) = run(true);
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(
                            (found.scores.index, found.scores.tokens),
                            (expected.scores.index, expected.scores.tokens)
                        );
                        assert_eq!(found.policy_loss.is_some(), log_probs);
                        let losses = [
                            (found.reward_loss, expected.reward_loss),
                            (found.policy_loss.unwrap_or(0.0), expected.policy_loss.unwrap_or(0.0)),
                        ];
                        assert!(losses.iter().all(|(found, expected)| (found - expected).abs() < bound), "{losses:?}");
                    }
                    for (place, (queued, expected)) in queued.iter().zip(&gradients).enumerate() {
                        let size = expected.norm().double_value(&[]);
                        let far = (queued - expected).norm().double_value(&[]) / size.max(1e-12);
                        assert!(far < bound, "{policy:?}, {kind:?}, alpha {alpha}, gradient {place}: {far:.1e}");
                        // Control: there is something to compare, but for an idle policy's vocabulary.
                        assert_eq!(size > 1e-3, place < 2 || alpha > 0.0);
                    }
                }
            }
        }
    }
}
