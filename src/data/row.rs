//! One row of a source: typed access to its keys, with errors that say where and what was expected.
//!
//! Not here: which keys make a pair; that is `formats/`.

use crate::data::rows::{Place, odd};
use crate::data::{Message, Prompt};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// What to do about a row where nothing better is known.
pub(super) const MEND: &str = "mend the row or leave it out";

/// An answer, alone or at the end of its conversation.
pub(super) enum Answer {
    Text(String),
    Messages(Vec<Message>),
}

/// One row and where it stands.
pub(super) struct Row<'a> {
    pub(super) place: &'a Place<'a>,
    pub(super) object: Map<String, Value>,
}

impl<'a> Row<'a> {
    pub(super) fn new(place: &'a Place<'a>, row: Value) -> Result<Self> {
        match row {
            Value::Object(object) => Ok(Self { place, object }),
            other => Err(Error::input(format!("{place}: expected an object, found {}", kind(&other)))
                .hint("a row is {\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}, for example")),
        }
    }

    pub(super) fn prompt(&self) -> Result<Option<Prompt>> {
        Ok(match self.get("prompt") {
            None => None,
            Some(Value::Array(list)) => Some(Prompt::Messages(self.messages("prompt", list)?)),
            Some(value) => Some(Prompt::Text(self.string("prompt", value, "a string or a message list")?)),
        })
    }

    pub(super) fn answer(&self, key: &str) -> Result<Answer> {
        const EXPECTED: &str = "a string or a message list";
        match self.get(key) {
            None => Err(self.missing(key, EXPECTED)),
            Some(Value::Array(list)) => Ok(Answer::Messages(self.messages(key, list)?)),
            Some(value) => Ok(Answer::Text(self.string(key, value, EXPECTED)?)),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<&[Value]> {
        match self.get(key) {
            None => Err(self.missing(key, "a list")),
            Some(Value::Array(list)) => Ok(list),
            Some(value) => Err(self.wrong(key, value, "a list")),
        }
    }

    pub(super) fn message_list(&self, key: &str) -> Result<Vec<Message>> {
        match self.get(key) {
            None => Err(self.missing(key, "a message list")),
            Some(Value::Array(list)) => self.messages(key, list),
            Some(value) => Err(self.wrong(key, value, "a message list")),
        }
    }

    fn messages(&self, key: &str, list: &[Value]) -> Result<Vec<Message>> {
        let text = |number: usize, message: &Value, name: &str| match message.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(self
                .error(format!(
                    "message {number} of `{key}`: `{name}` is {}, expected a string",
                    other.map_or("missing", kind)
                ))
                .hint("a message is {\"role\": \"user\", \"content\": \"...\"}")),
        };
        let message = |(index, message): (usize, &Value)| {
            if message.get("tool_calls").is_some_and(says_something) {
                return Err(self.no_tools(format!("message {} of `{key}` has `tool_calls`", index + 1)));
            }
            Ok(Message::new(text(index + 1, message, "role")?, text(index + 1, message, "content")?))
        };
        list.iter().enumerate().map(message).collect()
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "a string"))?;
        self.string(key, value, "a string")
    }

    pub(super) fn string(&self, key: &str, value: &Value, expected: &str) -> Result<String> {
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, value, expected))
    }

    /// A finite number; `expected` says which ones make sense.
    pub(super) fn number(&self, key: &str, expected: &str) -> Result<f64> {
        let value = self.get(key).ok_or_else(|| self.missing(key, expected))?;
        value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| self.wrong(key, value, expected))
    }

    pub(super) fn index(&self, key: &str) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "0 or 1"))?;
        value.as_u64().filter(|index| *index < 2).map(|index| index as usize).ok_or_else(|| {
            let found = if value.is_number() { value.to_string() } else { kind(value).to_owned() };
            self.error(format!("`{key}` is {found}, expected 0 or 1")).hint(MEND)
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "true or false"))?;
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// Refuses a row whose text would need what templates are not given: trained on without it, it would be another one.
    pub(super) fn without_tools(&self) -> Result<()> {
        match ["tools", "documents"].into_iter().find(|key| self.get(key).is_some_and(says_something)) {
            Some(key) => Err(self.no_tools(format!("the row has `{key}`"))),
            None => Ok(()),
        }
    }

    fn no_tools(&self, what: String) -> Error {
        self.error(format!("{what}, which chat templates are not given here"))
            .hint("leave the row out, or write what the model saw into the messages' `content`")
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn error(&self, message: String) -> Error {
        Error::input(message).at(self.place)
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> Error {
        let keys: Vec<_> = self.object.keys().map(String::as_str).collect();
        self.error(format!("`{key}` is missing, expected {expected}"))
            .hint(format!("the row has the keys {keys:?}; mend it, leave it out, or name the file's `format`"))
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        self.error(format!("`{key}` is {}, expected {expected}", kind(value))).hint(MEND)
    }
}

/// Neither null nor empty; lists are also given as text.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !["", "[]", "null"].contains(&text.trim()),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(object) => odd::kind(object).unwrap_or("an object"),
    }
}
