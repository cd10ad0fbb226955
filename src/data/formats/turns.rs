//! Reads values with turns of a conversation: texts, messages in the two notations in use, rounds of two texts, content parts,
//! and message lists that are JSON within a text.
//!
//! Not here: conversations with speakers' names in one text (`transcripts.rs`).

use crate::data::Message;
use crate::data::row::{Found, MEND, Row, has_content, kind, without_odd, wrong};
use crate::data::rows;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Keys of a message that chat templates read apart from role and content. They are passed to the template unchanged, also a
/// tool call's `arguments` as a JSON text or an object, as in Transformers and TRL.
const FOR_TEMPLATES: [&str; 10] = [
    "tool_calls",
    "tool_call_id",
    "tool_responses",
    "tool_plan",
    "name",
    "reasoning_content",
    "reasoning",
    "thinking",
    "recipient",
    "end_turn",
];

/// (Speaker in ShareGPT's `from`, the templates' name for it.)
const SPEAKERS: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("function_call", CALLS),
    ("tool_call", CALLS),
];

/// Not a role: the content is a JSON text of the assistant's tool calls.
const CALLS: &str = "calls";

/// Types of content parts that are text.
const TEXT_PARTS: [&str; 3] = ["text", "input_text", "output_text"];

/// Content parts that are not text.
const MEDIA: [&str; 9] =
    ["image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio", "file"];

/// Keys of a round of a conversation, as in Capybara.
const ROUND_INPUT: &str = "input";
const ROUND_OUTPUT: &str = "output";

const TURNS: &str = "a string, a message list or a message";
const A_MESSAGE: &str =
    "a message is {\"role\": \"user\", \"content\": \"...\"} or {\"from\": \"human\", \"value\": \"...\"}";

/// The content of a value.
pub(super) enum Content {
    Text(String),
    Turns(Vec<Message>),
}

impl Row<'_> {
    /// A text, or turns however they are written.
    pub(super) fn content(&self, found: &Found) -> Result<Content> {
        self.content_of(&found.name, &found.path, found.value(TURNS)?)
    }

    fn content_of(&self, name: &str, path: &str, value: &Value) -> Result<Content> {
        match value {
            Value::String(text) => match turns_in_json(text) {
                Some(turns) => {
                    let content = self.content_of(name, path, &turns)?;
                    self.leave_in_text(path, &turns);
                    Ok(content)
                }
                None if is_python(text) => Err(Error::input(format!("{name} is a list in Python's notation"))
                    .hint("write it as JSON: json.dumps(ast.literal_eval(text)) in Python, or keep the column a list")),
                None => Ok(Content::Text(text.clone())),
            },
            Value::Array(list) if !list.is_empty() && list.iter().all(is_part) => {
                self.parts(name, path, list).map(Content::Text)
            }
            Value::Array(list) if !list.is_empty() && list.iter().all(|entry| round(entry).is_some()) => {
                self.mark(&format!("{path}.{ROUND_INPUT}"));
                self.mark(&format!("{path}.{ROUND_OUTPUT}"));
                let turns = |[input, output]: [&str; 2]| [Message::new("user", input), Message::answer(output)];
                Ok(Content::Turns(list.iter().filter_map(round).flat_map(turns).collect()))
            }
            Value::Array(list) => {
                let mut turns = Vec::with_capacity(list.len());
                for (index, message) in list.iter().enumerate() {
                    let name = format!("message {} of {name}", index + 1);
                    let (message, calls) = self.message(&name, path, message)?;
                    // Calls in consecutive messages are one turn.
                    match turns.last_mut() {
                        Some((last, true)) if calls => join_calls(last, message),
                        _ => turns.push((message, calls)),
                    }
                }
                Ok(Content::Turns(turns.into_iter().map(|(message, _)| message).collect()))
            }
            Value::Object(object) if is_message(object) => {
                self.message(name, path, value).map(|(message, _)| Content::Turns(vec![message]))
            }
            other => Err(wrong(name, other, TURNS)),
        }
    }

    /// A message, and whether its content was a JSON text of tool calls.
    fn message(&self, name: &str, path: &str, value: &Value) -> Result<(Message, bool)> {
        let Value::Object(object) = value else { return Err(wrong(name, value, "a message").hint(A_MESSAGE)) };
        let from = !present(object, "role") && present(object, "from");
        let (role_key, own, other) = if from { ("from", "value", "content") } else { ("role", "content", "value") };
        let content_key = if present(object, own) || !present(object, other) { own } else { other };
        self.mark(&format!("{path}.{role_key}"));
        self.mark(&format!("{path}.{content_key}"));
        let lacking = |key: &str, value: Option<&Value>| {
            let found = value.map_or("missing", kind);
            Error::input(format!("{name}: `{key}` is {found}, expected a string")).hint(A_MESSAGE)
        };
        let role =
            object.get(role_key).and_then(Value::as_str).ok_or_else(|| lacking(role_key, object.get(role_key)))?;
        let role = self.role(name, role, from)?;

        let mut message = Message { role: role.to_owned(), content: None, more: Map::new() };
        for key in FOR_TEMPLATES {
            if let Some(value) = object.get(key).filter(|value| has_content(value)) {
                self.mark_whole(&format!("{path}.{key}"));
                let parsed = value.as_str().filter(|_| key == "tool_calls").map(|text| calls(name, text));
                let value = parsed.unwrap_or_else(|| Ok(value.clone()))?;
                without_odd(&format!("{name}: `{key}`"), &value)?;
                message.more.insert(key.to_owned(), value);
            }
        }
        message.content = match object.get(content_key) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(parts)) => Some(self.parts(name, &format!("{path}.{content_key}"), parts)?),
            None | Some(Value::Null) if message.role == "assistant" && !message.more.is_empty() => None,
            other => return Err(lacking(content_key, other)),
        };
        let called = role == CALLS;
        if called {
            let text = message.content.take().unwrap_or_default();
            message.role = String::from("assistant");
            let calls = calls(name, &text)?;
            without_odd(&format!("{name}: `{content_key}`"), &calls)?;
            message.more.insert(String::from("tool_calls"), calls);
        }
        Ok((message, called))
    }

    /// The templates' name for a speaker. A `role` is already that, apart from `function_call` and `tool_...`, which no template
    /// knows.
    fn role<'r>(&self, name: &str, role: &'r str, from: bool) -> Result<&'r str> {
        let known = SPEAKERS.iter().find(|(speaker, _)| *speaker == role).map(|(_, role)| *role);
        match known {
            Some(known) if from || role.starts_with("tool_") || role == "function_call" => Ok(known),
            None if from => {
                let speakers: Vec<&str> = SPEAKERS.iter().map(|(speaker, _)| *speaker).collect();
                Err(Error::input(format!("{name}: `from` is {role:?}, expected one of {}", speakers.join(", ")))
                    .hint(MEND))
            }
            _ => Ok(role),
        }
    }

    /// The text of content parts, joined as templates that know parts write them.
    fn parts(&self, name: &str, path: &str, parts: &[Value]) -> Result<String> {
        let mut whole = String::new();
        for (index, part) in parts.iter().enumerate() {
            let name = format!("content part {} of {name}", index + 1);
            let kind_of = part.get("type").and_then(Value::as_str).unwrap_or_default();
            let media = MEDIA.iter().find(|key| kind_of == **key || part.get(**key).is_some_and(has_content));
            if let Some(media) = media {
                return Err(Error::input(format!("{name} is `{media}`, but only text is read")).hint(MEND));
            }
            let key = if part.get("text").is_some_and(|text| !text.is_null()) { "text" } else { "value" };
            match part.get(key).and_then(Value::as_str) {
                Some(text) if TEXT_PARTS.contains(&kind_of) => whole.push_str(text),
                _ => {
                    return Err(Error::input(format!("{name} is not a text part"))
                        .hint("a text part is {\"type\": \"text\", \"text\": \"...\"}; other parts are not read"));
                }
            }
            self.mark(&format!("{path}.type"));
            self.mark(&format!("{path}.{key}"));
        }
        Ok(whole)
    }
}

