//! A source's rows become [`Pair`]s: one function a shape of row, told apart by its keys or named in the config.
//!
//! Not here: files (`rows.rs`), typed keys (`row.rs`), and how a pair becomes text (`template.rs`) and tokens (`tokenize.rs`).
//! A new shape is one arm in `Shape::of` and `Row::pair`, and one function.

use crate::config::{Format, Source};
use crate::data::row::{Answer, MEND, Row};
use crate::data::rows;
use crate::data::{Message, Pair, Prompt};
use crate::error::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What a source held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceRows {
    /// The pairs taken, in the file's order; each has a domain.
    pub pairs: Vec<Pair>,
    /// Rows read, taken or not.
    pub read: usize,
    /// Rows not taken, and why.
    pub dropped: BTreeMap<DropReason, usize>,
}

/// Why a pair is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Both answers are the same text, or the same tokens after truncation.
    IdenticalAnswers,
    /// An answer is white space only.
    EmptyAnswer,
    /// There is nothing before the answer that could predict its first token.
    EmptyPrompt,
    /// The two transcripts or conversations answer different prompts.
    DifferentPrompts,
    /// A transcript ends with the human's turn.
    LastTurnNotAssistant,
    /// Both answers are safe, or neither.
    NotExactlyOneSafe,
    /// The safer answer is the one flagged unsafe.
    ContradictorySafety,
    /// Over `max_length` tokens, with `truncation = "drop"`.
    TooLong,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::IdenticalAnswers => "identical answers",
            Self::EmptyAnswer => "empty answer",
            Self::EmptyPrompt => "empty prompt",
            Self::DifferentPrompts => "different prompts",
            Self::LastTurnNotAssistant => "last turn not the assistant's",
            Self::NotExactlyOneSafe => "not exactly one answer safe",
            Self::ContradictorySafety => "safety labels contradict each other",
            Self::TooLong => "too long",
        })
    }
}

/// Reads all pairs of a source.
///
/// With [`Format::Auto`] the first row's keys decide for the whole file. `null` counts as an absent key.
///
/// # Errors
/// A missing, empty or damaged file, broken JSON, a row without an answer or with a value of the wrong type: each
/// names the file and the line (or the array's element).
pub fn read(source: &Source) -> Result<SourceRows> {
    let mut taken = SourceRows::default();
    let mut shape = Shape::named(source.format);
    let domain = source.domain.clone().unwrap_or_else(|| stem(&source.path));
    rows::for_each(&source.path, |place, row| {
        let row = Row::new(place, row)?;
        let shape = match shape {
            Some(shape) => shape,
            None => *shape.insert(Shape::of(&row)?),
        };
        taken.read += 1;
        match row.pair(shape)?.and_then(usable) {
            Ok(mut pair) => {
                pair.domain.get_or_insert_with(|| domain.clone());
                taken.pairs.push(pair);
            }
            Err(reason) => *taken.dropped.entry(reason).or_default() += 1,
        }
        Ok(())
    })?;
    Ok(taken)
}

/// Reads all rows of a file that is only scored: pairs of any shape, or `prompt` with one `answer`
/// (or `response`, or `completion`). No row is left out, so that scores and rows can be laid side by side.
///
/// # Errors
/// As [`read`]; also a pair whose answers do not belong to one prompt.
pub fn read_for_scoring(path: &Path) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    rows::for_each(path, |place, row| {
        let row = Row::new(place, row)?;
        let pair = match SINGLE_ANSWER.into_iter().find(|key| row.get(key).is_some()) {
            Some(key) if row.get("chosen").is_none() && row.get("response_0").is_none() => row.single(key)?,
            _ => row
                .pair(Shape::of(&row)?)?
                .map_err(|reason| row.error(format!("this pair cannot be scored: {reason}")).hint(MEND))?,
        };
        pairs.push(pair);
        Ok(())
    })?;
    Ok(pairs)
}

