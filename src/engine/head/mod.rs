//! The heads: final hidden states -> rewards and answer log-probs -> both losses -> gradient of the hidden states, with
//! the vocabulary product and its weight gradient.
//!
//! The policy loss of a pair depends on that pair alone, so its derivative is known as soon as its log-probs are, and
//! one pass over a few pairs' response rows does everything: logits, log-sum-exp, loss, (one-hot - softmax), products.
//! At most `ROWS_AT_ONCE` rows of logits (or one pair's, if it has more) are in memory at a time.
//!
//! The losses' derivatives are tensors, so that on a GPU the whole pass is queued without waiting; scores are read later
//! ([`Losses::read`]).
//!
//! Legend: N rows whose hidden states are read, B pairs, A their answers, D width, V vocabulary, R response rows held at
//! once.

mod scores;

use crate::config::LossConfig;
use crate::data::batch::{PackedAnswer, PackedPair};
use crate::error::{Error, Result};
use crate::loss::tensors::{PolicyInputs, policy_slopes, reward_slopes};
use crate::loss::{self, AnswerLogProb};
use crate::model::segment::{Bucket, Weights};
use crate::ops::{Logits, Place, Places, Scratch, add_rows};
use crate::tensor::on_device;
pub(crate) use scores::Losses;
use scores::Scores;
use tch::{Device, Kind, Tensor};

/// Response rows after which a chunk of pairs is closed. Enough rows to make the vocabulary product efficient.
pub(crate) const ROWS_AT_ONCE: usize = 1024;

/// Index of the logits' bias among the parameters of the vocabulary's segment, if it has one.
const BIAS: usize = 1;

/// The scores of one pair (or of a single row, in the first places).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairScores {
    /// The caller's number for the pair.
    pub index: usize,
    /// Rewards of the chosen and the rejected answer.
    pub rewards: [f64; 2],
    /// Rewards at the second position, if the loss is taken there too; in training only.
    pub second_rewards: Option<[f64; 2]>,
    /// Summed log-probs of the two answers; zeros if they were not requested.
    pub log_probs: [f64; 2],
    /// Tokens the log-probs are summed over.
    pub tokens: [usize; 2],
}

/// The losses of one pair.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairLosses {
    /// Its scores.
    pub scores: PairScores,
    /// Bradley-Terry plus centering.
    pub reward_loss: f64,
    /// The policy loss, if it is computed.
    pub policy_loss: Option<f64>,
    /// Chosen minus rejected implicit reward, if the policy loss is computed.
    pub(crate) implicit_margin: Option<f64>,
    /// Neither answer is better: there is no right order.
    pub(crate) tied: bool,
}

/// What is minimized in one step.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a> {
    /// Forms and constants of the losses.
    pub config: &'a LossConfig,
    /// Weight of the reward loss in this step.
    pub reward_weight: f64,
    /// Weight of the policy loss in this step.
    pub alpha: f64,
    /// Whether log-probs are computed at all.
    pub log_probs: bool,
}

impl Objective<'_> {
    /// Losses of a pair from its scores and its reference; for a `tied` pair the means over both orders.
    pub fn losses(&self, scores: PairScores, margin: f64, reference: [f64; 2], tied: bool) -> PairLosses {
        let reward = |rewards: [f64; 2]| {
            let loss = |[one, other]: [f64; 2]| self.reward_loss([one, other], margin);
            both_if(tied, loss, rewards)
        };
        // Each position counts half if rewards are trained at two.
        let reward_loss = match scores.second_rewards {
            Some(second) => (reward(scores.rewards) + reward(second)) / 2.0,
            None => reward(scores.rewards),
        };
        let answers = answers(&scores, reference);
        let policy = |[one, other]: [AnswerLogProb; 2]| loss::policy(self.config, one, other);
        PairLosses {
            scores,
            reward_loss,
            policy_loss: self.log_probs.then(|| both_if(tied, policy, answers)),
            implicit_margin: self.log_probs.then(|| loss::implicit_margin(self.config, answers[0], answers[1])),
            tied,
        }
    }

    /// Bradley-Terry plus centering.
    fn reward_loss(&self, [chosen, rejected]: [f64; 2], margin: f64) -> f64 {
        loss::bradley_terry(self.config, chosen, rejected, margin)
            + loss::centering(chosen, rejected, self.config.centering)
    }
}

/// A loss of two answers; the mean over both orders if `tied`.
fn both_if<T: Copy>(tied: bool, loss: impl Fn([T; 2]) -> f64, [one, other]: [T; 2]) -> f64 {
    if tied { (loss([one, other]) + loss([other, one])) / 2.0 } else { loss([one, other]) }
}