fn present(object: &Map<String, Value>, key: &str) -> bool {
    object.get(key).is_some_and(|value| !value.is_null())
}

fn is_message(object: &Map<String, Value>) -> bool {
    present(object, "role") || present(object, "from")
}

fn is_part(value: &Value) -> bool {
    value.as_object().is_some_and(|part| present(part, "type") && !is_message(part))
}

/// The user's and the assistant's text in an entry of Capybara's conversations.
fn round(value: &Value) -> Option<[&str; 2]> {
    let object = value.as_object().filter(|object| !is_message(object))?;
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    text(ROUND_INPUT).zip(text(ROUND_OUTPUT)).map(<[&str; 2]>::from)
}

/// Tool calls from a JSON text: a list of them, one, or the function alone, `{"name", "arguments"}`.
fn calls(name: &str, text: &str) -> Result<Value> {
    let wrapped = |call: Value| match call.get("function").is_none() && call.get("name").is_some() {
        true => json!({"type": "function", "function": call}),
        false => call,
    };
    match rows::of_text(text) {
        Ok(Value::Array(list)) => Ok(list.into_iter().map(wrapped).collect()),
        Ok(call @ Value::Object(_)) => Ok(Value::Array(vec![wrapped(call)])),
        _ => Err(Error::input(format!("{name}: its tool calls are a text that is not JSON"))
            .hint("expected {\"name\": \"...\", \"arguments\": {...}}, or a list of these")),
    }
}

fn join_calls(turn: &mut Message, next: Message) {
    let calls = next.more.into_iter().find(|(key, _)| key == "tool_calls");
    if let (Some(Value::Array(calls)), Some((_, Value::Array(more)))) = (turn.more.get_mut("tool_calls"), calls) {
        calls.extend(more);
    }
}

/// The turns in a text that is JSON: a message or a list of messages, with known roles. Other JSON is a text.
fn turns_in_json(text: &str) -> Option<Value> {
    let text = text.trim();
    let bracketed = (text.starts_with('[') && text.ends_with(']')) || (text.starts_with('{') && text.ends_with('}'));
    if !bracketed || !(text.contains("\"role\"") || text.contains("\"from\"")) {
        return None;
    }
    let value = rows::of_text(text).ok()?;
    let turn = |value: &Value| {
        let speaker = |key: &str| value.get(key).and_then(Value::as_str);
        let known = |name: &str| name == "developer" || SPEAKERS.iter().any(|(speaker, _)| *speaker == name);
        speaker("role").or_else(|| speaker("from")).is_some_and(known)
            && ["content", "value", "tool_calls"].iter().any(|key| value.get(key).is_some())
    };
    let turns = match &value {
        Value::Array(list) => !list.is_empty() && list.iter().all(turn),
        value => turn(value),
    };
    turns.then_some(value)
}

/// Whether a text is a list of messages, or one, in Python's notation.
pub(super) fn is_python(text: &str) -> bool {
    let start: String = text.chars().filter(|c| !c.is_whitespace()).take(12).collect();
    let inner = start.strip_prefix('[').unwrap_or(&start);
    ["{'role':", "{'from':", "{'content':", "{'value':"].iter().any(|key| inner.starts_with(key))
}
