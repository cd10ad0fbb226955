//! Keys beside the pair, which rows of any layout may have: a system prompt, earlier turns, an input, the conversation once
//! more, tools, documents and arguments for the template. Keys without a clear meaning are refused by name.
//!
//! Not here: the pair itself (`interpret.rs`), its margin and domain (`reader.rs`).

use super::turns::{Content, is_python};
use crate::data::row::{Found, MEND, Row, has_content, without_odd};
use crate::data::rows;
use crate::data::{Message, Prompt, TemplateInputs};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The system turn in front.
const SYSTEM: [&str; 2] = ["system", "system_prompt"];
/// Turns before the prompt: pairs of a user's and an assistant's text, or messages.
const HISTORY: [&str; 1] = ["history"];
/// A text on the line after the prompt.
const INPUT: [&str; 1] = ["input"];
/// The prompt or the conversation, if no other key has it; else the same once more.
const CONVERSATION: [&str; 3] = ["messages", "conversations", "conversation"];
const TOOLS: &str = "tools";
const DOCUMENTS: &str = "documents";
const ARGUMENTS: &str = "chat_template_kwargs";
/// Texts that change the meaning of the answers, but whose place in the prompt is unknown.
const UNCLEAR: [&str; 2] = ["context", "rejected_tools"];
/// Inputs that the model would have to see or hear.
const MEDIA: [&str; 9] =
    ["images", "videos", "audios", "image", "video", "audio", "rejected_images", "rejected_videos", "rejected_audios"];

/// Variables that every template gets, which a row's arguments may not set.
const RESERVED: [&str; 7] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"];

/// Every key that is read beside a pair, for `columns`.
pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    let rest = [TOOLS, DOCUMENTS, ARGUMENTS, "margin", "domain"];
    SYSTEM.into_iter().chain(HISTORY).chain(INPUT).chain(CONVERSATION).chain(rest)
}

/// The values beside a row's pairs.
pub(super) struct Beside {
    system: Option<NamedText>,
    history: Vec<Message>,
    input: Option<NamedText>,
    /// The key's name, and the turns.
    conversation: Option<(String, Vec<Message>)>,
    /// Inputs of the template.
    pub(super) inputs: TemplateInputs,
}

/// A text with the name of its key, for messages.
struct NamedText {
    name: String,
    text: String,
}