fn answers(scores: &PairScores, reference: [f64; 2]) -> [AnswerLogProb; 2] {
    [0, 1].map(|answer| AnswerLogProb {
        policy: scores.log_probs[answer],
        reference: reference[answer],
        tokens: scores.tokens[answer],
    })
}

/// The buckets for the gradients of the heads' parameters; none for a head that is not trained.
#[derive(Default)]
pub struct HeadBuckets {
    /// The reward head's.
    pub reward: Option<Bucket>,
    /// The vocabulary matrix's.
    pub vocabulary: Option<Bucket>,
}

/// The two heads of a model.
pub struct Heads<'a> {
    /// The reward head: one parameter [1, D], f32.
    pub reward: &'a Weights,
    /// The weights whose first parameter is the vocabulary matrix [V, D], and whose second, if it has one, is the logits'
    /// bias `[V]`; needed for log-probs only.
    pub vocabulary: Option<&'a Weights>,
    /// Factor of the logits before they are capped, if there is one (Granite).
    pub logit_scale: Option<f64>,
    /// c > 0 if the logits are capped: c tanh(logit / c) (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f64>,
    /// Most response rows of a chunk, unless one pair has more.
    pub most_rows: usize,
    /// Memory for a chunk's logits.
    pub logits: &'a mut Scratch,
    /// Memory for a product before it is added to a bucket.
    pub scratch: &'a mut Scratch,
}

impl<'a> Heads<'a> {
    /// Scores of every pair from the final hidden states [N, D], which the pairs' row numbers index.
    ///
    /// # Errors
    /// Log-probs requested from a model without a language-model head.
    pub(crate) fn scores(&mut self, hidden: &Tensor, pairs: &[PackedPair], log_probs: bool) -> Result<Vec<PairScores>> {
        let at = on_device(&reward_rows(pairs, |answer| answer.reward_row), hidden.device());
        let rewards = self.rewards(&reward_hidden(hidden, &at));
        let mut scores = Scores { rewards, second_rewards: None, log_probs: Vec::new() };
        if log_probs {
            let vocabulary = self.vocabulary()?;
            for chunk in chunks(pairs) {
                let pairs = &pairs[chunk];
                let logits = self.logits(&hidden.index_select(0, &rows(pairs, hidden)), vocabulary)?;
                let places = Places::new(&places(pairs), &logits.values)?;
                scores.log_probs.push(sums(&vocabulary.ops.log_probs(&logits, &places)?, pairs)?);
            }
        }
        scores.read(pairs)
    }

    /// For every pair and each of its answers, the log-probs of the answer's targets; from the final hidden states [N, D].
    ///
    /// # Errors
    /// As [`Heads::scores`].
    pub(crate) fn token_log_probs(&mut self, hidden: &Tensor, pairs: &[PackedPair]) -> Result<Vec<Vec<Vec<f64>>>> {
        let vocabulary = self.vocabulary()?;
        let mut all = Vec::with_capacity(pairs.len());
        for chunk in chunks(pairs) {
            let pairs = &pairs[chunk];
            let logits = self.logits(&hidden.index_select(0, &rows(pairs, hidden)), vocabulary)?;
            let places = Places::new(&places(pairs), &logits.values)?;
            let mut values = scores::on_host(&vocabulary.ops.log_probs(&logits, &places)?)?.into_iter();
            let mut of = |answer: &PackedAnswer| values.by_ref().take(answer.targets.len()).collect::<Vec<f64>>();
            all.extend(pairs.iter().map(|pair| pair.answers.iter().map(&mut of).collect::<Vec<_>>()));
        }
        Ok(all)
    }