/// Pairs that teach nothing are left out.
fn usable(pair: Pair) -> Verdict<Pair> {
    let rejected = pair.rejected.as_deref().unwrap_or_default();
    if pair.chosen.trim().is_empty() || rejected.trim().is_empty() {
        return Err(DropReason::EmptyAnswer);
    }
    if pair.chosen == rejected {
        return Err(DropReason::IdenticalAnswers);
    }
    Ok(pair)
}

/// A file's name without what says how it is written: `hh.jsonl.gz` is `hh`.
fn stem(path: &Path) -> String {
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for extension in [".gz", ".jsonl", ".json"] {
        if let Some(rest) = name.strip_suffix(extension)
            && !rest.is_empty()
        {
            name.truncate(rest.len());
        }
    }
    name
}

const SINGLE_ANSWER: [&str; 3] = ["answer", "response", "completion"];
const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

type Verdict<T> = std::result::Result<T, DropReason>;

#[derive(Debug, Clone, Copy)]
enum Shape {
    Pairs,
    Hh,
    Helpful,
    Safer,
}

impl Shape {
    fn named(format: Format) -> Option<Self> {
        match format {
            Format::Auto => None,
            Format::Pairs => Some(Self::Pairs),
            Format::Hh => Some(Self::Hh),
            Format::Helpful => Some(Self::Helpful),
            Format::Safer => Some(Self::Safer),
        }
    }

    fn of(row: &Row) -> Result<Self> {
        if row.get("response_0").is_some() && row.get("response_1").is_some() {
            return Ok(Self::Helpful);
        }
        let chosen = row.get("chosen");
        if chosen.is_none() && row.get("rejected").is_none() {
            let keys: Vec<_> = row.object.keys().map(String::as_str).collect();
            return Err(row.error(format!("a row of no known shape: its keys are {keys:?}")).hint(
                "known are `prompt, chosen, rejected`; `chosen, rejected` with message lists or hh-rlhf transcripts; \
                 `prompt, response_0, response_1, better_response_id, ...`; and, for scoring, `prompt, answer`",
            ));
        }
        match chosen {
            Some(Value::String(text)) if row.get("prompt").is_none() && is_transcript(text) => Ok(Self::Hh),
            _ => Ok(Self::Pairs),
        }
    }
}