impl Row<'_> {
    /// Reads the values beside the prompt and the answers, which must have been read already.
    pub(super) fn beside(&self) -> Result<Beside> {
        if let Some(found) = self.left(&MEDIA) {
            return Err(Error::input(format!("{} is not empty, but only text is read", found.name)).hint(MEND));
        }
        if let Some(Found { name, path, .. }) = self.left(&UNCLEAR) {
            return Err(Error::input(format!("it is not clear where {name} belongs in the prompt")).hint(format!(
                "write it into the prompt, or map it to a key, for example columns = {{ system = \"{path}\" }}"
            )));
        }
        let text = |found: Found| -> Result<NamedText> {
            let text = found.text("a string")?.to_owned();
            Ok(NamedText { name: found.name, text })
        };
        let conversation = self.left(&CONVERSATION).map(|found| match self.content(&found)? {
            Content::Turns(turns) => Ok((found.name, turns)),
            Content::Text(_) => Err(found.wrong(found.value("")?, "a message list")),
        });
        let tools = self.left(&[TOOLS]).map(|found| self.objects(&found)).transpose()?;
        let documents = self.left(&[DOCUMENTS]).map(|found| self.objects(&found)).transpose()?;
        let arguments = self.left(&[ARGUMENTS]).map(|found| self.arguments(&found)).transpose()?;
        Ok(Beside {
            system: self.left(&SYSTEM).map(text).transpose()?,
            history: self.left(&HISTORY).map_or_else(|| Ok(Vec::new()), |found| self.history(&found))?,
            input: self.left(&INPUT).map(text).transpose()?,
            conversation: conversation.transpose()?,
            inputs: TemplateInputs { tools, documents, arguments: arguments.unwrap_or_default() },
        })
    }

    /// The first of these keys that has content and was not read as a part of the pair.
    fn left(&self, keys: &[&str]) -> Option<Found<'_>> {
        keys.iter().find_map(|key| {
            let left = !self.is_read(key) && self.peek(key).is_some_and(has_content);
            left.then(|| self.get(&[key])).flatten()
        })
    }

    fn history(&self, found: &Found) -> Result<Vec<Message>> {
        const EXPECTED: &str = "a list of [user, assistant] texts or of messages";
        let value = json(found, EXPECTED)?;
        let rounds = value.as_array().filter(|rounds| rounds.iter().all(Value::is_array));
        let Some(rounds) = rounds else {
            let found = Found { values: vec![&value], path: found.path.clone(), name: found.name.clone() };
            return match self.content(&found)? {
                Content::Turns(turns) => Ok(turns),
                Content::Text(_) => Err(found.wrong(&value, EXPECTED)),
            };
        };
        self.mark_whole(&found.path);
        let mut turns = Vec::with_capacity(2 * rounds.len());
        for (index, round) in rounds.iter().enumerate() {
            let texts: Option<Vec<&str>> =
                round.as_array().map(|texts| texts.iter().filter_map(Value::as_str).collect());
            match texts.as_deref() {
                Some([user, assistant]) if round.as_array().is_some_and(|texts| texts.len() == 2) => {
                    turns.extend([Message::new("user", *user), Message::answer(*assistant)]);
                }
                _ => {
                    let message = format!("entry {} of {} is not two texts", index + 1, found.name);
                    return Err(Error::input(message).hint("expected the user's and the assistant's text"));
                }
            }
        }
        Ok(turns)
    }

    /// A list of objects, or a JSON text of one; also of JSON texts.
    fn objects(&self, found: &Found) -> Result<Vec<Value>> {
        const EXPECTED: &str = "a list of objects, or a JSON text of one";
        self.mark_whole(&found.path);
        let value = json(found, EXPECTED)?;
        let Value::Array(list) = value else { return Err(found.wrong(&value, EXPECTED)) };
        let object = |value: Value| match &value {
            Value::Object(_) => Ok(value),
            Value::String(text) => rows::of_text(text).ok().filter(Value::is_object).ok_or(value),
            _ => Err(value),
        };
        let list: Vec<Value> = list
            .into_iter()
            .map(|value| object(value).map_err(|value| found.wrong(&value, EXPECTED)))
            .collect::<Result<_>>()?;
        list.iter().try_for_each(|value| without_odd(&found.name, value))?;
        Ok(list)
    }

    fn arguments(&self, found: &Found) -> Result<Map<String, Value>> {
        const EXPECTED: &str = "an object";
        self.mark_whole(&found.path);
        let value = json(found, EXPECTED)?;
        without_odd(&found.name, &value)?;
        let Value::Object(mut arguments) = value else { return Err(found.wrong(&value, EXPECTED)) };
        arguments.retain(|_, value| !value.is_null());
        match arguments.keys().find(|key| RESERVED.contains(&key.as_str())) {
            Some(key) => Err(Error::input(format!("{} sets `{key}`, which a row may not set", found.name))
                .hint("tools and documents have keys of their own")),
            None => Ok(arguments),
        }
    }
}

/// The value; parsed, if it is a text that is JSON.
fn json(found: &Found, expected: &str) -> Result<Value> {
    let value = found.value(expected)?;
    let Value::String(text) = value else { return Ok(value.clone()) };
    rows::of_text(text).map_err(|_| {
        let hint = if is_python(text) { "it is in Python's notation: write it as JSON, with json.dumps" } else { MEND };
        Error::input(format!("{} is a text that is not JSON, expected {expected}", found.name)).hint(hint)
    })
}

