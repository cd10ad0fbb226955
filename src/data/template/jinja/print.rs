//! Values as Python's `str` and `repr` write them.
//!
//! Not here: JSON (`dump.rs`) and format strings (`fields.rs`).

use super::meter::Meter;
use super::value::{Sequence, Value};
use super::{Fault, Outcome};

/// `str(value)`.
pub(crate) fn text(value: &Value, meter: &mut Meter) -> Outcome<String> {
    let mut text = String::new();
    match value {
        Value::Undefined(_) => {}
        Value::Text(content) => {
            meter.bytes(content.len())?;
            text.push_str(content);
        }
        _ => write(value, &mut text, meter)?,
    }
    Ok(text)
}

/// `repr(value)`.
pub(crate) fn shown(value: &Value, meter: &mut Meter) -> Outcome<String> {
    let mut text = String::new();
    write(value, &mut text, meter)?;
    Ok(text)
}

fn write(value: &Value, into: &mut String, meter: &mut Meter) -> Outcome<()> {
    let start = into.len();
    match value {
        Value::Undefined(_) => into.push_str("Undefined"),
        Value::None => into.push_str("None"),
        Value::Bool(value) => into.push_str(if *value { "True" } else { "False" }),
        Value::Int(value) => into.push_str(&value.to_string()),
        Value::Float(value) => into.push_str(&float(*value)),
        Value::Text(content) => {
            meter.bytes(content.len())?;
            quoted(content, into);
        }
        Value::List(sequence) => return items(sequence, ["[", "]", "]"], into, meter),
        Value::Tuple(sequence) => return items(sequence, ["(", ")", ",)"], into, meter),
        Value::View(name, sequence) => {
            into.push_str("dict_");
            into.push_str(name);
            return items(sequence, ["([", "])", "])"], into, meter);
        }
        Value::Dict(dict) => {
            into.push('{');
            for (at, (key, value)) in dict.entries.iter().enumerate() {
                into.push_str(if at == 0 { "" } else { ", " });
                write(key, into, meter)?;
                into.push_str(": ");
                write(value, into, meter)?;
                meter.bytes(4)?;
            }
            into.push('}');
        }
        Value::Range(range) if range.step == 1 => into.push_str(&format!("range({}, {})", range.start, range.stop)),
        Value::Range(range) => into.push_str(&format!("range({}, {}, {})", range.start, range.stop, range.step)),
        other => return Err(Fault::new(format!("a {} has no text", other.type_name()))),
    }
    match value {
        // Charged item by item.
        Value::Dict(_) => Ok(()),
        _ => meter.bytes(into.len() - start),
    }
}

fn items(
    sequence: &Sequence,
    [open, close, close_one]: [&str; 3],
    into: &mut String,
    meter: &mut Meter,
) -> Outcome<()> {
    into.push_str(open);
    for (at, item) in sequence.items.iter().enumerate() {
        into.push_str(if at == 0 { "" } else { ", " });
        write(item, into, meter)?;
        meter.bytes(2)?;
    }
    into.push_str(if sequence.items.len() == 1 { close_one } else { close });
    Ok(())
}

/// Python's shortest digits that give the number back; an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value < 0.0 { "-inf".into() } else { "inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A text in Python's quotes: double ones if it has single ones only.
fn quoted(text: &str, into: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    into.push(quote);
    for c in text.chars() {
        match c {
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            c if c == quote => into.extend(['\\', c]),
            c if is_printable(c) => into.push(c),
            c => match u32::from(c) {
                code @ ..0x100 => into.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..0x1_0000 => into.push_str(&format!("\\u{code:04x}")),
                code => into.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    into.push(quote);
}

/// Whether Python prints a character as it is. Rust's `escape_debug` of a text goes by the same Unicode categories.
pub(crate) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    // After a letter, since a combining character is escaped at the start of a text.
    let mut bytes = [0; 5];
    bytes[0] = b'a';
    let length = 1 + c.encode_utf8(&mut bytes[1..]).len();
    let text = std::str::from_utf8(&bytes[..length]).unwrap_or_default();
    text.escape_debug().count() == 2
}
