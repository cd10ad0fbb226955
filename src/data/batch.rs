//! `PackedBatch`: pairs as one row of tokens without padding.
//!
//! `[prefix | chosen | rejected]` pair after pair. Positions restart in each sequence: both suffixes continue the prefix.
//! Shared packing computes a pair's common prefix once; separate packing has both sequences whole, and exists to prove that
//! shared packing gives equal results.
//!
//! Legend: T tokens (sum of P + A + B over the pairs when shared), N rows whose hidden states are read.

use super::TokenPair;
use crate::packing::{AlikeLengths, Group};
use crate::tensor::on_device;
use tch::{Device, Tensor};

/// How a pair is laid out in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// The common prefix once: `[P | A | B]`.
    Shared,
    /// Both sequences whole: `[P | A]`, `[P | B]`.
    Separate,
    /// The common prefix once if both sequences' lengths are rotated alike; else both sequences whole.
    SharedIfAlike(AlikeLengths),
}

impl Packing {
    /// The prefix once wherever the model computes the same values for it in both sequences.
    pub fn shared(alike: Option<AlikeLengths>) -> Self {
        alike.map_or(Self::Shared, Self::SharedIfAlike)
    }

    /// Whether a pair's prefix is in the row only once.
    pub(crate) fn shares(self, pair: &TokenPair) -> bool {
        match self {
            Self::Shared => true,
            Self::Separate => false,
            Self::SharedIfAlike(alike) => {
                let [one, two] =
                    [pair.chosen, pair.rejected].map(|answer| alike.first_like(pair.prefix.len() + answer.len()));
                // A single row has no second answer.
                one == two || pair.chosen.is_empty() || pair.rejected.is_empty()
            }
        }
    }

    /// Rows that a pair takes.
    pub fn rows(self, pair: &TokenPair) -> usize {
        let answers = [pair.chosen, pair.rejected].map(<[u32]>::len);
        let prefixes = if self.shares(pair) { 1 } else { answers.into_iter().filter(|&answer| answer > 0).count() };
        prefixes * pair.prefix.len() + answers.into_iter().sum::<usize>()
    }
}

/// One micro-batch.
pub struct PackedBatch {
    /// Token ids `[T]`, i64.
    pub tokens: Tensor,
    /// Position of each token in its sequence `[T]`, i64.
    pub positions: Tensor,
    /// Which rows attend to which.
    pub groups: Vec<Group>,
    /// The pairs, in packing order.
    pub pairs: Vec<PackedPair>,
}

/// The rows at which one pair's answers are read: rows of the batch, or indices into [`ReadRows::rows`].
#[derive(Debug, Clone, PartialEq)]
pub struct PackedPair {
    /// The caller's number of the pair.
    pub index: usize,
    /// Chosen and rejected; a single row has one.
    pub answers: Vec<PackedAnswer>,
    /// Rows whose hidden states predict answer tokens, each once, ascending.
    pub response_rows: Vec<i64>,
    /// Required difference of the rewards.
    pub(crate) margin: f64,
    /// Neither answer is better: the losses are the means over both orders.
    pub(crate) tied: bool,
    /// Log-probs of the chosen and the rejected answer under the starting model; zeros without a reference.
    pub reference: [f64; 2],
}

/// One answer of a packed pair.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedAnswer {
    /// Row at which the reward is read.
    pub reward_row: usize,
    /// A second row at which the reward is trained, if any.
    pub second_reward_row: Option<usize>,
    /// The answer's tokens that are predicted.
    pub targets: Vec<Target>,
}

/// One token of an answer, and the row that predicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index into `response_rows`.
    pub row: i64,
    /// The token to be predicted there.
    pub token: i64,
}

/// The rows of a batch whose final hidden states are read, and which of them each pair reads.
pub struct ReadRows {
    /// The batch's rows that are read `[N]`, i64, each once, ascending.
    pub rows: Tensor,
    /// The batch's pairs; their row numbers are indices into `rows`.
    pub(crate) pairs: Vec<PackedPair>,
}