    /// Losses of every pair, and the gradient of their *sum* (weighted by the objective) with respect to the hidden
    /// states [N, D]; gradients of both heads go to their buckets. Nothing is divided by a number of pairs here. Every
    /// pair has two answers.
    ///
    /// # Errors
    /// As [`Heads::scores`].
    pub fn forward_backward<'o>(
        &mut self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective<'o>,
        buckets: &mut HeadBuckets,
    ) -> Result<(Losses<'o>, Tensor)> {
        let hidden_gradient = hidden.zeros_like().to_kind(Kind::Float);
        // First the rows of all rewards, then those of all second rewards, if there are any; an answer without a second
        // one counts twice by half.
        let mut at = reward_rows(pairs, |answer| answer.reward_row);
        let answers = at.len() as i64;
        let twice = pairs.iter().flat_map(|pair| &pair.answers).any(|answer| answer.second_reward_row.is_some());
        if twice {
            at.extend(reward_rows(pairs, |answer| answer.second_reward_row.unwrap_or(answer.reward_row)));
        }
        let at = on_device(&at, hidden.device());
        let reward_hidden = reward_hidden(hidden, &at);
        let rewards = self.rewards(&reward_hidden);
        let margins = of_pairs(pairs, hidden, |pair| [pair.margin]).squeeze_dim(-1);
        let margins = if twice { margins.repeat([2]) } else { margins };
        let ties = ties(pairs, hidden);
        let reward_ties = ties.as_ref().map(|ties| if twice { ties.repeat([2]) } else { ties.shallow_clone() });
        let weight = if twice { objective.reward_weight / 2.0 } else { objective.reward_weight };
        let slopes = reward_slopes(objective.config, &rewards.view([-1, 2]), &margins, reward_ties.as_ref()) * weight;
        let slopes = slopes.to_kind(Kind::Float).view([-1, 1]);
        if let Some(bucket) = &mut buckets.reward {
            bucket.add_product(self.reward.ops, 0..1, [&slopes, &reward_hidden], self.scratch)?;
        }
        add_rows(&hidden_gradient, &at, &(slopes * self.reward.view(0)))?;
        let mut log_probs = Vec::new();
        if objective.log_probs {
            for chunk in chunks(pairs) {
                let bucket = buckets.vocabulary.as_mut();
                log_probs.push(self.policy_chunk(hidden, &pairs[chunk], objective, &hidden_gradient, bucket)?);
            }
        }
        let second_rewards = twice.then(|| rewards.narrow(0, answers, answers));
        let scores = Scores { rewards: rewards.narrow(0, 0, answers), second_rewards, log_probs };
        let losses = Losses { scores, pairs: pairs.to_vec(), objective: *objective, routing: Vec::new() };
        Ok((losses, hidden_gradient.to_kind(hidden.kind())))
    }

    /// Rewards `[A]` f64 of hidden states [A, D] f32. In f32, since bf16 scores would tie.
    fn rewards(&self, reward_hidden: &Tensor) -> Tensor {
        let products = reward_hidden * self.reward.view(0);
        products.sum_dim_intlist(-1, false, Kind::Float).to_kind(Kind::Double)
    }

    /// The policy loss's part for a few pairs, in one pass over their response rows: adds its gradients, and returns the
    /// answers' summed log-probs `[A]` f64.
    fn policy_chunk(
        &mut self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective,
        hidden_gradient: &Tensor,
        bucket: Option<&mut Bucket>,
    ) -> Result<Tensor> {
        let vocabulary = self.vocabulary()?;
        let rows = rows(pairs, hidden);
        let response = hidden.index_select(0, &rows);
        let logits = self.logits(&response, vocabulary)?;
        let places = Places::new(&places(pairs), &logits.values)?;
        let log_probs = sums(&vocabulary.ops.log_probs(&logits, &places)?, pairs)?;
        if objective.alpha == 0.0 {
            return Ok(log_probs);
        }
        let references = of_pairs(pairs, hidden, |pair| pair.reference);
        let tokens = of_pairs(pairs, hidden, |pair| [0, 1].map(|answer| pair.answers[answer].targets.len() as f64));
        let inputs = PolicyInputs { log_probs: log_probs.view([-1, 2]), references, tokens };
        let slopes = policy_slopes(objective.config, &inputs, ties(pairs, hidden).as_ref()) * objective.alpha;
        let slopes = slopes.view([-1]).index_select(0, &owners(pairs, hidden.device())).to_kind(Kind::Float);
        let gradient = vocabulary.ops.log_probs_backward(logits, &places, &slopes)?;
        let gradient = match self.logit_scale {
            Some(scale) => gradient * scale,
            None => gradient,
        };
        if let Some(bucket) = bucket {
            bucket.add_product(vocabulary.ops, 0..1, [&gradient, &response], self.scratch)?;
            if let Some(bias) = bucket.sums().get(BIAS) {
                vocabulary.ops.add_column_sums(&gradient, bias)?;
            }
        }
        let rows_gradient = gradient.f_mm(vocabulary.view(0))?.to_kind(Kind::Float);
        add_rows(hidden_gradient, &rows, &rows_gradient)?;
        Ok(log_probs)
    }

    /// Hidden rows [R, D] -> their logits [R, V].
    fn logits(&mut self, rows: &Tensor, vocabulary: &Weights) -> Result<Logits> {
        let weight = vocabulary.view(0);
        let (most, count, vocabulary_size) = (self.most_rows as i64, rows.size()[0], weight.size()[0]);
        let logits = self.logits.matrix_of_at_most(most, count, vocabulary_size, rows.kind(), rows.device());
        let _ = match vocabulary.parameters.len() > BIAS {
            true => vocabulary.view(BIAS).f_addmm_out(&logits, rows, &weight.tr())?,
            false => rows.f_mm_out(&logits, &weight.tr())?,
        };
        if let Some(scale) = self.logit_scale {
            let _ = logits.shallow_clone().g_mul_scalar_(scale);
        }
        let sums = vocabulary.ops.log_sum_exp(&logits, self.soft_cap)?;
        Ok(Logits { values: logits, sums, soft_cap: self.soft_cap })
    }

    fn vocabulary(&self) -> Result<&'a Weights> {
        self.vocabulary.ok_or_else(|| {
            Error::input("the model has no language-model head: log-probs cannot be computed")
                .hint("its safetensors need lm_head.weight; loss.objective = \"reward\" does not need it")
        })
    }
}

