//! Ranked lists: several answers to one prompt, every two of them a pair.
//!
//! Not here: rows of two responses (`judged.rs`).

use super::transcripts::prompt_of;
use super::{DropReason, Sides, Verdict};
use crate::data::Prompt;
use crate::data::row::{MEND, Row, kind};
use crate::error::Result;
use serde_json::Value;

/// Answers a list may have: 64 make 2,016 pairs. More is a damaged row, or no list of one prompt's answers.
const LONGEST_LIST: usize = 64;

impl Row<'_> {
    /// All pairs of a ranked list, the better rank (the lower number) chosen: Nectar's `answers` of `{answer, rank}`, or
    /// `responses` with their `ranks`. At most `limit` of them, spread evenly over the list of all; 0: no limit. What is
    /// not taken is a verdict too, so that it is counted.
    pub(super) fn ranked(&self, limit: usize) -> Result<Vec<Verdict<Sides>>> {
        let prompt = match self.prompt()?.ok_or_else(|| self.missing("prompt", "a string or a message list"))? {
            Prompt::Text(text) => prompt_of(text),
            messages => messages,
        };
        let answers = self.answers_and_ranks()?;
        if answers.len() < 2 {
            return Ok(vec![Err(DropReason::FewerThanTwoAnswers)]);
        }
        if matches!(&prompt, Prompt::Messages(messages) if messages.is_empty()) {
            return Ok(vec![Err(DropReason::EmptyPrompt)]);
        }
        let mut pairs = Vec::new();
        let mut ties = 0;
        for (index, one) in answers.iter().enumerate() {
            for other in &answers[index + 1..] {
                match one.1.total_cmp(&other.1) {
                    std::cmp::Ordering::Less => pairs.push((&one.0, &other.0)),
                    std::cmp::Ordering::Greater => pairs.push((&other.0, &one.0)),
                    std::cmp::Ordering::Equal => ties += 1,
                }
            }
        }
        let taken = if limit == 0 { pairs.len() } else { limit.min(pairs.len()) };
        let left = pairs.len() - taken;
        let pair = |number: usize| {
            let (chosen, rejected) = pairs[number * pairs.len() / taken];
            Ok(Sides::new(prompt.clone(), chosen.clone(), rejected.clone()))
        };
        let mut verdicts: Vec<Verdict<Sides>> = (0..taken).map(pair).collect();
        verdicts.extend((0..left).map(|_| Err(DropReason::OverPairsPerPrompt)));
        verdicts.extend((0..ties).map(|_| Err(DropReason::Tie)));
        Ok(verdicts)
    }

    /// The answers with their ranks, in the row's order.
    fn answers_and_ranks(&self) -> Result<Vec<(String, f64)>> {
        let in_answers = self.get("answers").is_some();
        let key = if in_answers { "answers" } else { "responses" };
        let list = self.list(key)?;
        if list.len() > LONGEST_LIST {
            let message = format!("`{key}` has {} entries, expected at most {LONGEST_LIST}", list.len());
            return Err(self.error(message).hint("a row holds the answers to one prompt; cut the list"));
        }
        let entry = |number: usize, name: &str, value: Option<&Value>, expected: &str| {
            self.error(format!(
                "entry {number} of `{key}`: `{name}` is {}, expected {expected}",
                value.map_or("missing", kind)
            ))
            .hint("an entry of `answers` is {\"answer\": \"...\", \"rank\": 1}; of `responses` a string, with its rank in `ranks`")
        };
        let ranks = match in_answers {
            true => list.iter().map(|answer| answer.get("rank")).collect::<Vec<_>>(),
            false => self.list("ranks")?.iter().map(Some).collect(),
        };
        if ranks.len() != list.len() {
            let message = format!("`responses` has {} entries and `ranks` {}", list.len(), ranks.len());
            return Err(self.error(message).hint(MEND));
        }
        let pair = |(index, (value, rank)): (usize, (&Value, Option<&Value>))| {
            let answer = if in_answers { value.get("answer") } else { Some(value) };
            let text = answer.and_then(Value::as_str).ok_or_else(|| entry(index + 1, "answer", answer, "a string"))?;
            let rank = rank
                .and_then(Value::as_f64)
                .filter(|rank| rank.is_finite())
                .ok_or_else(|| entry(index + 1, "rank", rank, "a number"))?;
            Ok((text.to_owned(), rank))
        };
        list.iter().zip(ranks).enumerate().map(pair).collect()
    }
}