/// One pair to pack: the caller's number, its tokens and its reference log-probs.
pub struct PairToPack<'a> {
    /// The caller's number of the pair.
    pub index: usize,
    /// Its tokens.
    pub pair: TokenPair<'a>,
    /// Log-probs of the chosen and the rejected answer under the starting model; zeros without a reference.
    pub reference: [f32; 2],
}

impl PackedBatch {
    /// Packs the pairs, in order. The copy to a GPU is asynchronous.
    pub fn new<'a>(pairs: impl IntoIterator<Item = PairToPack<'a>>, packing: Packing, device: Device) -> Self {
        let mut rows = Rows::default();
        let packed = pairs.into_iter().map(|item| rows.add(item, packing)).collect();
        Self {
            tokens: on_device(&rows.tokens, device),
            positions: on_device(&rows.positions, device),
            groups: rows.groups,
            pairs: packed,
        }
    }

    /// Number of tokens, T.
    pub fn token_count(&self) -> usize {
        self.groups.iter().map(Group::rows).sum()
    }

    /// The rows at which rewards are read, and with `log_probs` those that predict answers. Without, the pairs have no
    /// response rows and no targets. The copy to a GPU is asynchronous.
    pub fn read_rows(&self, log_probs: bool) -> ReadRows {
        let mut pairs = self.pairs.clone();
        if !log_probs {
            for pair in &mut pairs {
                pair.response_rows.clear();
                pair.answers.iter_mut().for_each(|answer| answer.targets.clear());
            }
        }
        let answers = pairs.iter().flat_map(|pair| &pair.answers);
        let reward_rows = answers.flat_map(|answer| [Some(answer.reward_row), answer.second_reward_row]);
        let reward_rows = reward_rows.flatten().map(|row| row as i64);
        let mut rows: Vec<i64> = reward_rows.chain(pairs.iter().flat_map(|pair| pair.response_rows.clone())).collect();
        rows.sort_unstable();
        rows.dedup();
        let place = |row: i64| rows.partition_point(|&read| read < row);
        for pair in &mut pairs {
            for answer in &mut pair.answers {
                answer.reward_row = place(answer.reward_row as i64);
                answer.second_reward_row = answer.second_reward_row.map(|row| place(row as i64));
            }
            pair.response_rows.iter_mut().for_each(|row| *row = place(*row) as i64);
        }
        ReadRows { rows: on_device(&rows, self.tokens.device()), pairs }
    }
}

/// The rows of a batch while it is packed.
#[derive(Default)]
struct Rows {
    tokens: Vec<i64>,
    positions: Vec<i64>,
    groups: Vec<Group>,
}

/// Where one answer's sequence is in the rows: position p is row `prefix + p` within the prefix, `suffix + p` after it.
struct Offsets {
    prefix: usize,
    suffix: usize,
}

impl Rows {
    fn add(&mut self, item: PairToPack, packing: Packing) -> PackedPair {
        let pair = item.pair;
        let suffixes: Vec<&[u32]> = [pair.chosen, pair.rejected].into_iter().filter(|it| !it.is_empty()).collect();
        let mut offsets = Vec::with_capacity(suffixes.len());
        match packing.shares(&pair) {
            true => {
                let start = self.tokens.len();
                self.push(pair.prefix, 0);
                for suffix in &suffixes {
                    offsets.push(Offsets { prefix: start, suffix: self.tokens.len() - pair.prefix.len() });
                    self.push(suffix, pair.prefix.len());
                }
                let suffixes = suffixes.iter().map(|suffix| suffix.len()).collect();
                self.groups.push(Group { start, prefix: pair.prefix.len(), suffixes });
            }
            false => {
                for suffix in &suffixes {
                    let start = self.tokens.len();
                    offsets.push(Offsets { prefix: start, suffix: start });
                    self.push(pair.prefix, 0);
                    self.push(suffix, pair.prefix.len());
                    self.groups.push(Group { start, prefix: pair.prefix.len(), suffixes: vec![suffix.len()] });
                }
            }
        }
        self.read(item, &offsets)
    }

    fn push(&mut self, tokens: &[u32], first_position: usize) {
        self.tokens.extend(tokens.iter().map(|&token| i64::from(token)));
        self.positions.extend((first_position..first_position + tokens.len()).map(|position| position as i64));
    }

