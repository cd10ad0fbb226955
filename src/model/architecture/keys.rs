//! Single keys of a `config.json`: typed, with the range they must be in.
//!
//! A fault of a key is noted and a harmless value stands in for it, so that one reading of a file finds all its faults; the
//! reader must ask for [`Keys::faults`] at the end. A missing key takes the default of the family's configuration class in
//! Transformers, except for the model's dimensions, which are required. A key that is null means "none" if the class allows
//! that, and else counts as missing. Not here: which keys a family has.

use crate::error::{Error, Result};
use crate::ops::Activation;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::rc::Rc;

/// The largest dimension: no product of three of them exceeds 2^63.
const MOST: u64 = 1 << 20;

/// Most characters of a value that an error shows.
const SHOWN: usize = 80;

/// The keys of one JSON object, and the faults of those that were read.
#[derive(Default)]
pub(crate) struct Keys {
    keys: Map<String, Value>,
    /// Shared with nested objects.
    faults: Rc<RefCell<Vec<Fault>>>,
}

struct Fault {
    key: String,
    error: Error,
}

impl Keys {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let keys = serde_json::from_str(text).map_err(|error| {
            Error::input(format!("not a model config: {error}"))
                .hint("a JSON object is expected; is the file whole? get it again from the model's source")
        })?;
        Ok(Self { keys, faults: Rc::default() })
    }

    /// Notes a fault of a key, unless the same was noted before.
    pub(crate) fn fault(&self, key: &str, error: Error) {
        let mut faults = self.faults.borrow_mut();
        if !faults.iter().any(|noted| noted.error == error) {
            faults.push(Fault { key: key.into(), error });
        }
    }

    /// Notes a key that does not fit the others.
    pub(crate) fn unfit(&self, key: &str, message: String) {
        let hint = "the keys must be those of one model: get config.json again from the model's source";
        self.fault(key, Error::input(message).hint(hint));
    }

    /// Notes a feature that this program lacks; `known` is what it has instead.
    pub(crate) fn not_computed(&self, key: &str, what: &str, known: &str) {
        let value = self.keys.get(key).map_or_else(|| "null".into(), shown);
        self.fault(key, not_computed(&format!("{key} = {value}"), what, known));
    }

    /// Takes the faults of the keys read so far, in order.
    pub(crate) fn faults(&self) -> Vec<Error> {
        self.faults.take().into_iter().map(|fault| fault.error).collect()
    }

    /// Whether none of these has a fault, so that they can be compared with each other.
    pub(crate) fn are_right(&self, keys: &[&str]) -> bool {
        !self.faults.borrow().iter().any(|fault| keys.contains(&fault.key.as_str()))
    }

    /// The object at `key`, if there is one.
    pub(crate) fn object(&self, key: &str) -> Option<Self> {
        let object = |value: &Value| Some(Self { keys: value.as_object()?.clone(), faults: Rc::clone(&self.faults) });
        self.read(key, object, "a JSON object")
    }

    /// The same keys, with these in place of missing ones.
    pub(crate) fn or<'a>(mut self, others: impl Iterator<Item = (&'a str, Value)>) -> Self {
        for (key, value) in others {
            self.keys.entry(key).or_insert(value);
        }
        self
    }

    /// The same keys with this one.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.keys.insert(key.into(), value);
        self
    }

    /// Whether there is a key that is not null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether there are no keys.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a value is itself an object.
    pub(crate) fn has_objects(&self) -> bool {
        self.keys.values().any(Value::is_object)
    }

    /// A dimension, which must be there; 1 stands in for it.
    pub(crate) fn size(&self, key: &str) -> usize {
        self.required(key, 1, |keys| keys.size_if_any(key, None))
    }

    /// A dimension; `default` if it is missing or null.
    pub(crate) fn size_or(&self, key: &str, default: usize) -> usize {
        self.size_if_any(key, None).unwrap_or(default)
    }

    /// A dimension, or none if it is null; `default` if it is missing.
    pub(crate) fn size_if_any(&self, key: &str, default: Option<usize>) -> Option<usize> {
        let size = |value: &Value| value.as_u64().filter(|size| (1..=MOST).contains(size)).map(|size| size as usize);
        self.or_none(key, default, size, &format!("a whole number from 1 to {MOST}"))
    }

    /// A number of tokens above 0; `default` if it is missing or null.
    pub(crate) fn length_or(&self, key: &str, default: usize) -> usize {
        self.length_if_any(key, None).unwrap_or(default)
    }

    /// A number of tokens above 0, or none if it is null; `default` if it is missing.
    pub(crate) fn length_if_any(&self, key: &str, default: Option<usize>) -> Option<usize> {
        let length = |value: &Value| value.as_u64().filter(|length| *length > 0).map(|length| length as usize);
        self.or_none(key, default, length, "a whole number above 0")
    }

    /// A whole number, 0 included; `default` if it is missing or null.
    pub(crate) fn count_or(&self, key: &str, default: usize) -> usize {
        let count = |value: &Value| value.as_u64().map(|count| count as usize);
        self.read(key, count, "a whole number").unwrap_or(default)
    }

    /// A number above 0 that must be there; 1 stands in for it.
    pub(crate) fn number(&self, key: &str) -> f64 {
        self.required(key, 1.0, |keys| keys.number_if_any(key, None))
    }

    /// A number above 0; `default` if it is missing or null.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> f64 {
        self.number_if_any(key, None).unwrap_or(default)
    }

    /// A number above 0, or none if it is null; `default` if it is missing.
    pub(crate) fn number_if_any(&self, key: &str, default: Option<f64>) -> Option<f64> {
        self.or_none(key, default, above_zero, "a number above 0")
    }

    /// A number above 0, or none if it is 0, null or missing.
    pub(crate) fn number_but_zero(&self, key: &str) -> Option<f64> {
        let number = |value: &Value| value.as_f64().filter(|number| *number >= 0.0 && number.is_finite());
        self.read(key, number, "a number, 0 or above").filter(|number| *number > 0.0)
    }

    /// true or false, if it is there.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.read(key, Value::as_bool, "true or false")
    }

    /// true or false; `default` if it is missing or null.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> bool {
        self.flag(key).unwrap_or(default)
    }

    /// A text, if there is one.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.read(key, Value::as_str, "a text")
    }

    /// A list of texts, if there is one.
    pub(crate) fn texts<'a>(&'a self, key: &str) -> Option<Vec<&'a str>> {
        let texts = |value: &'a Value| value.as_array()?.iter().map(Value::as_str).collect();
        self.read(key, texts, "a list of texts")
    }

    /// A list of whole numbers, if there is one.
    pub(crate) fn counts(&self, key: &str) -> Option<Vec<usize>> {
        let count = |value: &Value| value.as_u64().map(|count| count as usize);
        self.read(key, |value| value.as_array()?.iter().map(count).collect(), "a list of whole numbers")
    }

    /// A list of numbers above 0 that must be there; `count` ones stand in for it.
    pub(crate) fn numbers(&self, key: &str, count: usize) -> Vec<f64> {
        let numbers = |value: &Value| value.as_array()?.iter().map(above_zero).collect();
        let found = |keys: &Self| keys.read(key, numbers, "a list of numbers above 0");
        self.required(key, vec![1.0; count], found)
    }

    /// An activation by its name in Transformers; `default` if it is missing.
    pub(crate) fn activation(&self, key: &str, default: Activation) -> Activation {
        match self.text(key) {
            None => default,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu" | "gelu_python") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some("quick_gelu") => Activation::QuickGelu,
            Some(_) => {
                let known = "silu, gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu or relu";
                self.not_computed(key, "this activation", known);
                default
            }
        }
    }

    /// The value of a key by `read`, or none if it is null; `default` if it is missing or wrong.
    fn or_none<T>(&self, key: &str, default: Option<T>, read: fn(&Value) -> Option<T>, expected: &str) -> Option<T> {
        match self.keys.get(key) {
            Some(Value::Null) => None,
            _ => self.read(key, read, expected).or(default),
        }
    }

    /// The value of a key by `read`; none if it is missing, null or wrong.
    fn read<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>, expected: &str) -> Option<T> {
        let value = self.keys.get(key).filter(|value| !value.is_null())?;
        let found = read(value);
        if found.is_none() {
            let hint = format!("write {expected} there, or get config.json again from the model's source");
            self.fault(key, Error::input(format!("{key} = {}: {expected} was expected", shown(value))).hint(hint));
        }
        found
    }

    /// The value of a key by `read`; the key must be there.
    fn required<T>(&self, key: &str, stand_in: T, read: impl Fn(&Self) -> Option<T>) -> T {
        read(self).unwrap_or_else(|| {
            if !self.has(key) {
                self.missing(key);
            }
            stand_in
        })
    }

    /// Notes that a required key is missing.
    pub(crate) fn missing(&self, key: &str) {
        let hint = "get config.json again from the model's source";
        self.fault(key, Error::input(format!("{key} is missing")).hint(hint));
    }
}

/// The error for a feature that this program lacks.
pub(crate) fn not_computed(found: &str, what: &str, known: &str) -> Error {
    Error::input(format!("{found}: {what} is not computed by haf-dist")).hint(format!(
        "the file is right, and changing it would change the model; use a model with {known}, or ask for this one in an \
         issue"
    ))
}

fn above_zero(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| *number > 0.0 && number.is_finite())
}

/// A value as it is in the file, or its beginning.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}
