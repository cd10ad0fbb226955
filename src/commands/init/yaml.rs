//! Reads the YAML of a config: a mapping of names to scalars, lists and mappings, each name with its line.
//!
//! Plain scalars are read as by PyYAML, with `yes`, `off` and `1_000`. Not here: the meaning of the names (`translate.rs`).

use super::content::{Content, DEEPEST, Item, Unread};
use crate::error::{Error, Result};
use crate::panics::contain;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Value};

type Events<'t> = Parser<'t, saphyr_parser::StrInput<'t>>;

/// Reads a text.
///
/// # Errors
/// Broken YAML, or YAML that is not a config: several documents, no mapping, deep nesting.
pub(crate) fn read(text: &str) -> Result<Content> {
    // The parser may panic on hostile text.
    contain(|| Reader { events: Parser::new_from_str(text), content: Content::default() }.read())
        .unwrap_or_else(|panic| Err(Error::input(format!("not YAML that can be read: {panic}"))))
}

struct Reader<'t> {
    events: Events<'t>,
    content: Content,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, usize)> {
        let event: Option<std::result::Result<(Event<'t>, Span), ScanError>> = self.events.next_event();
        match event {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => {
                Err(Error::input(format!("line {}: not YAML: {}", error.marker().line(), error.info()))
                    .hint("correct it, or give the model and the data with --model and --train"))
            }
            None => Err(Error::input("not YAML: the text ends too early")),
        }
    }

    fn read(mut self) -> Result<Content> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::MappingStart(..), _) => break,
                (Event::StreamEnd | Event::DocumentEnd, _) => return Ok(self.content),
                (Event::Scalar(text, ScalarStyle::Plain, ..), _) if text.is_empty() => {}
                (_, line) => return Err(not_a_mapping(line)),
            }
        }
        loop {
            let (name, line) = match self.next()? {
                (Event::MappingEnd, _) => break,
                (Event::Scalar(name, ..), line) => (name.into_owned(), line),
                (_, line) => return Err(not_a_mapping(line)),
            };
            let value = self.next()?;
            let value = self.value(value, 1)?;
            self.content.items.push(Item { name, value, line });
        }
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(self.content),
                (Event::DocumentStart(_), line) => {
                    return Err(Error::input(format!("line {line}: a second document starts, expected only one"))
                        .hint("put the config into a file of its own"));
                }
                _ => {}
            }
        }
    }

    /// The value that starts with an event.
    fn value(&mut self, (event, line): (Event<'t>, usize), depth: usize) -> Result<Value> {
        if depth > DEEPEST {
            return Err(Error::input(format!("line {line}: nested deeper than {DEEPEST}, which no config is")));
        }
        match event {
            Event::Scalar(text, style, ..) => Ok(if style == ScalarStyle::Plain { plain(&text) } else { text.into() }),
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => return Ok(Value::Array(list)),
                        event => list.push(self.value(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut object = Map::new();
                loop {
                    let name = match self.next()? {
                        (Event::MappingEnd, _) => return Ok(Value::Object(object)),
                        event => match self.value(event, depth + 1)? {
                            Value::String(name) => name,
                            other => other.to_string(),
                        },
                    };
                    let value = self.next()?;
                    let value = self.value(value, depth + 1)?;
                    object.insert(name, value);
                }
            }
            Event::Alias(_) => {
                let why = "an alias (*name) is not followed";
                self.content.unread.push(Unread { line, text: "an alias".to_owned(), why, name: None });
                Ok(Value::Null)
            }
            _ => Err(Error::input(format!("line {line}: expected a value"))),
        }
    }
}

fn not_a_mapping(line: usize) -> Error {
    Error::input(format!("line {line}: expected names with values, as in learning_rate: 1.0e-5"))
        .hint("--from reads configs of TRL and LLaMA-Factory")
}

/// A scalar without quotes.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" | "None" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    number(text).unwrap_or_else(|| text.into())
}

/// A finite number, `1_000` and `1e-5` too.
pub(crate) fn number(text: &str) -> Option<Value> {
    let starts =
        text.trim_start_matches(['-', '+']).starts_with(|letter: char| letter.is_ascii_digit() || letter == '.');
    if !starts || text.starts_with('_') {
        return None;
    }
    let digits = text.replace('_', "");
    let whole = digits.trim_start_matches('+').parse::<i64>().ok().map(Value::from);
    whole.or_else(|| digits.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn items(text: &str) -> Vec<(String, Value, usize)> {
        read(text).unwrap().items.into_iter().map(|item| (item.name, item.value, item.line)).collect()
    }

    #[test]
    fn scalars_are_what_pyyaml_makes_of_them_and_names_have_their_lines() {
        let found = items(
            "# a config\na: 1e-5\nb: yes\nc: 'yes'\nd:\ne: [x, 2]\nf:\n  - path: p\n    split: train[:5]\ng: -3\n",
        );
        let value =
            |name: &str| found.iter().find(|(one, ..)| one == name).map(|(_, value, line)| (value.clone(), *line));
        assert_eq!(value("a"), Some((json!(1e-5), 2)));
        assert_eq!(value("b"), Some((json!(true), 3)));
        assert_eq!(value("c"), Some((json!("yes"), 4)));
        assert_eq!(value("d"), Some((Value::Null, 5)));
        assert_eq!(value("e"), Some((json!(["x", 2]), 6)));
        assert_eq!(value("f"), Some((json!([{"path": "p", "split": "train[:5]"}]), 7)));
        assert_eq!(value("g"), Some((json!(-3), 10)));
    }

    #[test]
    fn hostile_texts_are_errors_or_say_nothing() {
        for nothing in ["", "\n\n", "# only this\n", "---\n"] {
            assert_eq!(read(nothing).unwrap().items, [], "{nothing:?}");
        }
        let deep = format!("a: {}", "[".repeat(60_000));
        let deep_block = format!("a:\n{}x", "- ".repeat(60_000));
        let nested: String = (0..2000).map(|depth| format!("{}k:\n", " ".repeat(depth))).collect();
        let long = format!("a: {}", "x".repeat(900_000));
        for broken in [
            &deep[..],
            &deep_block,
            &nested,
            "a: [1",
            "- a\n- b\n",
            "text",
            "a: 1\n---\nb: 2\n",
            "\u{0}\u{1}",
            "a: \"x",
            "{a: *b}",
            "%YAML 9",
        ] {
            assert!(read(broken).is_err(), "{:?}", &broken[..broken.len().min(40)]);
        }
        assert!(read(&long).is_ok());
        // An alias could make a few bytes a billion values: none is followed.
        let read = read("a: &x [1]\nb: *x\n").unwrap();
        assert_eq!((read.items.len(), read.unread.len()), (2, 1));
    }
}
