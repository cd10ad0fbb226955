//! Python's methods of `str`.
//!
//! Not here: classes of characters (`characters.rs`), methods of lists and dicts (`methods.rs`), format strings (`fields.rs`).

use super::call::{Given, needed_text, whole};
use super::characters::{cased, is, is_line_end, is_space};
use super::meter::Meter;
use super::run::Run;
use super::value::Value;
use super::{Fault, Outcome, fields};

/// The methods that a text has.
pub(crate) const NAMES: [&str; 42] = [
    "capitalize",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// `text.name(given)`.
pub(crate) fn call(run: &mut Run, text: &str, name: &str, given: &Given) -> Outcome<Value> {
    run.meter.read(text)?;
    match name {
        "join" => {
            let [parts] = given.plain(1)?;
            let parts = run.items(&parts.unwrap_or(Value::None))?;
            let mut joined = String::new();
            for (at, part) in parts.iter().enumerate() {
                let part = needed_text(Some(part))?;
                let between = if at == 0 { "" } else { text };
                run.meter.bytes(between.len() + part.len())?;
                joined.push_str(between);
                joined.push_str(&part);
            }
            Ok(Value::Text(joined.into()))
        }
        "format" => fields::braces(text, given, &mut run.meter),
        "startswith" | "endswith" => affix(text, name == "startswith", given, &mut run.meter),
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => parted(text, name, given, &mut run.meter),
        "find" | "rfind" | "index" | "rindex" | "count" => found(text, name, given, &mut run.meter),
        _ if name.starts_with("is") => {
            given.none()?;
            Ok(Value::Bool(is(text, name)))
        }
        _ => changed(text, name, given, &mut run.meter),
    }
}

fn changed(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let new = match name {
        "upper" | "lower" | "capitalize" | "title" | "swapcase" => {
            given.none()?;
            cased(text, name)
        }
        "strip" | "lstrip" | "rstrip" => {
            let [set] = given.plain(0)?;
            let set = match set {
                None | Some(Value::None) => None,
                set => Some(needed_text(set.as_ref())?),
            };
            let (start, end) = (name != "rstrip", name != "lstrip");
            meter.steps(text.len().saturating_mul(set.as_ref().map_or(0, |set| set.len())) / 16)?;
            stripped(text, set.as_deref(), start, end).to_owned()
        }
        "removeprefix" | "removesuffix" => {
            let [part] = given.plain(1)?;
            let part = needed_text(part.as_ref())?;
            let cut = if name == "removeprefix" { text.strip_prefix(&*part) } else { text.strip_suffix(&*part) };
            cut.unwrap_or(text).to_owned()
        }
        "replace" => {
            let [old, new, count] = given.plain(2)?;
            let (old, new) = (needed_text(old.as_ref())?, needed_text(new.as_ref())?);
            return replaced(text, &old, &new, whole(count.as_ref(), -1)?, meter);
        }
        "zfill" => {
            let [width] = given.plain(1)?;
            let missing = missing(text, width.as_ref(), meter)?;
            let sign = usize::from(text.starts_with(['-', '+']));
            format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..])
        }
        "center" | "ljust" | "rjust" => aligned(text, name, given, meter)?,
        "expandtabs" => without_tabs(text, given, meter)?,
        _ => return Err(Fault::new(format!("a str has no method `{name}`"))),
    };
    Value::new_text(new, meter)
}

