//! Conversations written as one text: hh-rlhf's transcripts and HelpSteer2's prompts of several turns.
//!
//! Not here: message lists (`conversations.rs`).

use super::{DropReason, Sides, Verdict};
use crate::data::row::Row;
use crate::data::{Message, Prompt};
use crate::error::Result;

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

impl Row<'_> {
    /// hh-rlhf: two transcripts of one conversation with different last answers.
    pub(super) fn transcripts(&self) -> Result<Verdict<Sides>> {
        let (chosen, rejected) = (self.transcript("chosen")?, self.transcript("rejected")?);
        Ok(chosen.and_then(|(prompt, chosen)| {
            let (other, rejected) = rejected?;
            match (prompt == other, prompt.is_empty()) {
                (false, _) => Err(DropReason::DifferentPrompts),
                (true, true) => Err(DropReason::EmptyPrompt),
                (true, false) => Ok(Sides::new(Prompt::Messages(prompt), chosen, rejected)),
            }
        }))
    }

    /// Splits a transcript at its last assistant's turn. A marker inside a text cannot be told from a turn; where it
    /// makes the two prompts differ, or a human's turn the last one, the pair is dropped rather than misread.
    fn transcript(&self, key: &str) -> Result<Verdict<(Vec<Message>, String)>> {
        let mut text = self.text(key)?;
        if text.starts_with(HUMAN.trim_start()) {
            text.insert_str(0, "\n\n");
        }
        let (before, answer) = match text.rsplit_once(ASSISTANT) {
            Some(parts) if is_transcript(&text) => parts,
            _ => {
                return Err(self
                    .error(format!("`{key}` is no transcript: expected \"\\n\\nHuman: ...\\n\\nAssistant: ...\""))
                    .hint("rows with a prompt of their own are format = \"pairs\""));
            }
        };
        if answer.contains(HUMAN) {
            return Ok(Err(DropReason::LastTurnNotAssistant));
        }
        Ok(Ok((turns(before), without_space(answer).to_owned())))
    }
}

/// Whether a text starts like a transcript.
pub(super) fn is_transcript(text: &str) -> bool {
    let text = text.trim_start();
    text.starts_with(HUMAN.trim_start()) || text.starts_with(ASSISTANT.trim_start())
}

/// Cuts what comes before the last answer into its turns, texts kept as they are but for the space after the marker.
fn turns(transcript: &str) -> Vec<Message> {
    let next = |text: &str| match (text.find(HUMAN), text.find(ASSISTANT)) {
        (Some(human), assistant) if assistant.is_none_or(|assistant| human < assistant) => Some((human, HUMAN, "user")),
        (_, Some(assistant)) => Some((assistant, ASSISTANT, "assistant")),
        _ => None,
    };
    let mut messages = Vec::new();
    let mut rest = transcript;
    while let Some((start, marker, role)) = next(rest) {
        rest = &rest[start + marker.len()..];
        let end = next(rest).map_or(rest.len(), |(end, ..)| end);
        messages.push(Message::new(role, without_space(&rest[..end])));
    }
    messages
}

/// The one space after a speaker's colon belongs to the template, which puts it back.
fn without_space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

/// A prompt as one text: Nectar's ends where the assistant's turn starts, HelpSteer2's has a marker before every turn
/// but the first. A text that is neither is one user's message.
pub(super) fn prompt_of(text: String) -> Prompt {
    if let Some((before, "")) = text.rsplit_once(ASSISTANT).map(|(before, rest)| (before, rest.trim()))
        && is_transcript(&text)
    {
        let before = if before.starts_with(HUMAN.trim_start()) { format!("\n\n{before}") } else { before.to_owned() };
        return Prompt::Messages(turns(&before));
    }
    match marked_turns(&text) {
        Some(messages) => Prompt::Messages(messages),
        None => Prompt::Text(text),
    }
}

/// `{user}\n<extra_id_1>Assistant\n{assistant}\n<extra_id_1>User\n{user}`, as HelpSteer2's data card has it.
fn marked_turns(text: &str) -> Option<Vec<Message>> {
    const MARKER: &str = "\n<extra_id_1>";
    let mut turns = text.split(MARKER);
    let mut messages = vec![Message::new("user", turns.next()?)];
    for turn in turns {
        let (role, content) = match turn.split_once('\n')? {
            ("Assistant", content) => ("assistant", content),
            ("User", content) => ("user", content),
            _ => return None,
        };
        messages.push(Message::new(role, content));
    }
    (messages.len() > 1 && messages.last().is_some_and(|last| last.role == "user")).then_some(messages)
}
