//! Odd values, which files contain and JSON cannot hold: NaN, lone surrogates, bytes, dates.
//!
//! Such a value does no harm in a key that is not read, and must not be taken for a text or a number in one that is. In the
//! row it is an object that no key expects, so that reading it is an error, and `kind` says what it is. Not here: reading
//! files.

use serde_json::{Map, Number, Value};

pub(in crate::data) const NAN: &str = "NaN";
pub(in crate::data) const INFINITY: &str = "Infinity";
pub(in crate::data) const MINUS_INFINITY: &str = "-Infinity";
pub(in crate::data) const LONE_SURROGATE: &str = "a text with a lone surrogate (half a character)";
pub(in crate::data) const NOT_UTF8: &str = "a text that is not UTF-8";
pub(in crate::data) const BINARY: &str = "binary data";
pub(in crate::data) const DATE: &str = "a date or a time";
pub(in crate::data) const TWICE: &str = "given twice, with different values";

const KINDS: [&str; 8] = [NAN, INFINITY, MINUS_INFINITY, LONE_SURROGATE, NOT_UTF8, BINARY, DATE, TWICE];

/// The only key of such an object.
pub(super) const KEY: &str = "\0";

/// A value of one of the kinds above.
pub(in crate::data) fn value(kind: &'static str) -> Value {
    Value::Object(Map::from_iter([(KEY.to_owned(), Value::from(kind))]))
}

/// Which of the kinds above an object stands for; `None` for an ordinary one.
pub(in crate::data) fn kind(object: &Map<String, Value>) -> Option<&'static str> {
    let said = object.get(KEY).filter(|_| object.len() == 1)?.as_str()?;
    KINDS.into_iter().find(|kind| *kind == said)
}

/// The kind of the first such value in `value`, or of `value` itself.
pub(in crate::data) fn within(value: &Value) -> Option<&'static str> {
    match value {
        Value::Object(object) => kind(object).or_else(|| object.values().find_map(within)),
        Value::Array(list) => list.iter().find_map(within),
        _ => None,
    }
}

/// A number, as an odd value if JSON cannot hold it.
pub(in crate::data) fn number(number: f64) -> Value {
    Number::from_f64(number).map(Value::Number).unwrap_or_else(|| {
        value(match number {
            f64::INFINITY => INFINITY,
            f64::NEG_INFINITY => MINUS_INFINITY,
            _ => NAN,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_json_cannot_hold_is_an_object_that_says_what_it_is() {
        assert_eq!(number(0.5), json!(0.5));
        for (value, said) in [(number(f64::NAN), NAN), (number(-f64::INFINITY), MINUS_INFINITY), (value(DATE), DATE)] {
            assert_eq!(kind(value.as_object().unwrap()), Some(said));
        }
        for ordinary in [json!({}), json!({"\0": "other"}), json!({"\0": NAN, "a": 1}), json!({"NaN": NAN})] {
            assert_eq!(kind(ordinary.as_object().unwrap()), None);
        }
    }
}
