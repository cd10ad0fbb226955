//! The last step of the way: final hidden states -> rewards and answer log-probs -> both losses -> gradient of the
//! hidden states, with the vocabulary product and its weight gradient.
//!
//! The policy loss of a pair depends on that pair alone, so its derivative is known as soon as its log-probs are, and
//! one pass over a few pairs' response rows does everything: logits, log-sum-exp, loss, (one-hot - softmax), products.
//! At most `ROWS_AT_ONCE` response rows (or one pair's, if it has more) are ever held times V.
//!
//! Legend: N rows whose hidden states are read, D width, V vocabulary, R response rows held at once.

mod on_device;

use crate::config::LossConfig;
use crate::data::batch::PackedPair;
use crate::error::{Error, Result};
use crate::loss::{self, AnswerLogProb};
use crate::model::logits::{self, Logits, Place};
use crate::model::segment::Segment;
use crate::model::workspace::Scratch;
use crate::tensor::on_device;
use tch::{Device, Kind, Tensor};

/// Response rows after which a chunk of pairs is closed. Enough rows to make the vocabulary product efficient.
pub const ROWS_AT_ONCE: usize = 1024;

/// Place of the logits' bias in the vocabulary's segment, where it has one.
const BIAS: usize = 1;

/// What a forward pass says of one pair (or of a single row, in the first places).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairScores {
    /// The caller's number of the pair.
    pub index: usize,
    /// Rewards of the chosen and the rejected answer.
    pub rewards: [f64; 2],
    /// Summed log-probs of the two answers; zeros where they were not asked for.
    pub log_probs: [f64; 2],
    /// Tokens the log-probs are summed over.
    pub tokens: [usize; 2],
}

/// What the losses say of one pair.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairLosses {
    /// Its scores.
    pub scores: PairScores,
    /// Bradley-Terry plus centering.
    pub reward_loss: f64,
    /// The policy loss, where it is computed.
    pub policy_loss: Option<f64>,
    /// Chosen minus rejected implicit reward, where the policy loss is computed.
    pub implicit_margin: Option<f64>,
}

/// The losses of a micro-batch: known, or computed on a GPU from scores that may not be there yet.
pub enum Losses<'o> {
    /// Known.
    Known(Vec<PairLosses>),
    /// To be had from the device.
    OnDevice {
        /// What it computes.
        scores: on_device::Scores,
        /// Whose scores they are.
        pairs: Vec<PackedPair>,
        /// What makes losses of them.
        objective: Objective<'o>,
    },
}

impl Losses<'_> {
    /// The losses of every pair; waits for the device where they are computed on one.
    ///
    /// # Errors
    /// The device has failed.
    pub fn read(self) -> Result<Vec<PairLosses>> {
        match self {
            Self::Known(losses) => Ok(losses),
            Self::OnDevice { scores, pairs, objective } => {
                let scores = scores.read(&pairs)?.into_iter().zip(&pairs);
                Ok(scores.map(|(scores, pair)| objective.losses(scores, pair.margin, pair.reference)).collect())
            }
        }
    }
}

/// What is minimised in one step.
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
    /// Losses of a pair from its scores and its reference.
    pub fn losses(&self, scores: PairScores, margin: f64, reference: [f64; 2]) -> PairLosses {
        let [chosen, rejected] = scores.rewards;
        let reward_loss = self.reward(chosen, rejected, margin).loss;
        let answers = answers(&scores, reference);
        PairLosses {
            scores,
            reward_loss,
            policy_loss: self.log_probs.then(|| loss::policy(self.config, answers[0], answers[1]).loss),
            implicit_margin: self.log_probs.then(|| loss::implicit_margin(self.config, answers[0], answers[1])),
        }
    }

    fn reward(&self, chosen: f64, rejected: f64, margin: f64) -> loss::Value {
        let ranking = loss::bradley_terry(chosen, rejected, margin, self.config.label_smoothing);
        let centering = loss::centering(chosen, rejected, self.config.centering);
        loss::Value {
            loss: ranking.loss + centering.loss,
            chosen: ranking.chosen + centering.chosen,
            rejected: ranking.rejected + centering.rejected,
        }
    }
}

fn answers(scores: &PairScores, reference: [f64; 2]) -> [AnswerLogProb; 2] {
    [0, 1].map(|answer| AnswerLogProb {
        policy: scores.log_probs[answer],
        reference: reference[answer],
        tokens: scores.tokens[answer],
    })
}

