//! The values of a template, which behave like Python's: conversion from JSON, truth, equality and order.
//!
//! Not here: how they are printed (`print.rs`), operators (`operators.rs`), methods (`methods.rs`, `strings.rs`).

use super::meter::{Meter, VALUE_DEPTH};
use super::{Fault, Outcome};
use std::cmp::Ordering;
use std::sync::Arc;

/// A value. Those that can change or contain themselves are stored in the rendering, and have only their number here.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// An undefined name, if there is one; prints as nothing, has no attributes.
    Undefined(Option<Arc<str>>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    List(Arc<Sequence>),
    Tuple(Arc<Sequence>),
    /// The result of `keys`, `values` or `items`: the method's name, and the items.
    View(&'static str, Arc<Sequence>),
    Dict(Arc<Dict>),
    Range(Range),
    /// A generator: its items can be read only once.
    Iterator(usize),
    Namespace(usize),
    Cycler(usize),
    Joiner(usize),
    Macro(usize),
    /// The variable `loop` of a running loop.
    Loop(usize),
    Function(&'static str),
    Method(Arc<(Value, &'static str)>),
}

/// Items of a list or tuple.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) items: Vec<Value>,
    depth: u16,
    /// A group of `groupby`, whose two items have names too.
    pub(crate) is_group: bool,
}

/// Entries in order of insertion, looked up one by one: a template's dicts are short.
#[derive(Debug)]
pub(crate) struct Dict {
    pub(crate) entries: Vec<(Value, Value)>,
    depth: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: i128,
    pub(crate) stop: i128,
    pub(crate) step: i128,
}

impl Range {
    pub(crate) fn len(self) -> usize {
        let (from, to) = if self.step > 0 { (self.start, self.stop) } else { (self.stop, self.start) };
        if from >= to {
            return 0;
        }
        let last = to.saturating_sub(from).saturating_sub(1).unsigned_abs() / self.step.unsigned_abs().max(1);
        usize::try_from(last.saturating_add(1)).unwrap_or(usize::MAX)
    }

    pub(crate) fn get(self, index: usize) -> Option<Value> {
        let within = index < self.len();
        let far = self.step.saturating_mul(i128::try_from(index).unwrap_or_default());
        within.then(|| Value::Int(self.start.saturating_add(far)))
    }
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::None,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i128() {
                Some(whole) => Self::Int(whole),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::text(text),
            Json::Array(items) => items.iter().map(Self::from).collect::<Vec<_>>().into(),
            Json::Object(entries) => Self::object(entries.iter().map(|(key, value)| (&**key, Self::from(value)))),
        }
    }
}

impl From<Vec<Value>> for Value {
    /// A list from the input, to which no bound applies.
    fn from(items: Vec<Value>) -> Self {
        let depth = depth(&items).saturating_add(1);
        Self::List(Arc::new(Sequence { items, depth, is_group: false }))
    }
}

/// The nesting depth of these values.
fn depth<'a>(items: impl IntoIterator<Item = &'a Value>) -> u16 {
    items.into_iter().map(Value::depth).max().unwrap_or_default()
}

/// One level more, within the bound.
fn deeper(depth: u16) -> Outcome<u16> {
    if depth >= VALUE_DEPTH {
        return Err(Fault::bound(format!("the template makes values more than {VALUE_DEPTH} deep")));
    }
    Ok(depth + 1)
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    /// A dict from the input, to which no bound applies.
    pub(crate) fn object<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        let entries: Vec<_> = entries.into_iter().map(|(key, value)| (Self::text(key), value)).collect();
        let depth = depth(entries.iter().map(|(_, value)| value)).saturating_add(1);
        Self::Dict(Arc::new(Dict { entries, depth }))
    }

    fn depth(&self) -> u16 {
        match self {
            Self::List(sequence) | Self::Tuple(sequence) | Self::View(_, sequence) => sequence.depth,
            Self::Dict(dict) => dict.depth,
            Self::Method(method) => method.0.depth().saturating_add(1),
            _ => 0,
        }
    }

    pub(crate) fn sequence(items: Vec<Value>, meter: &mut Meter) -> Outcome<Arc<Sequence>> {
        meter.items(items.len())?;
        let depth = deeper(depth(&items))?;
        Ok(Arc::new(Sequence { items, depth, is_group: false }))
    }

    pub(crate) fn list(items: Vec<Value>, meter: &mut Meter) -> Outcome<Self> {
        Self::sequence(items, meter).map(Self::List)
    }

    pub(crate) fn tuple(items: Vec<Value>, meter: &mut Meter) -> Outcome<Self> {
        Self::sequence(items, meter).map(Self::Tuple)
    }

    /// The tuple `(grouper, list)` of `groupby`.
    pub(crate) fn group(grouper: Value, list: Value, meter: &mut Meter) -> Outcome<Self> {
        let items = vec![grouper, list];
        meter.items(items.len())?;
        let depth = deeper(depth(&items))?;
        Ok(Self::Tuple(Arc::new(Sequence { items, depth, is_group: true })))
    }

    /// A dict of these entries; a later one replaces the value of an earlier one.
    pub(crate) fn dict(given: Vec<(Value, Value)>, meter: &mut Meter) -> Outcome<Self> {
        let mut dict = Dict { entries: Vec::new(), depth: 0 };
        meter.items(given.len().saturating_mul(2))?;
        for (key, value) in given {
            match key {
                Self::List(_) | Self::Dict(_) => return Err(Fault::new("a list or dict cannot be a key")),
                Self::Undefined(_) => return Err(Fault::new("an undefined value cannot be a key")),
                _ => {}
            }
            match dict.position(&key, meter)? {
                Some(at) => dict.entries[at].1 = value,
                None => dict.entries.push((key, value)),
            }
        }
        dict.depth = deeper(depth(dict.entries.iter().flat_map(|(key, value)| [key, value])))?;
        Ok(Self::Dict(Arc::new(dict)))
    }

    /// A text, charged to the meter.
    pub(crate) fn new_text(text: String, meter: &mut Meter) -> Outcome<Self> {
        meter.bytes(text.len())?;
        Ok(Self::Text(text.into()))
    }

    pub(crate) fn undefined() -> Self {
        Self::Undefined(None)
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(sequence) | Self::Tuple(sequence) | Self::View(_, sequence) => !sequence.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Range(range) => range.len() > 0,
            _ => true,
        }
    }

    /// Python's name of its type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "undefined value",
            Self::None => "none",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::View(..) => "dict view",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::Iterator(_) => "generator",
            Self::Namespace(_) => "namespace",
            Self::Cycler(_) | Self::Joiner(_) | Self::Loop(_) => "object",
            Self::Macro(_) | Self::Function(_) | Self::Method(_) => "function",
        }
    }

    /// A bool or whole number as a number.
    pub(crate) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Any number.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_callable(&self) -> bool {
        matches!(
            self,
            Self::Macro(_) | Self::Function(_) | Self::Method(_) | Self::Joiner(_) | Self::Loop(_) | Self::Undefined(_)
        )
    }
}

