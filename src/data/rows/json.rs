//! Parses the JSON of one row, including tokens of some writers that are not JSON.
//!
//! NaN, infinities and texts with a lone surrogate, which Python writes and other parsers refuse, become values of `odd.rs`, as
//! does a duplicate key. Not here: where a row starts and ends (`mod.rs`).

use crate::data::rows::odd;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// A syntax error, and its place in the row's text.
pub(super) struct Broken {
    /// From 1.
    pub(super) line: usize,
    /// In bytes, from 1.
    pub(super) column: usize,
    pub(super) what: String,
}

/// Parses a row.
pub(super) fn parse(text: &[u8]) -> Result<Value, Broken> {
    let error = match serde_json::from_slice::<Row>(text) {
        Ok(row) => return Ok(row.0),
        Err(error) => error,
    };
    if let Err(error) = std::str::from_utf8(text) {
        let (good, bad) = text.split_at(error.valid_up_to());
        let line_start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        return Err(Broken {
            line: 1 + newlines(good),
            column: 1 + good.len() - line_start,
            what: format!("byte 0x{:02x} is not UTF-8", bad[0]),
        });
    }
    let error = match replace_non_json(text, blank).map(|text| serde_json::from_slice::<Row>(&text)) {
        None => error,
        // Another error, at its right place: a blank is as long as the token that it replaces.
        Some(Err(other)) => other,
        Some(Ok(_)) => match replace_non_json(text, as_odd).map(|text| serde_json::from_slice::<Row>(&text)) {
            Some(Ok(row)) => return Ok(row.0),
            _ => error,
        },
    };
    // Without the parser's own "at line 1 ...".
    let what = error.to_string();
    let what = match what.split(" at line ").next().unwrap_or(&what) {
        what if what.contains("surrogate") || what.contains("hex escape") => {
            format!("a lone surrogate (half a character): {what}")
        }
        what => what.to_owned(),
    };
    Err(Broken { line: error.line(), column: error.column(), what })
}

pub(super) fn newlines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// The value of `odd.rs` for a token that is not JSON.
fn as_odd(kind: &'static str, _: usize) -> Vec<u8> {
    odd::value(kind).to_string().into_bytes()
}

/// A number of the given length.
fn blank(_: &'static str, length: usize) -> Vec<u8> {
    format!("{:>length$}", 0).into_bytes()
}

/// The text with every token that is not JSON replaced; `None` if there is none.
fn replace_non_json(text: &[u8], replacement: fn(&'static str, usize) -> Vec<u8>) -> Option<Vec<u8>> {
    let words = [odd::NAN, odd::INFINITY, odd::MINUS_INFINITY];
    let (mut changed, mut rest, mut replaced) = (false, text, Vec::with_capacity(text.len()));
    while let Some(first) = rest.first() {
        let (length, odd) = match first {
            b'"' => {
                let length = text_length(rest);
                // A key stays as it is: nothing could read it.
                let is_key = rest[length..].trim_ascii_start().first() == Some(&b':');
                let lone = !is_key && has_lone_surrogate(&rest[..length]);
                (length, lone.then_some(odd::LONE_SURROGATE))
            }
            _ => {
                let whole = |word: &&str| {
                    let after = rest.strip_prefix(word.as_bytes());
                    after.is_some_and(|after| !after.first().is_some_and(u8::is_ascii_alphanumeric))
                };
                words.into_iter().find(whole).map_or((1, None), |word| (word.len(), Some(word)))
            }
        };
        let (token, after) = rest.split_at(length);
        match odd {
            Some(kind) => replaced.extend(replacement(kind, length)),
            None => replaced.extend(token),
        }
        (changed, rest) = (changed || odd.is_some(), after);
    }
    changed.then_some(replaced)
}

/// Length of the text in quotes that `rest` starts with, quotes included.
pub(super) fn text_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        at += match byte {
            b'"' => return at + 1,
            b'\\' => 2,
            _ => 1,
        };
    }
    rest.len()
}

/// Whether a text in quotes has one half of a UTF-16 pair without the other.
fn has_lone_surrogate(text: &[u8]) -> bool {
    let escaped = |at: usize| -> Option<u32> {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while at < text.len() {
        at += match (text[at], escaped(at)) {
            (b'\\', Some(0xd800..0xdc00)) => match escaped(at + 6) {
                Some(0xdc00..0xe000) => 12,
                _ => return true,
            },
            (b'\\', Some(0xdc00..0xe000)) => return true,
            (b'\\', Some(_)) => 6,
            (b'\\', None) => 2,
            _ => 1,
        };
    }
    false
}

/// A [`Value`] in which a duplicate key does not go unnoticed.
struct Row(Value);

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Row)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(odd::number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Row(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Row(value))) = entries.next_entry::<String, Row>()? {
            insert(&mut object, key, value);
        }
        Ok(object.into())
    }
}

/// Adds an entry; a key that already has another value becomes odd.
pub(in crate::data) fn insert(object: &mut Map<String, Value>, key: String, value: Value) {
    match object.get_mut(&key) {
        Some(other) if *other != value => *other = odd::value(odd::TWICE),
        Some(_) => {}
        None => drop(object.insert(key, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(text: &str) -> Value {
        parse(text.as_bytes()).unwrap_or_else(|broken| panic!("{text}: {}", broken.what))
    }

    #[test]
    fn what_python_writes_beyond_json_is_odd_where_it_stands() {
        let nan = odd::value(odd::NAN);
        let lone = odd::value(odd::LONE_SURROGATE);
        for (text, expected) in [
            (r#"{"a": NaN}"#, json!({"a": nan})),
            (r#"{"a": [1, -Infinity, Infinity]}"#, {
                json!({"a": [1, odd::value(odd::MINUS_INFINITY), odd::value(odd::INFINITY)]})
            }),
            (r#"{"NaN": "NaN", "b\"NaN": NaN}"#, json!({"NaN": "NaN", "b\"NaN": nan})),
            (r#"{"a": "x \ud83d.", "b": "\ud83e\udd80"}"#, json!({"a": lone, "b": "🦀"})),
            (r#"["\udd80", "\\ud83d", "\ud83d\ud83e\udd80"]"#, json!([lone, "\\ud83d", lone])),
            (r#"{"a": 1, "a": 2, "b": 3, "b": 3}"#, json!({"a": odd::value(odd::TWICE), "b": 3})),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
        for (text, line, column, what) in [
            (&b"{\"a\": NaN, \"b\": }"[..], 1, 17, "expected value"),
            (b"{\"a\": \"\\ud83d\", \"b\": [Infinity, x]}", 1, 33, "expected value"),
            (b"{\"\\ud83d\": 1}", 1, 9, "lone surrogate"),
            (b"{\n\"a\": \"\xc3\xa9\xe9\"}", 2, 9, "byte 0xe9 is not UTF-8"),
            (b"{\"a\": NaNa}", 1, 7, "expected value"),
            (b"{\"a\": 1", 1, 7, "EOF"),
        ] {
            let broken = parse(text).err().unwrap();
            assert!(broken.what.contains(what), "{}", broken.what);
            assert_eq!((broken.line, broken.column), (line, column), "{}", broken.what);
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// JSON is read as serde_json reads it, also next to a token that is not JSON.
        #[test]
        fn json_is_read_as_json(value in values()) {
            prop_assert_eq!(parsed(&value.to_string()), value.clone());
            let beside = parsed(&format!("[{value}, NaN, \"\\ud83d\"]"));
            prop_assert_eq!(beside, json!([value, odd::value(odd::NAN), odd::value(odd::LONE_SURROGATE)]));
        }
    }
}