/// The two heads of a model.
pub struct Heads<'a> {
    /// The reward head's segment: one parameter [1, D], f32.
    pub reward: &'a Segment,
    /// The segment whose first parameter is the vocabulary matrix [V, D], and whose second, if it has one, is the
    /// logits' bias `[V]`; needed for log-probs only.
    pub vocabulary: Option<&'a Segment>,
    /// c > 0 where the logits are capped: c tanh(logit / c) (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f64>,
    /// Response rows of a micro-batch are at most so many, unless a pair is longer.
    pub most_rows: usize,
    /// Memory of a chunk's logits.
    pub logits: &'a Scratch,
    /// Memory of a product whose sum lies elsewhere.
    pub scratch: &'a Scratch,
}

impl Heads<'_> {
    /// Scores of every pair from the final hidden states [N, D] in which the pairs' row numbers count.
    ///
    /// # Errors
    /// Log-probs asked of a model without a language-model head.
    pub fn scores(&self, hidden: &Tensor, pairs: &[PackedPair], log_probs: bool) -> Result<Vec<PairScores>> {
        let mut scores = self.rewards(hidden, pairs)?;
        if log_probs {
            let vocabulary = self.vocabulary()?;
            for chunk in chunks(pairs) {
                let pairs = &pairs[chunk.clone()];
                let logits = self.logits(&hidden.index_select(0, &rows(pairs, hidden)), vocabulary)?;
                read_log_probs(&logits, pairs, &mut scores[chunk])?;
            }
        }
        Ok(scores)
    }

    /// Losses of every pair, and the gradient of their *sum* (weighted by the objective) with respect to the hidden
    /// states [N, D]; gradients of both heads go to their buckets. Nothing is divided by a number of pairs here.
    ///
    /// # Errors
    /// As [`Heads::scores`].
    pub fn forward_backward<'o>(
        &self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective<'o>,
    ) -> Result<(Losses<'o>, Tensor)> {
        if hidden.device() != Device::Cpu {
            return self.forward_backward_on_device(hidden, pairs, objective);
        }
        let mut scores = self.rewards(hidden, pairs)?;
        let mut hidden_gradient = hidden.zeros_like().to_kind(Kind::Float);
        self.rewards_backward(hidden, pairs, objective, &scores, &mut hidden_gradient)?;
        if objective.log_probs {
            for chunk in chunks(pairs) {
                let scores = &mut scores[chunk.clone()];
                self.policy_chunk(hidden, &pairs[chunk], objective, scores, &mut hidden_gradient)?;
            }
        }
        let losses = scores.iter().zip(pairs);
        let losses = losses.map(|(scores, pair)| objective.losses(*scores, pair.margin, pair.reference)).collect();
        Ok((Losses::Known(losses), hidden_gradient.to_kind(hidden.kind())))
    }

    /// Rewards in f32: bf16 scores would tie.
    fn rewards(&self, hidden: &Tensor, pairs: &[PackedPair]) -> Result<Vec<PairScores>> {
        let rewards =
            (self.reward_hidden(hidden, pairs) * self.reward.weight(0)).sum_dim_intlist(-1, false, Kind::Float);
        let mut rewards = to_host(&rewards)?.into_iter();
        let score = |pair: &PackedPair| {
            let mut scores = PairScores { index: pair.index, ..PairScores::default() };
            for (place, _) in pair.answers.iter().enumerate() {
                scores.rewards[place] = rewards.next().map_or(f64::NAN, f64::from);
            }
            scores
        };
        Ok(pairs.iter().map(score).collect())
    }

    fn rewards_backward(
        &self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective,
        scores: &[PairScores],
        hidden_gradient: &mut Tensor,
    ) -> Result<()> {
        let mut slopes = Vec::with_capacity(2 * scores.len());
        for (scores, pair) in scores.iter().zip(pairs) {
            let value = objective.reward(scores.rewards[0], scores.rewards[1], pair.margin);
            slopes.extend([value.chosen, value.rejected].map(|slope| (objective.reward_weight * slope) as f32));
        }
        let slopes = Tensor::from_slice(&slopes).unsqueeze(-1);
        self.reward.add_product(0..1, &slopes, &self.reward_hidden(hidden, pairs), self.scratch)?;
        let _ = hidden_gradient.index_add_(0, &reward_rows(pairs, hidden), &(slopes * self.reward.weight(0)));
        Ok(())
    }

    /// Hidden states at which rewards are read [answers, D], f32.
    fn reward_hidden(&self, hidden: &Tensor, pairs: &[PackedPair]) -> Tensor {
        hidden.index_select(0, &reward_rows(pairs, hidden)).to_kind(Kind::Float)
    }

    /// Everything the policy loss needs of a few pairs, in one pass over their response rows.
    fn policy_chunk(
        &self,
        hidden: &Tensor,
        pairs: &[PackedPair],
        objective: &Objective,
        scores: &mut [PairScores],
        hidden_gradient: &mut Tensor,
    ) -> Result<()> {
        let vocabulary = self.vocabulary()?;
        let rows = rows(pairs, hidden);
        let response = hidden.index_select(0, &rows);
        let logits = self.logits(&response, vocabulary)?;
        let places = read_log_probs(&logits, pairs, scores)?;
        if objective.alpha == 0.0 {
            return Ok(());
        }
        let mut slopes = Vec::with_capacity(places.len());
        for (pair, scores) in pairs.iter().zip(scores.iter()) {
            let answers = answers(scores, pair.reference);
            let value = loss::policy(objective.config, answers[0], answers[1]);
            for (answer, slope) in pair.answers.iter().zip([value.chosen, value.rejected]) {
                slopes.extend(answer.targets.iter().map(|_| (objective.alpha * slope) as f32));
            }
        }
        let gradient = logits.into_gradient(&places, &slopes)?;
        self.add_vocabulary_gradient(vocabulary, &gradient, &response)?;
        let rows_gradient = gradient.mm(vocabulary.weight(0)).to_kind(Kind::Float);
        let _ = hidden_gradient.index_add_(0, &rows, &rows_gradient);
        Ok(())
    }

    /// Adds to the bucket what the gradient of logits [R, V] of the hidden rows [R, D] is worth.
    fn add_vocabulary_gradient(&self, vocabulary: &Segment, gradient: &Tensor, rows: &Tensor) -> Result<()> {
        vocabulary.add_product(0..1, gradient, rows, self.scratch)?;
        match vocabulary.gradient_view(BIAS) {
            Some(sum) => logits::add_bias_gradient(gradient, sum),
            None => Ok(()),
        }
    }

    /// Hidden rows [R, D] -> their logits [R, V].
    fn logits(&self, rows: &Tensor, vocabulary: &Segment) -> Result<Logits> {
        let weight = vocabulary.weight(0);
        let (most, count, vocabulary_size) = (self.most_rows as i64, rows.size()[0], weight.size()[0]);
        let logits = self.logits.matrix_of_at_most(most, count, vocabulary_size, rows.kind(), rows.device());
        let _ = match vocabulary.parameters.len() > BIAS {
            true => vocabulary.weight(BIAS).addmm_out(&logits, rows, &weight.tr()),
            false => rows.mm_out(&logits, &weight.tr()),
        };
        Logits::new(logits, self.soft_cap)
    }

    fn vocabulary(&self) -> Result<&Segment> {
        self.vocabulary.ok_or_else(|| {
            Error::input("the model has no language-model head: log-probs cannot be computed")
                .hint("its safetensors need lm_head.weight; loss.objective = \"reward\" does without")
        })
    }
}