impl Dict {
    /// The index of a key.
    pub(crate) fn position(&self, key: &Value, meter: &mut Meter) -> Outcome<Option<usize>> {
        for (at, (known, _)) in self.entries.iter().enumerate() {
            if equal(known, key, meter)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    pub(crate) fn get(&self, key: &Value, meter: &mut Meter) -> Outcome<Option<Value>> {
        Ok(self.position(key, meter)?.map(|at| self.entries[at].1.clone()))
    }

    pub(crate) fn get_name(&self, name: &str, meter: &mut Meter) -> Outcome<Option<Value>> {
        meter.steps(self.entries.len())?;
        let found = self.entries.iter().find(|(key, _)| key.as_text() == Some(name));
        Ok(found.map(|(_, value)| value.clone()))
    }
}

/// Python's `==`.
pub(crate) fn equal(one: &Value, other: &Value, meter: &mut Meter) -> Outcome<bool> {
    meter.steps(1)?;
    Ok(match (one, other) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(one), Value::Text(other)) => {
            if one.len() == other.len() {
                meter.read(one)?;
            }
            one == other
        }
        (Value::List(one), Value::List(other)) | (Value::Tuple(one), Value::Tuple(other)) => {
            if one.items.len() != other.items.len() {
                return Ok(false);
            }
            for (one, other) in one.items.iter().zip(&other.items) {
                if !equal(one, other, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(one), Value::Dict(other)) => {
            if one.entries.len() != other.entries.len() {
                return Ok(false);
            }
            for (key, value) in &one.entries {
                let Some(at) = other.position(key, meter)? else { return Ok(false) };
                if !equal(value, &other.entries[at].1, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Range(one), Value::Range(other)) => {
            one.len() == other.len()
                && (one.len() == 0 || one.start == other.start && (one.len() == 1 || one.step == other.step))
        }
        (Value::Namespace(one), Value::Namespace(other))
        | (Value::Iterator(one), Value::Iterator(other))
        | (Value::Cycler(one), Value::Cycler(other))
        | (Value::Joiner(one), Value::Joiner(other))
        | (Value::Macro(one), Value::Macro(other))
        | (Value::Loop(one), Value::Loop(other)) => one == other,
        (Value::Function(one), Value::Function(other)) => one == other,
        _ => match (one.as_int(), other.as_int()) {
            (Some(one), Some(other)) => one == other,
            #[allow(clippy::float_cmp)]
            _ => one.as_float().zip(other.as_float()).is_some_and(|(one, other)| one == other),
        },
    })
}

/// Python's order; `None` if one of two numbers is NaN.
///
/// # Errors
/// The two have no order.
pub(crate) fn order(one: &Value, other: &Value, meter: &mut Meter) -> Outcome<Option<Ordering>> {
    meter.steps(1)?;
    match (one, other) {
        (Value::Text(one), Value::Text(other)) => {
            meter.read(if one.len() < other.len() { one } else { other })?;
            Ok(Some(one.cmp(other)))
        }
        (Value::List(one), Value::List(other)) | (Value::Tuple(one), Value::Tuple(other)) => {
            for (one, other) in one.items.iter().zip(&other.items) {
                if !equal(one, other, meter)? {
                    return order(one, other, meter);
                }
            }
            Ok(Some(one.items.len().cmp(&other.items.len())))
        }
        _ => {
            if let (Some(one), Some(other)) = (one.as_int(), other.as_int()) {
                return Ok(Some(one.cmp(&other)));
            }
            if let (Some(one), Some(other)) = (one.as_float(), other.as_float()) {
                return Ok(one.partial_cmp(&other));
            }
            Err(Fault::new(format!("{} and {} have no order", one.type_name(), other.type_name())))
        }
    }
}
