//! Reads a row by its layout: the prompt, the answers, and the pairs they make.
//!
//! Not here: layouts (`layouts.rs`), which answer is better (`preference.rs`), the turns in a value (`turns.rs`), the keys
//! beside a pair (`beside.rs`).

use super::layout::{Layout, Written};
use super::preference::Choice;
use super::transcripts::{continued, is_open_transcript, prompt_of, transcript};
use super::turns::Content;
use super::{DropReason, Verdict, beside};
use crate::config::Ties;
use crate::data::row::{Found, MEND, Row};
use crate::data::rows;
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::{Error, Result};
use serde_json::Value;

/// Most answers in a list: 64 make 2,016 pairs. With more, the row is damaged or has answers to several prompts.
pub(super) const LONGEST_LIST: usize = 64;

/// One pair of a row.
pub(super) struct Sides {
    pub(super) prompt: Prompt,
    pub(super) inputs: TemplateInputs,
    pub(super) chosen: Message,
    pub(super) rejected: Message,
    /// How much better the chosen answer is, if the layout says so.
    pub(super) margin: Option<f64>,
    /// Neither answer is better.
    pub(super) tied: bool,
}

/// An answer and, if the row has it as a conversation, the turns before it.
struct Answer {
    before: Option<Vec<Message>>,
    message: Message,
    name: String,
}

/// The prompt as the row has it.
enum Asked {
    Nothing,
    Whole(Prompt),
    /// One speaker's turns; the other's are in the answers.
    Turns(Vec<String>),
}

