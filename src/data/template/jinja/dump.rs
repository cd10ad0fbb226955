//! The filter `tojson` as Transformers has it: Python's `json.dumps`, which escapes nothing for HTML.
//!
//! Not here: reading JSON; values come from `serde_json`.

use super::call::Given;
use super::meter::Meter;
use super::print;
use super::value::Value;
use super::{Fault, Outcome};

struct Style {
    ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sort: bool,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(crate) fn to_json(value: &Value, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let [ascii, indent, separators, sort] = given.named(["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Text(text)) => Some(text.to_string()),
        Some(other) => match other.as_int() {
            Some(width) => {
                let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
                meter.bytes(width)?;
                Some(" ".repeat(width))
            }
            None => return Err(Fault::new(format!("tojson: indent cannot be a {}", other.type_name()))),
        },
    };
    let (between, after_key) = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(Value::List(pair) | Value::Tuple(pair)) => match &pair.items[..] {
            [Value::Text(between), Value::Text(after_key)] => (between.to_string(), after_key.to_string()),
            _ => return Err(Fault::new("tojson: separators must be two texts")),
        },
        Some(_) => return Err(Fault::new("tojson: separators must be two texts")),
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style { ascii: is_true(ascii), indent, between, after_key, sort: is_true(sort) };
    let mut text = String::new();
    style.write(value, 0, &mut text, meter)?;
    Ok(Value::Text(text.into()))
}

impl Style {
    fn write(&self, value: &Value, level: usize, into: &mut String, meter: &mut Meter) -> Outcome<()> {
        match value {
            Value::Text(text) => self.string(text, into, meter),
            Value::List(sequence) | Value::Tuple(sequence) => {
                into.push('[');
                for (at, item) in sequence.items.iter().enumerate() {
                    self.item(at, level + 1, into, meter)?;
                    self.write(item, level + 1, into, meter)?;
                }
                self.close(sequence.items.is_empty(), level, ']', into, meter)
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                meter.items(entries.len())?;
                if self.sort {
                    // Python sorts keys before it converts them to texts; keys of several types have no order there.
                    let names: Option<Vec<&str>> = entries.iter().map(|(key, _)| key.as_text()).collect();
                    names.ok_or_else(|| Fault::new("tojson: sort_keys needs keys that are texts"))?;
                    entries.sort_by(|(one, _), (other, _)| one.as_text().cmp(&other.as_text()));
                }
                into.push('{');
                for (at, (key, value)) in entries.into_iter().enumerate() {
                    self.item(at, level + 1, into, meter)?;
                    match key {
                        Value::Text(text) => self.string(text, into, meter)?,
                        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                            into.push('"');
                            self.write(key, level, into, meter)?;
                            into.push('"');
                        }
                        other => return Err(Fault::new(format!("tojson: a {} cannot be a key", other.type_name()))),
                    }
                    into.push_str(&self.after_key);
                    self.write(value, level + 1, into, meter)?;
                }
                self.close(dict.entries.is_empty(), level, '}', into, meter)
            }
            scalar => {
                meter.bytes(8)?;
                into.push_str(&match scalar {
                    Value::None => "null".into(),
                    Value::Bool(value) => value.to_string(),
                    Value::Int(value) => value.to_string(),
                    Value::Float(value) if value.is_nan() => "NaN".into(),
                    Value::Float(value) if value.is_infinite() && *value > 0.0 => "Infinity".into(),
                    Value::Float(value) if value.is_infinite() => "-Infinity".into(),
                    Value::Float(value) => print::float(*value),
                    other => return Err(Fault::new(format!("tojson: JSON has no {}", other.type_name()))),
                });
                Ok(())
            }
        }
    }

    /// Writes the text before an item: a separator, and a line break if there is an indent.
    fn item(&self, at: usize, level: usize, into: &mut String, meter: &mut Meter) -> Outcome<()> {
        let between = if at == 0 { "" } else { &self.between };
        meter.bytes(between.len() + self.after_key.len() + 1)?;
        into.push_str(between);
        self.line(level, into, meter)
    }

    fn close(&self, empty: bool, level: usize, close: char, into: &mut String, meter: &mut Meter) -> Outcome<()> {
        if !empty {
            self.line(level, into, meter)?;
        }
        into.push(close);
        Ok(())
    }

    fn line(&self, level: usize, into: &mut String, meter: &mut Meter) -> Outcome<()> {
        if let Some(indent) = &self.indent {
            meter.bytes(indent.len().saturating_mul(level) + 1)?;
            into.push('\n');
            into.push_str(&indent.repeat(level));
        }
        Ok(())
    }

    fn string(&self, text: &str, into: &mut String, meter: &mut Meter) -> Outcome<()> {
        let start = into.len();
        // The longest escape has six bytes for one.
        meter.bytes(text.len())?;
        into.push('"');
        for c in text.chars() {
            match c {
                '"' => into.push_str("\\\""),
                '\\' => into.push_str("\\\\"),
                '\n' => into.push_str("\\n"),
                '\r' => into.push_str("\\r"),
                '\t' => into.push_str("\\t"),
                '\x08' => into.push_str("\\b"),
                '\x0c' => into.push_str("\\f"),
                c if c < ' ' || (self.ascii && !matches!(c, ' '..='~')) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        into.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => into.push(c),
            }
        }
        into.push('"');
        meter.bytes(into.len() - start)
    }
}