/// The places of some pairs' targets in the logits of their response rows, answer after answer.
fn places(pairs: &[PackedPair]) -> Vec<Place> {
    let (mut places, mut rows) = (Vec::new(), 0);
    for pair in pairs {
        let targets = pair.answers.iter().flat_map(|answer| &answer.targets);
        places.extend(targets.map(|target| Place { row: rows + target.row as usize, token: target.token as usize }));
        rows += pair.response_rows.len();
    }
    places
}

/// Ranges of consecutive pairs whose response rows are held together.
fn chunks(pairs: &[PackedPair]) -> Vec<std::ops::Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (index, pair) in pairs.iter().enumerate() {
        if index > start && rows + pair.response_rows.len() > ROWS_AT_ONCE {
            chunks.push(start..index);
            (start, rows) = (index, 0);
        }
        rows += pair.response_rows.len();
    }
    if rows > 0 {
        chunks.push(start..pairs.len());
    }
    chunks
}

/// Response rows of some pairs, one after the other `[R]`.
fn rows(pairs: &[PackedPair], hidden: &Tensor) -> Tensor {
    let rows: Vec<i64> = pairs.iter().flat_map(|pair| pair.response_rows.iter().copied()).collect();
    on_device(&rows, hidden.device())
}

/// A row of each answer of some pairs.
fn reward_rows(pairs: &[PackedPair], row: impl Fn(&PackedAnswer) -> usize) -> Vec<i64> {
    pairs.iter().flat_map(|pair| &pair.answers).map(|answer| row(answer) as i64).collect()
}

/// Hidden states [A, D] f32 at which rewards are read.
fn reward_hidden(hidden: &Tensor, rows: &Tensor) -> Tensor {
    hidden.index_select(0, rows).to_kind(Kind::Float)
}

/// For each target the number of its answer, counted over all pairs.
fn owners(pairs: &[PackedPair], device: Device) -> Tensor {
    let answers = pairs.iter().flat_map(|pair| &pair.answers).enumerate();
    let owners = answers.flat_map(|(number, answer)| answer.targets.iter().map(move |_| number as i64));
    on_device(&owners.collect::<Vec<_>>(), device)
}

/// Sums `[A]` f64 over each answer's targets of their log-probs `[targets]`.
fn sums(log_probs: &Tensor, pairs: &[PackedPair]) -> Result<Tensor> {
    let (answers, device): (usize, _) = (pairs.iter().map(|pair| pair.answers.len()).sum(), log_probs.device());
    let zeros = Tensor::zeros([answers as i64], (Kind::Double, device));
    add_rows(&zeros, &owners(pairs, device), &log_probs.to_kind(Kind::Double))?;
    Ok(zeros)
}

/// Which pairs are tied `[B]`, bool; none if no pair is.
fn ties(pairs: &[PackedPair], hidden: &Tensor) -> Option<Tensor> {
    let tied: Vec<bool> = pairs.iter().map(|pair| pair.tied).collect();
    tied.contains(&true).then(|| on_device(&tied, hidden.device()))
}

/// f64 values of every pair on the device of `hidden`, [B, N].
fn of_pairs<const N: usize>(pairs: &[PackedPair], hidden: &Tensor, of: impl Fn(&PackedPair) -> [f64; N]) -> Tensor {
    let values: Vec<f64> = pairs.iter().flat_map(of).collect();
    on_device(&values, hidden.device()).view([-1, N as i64])
}