impl Row<'_> {
    /// The pairs of a row: one, or those of a list, at most `limit` of them, spread evenly over all; 0: no limit. Ties are
    /// included if `ties` says so. A pair that is left out is returned as its reason, so that it is counted.
    ///
    /// # Errors
    /// A row that does not match the layout.
    pub(super) fn pairs(&self, layout: &Layout, limit: usize, ties: Ties) -> Result<Vec<Verdict<Sides>>> {
        let asked = self.asked(layout)?;
        let groups = match self.answers(layout, &asked)? {
            Ok(groups) => groups,
            Err(reason) => return Ok(vec![Err(reason)]),
        };
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let answers: Vec<Answer> = groups.into_iter().flatten().collect();
        let mut choices = self.choices(layout, &sizes)?;
        if ties == Ties::Drop {
            let drop = |choice: Choice| if choice.tied { Err(DropReason::Tie) } else { Ok(choice) };
            choices.iter_mut().for_each(|choice| *choice = choice.clone().and_then(drop));
        }
        let beside = self.beside()?;
        if let Some(key) = beside.with_another_answer(answers.iter().map(|answer| &answer.message)) {
            self.leave(key);
        }
        let total = choices.iter().filter(|choice| choice.is_ok()).count();
        let taken = if limit == 0 { total } else { limit.min(total) };
        let mut number = 0;
        choices
            .into_iter()
            .map(|choice| {
                let Choice { chosen, rejected, margin, tied } = match choice {
                    Ok(choice) => choice,
                    Err(reason) => return Ok(Err(reason)),
                };
                let here = number;
                number += 1;
                // The numbers k * total / taken, rounded down, are taken.
                if (here * taken).div_ceil(total) * total / taken != here {
                    return Ok(Err(DropReason::OverPairsPerPrompt));
                }
                let (chosen, rejected) = (&answers[chosen], &answers[rejected]);
                let prompt = match self.common_prompt(layout, &asked, &beside, chosen, rejected)? {
                    Ok(prompt) => prompt,
                    Err(reason) => return Ok(Err(reason)),
                };
                let (chosen, rejected) = (chosen.message.clone(), rejected.message.clone());
                Ok(Ok(Sides { prompt, inputs: beside.inputs.clone(), chosen, rejected, margin, tied }))
            })
            .collect()
    }

    /// The single answer of a row that is only scored, as both sides of a pair.
    ///
    /// # Errors
    /// As [`Row::pairs`].
    pub(super) fn alone(&self, layout: &Layout) -> Result<Verdict<Sides>> {
        let asked = self.asked(layout)?;
        let answers = match self.answers(layout, &asked)? {
            Ok(groups) => groups,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(answer) = answers.first().and_then(|group| group.first()) else {
            return Ok(Err(DropReason::EmptyAnswer));
        };
        let beside = self.beside()?;
        if let Some(key) = beside.with_another_answer(std::iter::once(&answer.message)) {
            self.leave(key);
        }
        let prompt = self.common_prompt(layout, &asked, &beside, answer, answer)?;
        let message = answer.message.clone();
        let sides = |prompt| Sides {
            prompt,
            inputs: beside.inputs,
            chosen: message.clone(),
            rejected: message,
            margin: None,
            tied: false,
        };
        Ok(prompt.map(sides))
    }

    fn asked(&self, layout: &Layout) -> Result<Asked> {
        let Some(found) = self.get(layout.prompt) else { return Ok(Asked::Nothing) };
        if layout.prompt_as == Written::JsonList {
            return Ok(Asked::Turns(json_list(&found)?));
        }
        Ok(Asked::Whole(match self.content(&found)? {
            Content::Text(text) if layout.prompt_as == Written::Transcript => prompt_of(&text),
            Content::Text(text) => Prompt::Text(text),
            Content::Turns(turns) => Prompt::Messages(turns),
        }))
    }

    /// The answers at each of the layout's paths.
    fn answers(&self, layout: &Layout, asked: &Asked) -> Result<Verdict<Vec<Vec<Answer>>>> {
        let prompt = self.get(layout.prompt).filter(|_| layout.prompt_as == Written::Transcript);
        let prompt = prompt.and_then(|found| found.values.first().and_then(|value| value.as_str()));
        let open = prompt.filter(|prompt| is_open_transcript(prompt));
        let list = |paths| self.all(paths)?.ok_or_else(|| self.lacking(paths));
        let lists: Vec<_> = layout.answers.iter().copied().map(list).collect::<Result<_>>()?;
        // Before any is read: a list may be as long as a row is large.
        let count = lists.iter().map(|list| list.len()).sum();
        if count > LONGEST_LIST {
            return Err(too_many(count));
        }
        let mut groups = Vec::with_capacity(lists.len());
        for found in lists {
            let mut group = Vec::with_capacity(found.len());
            for found in found {
                match self.answer(layout, asked, &found)? {
                    Ok(mut answer) => {
                        if let (Some(prompt), Some(text)) = (open, &mut answer.message.content) {
                            match continued(prompt, text).map(str::to_owned) {
                                Some(rest) => *text = rest,
                                None => return Ok(Err(DropReason::DifferentPrompts)),
                            }
                        }
                        group.push(answer);
                    }
                    Err(reason) => return Ok(Err(reason)),
                }
            }
            groups.push(group);
        }
        Ok(Ok(groups))
    }

    fn answer(&self, layout: &Layout, asked: &Asked, found: &Found) -> Result<Verdict<Answer>> {
        let answer = |before, message| Ok(Answer { before, message, name: found.name.clone() });
        if let (Written::JsonList, Asked::Turns(questions)) = (layout.answers_as, asked) {
            let mut texts = json_list(found)?;
            let (count, last) = (texts.len(), texts.pop().unwrap_or_default());
            if count != questions.len() || count == 0 {
                return Err(Error::input(format!(
                    "{} has {count} turns, but the prompt has {}",
                    found.name,
                    questions.len()
                ))
                .hint("expected an answer to each of the prompt's turns"));
            }
            let rounds = questions.iter().zip(texts.into_iter().map(Some).chain([None]));
            let before = rounds
                .flat_map(|(question, text)| [Some(Message::new("user", question)), text.map(Message::answer)])
                .flatten()
                .collect();
            return Ok(answer(Some(before), Message::answer(last)));
        }
        match (self.content(found)?, layout.answers_as) {
            (Content::Text(text), Written::Transcript) => {
                Ok(transcript(&found.name, &text)?
                    .and_then(|(before, text)| answer(Some(before), Message::answer(text))))
            }
            (Content::Text(text), _) => Ok(answer(None, Message::answer(text))),
            (Content::Turns(mut turns), _) => match turns.pop() {
                Some(last) if last.role == "assistant" => Ok(answer(Some(turns), last)),
                Some(last) => {
                    let message =
                        format!("the last message of {} is the {}'s, expected the assistant's", found.name, last.role);
                    Err(Error::input(message).hint("the last message is the one that is rewarded"))
                }
                None => Err(Error::input(format!(
                    "{} is an empty message list, expected the assistant's message",
                    found.name
                ))
                .hint(MEND)),
            },
        }
    }

    /// The prompt of two answers, completed by the keys beside it.
    fn common_prompt(
        &self,
        layout: &Layout,
        asked: &Asked,
        beside: &beside::Beside,
        chosen: &Answer,
        rejected: &Answer,
    ) -> Result<Verdict<Prompt>> {
        let [one, other] = [chosen, rejected].map(|answer| answer.before.as_deref().filter(|turns| !turns.is_empty()));
        let alike = one.is_some() && other.is_some();
        if alike && one != other {
            return Ok(Err(DropReason::DifferentPrompts));
        }
        let prompt = match (asked, one.or(other)) {
            (Asked::Whole(prompt), None) => prompt.clone(),
            (Asked::Whole(prompt), Some(before)) if beside::turns_of(prompt) == before => prompt.clone(),
            (Asked::Whole(prompt), Some(before)) if alike && starts(before, prompt) => {
                Prompt::Messages(before.to_vec())
            }
            // The conversation once more, with one of the answers at its end (Capybara).
            (Asked::Whole(prompt), Some(before)) if ends_with_one_of(prompt, before, [chosen, rejected]) => {
                Prompt::Messages(before.to_vec())
            }
            (Asked::Whole(_), Some(_)) => {
                let name = if one.is_some() { &chosen.name } else { &rejected.name };
                return Err(Error::input(format!("{name} has messages before its last one that are not the prompt"))
                    .hint("expected the assistant's message alone, or the whole conversation with the prompt in it"));
            }
            // An answer alone follows the user's last turn; after the assistant's calls it would answer another prompt.
            (_, Some(before)) if alike || before.last().is_some_and(|last| last.role == "user") => {
                Prompt::Messages(before.to_vec())
            }
            (_, Some(_)) => return Ok(Err(DropReason::DifferentPrompts)),
            (_, None) => match beside.prompt(&chosen.message)? {
                Some(prompt) => prompt,
                None if chosen.before.is_some() || layout.prompt.is_empty() => return Ok(Err(DropReason::EmptyPrompt)),
                None => {
                    return Err(self.lacking(layout.prompt));
                }
            },
        };
        match &prompt {
            Prompt::Messages(turns) if turns.is_empty() => Ok(Err(DropReason::EmptyPrompt)),
            _ => beside.complete(prompt).map(Ok),
        }
    }
}

