//! Attributes and items of values: methods of lists, tuples and dicts, and attributes of loops and similar objects.
//!
//! Methods that would change a value are missing, as in Transformers' sandbox.
//!
//! Not here: methods of texts; those are `strings.rs`.

use super::call::{Given, needed_text, whole};
use super::run::Run;
use super::value::{Dict, Value, equal};
use super::{Fault, Outcome, strings};
use std::sync::Arc;

const OF_DICTS: [&str; 5] = ["copy", "get", "items", "keys", "values"];
const OF_LISTS: [&str; 3] = ["copy", "count", "index"];
const OF_TUPLES: [&str; 2] = ["count", "index"];
const OF_CYCLERS: [&str; 2] = ["next", "reset"];
const OF_LOOPS: [&str; 2] = ["changed", "cycle"];
const OF_FLOATS: [&str; 1] = ["is_integer"];

impl Run {
    /// A value's method with this name.
    fn method(&mut self, value: &Value, name: &str) -> Outcome<Option<Value>> {
        let names: &[&'static str] = match value {
            Value::Text(_) => &strings::NAMES,
            Value::Dict(_) => &OF_DICTS,
            Value::List(_) => &OF_LISTS,
            Value::Tuple(_) | Value::Range(_) => &OF_TUPLES,
            Value::Cycler(_) => &OF_CYCLERS,
            Value::Loop(_) => &OF_LOOPS,
            Value::Float(_) => &OF_FLOATS,
            _ => &[],
        };
        let Some(name) = names.iter().find(|known| **known == name) else { return Ok(None) };
        // A method holds its value: as deep as a list around it.
        Value::sequence(vec![value.clone()], &mut self.meter)?;
        Ok(Some(Value::Method(Arc::new((value.clone(), name)))))
    }

    /// `value.name`.
    pub(crate) fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Outcome<Value> {
        if let Value::Undefined(of) = value {
            let of =
                of.as_ref().map_or_else(|| "an undefined value".to_owned(), |of| format!("`{of}` is undefined and"));
            return Err(Fault::new(format!("{of} has no attribute `{name}`")));
        }
        if name.starts_with("__") {
            return Ok(Value::Undefined(Some(name.clone())));
        }
        if let Some(method) = self.method(value, name)? {
            return Ok(method);
        }
        let found = match value {
            Value::Dict(dict) => dict.get_name(name, &mut self.meter)?,
            Value::Namespace(number) => self.namespaces.get(*number).and_then(|names| names.get(name).cloned()),
            Value::Tuple(sequence) if sequence.is_group => match &**name {
                "grouper" => sequence.items.first().cloned(),
                "list" => sequence.items.get(1).cloned(),
                _ => None,
            },
            Value::Cycler(number) if &**name == "current" => {
                self.cyclers.get(*number).and_then(|(values, at)| values.get(*at).cloned())
            }
            Value::Loop(number) => self.loop_attribute(*number, name)?,
            Value::Macro(number) => self.macro_attribute(*number, name)?,
            _ => None,
        };
        Ok(found.unwrap_or_else(|| Value::Undefined(Some(name.clone()))))
    }

