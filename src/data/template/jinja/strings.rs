//! Python's methods of `str`.
//!
//! Not here: methods of lists and dicts (`methods.rs`), format strings (`fields.rs`).

use super::call::{Given, needed_text, whole};
use super::meter::Meter;
use super::run::Run;
use super::value::Value;
use super::{Fault, Outcome, fields};

/// The methods that a text has.
pub const NAMES: [&str; 42] = [
    "capitalize", "center", "count", "endswith", "expandtabs", "find", "format", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper", "zfill",
];

/// Python's `str.isspace` for one character: Unicode's whitespace and four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Whether a character ends a line for `splitlines`.
fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `text.name(given)`.
pub fn call(run: &mut Run, text: &str, name: &str, given: &Given) -> Outcome<Value> {
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
        "center" | "ljust" | "rjust" => {
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
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
        }
        "expandtabs" => {
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
            new
        }
        _ => return Err(Fault::new(format!("a str has no method `{name}`"))),
    };
    Value::new_text(new, meter)
}

/// How many characters are missing to a width, charged.
fn missing(text: &str, width: Option<&Value>, meter: &mut Meter) -> Outcome<usize> {
    let width = usize::try_from(whole(width, 0)?.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(text.chars().count());
    meter.bytes(missing.saturating_mul(4))?;
    Ok(missing)
}

/// Without whitespace, or the characters of a set, at its ends.
pub fn stripped<'a>(text: &'a str, set: Option<&str>, start: bool, end: bool) -> &'a str {
    let strip = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if start { text.trim_start_matches(strip) } else { text };
    if end { text.trim_end_matches(strip) } else { text }
}

/// `text.replace(old, new, count)`; all where `count` is negative.
pub fn replaced(text: &str, old: &str, new: &str, count: i128, meter: &mut Meter) -> Outcome<Value> {
    meter.read(text)?;
    let matches = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let count = usize::try_from(count).map_or(matches, |count| count.min(matches));
    meter.bytes(count.saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(Value::Text(text.replacen(old, new, count).into()))
}

pub fn cased(text: &str, how: &str) -> String {
    match how {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "capitalize" => {
            let mut characters = text.chars();
            let first = characters.next().map(titled).unwrap_or_default();
            first + &characters.as_str().to_lowercase()
        }
        "swapcase" => {
            let swap = |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swap).collect()
        }
        _ => {
            let mut in_word = false;
            let mut new = String::new();
            for c in text.chars() {
                if in_word { new.extend(c.to_lowercase()) } else { new.push_str(&titled(c)) }
                in_word = c.is_lowercase() || c.is_uppercase() || is_title(c);
            }
            new
        }
    }
}

/// The digraphs that have a title case of their own.
fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

/// A character at the start of a title's word.
fn titled(c: char) -> String {
    match c {
        '\u{1c4}'..='\u{1c6}' => '\u{1c5}'.into(),
        '\u{1c7}'..='\u{1c9}' => '\u{1c8}'.into(),
        '\u{1ca}'..='\u{1cc}' => '\u{1cb}'.into(),
        '\u{1f1}'..='\u{1f3}' => '\u{1f2}'.into(),
        // Georgian capitals are for whole words.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => c.into(),
        _ => {
            let mut upper = c.to_uppercase();
            let first = upper.next().map(String::from).unwrap_or_default();
            upper.fold(first, |text, c| text + &c.to_lowercase().to_string())
        }
    }
}

fn is(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    match name {
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(super::print::is_printable),
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(|c| is_decimal(c) || is_other_digit(c)),
        "isnumeric" => all(char::is_numeric),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c)),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c)),
        "istitle" => {
            let (mut in_word, mut any) = (false, false);
            for c in text.chars() {
                let starts = c.is_uppercase() || is_title(c);
                if starts && in_word || c.is_lowercase() && !in_word {
                    return false;
                }
                in_word = starts || c.is_lowercase();
                any |= in_word;
            }
            any
        }
        _ => {
            let mut characters = text.chars();
            characters.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && characters.all(|c| c.is_alphanumeric() || c == '_')
        }
    }
}

/// Unicode's decimal digits, ten in a row from each of these zeros on.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 65] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x1_04a0, 0x1_0d30, 0x1_1066, 0x1_10f0, 0x1_1136, 0x1_11d0, 0x1_12f0, 0x1_1450, 0x1_14d0, 0x1_1650, 0x1_16c0, 0x1_1730, 0x1_18e0, 0x1_1950, 0x1_1c50, 0x1_1d50, 0x1_1da0, 0x1_6a60, 0x1_6ac0, 0x1_6b50, 0x1_d7ce, 0x1_d7d8, 0x1_d7e2, 0x1_d7ec, 0x1_d7f6, 0x1_e140, 0x1_e2f0, 0x1_e950, 0x1_fbf0,
    ];
    let code = u32::from(c);
    c.is_ascii_digit() || !c.is_ascii() && ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

/// Superscripts, digits in circles and their like, which `isdigit` takes and `isdecimal` does not.
fn is_other_digit(c: char) -> bool {
    matches!(u32::from(c),
        0xb2..=0xb3 | 0xb9 | 0x1369..=0x1371 | 0x19da | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089 | 0x2460..=0x2468 | 0x2474..=0x247c | 0x2488..=0x2490 | 0x24ea | 0x24f5..=0x24fd | 0x24ff | 0x2776..=0x277e | 0x2780..=0x2788 | 0x278a..=0x2792 | 0x1_0a40..=0x1_0a43 | 0x1_0e60..=0x1_0e68 | 0x1_1052..=0x1_105a | 0x1_f100..=0x1_f10a
    )
}

/// A byte offset as an index of characters.
fn index_of(text: &str, byte: usize) -> usize {
    text[..byte].chars().count()
}

/// The part of a text that `start` and `end` name in characters, and where it starts; none where they cross.
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