/// The error for a row with more than [`LONGEST_LIST`] answers.
pub(super) fn too_many(answers: usize) -> Error {
    Error::input(format!("the row has {answers} answers, expected at most {LONGEST_LIST}"))
        .hint("a row holds the answers to one prompt; cut the list")
}

/// Whether a prompt is these turns followed by one of the answers.
fn ends_with_one_of(prompt: &Prompt, before: &[Message], answers: [&Answer; 2]) -> bool {
    match beside::turns_of(prompt).split_last() {
        Some((last, rest)) => rest == before && answers.iter().any(|answer| answer.message == *last),
        None => false,
    }
}

/// Whether a conversation starts with a prompt, or has its text as a user's turn.
fn starts(before: &[Message], prompt: &Prompt) -> bool {
    match prompt {
        Prompt::Messages(turns) => before.starts_with(turns),
        Prompt::Text(text) => before.iter().any(|turn| turn.role == "user" && turn.text().trim() == text.trim()),
    }
}

/// Texts in a list, or in a JSON text of one; null is an empty turn.
fn json_list(found: &Found) -> Result<Vec<String>> {
    const EXPECTED: &str = "a list of texts, or a JSON text of one";
    let value = found.value(EXPECTED)?;
    let parsed = match value {
        Value::String(text) => rows::of_text(text).map_err(|error| {
            Error::input(format!("{} is a text that is not JSON ({error}), expected {EXPECTED}", found.name)).hint(MEND)
        })?,
        value => value.clone(),
    };
    let text = |value: &Value| match value {
        Value::Null => Some(String::new()),
        value => value.as_str().map(str::to_owned),
    };
    let texts = parsed.as_array().and_then(|list| list.iter().map(text).collect());
    texts.ok_or_else(|| found.wrong(value, EXPECTED))
}