fn aligned(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Outcome<String> {
    let [width, fill] = given.plain(1)?;
    let fill = match fill {
        None => " ".into(),
        fill => needed_text(fill.as_ref())?,
    };
    if fill.chars().count() != 1 {
        return Err(Fault::new(format!("{name}: the filling must be one character")));
    }
    let width_wanted = whole(width.as_ref(), 0)?;
    let missing = missing(text, width.as_ref(), meter)?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // As CPython rounds.
        _ => missing / 2 + (missing & usize::try_from(width_wanted.rem_euclid(2)).unwrap_or(0) & 1),
    };
    Ok(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}

fn without_tabs(text: &str, given: &Given, meter: &mut Meter) -> Outcome<String> {
    let [size] = given.named(["tabsize"])?;
    let size = usize::try_from(whole(size.as_ref(), 8)?.max(0)).unwrap_or(usize::MAX);
    meter.bytes(size.saturating_mul(text.matches('\t').count()))?;
    let (mut new, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                new.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            _ => {
                new.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(new)
}

/// Number of characters that are missing to a width, charged to the meter.
fn missing(text: &str, width: Option<&Value>, meter: &mut Meter) -> Outcome<usize> {
    let width = usize::try_from(whole(width, 0)?.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(text.chars().count());
    meter.bytes(missing.saturating_mul(4))?;
    Ok(missing)
}

/// Without whitespace, or the characters of a set, at its ends.
pub(crate) fn stripped<'a>(text: &'a str, set: Option<&str>, start: bool, end: bool) -> &'a str {
    let strip = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if start { text.trim_start_matches(strip) } else { text };
    if end { text.trim_end_matches(strip) } else { text }
}

/// `text.replace(old, new, count)`; all where `count` is negative.
pub(crate) fn replaced(text: &str, old: &str, new: &str, count: i128, meter: &mut Meter) -> Outcome<Value> {
    meter.read(text)?;
    let matches = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let count = usize::try_from(count).map_or(matches, |count| count.min(matches));
    meter.steps(matches / 2)?;
    meter.bytes(count.saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(Value::Text(text.replacen(old, new, count).into()))
}

/// A byte offset as an index of characters.
fn index_of(text: &str, byte: usize) -> usize {
    text[..byte].chars().count()
}

/// The part of a text from `start` to `end`, in characters, and where it starts; `None` if they cross.
fn window<'a>(text: &'a str, start: Option<&Value>, end: Option<&Value>) -> Outcome<Option<(&'a str, usize)>> {
    let bound = |value: Option<&Value>, default: i128| match value {
        None | Some(Value::None) => Ok(default),
        value => whole(value, default),
    };
    let (start, end) = (bound(start, 0)?, bound(end, i128::MAX)?);
    if (start, end) == (0, i128::MAX) {
        return Ok(Some((text, 0)));
    }
    let length = i128::try_from(text.chars().count()).unwrap_or(i128::MAX);
    let clamp = |at: i128| if at < 0 { (at.saturating_add(length)).max(0) } else { at };
    let (start, end) = (clamp(start), clamp(end).min(length));
    if start > end {
        return Ok(None);
    }
    let (start, end) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok(Some((&text[byte(start)..byte(end)], start)))
}

fn affix(text: &str, starts: bool, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let [part, start, end] = given.plain(1)?;
    let parts = match part {
        Some(Value::Tuple(sequence)) => sequence.items.clone(),
        other => other.into_iter().collect(),
    };
    let within = window(text, start.as_ref(), end.as_ref())?;
    let mut found = false;
    for part in &parts {
        let part = needed_text(Some(part))?;
        meter.read(&part)?;
        let matches = |(text, _): (&str, usize)| if starts { text.starts_with(&*part) } else { text.ends_with(&*part) };
        found |= within.is_some_and(matches);
    }
    Ok(Value::Bool(found))
}

fn found(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let [part, start, end] = given.plain(1)?;
    let part = needed_text(part.as_ref())?;
    let within = window(text, start.as_ref(), end.as_ref())?;
    // Rust's search takes time in proportion to both texts.
    meter.read(&part)?;
    if name == "count" {
        let count = match within {
            Some((text, _)) if part.is_empty() => text.chars().count() + 1,
            Some((text, _)) => text.matches(&*part).count(),
            None => 0,
        };
        return Ok(Value::Int(i128::try_from(count).unwrap_or_default()));
    }
    let at = within.and_then(|(text, start)| {
        let byte = if name.starts_with('r') { text.rfind(&*part) } else { text.find(&*part) };
        byte.map(|byte| start + index_of(text, byte))
    });
    match at {
        Some(at) => Ok(Value::Int(i128::try_from(at).unwrap_or_default())),
        None if name.ends_with("index") => Err(Fault::new(format!("{name}: the text is not found"))),
        None => Ok(Value::Int(-1)),
    }
}

fn parted(text: &str, name: &str, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let texts = |parts: Vec<&str>, meter: &mut Meter| {
        meter.bytes(text.len())?;
        Ok::<_, Fault>(parts.into_iter().map(Value::text).collect::<Vec<_>>())
    };
    if name == "splitlines" {
        let [keep] = given.named(["keepends"])?;
        let parts = texts(lines(text, keep.is_some_and(|keep| keep.is_true())), meter)?;
        return Value::list(parts, meter);
    }
    if name.ends_with("partition") {
        let [separator] = given.plain(1)?;
        let separator = needed_text(separator.as_ref())?;
        if separator.is_empty() {
            return Err(Fault::new(format!("{name}: the separator is empty")));
        }
        let split = if name == "partition" { text.split_once(&*separator) } else { text.rsplit_once(&*separator) };
        let parts = match split {
            Some((before, after)) => vec![before, &separator, after],
            None if name == "partition" => vec![text, "", ""],
            None => vec!["", "", text],
        };
        let parts = texts(parts, meter)?;
        return Value::tuple(parts, meter);
    }
    let [separator, limit] = given.named(["sep", "maxsplit"])?;
    let limit = usize::try_from(whole(limit.as_ref(), -1)?).unwrap_or(usize::MAX);
    let from_right = name == "rsplit";
    let parts = match separator {
        None | Some(Value::None) => words(text, limit, from_right),
        separator => {
            let separator = needed_text(separator.as_ref())?;
            if separator.is_empty() {
                return Err(Fault::new(format!("{name}: the separator is empty")));
            }
            let count = limit.saturating_add(1);
            let parts: Vec<&str> = if from_right {
                let mut parts: Vec<&str> = text.rsplitn(count, &*separator).collect();
                parts.reverse();
                parts
            } else {
                text.splitn(count, &*separator).collect()
            };
            let parts = texts(parts, meter)?;
            return Value::list(parts, meter);
        }
    };
    let parts = texts(parts, meter)?;
    Value::list(parts, meter)
}

/// Words between whitespace, of which at most `limit` are split off; the rest keeps its own whitespace.
fn words(text: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = stripped(text, None, !from_right, from_right);
    while parts.len() < limit && !rest.is_empty() {
        if from_right {
            let at = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
            parts.push(&rest[at..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            let at = rest.find(is_space).unwrap_or(rest.len());
            parts.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((at, end)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) else {
            parts.push(rest);
            break;
        };
        let length = if rest[at..].starts_with("\r\n") { 2 } else { end.len_utf8() };
        parts.push(&rest[..if keep { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    parts
}
