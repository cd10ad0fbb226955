//! A suite's items to score: a prompt and its answers. And access to a row's values, with errors that name the key.
//!
//! Not here: the keys of each suite.

use super::Suite;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// A prompt with its answers, the right ones first.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The subset that it is counted in.
    pub(crate) subset: String,
    /// The user's turn.
    pub prompt: String,
    /// The answers to score, right ones first.
    pub answers: Vec<String>,
    /// How many of them are right.
    pub(crate) correct: usize,
    /// The same for items that are not independent: the prompt, or the number of a prompt with ties.
    pub(crate) cluster: String,
    /// How the item counts in the suite's figures.
    pub(crate) role: Role,
}

/// How an item counts in a suite's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// By its scores alone.
    Plain,
    /// Two equal scores count as right: a tie in JudgeBench is a decision for B.
    RightIfTied,
    /// In RewardBench 2's Ties: the prompt with one right answer, with which the one with several is compared.
    Reference,
    /// In RewardBench 2's Ties: the prompt with several right answers.
    Tied,
}

/// A row of a suite's file.
pub(super) struct Row {
    suite: Suite,
    object: Map<String, Value>,
}

impl Row {
    pub(super) fn new(suite: Suite, object: Map<String, Value>) -> Self {
        Self { suite, object }
    }

    /// The value of a key; `None` also for null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn refuse(&self, message: impl std::fmt::Display) -> Error {
        Error::input(format!("not a row of {}: {message}", self.suite.name()))
            .hint("is the file the suite's own? an hf:// path may name its split, as in hf://owner/name/config/split")
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        match self.get(key) {
            None => {
                let keys: Vec<&str> = self.object.keys().map(String::as_str).collect();
                self.refuse(format!("`{key}` is missing, expected {expected}; the row has the keys {keys:?}"))
            }
            Some(_) => self.refuse(format!("`{key}` is not {expected}")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        let text = self.get(key).and_then(Value::as_str);
        text.map(String::from).ok_or_else(|| self.wrong(key, "a text"))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = |list: &Vec<Value>| list.iter().map(|text| text.as_str().map(String::from)).collect();
        let texts: Option<Vec<String>> = self.get(key).and_then(Value::as_array).and_then(texts);
        texts.ok_or_else(|| self.wrong(key, "a list of texts"))
    }

    /// Checks a count, if the row states it.
    pub(super) fn counts(&self, key: &str, number: usize) -> Result<()> {
        match self.get(key) {
            Some(stated) if stated.as_f64() != Some(number as f64) => {
                Err(self.refuse(format!("`{key}` is {stated}, but there are {number}")))
            }
            _ => Ok(()),
        }
    }
}
