//! The content of another program's config or script: names with values and lines, and parts that could not be read.
//!
//! Not here: reading it (`yaml.rs`, `python/`).

use super::draft::quoted;
use serde_json::Value;

/// Deepest nesting of lists, objects and brackets.
pub(crate) const DEEPEST: usize = 64;

/// A name with a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    /// As in a config file of TRL: `lora_r`, also for `LoraConfig(r=...)`.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: Value,
    /// Its line, from 1.
    pub(crate) line: usize,
}

impl Item {
    /// `line 3: learning_rate = 1e-5`.
    pub(crate) fn place(&self) -> String {
        format!("line {}: {} = {}", self.line, quoted(&self.name), quoted(&self.shown()))
    }

    /// The value; three dots for a secret, which must not get into a config that is kept with the code.
    pub(crate) fn shown(&self) -> String {
        const SECRET: [&str; 6] = ["hub_token", "auth_token", "access_token", "api_key", "password", "secret"];
        let name = self.name.rsplit('.').next().unwrap_or_default().to_lowercase();
        let value = self.value.to_string();
        if name == "token" || SECRET.iter().any(|secret| name.contains(secret)) || value.contains("\"hf_") {
            return "...".to_owned();
        }
        value
    }
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unread {
    /// Its line, from 1.
    pub(crate) line: usize,
    /// Its text in the file.
    pub(crate) text: String,
    /// Why.
    pub(crate) why: &'static str,
    /// The name whose value was not read, if it has one.
    pub(crate) name: Option<String>,
}

/// The content of a file.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Content {
    /// In the file's order.
    pub(crate) items: Vec<Item>,
    /// Parts that could not be read.
    pub(crate) unread: Vec<Unread>,
    /// Names of the calls in a script.
    pub(crate) calls: Vec<String>,
}

impl Content {
    /// The first value of a name.
    pub(crate) fn item(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.name == name)
    }
}
