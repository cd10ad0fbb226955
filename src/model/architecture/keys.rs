//! Single keys of a `config.json`: typed, with the range they must be in; every error names the key.
//!
//! A key that is missing takes the default of the family's configuration class in Transformers, but for the model's
//! dimensions, which must be there; one that is null means
//! "none" where the class knows that, and else counts as missing. Not here: which keys a family has.

use crate::error::{Error, Result};
use crate::ops::Activation;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::rc::Rc;

/// The most that a dimension may be: no product of three of them is beyond 2^63.
const MOST: u64 = 1 << 20;

/// The keys of one JSON object, and what is wrong with those that were read.
pub struct Keys {
    keys: Map<String, Value>,
    /// Shared with the objects within.
    faults: Rc<RefCell<Vec<Error>>>,
}

impl Keys {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// Text that is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let keys = serde_json::from_str(text).map_err(|error| {
            Error::input(format!("not a model config: {error}"))
                .hint("a JSON object is expected; is the file whole? get it again from where the model is from")
        })?;
        Ok(Self { keys, faults: Rc::default() })
    }

    /// Takes note of something wrong, and reads on: all of it is reported at once.
    pub fn fault(&self, error: Error) {
        self.faults.borrow_mut().push(error);
    }

    /// What was wrong with keys read so far, in order.
    pub fn faults(&self) -> Vec<Error> {
        self.faults.take()
    }

    /// The object at `key`, if there is one.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        let object = |value: &Value| Some(Self { keys: value.as_object()?.clone(), faults: Rc::clone(&self.faults) });
        self.read(key, object, "a JSON object")
    }

    /// The same keys, with these where they are missing.
    pub fn or<'a>(mut self, others: impl Iterator<Item = (&'a str, Value)>) -> Self {
        for (key, value) in others {
            self.keys.entry(key).or_insert(value);
        }
        self
    }

    /// The same keys with this one.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.keys.insert(key.into(), value);
        self
    }

    /// Whether there is something under a key that is not null.
    pub fn has(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a value is itself an object.
    pub fn has_objects(&self) -> bool {
        self.keys.values().any(Value::is_object)
    }

    /// A dimension, which must be there.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_if_any(key, None)?.ok_or_else(|| self.missing(key))
    }

    /// Several dimensions, which must be there.
    ///
    /// # Errors
    /// The last that is wrong; those before are noted.
    pub fn sizes<const N: usize>(&self, keys: [&str; N]) -> Result<[usize; N]> {
        let (mut sizes, mut wrong) = ([0; N], None);
        for (size, key) in sizes.iter_mut().zip(keys) {
            match self.size(key) {
                Ok(found) => *size = found,
                Err(error) => wrong.replace(error).into_iter().for_each(|before| self.fault(before)),
            }
        }
        wrong.map_or(Ok(sizes), Err)
    }

    /// A dimension, or none where it is null; `default` where it is missing.
    pub fn size_if_any(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        let size = |value: &Value| value.as_u64().filter(|size| (1..=MOST).contains(size)).map(|size| size as usize);
        let found = self.read(key, size, &format!("a whole number from 1 to {MOST}"))?;
        Ok(if self.keys.contains_key(key) { found } else { default })
    }

    /// A number of tokens above 0, or none where it is null; `default` where it is missing.
    pub fn length_if_any(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        let length = |value: &Value| value.as_u64().filter(|length| *length > 0).map(|length| length as usize);
        let found = self.read(key, length, "a whole number above 0")?;
        Ok(if self.keys.contains_key(key) { found } else { default })
    }

    /// A whole number, 0 included; `default` where it is missing or null.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        let count = |value: &Value| value.as_u64().map(|count| count as usize);
        Ok(self.read(key, count, "a whole number")?.unwrap_or(default))
    }

    /// A number above 0; `default` where it is missing or null.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_if_any(key, None)?.unwrap_or(default))
    }

    /// A number above 0 that must be there.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.number_if_any(key, None)?.ok_or_else(|| self.missing(key))
    }

    /// A number above 0, or none where it is null; `default` where it is missing.
    pub fn number_if_any(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
        let found = self.read(key, number, "a number above 0")?;
        Ok(if self.keys.contains_key(key) { found } else { default })
    }

    /// true or false, if it is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, Value::as_bool, "true or false")
    }

    /// true or false; `default` where it is missing or null.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.flag(key)?.unwrap_or(default))
    }

    /// A text, if there is one.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, Value::as_str, "a text")
    }

    /// A list of texts, if there is one.
    pub fn texts<'a>(&'a self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let texts = |value: &'a Value| value.as_array()?.iter().map(Value::as_str).collect();
        self.read(key, texts, "a list of texts")
    }

    /// A list of whole numbers, if there is one.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let count = |value: &Value| value.as_u64().map(|count| count as usize);
        self.read(key, |value| value.as_array()?.iter().map(count).collect(), "a list of whole numbers")
    }

    /// A list of numbers above 0, if there is one.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0 && number.is_finite());
        self.read(key, |value| value.as_array()?.iter().map(number).collect(), "a list of numbers above 0")
    }

    /// An activation by its name in Transformers; `default` where it is missing.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        match self.text(key)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            Some(other) => {
                self.fault(Error::input(format!("{key} = \"{other}\" is not computed")).hint(
                    "known: silu, gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu; this \
                     model cannot be trained here",
                ));
                Ok(default)
            }
        }
    }

    fn read<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>, expected: &str) -> Result<Option<T>> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let found = read(value);
                if found.is_none() {
                    self.fault(wrong(key, value, expected));
                }
                Ok(found)
            }
        }
    }

    /// Of a key that must be there: what was wrong with it, if it is there.
    fn missing(&self, key: &str) -> Error {
        let noted = if self.has(key) { self.faults.borrow_mut().pop() } else { None };
        noted.unwrap_or_else(|| Error::input(format!("{key} is missing")))
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> Error {
    Error::input(format!("{key} = {value}: {expected} was expected"))
}