impl Row<'_> {
    fn pair(&self, shape: Shape) -> Result<Verdict<Pair>> {
        let parts = match shape {
            Shape::Pairs => self.prompt_and_answers()?,
            Shape::Hh => self.transcripts()?,
            Shape::Helpful => self.safety(false)?,
            Shape::Safer => self.safety(true)?,
        };
        match parts {
            Ok((prompt, chosen, rejected)) => Ok(Ok(self.finish(prompt, chosen, Some(rejected))?)),
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn single(&self, key: &str) -> Result<Pair> {
        let prompt = self.prompt()?.ok_or_else(|| self.missing("prompt", "a string or a message list"))?;
        let answer = self.answer_to(&prompt, key, self.answer(key)?)?;
        self.finish(prompt, answer, None)
    }

    fn finish(&self, prompt: Prompt, chosen: String, rejected: Option<String>) -> Result<Pair> {
        let margin = match self.get("margin") {
            None => None,
            Some(value) => match value.as_f64().map(|margin| margin as f32).filter(|margin| margin.is_finite()) {
                Some(margin) => Some(margin),
                None => return Err(self.wrong("margin", value, "a finite number")),
            },
        };
        let domain = self.get("domain").map(|value| self.string("domain", value, "a string")).transpose()?;
        Ok(Pair { prompt, chosen, rejected, margin, domain, line: self.place.number })
    }

    /// `prompt, chosen, rejected`, or `chosen, rejected` as conversations with a common start.
    fn prompt_and_answers(&self) -> Result<Verdict<(Prompt, String, String)>> {
        let (chosen, rejected) = (self.answer("chosen")?, self.answer("rejected")?);
        match (self.prompt()?, chosen, rejected) {
            (Some(Prompt::Messages(messages)), ..) if messages.is_empty() => Ok(Err(DropReason::EmptyPrompt)),
            (Some(prompt), chosen, rejected) => {
                let chosen = self.answer_to(&prompt, "chosen", chosen)?;
                let rejected = self.answer_to(&prompt, "rejected", rejected)?;
                Ok(Ok((prompt, chosen, rejected)))
            }
            (None, Answer::Messages(chosen), Answer::Messages(rejected)) => self.common_start(chosen, rejected),
            (None, ..) => Err(self.missing("prompt", "a string or a message list").hint(
                "without a prompt, `chosen` and `rejected` are message lists with a common start, \
                 or transcripts that start with \"\\n\\nHuman:\" (format = \"hh\")",
            )),
        }
    }

    fn common_start(&self, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<Verdict<(Prompt, String, String)>> {
        let (before_chosen, chosen) = self.last_turn("chosen", chosen)?;
        let (before_rejected, rejected) = self.last_turn("rejected", rejected)?;
        if before_chosen == before_rejected {
            return match before_chosen.is_empty() {
                true => Ok(Err(DropReason::EmptyPrompt)),
                false => Ok(Ok((Prompt::Messages(before_chosen), chosen, rejected))),
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

    /// hh-rlhf: two transcripts of one conversation with different last answers.
    fn transcripts(&self) -> Result<Verdict<(Prompt, String, String)>> {
        let (chosen, rejected) = (self.transcript("chosen")?, self.transcript("rejected")?);
        Ok(chosen.and_then(|(prompt, chosen)| {
            let (other, rejected) = rejected?;
            match (prompt == other, prompt.is_empty()) {
                (false, _) => Err(DropReason::DifferentPrompts),
                (true, true) => Err(DropReason::EmptyPrompt),
                (true, false) => Ok((Prompt::Messages(prompt), chosen, rejected)),
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

    /// PKU-SafeRLHF/BeaverTails: two responses, labelled for helpfulness and for safety.
    fn safety(&self, safer: bool) -> Result<Verdict<(Prompt, String, String)>> {
        let prompt = Prompt::Text(self.text("prompt")?);
        let [zero, one] = [self.text("response_0")?, self.text("response_1")?];
        let chosen = match safer {
            false => self.index("better_response_id")?,
            true => {
                let safe = [self.flag("is_response_0_safe")?, self.flag("is_response_1_safe")?];
                let chosen = self.index("safer_response_id")?;
                if safe[0] == safe[1] {
                    return Ok(Err(DropReason::NotExactlyOneSafe));
                }
                if !safe[chosen] {
                    return Ok(Err(DropReason::ContradictorySafety));
                }
                chosen
            }
        };
        Ok(Ok(if chosen == 0 { (prompt, zero, one) } else { (prompt, one, zero) }))
    }

    /// The answer's text. A message list holds the answer alone, or the conversation from the prompt on.
    fn answer_to(&self, prompt: &Prompt, key: &str, answer: Answer) -> Result<String> {
        let messages = match answer {
            Answer::Text(text) => return Ok(text),
            Answer::Messages(messages) => messages,
        };
        let (before, text) = self.last_turn(key, messages)?;
        let fits = match prompt {
            Prompt::Messages(messages) => &before == messages,
            Prompt::Text(text) => matches!(&before[..], [turn] if turn.role == "user" && turn.content == *text),
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
            Some(last) if last.role == "assistant" => Ok((messages, last.content)),
            Some(last) => Err(self
                .error(format!("the last message of `{key}` is the {}'s, expected the assistant's", last.role))
                .hint("the last message is what is rewarded")),
            None => Err(self
                .error(format!("`{key}` is an empty message list, expected the assistant's message"))
                .hint(MEND)),
        }
    }
}

fn is_transcript(text: &str) -> bool {
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
        messages.push(Message { role: role.into(), content: without_space(&rest[..end]).to_owned() });
    }
    messages
}

/// The one space after a speaker's colon belongs to the template, which puts it back.
fn without_space(text: &str) -> &str {
    text.strip_prefix(' ').unwrap_or(text)
}
