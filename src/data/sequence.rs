//! One tokenized conversation: where its answer ends and is rewarded, how it is cut, and two of them as a pair.
//!
//! Not here: texts and tokenizer (`tokenize/`).

use crate::data::{AnswerSpan, TokenPair};
use std::ops::Range;

/// Tokens of a prompt with one answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) span: AnswerSpan,
}

impl Sequence {
    /// The whole rendering, rewarded at its last token that is not `skipped`. The answer ends where the rendering up to its
    /// EOS ends.
    pub(crate) fn rewarded_at_end(to_eos: &[u32], whole: Vec<u32>, skipped: Option<u32>) -> Self {
        let reward = whole.iter().rposition(|token| Some(*token) != skipped).unwrap_or(0);
        let span = AnswerSpan { start: 0, end: common(to_eos, &whole), reward, second_reward: None };
        Self { tokens: whole, span }
    }

    /// Rewarded at the EOS and at the end of the rendering, which is one token before the EOS if the template writes none.
    /// `None` if neither token sequence continues the other.
    pub(crate) fn rewarded_twice(to_eos: Vec<u32>, whole: Vec<u32>) -> Option<Self> {
        let (end, last) = (to_eos.len(), whole.len().checked_sub(1)?);
        let reward = end - 1;
        let tokens = match (whole.starts_with(&to_eos), to_eos.starts_with(&whole)) {
            (true, _) => whole,
            (_, true) => to_eos,
            _ => return None,
        };
        let second_reward = Some(last).filter(|last| *last != reward);
        Some(Self { tokens, span: AnswerSpan { start: 0, end, reward, second_reward } })
    }

    /// Removes the tokens `of_prompt`, then all beyond `max_length`. A reward position beyond the new end moves to it.
    pub(crate) fn cut(&mut self, of_prompt: Range<usize>, max_length: usize) {
        let moved = of_prompt.len();
        self.tokens.drain(of_prompt);
        self.tokens.truncate(max_length);
        let last = self.tokens.len().saturating_sub(1);
        let AnswerSpan { start, end, reward, second_reward } = self.span;
        let place = |position: usize| position.saturating_sub(moved);
        let reward = place(reward).min(last);
        self.span = AnswerSpan {
            start: place(start).min(self.tokens.len()),
            end: place(end).min(self.tokens.len()),
            reward,
            second_reward: second_reward.map(|position| place(position).min(last)).filter(|second| *second != reward),
        };
    }
}

/// A pair's tokens, and how they were cut. See [`TokenPair`] for the layout.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedPair {
    /// Prefix, chosen suffix and rejected suffix, one after the other.
    pub tokens: Vec<u32>,
    /// Length of the common prefix, in tokens.
    pub prefix: usize,
    /// Length of the chosen suffix, in tokens.
    pub chosen: usize,
    /// Length of the rejected suffix, in tokens; 0 for a single row.
    pub rejected: usize,
    /// The positions of the answers, after cutting; the default for a single row's second answer.
    pub spans: [AnswerSpan; 2],
    /// Hash of the rendered prompt, before cutting.
    pub prompt_hash: u64,
    /// The start of the prompt was cut.
    pub prompt_cut: bool,
    /// The end of a sequence was cut, and with it the EOS or the position of the reward.
    pub answer_cut: bool,
    /// Special tokens that the pair's own texts hold, before cutting.
    pub special_in_text: usize,
}

impl OwnedPair {
    /// Borrows it in the form that batches need.
    pub fn as_token_pair(&self, margin: f32, domain: usize) -> TokenPair<'_> {
        let (prefix, rest) = self.tokens.split_at(self.prefix);
        let (chosen, rejected) = rest.split_at(self.chosen);
        let (spans, prompt_hash) = (self.spans, self.prompt_hash);
        TokenPair { prefix, chosen, rejected, spans, margin, tied: false, domain, prompt_hash }
    }
}

/// Two sequences as one pair, or one as a single row. The common prefix is stored once.
pub(super) fn joined(chosen: Sequence, rejected: Option<Sequence>) -> OwnedPair {
    let spans = [chosen.span, rejected.as_ref().map(|rejected| rejected.span).unwrap_or_default()];
    let (chosen, rejected) = (chosen.tokens, rejected.map(|rejected| rejected.tokens));
    // Each suffix keeps at least one token, so that each sequence's last token is its own. A single row is split where its
    // answer starts.
    let prefix = match &rejected {
        Some(rejected) => common(&chosen, rejected).min(rejected.len().saturating_sub(1)),
        None => spans[0].start,
    };
    let prefix = prefix.min(chosen.len().saturating_sub(1));
    let rejected = rejected.map_or(Vec::new(), |rejected| rejected[prefix..].to_vec());
    OwnedPair {
        prefix,
        chosen: chosen.len() - prefix,
        rejected: rejected.len(),
        tokens: [chosen, rejected].concat(),
        spans,
        prompt_hash: 0,
        prompt_cut: false,
        answer_cut: false,
        special_in_text: 0,
    }
}

/// How many tokens two sequences have in common at their start.
pub(super) fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: usize, end: usize, reward: usize, second_reward: Option<usize>) -> AnswerSpan {
        AnswerSpan { start, end, reward, second_reward }
    }

    #[test]
    fn the_reward_at_the_end_skips_padding_and_the_answer_still_ends_with_its_eos() {
        // 9 is the EOS, 5 a line break.
        let sequence = Sequence::rewarded_at_end(&[1, 2, 9], vec![1, 2, 9, 5], None);
        assert_eq!((sequence.tokens.len(), sequence.span), (4, span(0, 3, 3, None)));
        // Where the EOS pads, as in many folders, Transformers reads the token before it.
        assert_eq!(Sequence::rewarded_at_end(&[1, 2, 9], vec![1, 2, 9], Some(9)).span, span(0, 3, 1, None));
    }

    #[test]
    fn two_rewards_are_one_where_both_places_are() {
        assert_eq!(Sequence::rewarded_twice(vec![1, 9], vec![1, 9, 5]).unwrap().span, span(0, 2, 1, Some(2)));
        assert_eq!(Sequence::rewarded_twice(vec![1, 9], vec![1, 9]).unwrap().span, span(0, 2, 1, None));
        // A template that writes no EOS: it is added, and the rendering ends before it.
        let added = Sequence::rewarded_twice(vec![1, 2, 9], vec![1, 2]).unwrap();
        assert_eq!((added.tokens.len(), added.span), (3, span(0, 3, 2, Some(1))));
        assert_eq!(Sequence::rewarded_twice(vec![1, 2, 9], vec![1, 3, 9]), None);
    }

    #[test]
    fn a_cut_moves_every_position_and_rewards_the_new_end() {
        let whole = Sequence { tokens: vec![0, 1, 2, 3, 4, 9, 5], span: span(3, 6, 5, Some(6)) };
        let cut = |of_prompt, max_length| {
            let mut sequence = whole.clone();
            sequence.cut(of_prompt, max_length);
            (sequence.tokens, sequence.span)
        };
        assert_eq!(cut(1..3, 9), (vec![0, 3, 4, 9, 5], span(1, 4, 3, Some(4))));
        assert_eq!(cut(0..0, 6), (vec![0, 1, 2, 3, 4, 9], span(3, 6, 5, None)));
        assert_eq!(cut(1..2, 4), (vec![0, 2, 3, 4], span(2, 4, 3, None)));
    }
}
