//! Conversations with speakers' names in one text: hh-rlhf's transcripts, prompts that end where the assistant's turn
//! starts (Nectar, rm-static), HelpSteer2's prompts of several turns.
//!
//! Not here: message lists (`turns.rs`).

use super::{DropReason, Verdict};
use crate::data::{Message, Prompt};
use crate::error::{Error, Result};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Splits a transcript at its last assistant's turn: the turns before, and the answer. A marker inside a text cannot be
/// distinguished from a turn; if it makes the two prompts differ, or a human's turn the last one, the pair is dropped rather
/// than misread.
///
/// # Errors
/// A text that does not start with a speaker; the error calls it `name`.
pub(super) fn transcript(name: &str, text: &str) -> Result<Verdict<(Vec<Message>, String)>> {
    if !is_transcript(text) {
        return Err(Error::input(format!(
            "{name} is not a transcript: expected \"\\n\\nHuman: ...\\n\\nAssistant: ...\""
        ))
        .hint("rows with a separate prompt are format = \"pairs\""));
    }
    let text = whole(text);
    Ok(match text.rsplit_once(ASSISTANT) {
        Some((before, answer)) if !answer.contains(HUMAN) => Ok((turns(before), without_space(answer).to_owned())),
        _ => Err(DropReason::LastTurnNotAssistant),
    })
}

/// Whether a text starts like a transcript.
pub(super) fn is_transcript(text: &str) -> bool {
    let text = text.trim_start();
    text.starts_with(HUMAN.trim_start()) || text.starts_with(ASSISTANT.trim_start())
}

/// Whether a text is a transcript that stops where the assistant's turn starts.
pub(super) fn is_open_transcript(text: &str) -> bool {
    is_transcript(text) && text.trim_end().ends_with(ASSISTANT)
}

/// A prompt as one text: a transcript that the answer continues, or HelpSteer2's, which has a marker before every turn but
/// the first. A text that is neither is one user's message.
pub(super) fn prompt_of(text: &str) -> Prompt {
    if is_open_transcript(text) {
        let text = whole(text);
        let before = text.trim_end().strip_suffix(ASSISTANT).unwrap_or(&text);
        return Prompt::Messages(turns(before));
    }
    match marked_turns(text) {
        Some(messages) => Prompt::Messages(messages),
        None => Prompt::Text(text.to_owned()),
    }
}

/// An answer without its prompt, a transcript that it continues, if it repeats that. `None` for a transcript of another
/// conversation.
pub(super) fn continued<'a>(prompt: &str, answer: &'a str) -> Option<&'a str> {
    match answer.trim_start().strip_prefix(prompt.trim()) {
        Some(rest) => Some(without_space(rest)),
        None if answer.starts_with(HUMAN) && answer.contains(ASSISTANT) => None,
        None if prompt.ends_with(':') => Some(without_space(answer)),
        None => Some(answer),
    }
}

/// The one space after a speaker's colon belongs to the template, which puts it back.
fn without_space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}

/// A transcript with the line breaks before its first speaker.
fn whole(text: &str) -> String {
    let starts = [HUMAN, ASSISTANT].iter().any(|marker| text.starts_with(marker.trim_start()));
    if starts { format!("\n\n{text}") } else { text.to_owned() }
}

/// Splits the text before the last answer into its turns; texts are kept, except for the space after the marker.
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