/// Reads each answer's summed log-prob from a chunk's logits [R, V]; the sum is taken in f64. Returns where its targets
/// are, answer after answer.
fn read_log_probs(logits: &Logits, pairs: &[PackedPair], scores: &mut [PairScores]) -> Result<Vec<Place>> {
    let places = places(pairs);
    let mut read = logits.log_probs(&places)?.into_iter();
    for (pair, scores) in pairs.iter().zip(scores) {
        for (place, answer) in pair.answers.iter().enumerate() {
            scores.tokens[place] = answer.targets.len();
            scores.log_probs[place] = read.by_ref().take(answer.targets.len()).map(f64::from).sum();
        }
    }
    Ok(places)
}

/// Where the targets of some pairs are in the logits of their response rows, answer after answer.
fn places(pairs: &[PackedPair]) -> Vec<Place> {
    let (mut places, mut rows) = (Vec::new(), 0);
    for pair in pairs {
        let targets = pair.answers.iter().flat_map(|answer| &answer.targets);
        places.extend(targets.map(|&(row, token)| (rows + row as usize, token as usize)));
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

/// Response rows of some pairs, one after the other [R].
fn rows(pairs: &[PackedPair], hidden: &Tensor) -> Tensor {
    let rows: Vec<i64> = pairs.iter().flat_map(|pair| pair.response_rows.iter().copied()).collect();
    on_device(&rows, hidden.device())
}

/// Reward rows of some pairs, answer after answer.
fn reward_rows(pairs: &[PackedPair], hidden: &Tensor) -> Tensor {
    let rows = pairs.iter().flat_map(|pair| pair.answers.iter().map(|answer| answer.reward_row as i64));
    on_device(&rows.collect::<Vec<_>>(), hidden.device())
}

fn to_host(values: &Tensor) -> Result<Vec<f32>> {
    let values = values.to_device(tch::Device::Cpu).contiguous();
    crate::tensor::slice::<f32>(&values).map(<[f32]>::to_vec)
}