impl Beside {
    /// The key of a conversation that ends with an answer other than these: that answer is not used.
    pub(super) fn with_another_answer<'m>(&self, mut answers: impl Iterator<Item = &'m Message>) -> Option<&str> {
        let (name, turns) = self.conversation.as_ref()?;
        let last = turns.last().filter(|last| last.role == "assistant")?;
        (!answers.any(|answer| answer == last)).then(|| name.trim_matches('`'))
    }

    /// The prompt from the conversation beside the answers; `None` without one.
    pub(super) fn prompt(&self, chosen: &Message) -> Result<Option<Prompt>> {
        let Some((name, turns)) = &self.conversation else { return Ok(None) };
        match turns.split_last() {
            Some((last, before)) if last == chosen => Ok(Some(Prompt::Messages(before.to_vec()))),
            Some((last, _)) if last.role == "assistant" => {
                Err(Error::input(format!("{name} ends with an answer that is not the chosen one"))
                    .hint("expected the prompt, or the conversation with the chosen answer"))
            }
            _ => Ok(Some(Prompt::Messages(turns.clone()))),
        }
    }

    /// The prompt with the system prompt, history and input that are beside it.
    pub(super) fn complete(&self, prompt: Prompt) -> Result<Prompt> {
        let bare = self.conversation.as_ref().map(|_| turns_of(&prompt));
        let prompt = self.with_input(prompt)?;
        let prompt = match (self.history.is_empty(), &self.system) {
            (true, None) => prompt,
            _ => self.with_turns(prompt)?,
        };
        if let (Some((name, turns)), Some(bare)) = (&self.conversation, bare) {
            let before = match turns.split_last() {
                Some((last, before)) if last.role == "assistant" => before,
                _ => turns,
            };
            if [bare, turns_of(&prompt)].iter().all(|known| before != known && turns != known) {
                return Err(Error::input(format!("{name} does not match the prompt"))
                    .hint("leave one of the two out; a source's `columns` can name the prompt's key"));
            }
        }
        Ok(prompt)
    }

    fn with_input(&self, prompt: Prompt) -> Result<Prompt> {
        match (&self.input, prompt) {
            (None, prompt) => Ok(prompt),
            // Some data sets repeat the prompt under this name.
            (Some(input), Prompt::Text(text)) if text.trim() == input.text.trim() => Ok(Prompt::Text(text)),
            (Some(input), Prompt::Messages(turns))
                if turns.last().is_some_and(|last| last.text().trim() == input.text.trim()) =>
            {
                Ok(Prompt::Messages(turns))
            }
            (Some(input), Prompt::Text(text)) => Ok(Prompt::Text(format!("{text}\n{}", input.text))),
            (Some(input), Prompt::Messages(_)) => {
                Err(Error::input(format!("it is not clear where {} belongs in the conversation", input.name))
                    .hint("write it into the turn to which it belongs"))
            }
        }
    }

    fn with_turns(&self, prompt: Prompt) -> Result<Prompt> {
        let mut turns = turns_of(&prompt);
        let start = turns.iter().take_while(|turn| turn.role == "system").count();
        turns.splice(start..start, self.history.iter().cloned());
        if let Some(NamedText { name, text: system }) = &self.system {
            match turns.first() {
                Some(first) if first.role == "system" && first.text() != system => {
                    return Err(Error::input(format!("{name} differs from the system prompt in the first message"))
                        .hint("leave one of the two out"));
                }
                Some(first) if first.role == "system" => {}
                _ => turns.insert(0, Message::new("system", system.as_str())),
            }
        }
        Ok(Prompt::Messages(turns))
    }
}

/// A prompt as turns.
pub(super) fn turns_of(prompt: &Prompt) -> Vec<Message> {
    match prompt {
        Prompt::Text(text) => vec![Message::new("user", text.as_str())],
        Prompt::Messages(turns) => turns.clone(),
    }
}