    /// Finds the rows at which rewards and log-probs of the pair just pushed are read.
    fn read(&self, item: PairToPack, offsets: &[Offsets]) -> PackedPair {
        let prefix = item.pair.prefix.len();
        let row = |answer: usize, position: usize| {
            let Offsets { prefix: before, suffix: after } = offsets[answer];
            position + if position < prefix { before } else { after }
        };
        // A token at position p is predicted at position p - 1; nothing predicts a sequence's first token.
        let spans = item.pair.spans;
        let predicted = |answer: usize| spans[answer].start.max(1)..spans[answer].end;
        let predictors = |answer: usize| predicted(answer).map(move |position| row(answer, position - 1) as i64);
        let mut response_rows: Vec<i64> = (0..offsets.len()).flat_map(predictors).collect();
        response_rows.sort_unstable();
        response_rows.dedup();
        let answers = (0..offsets.len())
            .map(|answer| {
                let targets = predicted(answer).filter_map(|position| {
                    let predictor = row(answer, position - 1) as i64;
                    let index = response_rows.binary_search(&predictor).ok()?;
                    Some(Target { row: index as i64, token: self.tokens[row(answer, position)] })
                });
                PackedAnswer {
                    reward_row: row(answer, spans[answer].reward),
                    second_reward_row: spans[answer].second_reward.map(|position| row(answer, position)),
                    targets: targets.collect(),
                }
            })
            .collect();
        PackedPair {
            index: item.index,
            answers,
            response_rows,
            margin: f64::from(item.pair.margin),
            tied: item.pair.tied,
            reference: item.reference.map(f64::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::AnswerSpan;

    fn pair<'a>(prefix: &'a [u32], chosen: &'a [u32], rejected: &'a [u32], prompt_length: usize) -> PairToPack<'a> {
        let spans = AnswerSpan::of_pair(prompt_length, prefix.len(), chosen.len(), rejected.len());
        let pair = TokenPair { prefix, chosen, rejected, spans, margin: 0.5, tied: false, domain: 0, prompt_hash: 1 };
        PairToPack { index: 7, pair, reference: [-1.0, -2.0] }
    }

    fn targets(targets: &[(i64, i64)]) -> Vec<Target> {
        targets.iter().map(|&(row, token)| Target { row, token }).collect()
    }

    fn answer(reward_row: usize, rows_and_tokens: &[(i64, i64)]) -> PackedAnswer {
        PackedAnswer { reward_row, second_reward_row: None, targets: targets(rows_and_tokens) }
    }

    fn list(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn a_pair_is_prefix_chosen_rejected_with_positions_that_continue_the_prefix() {
        // Prompt [1 2], answers [3 4 5] and [3 6]: the prefix runs one token into the answers.
        let batch = PackedBatch::new([pair(&[1, 2, 3], &[4, 5], &[6], 2)], Packing::Shared, Device::Cpu);
        assert_eq!(list(&batch.tokens), [1, 2, 3, 4, 5, 6]);
        assert_eq!(list(&batch.positions), [0, 1, 2, 3, 4, 3]);
        let packed = &batch.pairs[0];
        assert_eq!(packed.response_rows, [1, 2, 3]);
        assert_eq!(packed.answers[0], answer(4, &[(0, 3), (1, 4), (2, 5)]));
        assert_eq!(packed.answers[1], answer(5, &[(0, 3), (1, 6)]));
    }

    #[test]
    fn separate_packing_holds_the_same_targets_in_whole_sequences() {
        let batch = PackedBatch::new([pair(&[1, 2, 3], &[4, 5], &[6], 2)], Packing::Separate, Device::Cpu);
        assert_eq!(list(&batch.tokens), [1, 2, 3, 4, 5, 1, 2, 3, 6]);
        assert_eq!(list(&batch.positions), [0, 1, 2, 3, 4, 0, 1, 2, 3]);
        let packed = &batch.pairs[0];
        assert_eq!(packed.response_rows, [1, 2, 3, 6, 7]);
        assert_eq!(packed.answers[0], answer(4, &[(0, 3), (1, 4), (2, 5)]));
        assert_eq!(packed.answers[1], answer(8, &[(3, 3), (4, 6)]));
    }

    #[test]
    fn answers_have_starts_ends_and_rewards_of_their_own() {
        // Sequences [1 2 3 9] and [1 4 5 9 8]: the first answer starts at 3 and the second at 4, its EOS is 9, and what
        // follows that is read for the reward but is no target.
        let span = |start, end, reward, second_reward| AnswerSpan { start, end, reward, second_reward };
        let spans = [span(2, 4, 3, None), span(1, 4, 3, Some(4))];
        let mut item = pair(&[1], &[2, 3, 9], &[4, 5, 9, 8], 1);
        item.pair.spans = spans;
        let batch = PackedBatch::new([item], Packing::Shared, Device::Cpu);
        let packed = &batch.pairs[0];
        assert_eq!(packed.response_rows, [0, 1, 2, 4, 5]);
        assert_eq!(packed.answers[0], answer(3, &[(1, 3), (2, 9)]));
        let second = PackedAnswer { second_reward_row: Some(7), ..answer(6, &[(0, 4), (3, 5), (4, 9)]) };
        assert_eq!(packed.answers[1], second);
        let read = batch.read_rows(false);
        assert_eq!(list(&read.rows), [3, 6, 7]);
        assert_eq!((read.pairs[0].answers[1].reward_row, read.pairs[0].answers[1].second_reward_row), (1, Some(2)));
    }

    #[test]
    fn rows_that_are_read_are_named_once_and_pairs_point_at_them() {
        // [1 2 | 3 | 4] in rows 0 to 3 and [1 2 3 | 4 5 | 6] in rows 4 to 9: nobody reads what rows 0 and 4 predict.
        let pairs = [pair(&[1, 2], &[3], &[4], 2), pair(&[1, 2, 3], &[4, 5], &[6], 2)];
        let batch = PackedBatch::new(pairs, Packing::Shared, Device::Cpu);
        let read = batch.read_rows(true);
        assert_eq!(list(&read.rows), [1, 2, 3, 5, 6, 7, 8, 9]);
        assert_eq!([&read.pairs[0].response_rows[..], &read.pairs[1].response_rows], [&[0][..], &[3, 4, 5]]);
        let rows = list(&read.rows);
        for (read, packed) in read.pairs.iter().zip(&batch.pairs) {
            let in_batch: Vec<i64> = read.response_rows.iter().map(|&row| rows[row as usize]).collect();
            assert_eq!(in_batch, packed.response_rows);
            for (read, packed) in read.answers.iter().zip(&packed.answers) {
                assert_eq!(rows[read.reward_row], packed.reward_row as i64);
                assert_eq!(read.targets, packed.targets);
            }
        }
        // Rewards alone are read at the answers' last tokens.
        let read = batch.read_rows(false);
        assert_eq!(list(&read.rows), [2, 3, 8, 9]);
        let reward_rows = read.pairs.iter().flat_map(|pair| pair.answers.iter().map(|answer| answer.reward_row));
        assert_eq!(reward_rows.collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(read.pairs.iter().all(|pair| pair.response_rows.is_empty()));
    }

    #[test]
    fn nothing_predicts_the_first_token_of_a_sequence_without_a_prompt() {
        let batch = PackedBatch::new([pair(&[], &[4, 5], &[6], 0)], Packing::Shared, Device::Cpu);
        assert_eq!(batch.pairs[0].answers[0].targets, targets(&[(0, 5)]));
        assert!(batch.pairs[0].answers[1].targets.is_empty());
        assert_eq!(batch.pairs[0].answers[1].reward_row, 2);
    }

    #[test]
    fn a_single_answer_is_a_group_of_one_suffix() {
        let batch = PackedBatch::new([pair(&[1, 2], &[4, 5], &[], 2)], Packing::Shared, Device::Cpu);
        assert_eq!(batch.groups, [Group { start: 0, prefix: 2, suffixes: vec![2] }]);
        assert_eq!(batch.pairs[0].answers.len(), 1);
        assert_eq!(batch.token_count(), 4);
    }
}
