//! Answers as strings or as message lists, and whole conversations side by side.
//!
//! Not here: conversations written as one text (`transcripts.rs`).

use super::{DropReason, Sides, Verdict};
use crate::data::row::{Answer, MEND, Row};
use crate::data::{Message, Prompt};
use crate::error::Result;

impl Row<'_> {
    /// `prompt, chosen, rejected`, or `chosen, rejected` as conversations with a common start.
    pub(super) fn prompt_and_answers(&self) -> Result<Verdict<Sides>> {
        let (chosen, rejected) = (self.answer("chosen")?, self.answer("rejected")?);
        match (self.prompt()?, chosen, rejected) {
            (Some(Prompt::Messages(messages)), ..) if messages.is_empty() => Ok(Err(DropReason::EmptyPrompt)),
            (Some(prompt), chosen, rejected) => {
                let chosen = self.answer_to(&prompt, "chosen", chosen)?;
                let rejected = self.answer_to(&prompt, "rejected", rejected)?;
                Ok(Ok(Sides::new(prompt, chosen, rejected)))
            }
            (None, Answer::Messages(chosen), Answer::Messages(rejected)) => self.common_start(chosen, rejected),
            (None, ..) => Err(self.missing("prompt", "a string or a message list").hint(
                "without a prompt, `chosen` and `rejected` are message lists with a common start, \
                 or transcripts that start with \"\\n\\nHuman:\" (format = \"hh\")",
            )),
        }
    }

    fn common_start(&self, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<Verdict<Sides>> {
        let (before_chosen, chosen) = self.last_turn("chosen", chosen)?;
        let (before_rejected, rejected) = self.last_turn("rejected", rejected)?;
        if before_chosen == before_rejected {
            return match before_chosen.is_empty() {
                true => Ok(Err(DropReason::EmptyPrompt)),
                false => Ok(Ok(Sides::new(Prompt::Messages(before_chosen), chosen, rejected))),
            };
        }
        let common = before_chosen.iter().zip(&before_rejected).take_while(|(one, other)| one == other).count();
        if common == 0 && !before_chosen.is_empty() && !before_rejected.is_empty() {
            return Ok(Err(DropReason::DifferentPrompts));
        }
        let lengths = [before_chosen.len() - common + 1, before_rejected.len() - common + 1];
        Err(self
            .error(format!(
                "after their {common} common messages `chosen` goes on for {} and `rejected` for {}, expected one \
                 assistant's message each",
                lengths[0], lengths[1]
            ))
            .hint("give the prompt in a key `prompt`, or keep only the last answers apart"))
    }

    /// Chatbot Arena: two conversations that start alike, and which of their last answers won. After the first turn they
    /// mostly part, since each model goes on from its own answer: those have no common prompt.
    pub(super) fn arena(&self) -> Result<Verdict<Sides>> {
        const WINNERS: &str = "\"model_a\", \"model_b\", \"tie\" or \"tie (bothbad)\"";
        let [(before_a, a), (before_b, b)] =
            [self.conversation("conversation_a")?, self.conversation("conversation_b")?];
        let (chosen, rejected) = match &self.text("winner")?[..] {
            "model_a" => (a, b),
            "model_b" => (b, a),
            "tie" | "tie (bothbad)" | "both_bad" => return Ok(Err(DropReason::Tie)),
            other => return Err(self.error(format!("`winner` is {other:?}, expected {WINNERS}")).hint(MEND)),
        };
        Ok(match (before_a == before_b, before_a.is_empty()) {
            (false, _) => Err(DropReason::DifferentPrompts),
            (true, true) => Err(DropReason::EmptyPrompt),
            (true, false) => Ok(Sides::new(Prompt::Messages(before_a), chosen, rejected)),
        })
    }

    pub(super) fn conversation(&self, key: &str) -> Result<(Vec<Message>, String)> {
        self.last_turn(key, self.message_list(key)?)
    }

    /// The answer's text. A message list holds the answer alone, or the conversation from the prompt on.
    pub(super) fn answer_to(&self, prompt: &Prompt, key: &str, answer: Answer) -> Result<String> {
        let messages = match answer {
            Answer::Text(text) => return Ok(text),
            Answer::Messages(messages) => messages,
        };
        let (before, text) = self.last_turn(key, messages)?;
        let fits = match prompt {
            Prompt::Messages(messages) => &before == messages,
            Prompt::Text(text) => matches!(&before[..], [turn] if turn.role == "user" && turn.text() == text),
        };
        match before.is_empty() || fits {
            true => Ok(text),
            false => Err(self
                .error(format!("`{key}` has {} messages before its last one that are not the prompt", before.len()))
                .hint("expected the assistant's message alone, or the whole conversation starting with `prompt`")),
        }
    }

    fn last_turn(&self, key: &str, mut messages: Vec<Message>) -> Result<(Vec<Message>, String)> {
        match messages.pop() {
            Some(last) if last.role == "assistant" => Ok((messages, last.content.unwrap_or_default())),
            Some(last) => Err(self
                .error(format!("the last message of `{key}` is the {}'s, expected the assistant's", last.role))
                .hint("the last message is what is rewarded")),
            None => Err(self
                .error(format!("`{key}` is an empty message list, expected the assistant's message"))
                .hint(MEND)),
        }
    }
}
