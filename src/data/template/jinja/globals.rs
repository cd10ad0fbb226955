//! The functions that every template has: Jinja's, and those that Transformers adds.
//!
//! Not here: filters and tests.

use super::call::{Given, needed_text, whole};
use super::run::Run;
use super::value::{Range, Value};
use super::{Fault, Outcome, clock, print};
use std::collections::BTreeMap;

const NAMES: [&str; 7] = ["cycler", "dict", "joiner", "namespace", "raise_exception", "range", "strftime_now"];
/// The longest range that Jinja's sandbox allows.
const LONGEST_RANGE: usize = 100_000;

/// The function with this name.
pub(crate) fn function(name: &str) -> Option<Value> {
    NAMES.into_iter().find(|known| *known == name).map(Value::Function)
}

impl Run {
    pub(crate) fn call_function(&mut self, name: &str, given: Given) -> Outcome<Value> {
        match name {
            "range" => range(&given),
            "dict" => {
                let entries = self.entries(given)?;
                Value::dict(entries, &mut self.meter)
            }
            "namespace" => {
                let mut names = BTreeMap::new();
                for (key, value) in self.entries(given)? {
                    let key = needed_text(Some(&key))?;
                    if key.starts_with('_') {
                        return Err(Fault::new(format!(
                            "a namespace cannot hold `{key}`: it starts with an underscore"
                        )));
                    }
                    names.insert(key, value);
                }
                self.meter.items(names.len() * 2 + 1)?;
                self.namespaces.push(names);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            "cycler" => {
                if !given.named.is_empty() || given.positional.is_empty() {
                    return Err(Fault::new("cycler takes one or more items"));
                }
                self.meter.items(given.positional.len())?;
                self.cyclers.push((given.positional, 0));
                Ok(Value::Cycler(self.cyclers.len() - 1))
            }
            "joiner" => {
                let [separator] = given.named(["sep"])?;
                self.meter.items(1)?;
                self.joiners.push((separator.unwrap_or_else(|| Value::text(", ")), false));
                Ok(Value::Joiner(self.joiners.len() - 1))
            }
            "raise_exception" => {
                let [message] = given.named(["message"])?;
                let message = message.ok_or_else(|| Fault::new("raise_exception needs a message"))?;
                Err(Fault::new(print::text(&message, &mut self.meter)?))
            }
            _ => {
                let [format] = given.named(["format"])?;
                let format = needed_text(format.as_ref())?;
                // No code becomes more than 64 times as long.
                self.meter.bytes(format.len().saturating_mul(64))?;
                Ok(Value::text(&clock::strftime(&format)))
            }
        }
    }

    /// Empty the first time, then the separator.
    pub(crate) fn join_next(&mut self, number: usize, given: &Given) -> Outcome<Value> {
        given.none()?;
        let Some((separator, used)) = self.joiners.get_mut(number) else { return Ok(Value::text("")) };
        Ok(if std::mem::replace(used, true) { separator.clone() } else { Value::text("") })
    }

    /// Entries as Python's `dict` takes them: another dict or pairs, then names.
    fn entries(&mut self, given: Given) -> Outcome<Vec<(Value, Value)>> {
        let mut entries = Vec::new();
        match &given.positional[..] {
            [] => {}
            [Value::Dict(dict)] => {
                self.meter.items(dict.entries.len() * 2)?;
                entries.extend(dict.entries.iter().cloned());
            }
            [pairs] => {
                for pair in self.items(pairs)? {
                    match &self.items(&pair)?[..] {
                        [key, value] => entries.push((key.clone(), value.clone())),
                        _ => return Err(Fault::new("a dict is made of pairs")),
                    }
                }
            }
            _ => return Err(Fault::new("a dict is made of one dict or list at most")),
        }
        entries.extend(given.named.into_iter().map(|(name, value)| (Value::Text(name), value)));
        Ok(entries)
    }
}

fn range(given: &Given) -> Outcome<Value> {
    let [first, second, step] = given.plain(1)?;
    let (first, step) = (whole(first.as_ref(), 0)?, whole(step.as_ref(), 1)?);
    let (start, stop) = if second.is_some() { (first, whole(second.as_ref(), 0)?) } else { (0, first) };
    if step == 0 {
        return Err(Fault::new("a range's step cannot be zero"));
    }
    let bounded = |number: i128| number.unsigned_abs() < 1 << 64;
    let range = Range { start, stop, step };
    if ![start, stop, step].into_iter().all(bounded) || range.len() > LONGEST_RANGE {
        return Err(Fault::bound(format!("a range may hold {LONGEST_RANGE} numbers at most")));
    }
    Ok(Value::Range(range))
}
