//! What another program's config or script holds: names with values and their lines, and what could not be read.
//!
//! Not here: reading it (`yaml.rs`, `python/`).

use super::draft::quoted;
use serde_json::Value;

/// Deepest nesting of lists, objects and brackets.
pub const DEEPEST: usize = 64;

/// A name with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// As a config file of TRL has it: `lora_r`, also for `LoraConfig(r=...)`.
    pub name: String,
    /// What it is set to.
    pub value: Value,
    /// Where, from 1.
    pub line: usize,
}

impl Item {
    /// `line 3: learning_rate = 1e-5`.
    pub fn place(&self) -> String {
        format!("line {}: {} = {}", self.line, quoted(&self.name), quoted(&self.shown()))
    }

    /// The value; three dots for a secret, which must not get into a config that is kept with the code.
    pub fn shown(&self) -> String {
        const SECRET: [&str; 6] = ["hub_token", "auth_token", "access_token", "api_key", "password", "secret"];
        let name = self.name.rsplit('.').next().unwrap_or_default().to_lowercase();
        let value = self.value.to_string();
        if name == "token" || SECRET.iter().any(|secret| name.contains(secret)) || value.contains("\"hf_") {
            return "...".to_owned();
        }
        value
    }
}

/// Something that was not read.
#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    /// Where, from 1.
    pub line: usize,
    /// As the file has it.
    pub text: String,
    /// Why.
    pub why: &'static str,
    /// The name whose value was not read, where it has one.
    pub name: Option<String>,
}

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub struct Content {
    /// In the file's order.
    pub items: Vec<Item>,
    /// What was not read.
    pub unread: Vec<Unread>,
    /// Calls that were found, for a script.
    pub calls: Vec<String>,
}

impl Content {
    /// The first value of a name.
    pub fn item(&self, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.name == name)
    }
}
