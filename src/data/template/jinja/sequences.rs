//! Values with items: iteration, length, index and slices.
//!
//! Not here: methods (`methods.rs`) and filters (`filters.rs`).

use super::run::Run;
use super::value::{Range, Value};
use super::{Fault, Outcome};

impl Run {
    /// The items of a value, one after the other; a generator has none left after that.
    pub(crate) fn items(&mut self, value: &Value) -> Outcome<Vec<Value>> {
        let items = match value {
            Value::Undefined(_) => Vec::new(),
            Value::Text(text) => {
                self.meter.items(text.chars().count())?;
                text.chars().map(|c| Value::text(c.encode_utf8(&mut [0; 4]))).collect()
            }
            Value::List(sequence) | Value::Tuple(sequence) | Value::View(_, sequence) => {
                self.meter.items(sequence.items.len())?;
                sequence.items.clone()
            }
            Value::Dict(dict) => {
                self.meter.items(dict.entries.len())?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Value::Range(range) => {
                self.meter.items(range.len())?;
                (0..range.len()).filter_map(|at| range.get(at)).collect()
            }
            Value::Iterator(number) => match self.iterators.get_mut(*number) {
                Some(left) => std::mem::take(left),
                None => Vec::new(),
            },
            other => return Err(Fault::new(format!("a {} has no items", other.type_name()))),
        };
        Ok(items)
    }

    /// The first item of a value; a generator then no longer has it.
    pub(crate) fn first(&mut self, value: &Value) -> Outcome<Option<Value>> {
        if let Value::Iterator(number) = value {
            let left = self.iterators.get_mut(*number).filter(|left| !left.is_empty());
            self.meter.steps(left.as_ref().map_or(0, |left| left.len()))?;
            return Ok(left.map(|left| left.remove(0)));
        }
        Ok(self.items(value)?.into_iter().next())
    }

    /// A generator of these items.
    pub(crate) fn generator(&mut self, items: Vec<Value>) -> Outcome<Value> {
        // Charged like a list, whose depth is bounded, too.
        Value::sequence(items.clone(), &mut self.meter)?;
        self.iterators.push(items);
        Ok(Value::Iterator(self.iterators.len() - 1))
    }

    /// Python's `len`.
    pub(crate) fn length(&mut self, value: &Value) -> Outcome<usize> {
        Ok(match value {
            Value::Undefined(_) => 0,
            Value::Text(text) => {
                self.meter.read(text)?;
                text.chars().count()
            }
            Value::List(sequence) | Value::Tuple(sequence) | Value::View(_, sequence) => sequence.items.len(),
            Value::Dict(dict) => dict.entries.len(),
            Value::Range(range) => range.len(),
            other => return Err(Fault::new(format!("a {} has no length", other.type_name()))),
        })
    }

    /// Python's `in`.
    pub(crate) fn contains(&mut self, container: &Value, item: &Value) -> Outcome<bool> {
        match (container, item) {
            (Value::Text(text), Value::Text(part)) => {
                self.meter.read(text)?;
                Ok(text.contains(&**part))
            }
            (Value::Text(_), other) => Err(Fault::new(format!("a {} cannot be in a str", other.type_name()))),
            (Value::Dict(dict), key) => Ok(dict.position(key, &mut self.meter)?.is_some()),
            (container, item) => {
                for candidate in self.items(container)? {
                    if super::value::equal(&candidate, item, &mut self.meter)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// The item at an index, counted from the end where negative.
    pub(crate) fn at_index(&mut self, value: &Value, index: i128) -> Outcome<Option<Value>> {
        let length = self.length(value)?;
        let at = if index < 0 { index + i128::try_from(length).unwrap_or_default() } else { index };
        let Some(at) = usize::try_from(at).ok().filter(|at| *at < length) else { return Ok(None) };
        Ok(match value {
            Value::Text(text) => text.chars().nth(at).map(|c| Value::text(c.encode_utf8(&mut [0; 4]))),
            Value::List(sequence) | Value::Tuple(sequence) => sequence.items.get(at).cloned(),
            Value::Range(range) => range.get(at),
            _ => None,
        })
    }

    /// `value[start:stop:step]`.
    pub(crate) fn slice(&mut self, value: &Value, parts: [Option<Value>; 3]) -> Outcome<Value> {
        let mut bounds = [None; 3];
        for (bound, part) in bounds.iter_mut().zip(&parts) {
            *bound = match part {
                None | Some(Value::None) => None,
                Some(part) => Some(super::call::whole(Some(part), 0)?),
            };
        }
        let [start, stop, step] = bounds;
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Fault::new("a slice's step cannot be zero"));
        }
        if !matches!(value, Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_)) {
            return if value.is_undefined() {
                Err(Fault::new("an undefined value cannot be sliced"))
            } else {
                // As in Jinja: a slice of any other value is undefined.
                Ok(Value::undefined())
            };
        }
        let length = i128::try_from(self.length(value)?).unwrap_or_default();
        let clamp = |index: i128| {
            let index = if index < 0 { index.saturating_add(length) } else { index };
            if step > 0 { index.clamp(0, length) } else { index.clamp(-1, length - 1) }
        };
        let start = start.map_or(if step > 0 { 0 } else { length - 1 }, clamp);
        let stop = stop.map_or(if step > 0 { length } else { -1 }, clamp);
        let picked = Range { start, stop, step: step.clamp(-length - 1, length + 1) };
        match value {
            Value::Text(text) => {
                let characters: Vec<char> = text.chars().collect();
                self.meter.bytes(text.len().saturating_mul(4))?;
                let at = |at: usize| picked.get(at).and_then(|at| usize::try_from(at.as_int()?).ok());
                let cut = (0..picked.len()).filter_map(|index| characters.get(at(index)?)).collect();
                Value::new_text(cut, &mut self.meter)
            }
            Value::Range(range) => {
                let at = |index: i128| range.start.saturating_add(range.step.saturating_mul(index));
                Ok(Value::Range(Range {
                    start: at(start),
                    stop: at(stop),
                    step: range.step.saturating_mul(picked.step),
                }))
            }
            Value::List(sequence) | Value::Tuple(sequence) => {
                self.meter.items(picked.len())?;
                let at = |at: usize| picked.get(at).and_then(|at| usize::try_from(at.as_int()?).ok());
                let cut = (0..picked.len()).filter_map(|index| sequence.items.get(at(index)?).cloned()).collect();
                match value {
                    Value::List(_) => Value::list(cut, &mut self.meter),
                    _ => Value::tuple(cut, &mut self.meter),
                }
            }
            _ => Ok(Value::undefined()),
        }
    }
}