    /// `value[key]`.
    pub(crate) fn item(&mut self, value: &Value, key: &Value) -> Outcome<Value> {
        if let Value::Undefined(of) = value {
            let of = of.as_deref().unwrap_or("value");
            return Err(Fault::new(format!("`{of}` is undefined and has no items")));
        }
        let found = match (value, key) {
            (Value::Dict(_), Value::List(_) | Value::Dict(_)) => None,
            (Value::Dict(dict), key) => dict.get(key, &mut self.meter)?,
            (Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_), key) => match key.as_int() {
                Some(index) => self.at_index(value, index)?,
                None => None,
            },
            _ => None,
        };
        match (found, key) {
            (Some(found), _) => Ok(found),
            (None, Value::Text(name)) if matches!(value, Value::Dict(_)) => {
                let method = self.method(value, name)?;
                Ok(method.unwrap_or_else(|| Value::Undefined(Some(name.clone()))))
            }
            (None, Value::Text(name)) => self.attribute(value, name),
            _ => Ok(Value::undefined()),
        }
    }

    pub(crate) fn call_method(&mut self, value: &Value, name: &str, given: &Given) -> Outcome<Value> {
        match value {
            Value::Text(text) => strings::call(self, text, name, given),
            Value::Dict(dict) => self.dict_method(value, dict, name, given),
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => self.list_method(value, name, given),
            Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
            Value::Cycler(number) => {
                given.none()?;
                let Some((values, at)) = self.cyclers.get_mut(*number) else { return Ok(Value::None) };
                if name == "reset" {
                    *at = 0;
                    return Ok(Value::None);
                }
                let current = values.get(*at).cloned();
                *at = (*at + 1) % values.len().max(1);
                Ok(current.unwrap_or(Value::None))
            }
            Value::Loop(number) => self.loop_method(*number, name, given),
            other => Err(Fault::new(format!("a {} has no method `{name}`", other.type_name()))),
        }
    }

    fn dict_method(&mut self, value: &Value, dict: &Dict, name: &str, given: &Given) -> Outcome<Value> {
        let view = |run: &mut Self, name, items| Ok(Value::View(name, Value::sequence(items, &mut run.meter)?));
        match name {
            "get" => {
                let [key, default] = given.plain(1)?;
                let found = dict.get(&key.unwrap_or(Value::None), &mut self.meter)?;
                return Ok(found.or(default).unwrap_or(Value::None));
            }
            "copy" => {
                given.none()?;
                return Ok(value.clone());
            }
            _ => given.none()?,
        }
        self.meter.items(dict.entries.len())?;
        match name {
            "keys" => view(self, "keys", dict.entries.iter().map(|(key, _)| key.clone()).collect()),
            "values" => view(self, "values", dict.entries.iter().map(|(_, value)| value.clone()).collect()),
            _ => {
                let pair = |(key, value): &(Value, Value)| vec![key.clone(), value.clone()];
                let pairs: Vec<_> = dict.entries.iter().map(pair).collect();
                let pairs = pairs.into_iter().map(|pair| Value::tuple(pair, &mut self.meter));
                let pairs = pairs.collect::<Outcome<Vec<_>>>()?;
                view(self, "items", pairs)
            }
        }
    }

    fn list_method(&mut self, value: &Value, name: &str, given: &Given) -> Outcome<Value> {
        if name == "copy" {
            given.none()?;
            return Ok(value.clone());
        }
        let [wanted] = given.plain(1)?;
        let wanted = wanted.unwrap_or(Value::None);
        let mut count = 0;
        for (at, item) in self.items(value)?.iter().enumerate() {
            if equal(item, &wanted, &mut self.meter)? {
                if name == "index" {
                    return Ok(Value::Int(i128::try_from(at).unwrap_or_default()));
                }
                count += 1;
            }
        }
        match name {
            "index" => Err(Fault::new("index: the item is not in the list")),
            _ => Ok(Value::Int(count)),
        }
    }

    /// An attribute by a filter's path: `a.b.0`.
    pub(crate) fn path(&mut self, value: &Value, path: &Value) -> Outcome<Value> {
        let mut value = value.clone();
        match path {
            Value::Text(path) => {
                for part in path.split('.') {
                    let key = match part.parse() {
                        Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(index),
                        _ => Value::text(part),
                    };
                    value = self.item(&value, &key)?;
                }
                Ok(value)
            }
            other => self.item(&value, &Value::Int(whole(Some(other), 0)?)),
        }
    }

    /// The text of an argument, or a default.
    pub(crate) fn text_or(&mut self, value: Option<&Value>, default: &str) -> Outcome<Arc<str>> {
        match value {
            None => Ok(default.into()),
            value => needed_text(value),
        }
    }
}
