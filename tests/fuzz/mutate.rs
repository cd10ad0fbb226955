//! Changes of files: by bytes, of the numbers in a text, of a JSON's values and keys, within the header of safetensors.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

/// What a file is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bytes,
    Text,
    Json,
    /// An object a line.
    JsonLines,
    /// Eight bytes with the length of a header, the header as JSON, tensors.
    Safetensors,
}

/// A file that is taken as it is.
#[derive(Clone)]
pub struct Seed {
    pub form: Form,
    pub bytes: Vec<u8>,
    /// What may be put into it.
    pub words: &'static [&'static str],
}

impl Seed {
    pub fn new(form: Form, bytes: impl Into<Vec<u8>>) -> Self {
        Self { form, bytes: bytes.into(), words: &[] }
    }

    pub fn with(self, words: &'static [&'static str]) -> Self {
        Self { words, ..self }
    }
}

/// What programs seldom think of, as JSON has it.
const ODD: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "1e-320",
    "1e308",
    "-1e308",
    "1e999",
    "NaN",
    "Infinity",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
    "\"\"",
    "\" \"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\u{feff}\"",
    "\"a\u{301}\u{202e}\"",
    "\"../../etc/passwd\"",
    "\"/dev/zero\"",
    "\"/dev/stdin\"",
    "\"(a*)*b\"",
    "\"%s%s%n\"",
    "\"{{ x }}\"",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "{\"a\": null}",
    "\"F32\"",
    "\"BF16\"",
    "\"F4\"",
];

/// Numbers for a number in a text.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "1e308",
    "1e-308",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "0x7f",
    "1_000",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    ".5",
    "5.",
];

/// The changed form of one of the seeds.
pub fn changed(seeds: &[Seed], at: usize, random: &mut ChaCha8Rng) -> Vec<u8> {
    let Seed { form, bytes, words } = &seeds[at];
    let mut input = match form {
        Form::Json if random.random_bool(0.6) => of_json(bytes, random),
        Form::JsonLines if random.random_bool(0.6) => of_lines(bytes, random),
        Form::Safetensors if random.random_bool(0.7) => of_safetensors(bytes, random),
        _ => None,
    };
    if input.is_none() || random.random_bool(0.1) {
        let mut other = input.take().unwrap_or_else(|| bytes.clone());
        for _ in 0..times(random) {
            of_bytes(&mut other, seeds, words, *form, random);
        }
        input = Some(other);
    }
    input.unwrap_or_default()
}

/// Mostly one, seldom many.
fn times(random: &mut ChaCha8Rng) -> usize {
    let mut times = 1;
    while times < 16 && random.random_bool(0.5) {
        times += 1;
    }
    times
}

fn one_of<'a, T>(all: &'a [T], random: &mut ChaCha8Rng) -> &'a T {
    &all[random.random_range(0..all.len())]
}

/// A stretch of up to so many bytes; the start of a file is where most is decided.
fn stretch(length: usize, most: usize, random: &mut ChaCha8Rng) -> (usize, usize) {
    let start = match random.random_range(0..4) {
        0 => random.random_range(0..=length.min(64)),
        1 => length - random.random_range(0..=length.min(64)),
        _ => random.random_range(0..=length),
    };
    (start, start + random.random_range(0..=most.min(length - start)))
}

/// One change that knows nothing of structure, but for words and numbers in a text.
fn of_bytes(input: &mut Vec<u8>, seeds: &[Seed], words: &[&str], form: Form, random: &mut ChaCha8Rng) {
    let length = input.len();
    let is_text = matches!(form, Form::Text | Form::Json | Form::JsonLines);
    match random.random_range(0..11) {
        0 | 1 if length > 0 => {
            let at = stretch(length, 0, random).0.min(length - 1);
            input[at] ^= 1 << random.random_range(0..8);
        }
        2 if length > 0 => {
            let at = stretch(length, 0, random).0.min(length - 1);
            input[at] = match random.random_bool(0.5) {
                true => *one_of(b"\0\x01\x7f\x80\xff\"{}[]:,0-9eE\\\n\r ", random),
                false => random.random_range(0..=255),
            };
        }
        3 => input.truncate(stretch(length, 0, random).0),
        4 => {
            let (start, end) = stretch(length, 64, random);
            input.drain(start..end);
        }
        5 => {
            // A piece again, now and then many times.
            let (start, end) = stretch(length, 64, random);
            let again = if random.random_bool(0.1) { random.random_range(1..2000) } else { 1 };
            let piece = input[start..end].repeat(again);
            input.splice(end..end, piece);
        }
        6 => {
            // A piece of another file, in place of one here.
            let other = &one_of(seeds, random).bytes;
            let (from, to) = stretch(other.len(), 256, random);
            let (start, end) = stretch(length, 256, random);
            input.splice(start..end, other[from..to].iter().copied());
        }
        7 | 8 if is_text => {
            let numbers: Vec<_> = runs_of_digits(input);
            if let Some(&(start, end)) = (!numbers.is_empty()).then(|| one_of(&numbers, random)) {
                input.splice(start..end, one_of(NUMBERS, random).bytes());
            }
        }
        7 | 8 => {
            // A number of four or eight bytes.
            let (start, _) = stretch(length, 0, random);
            let numbers = [0, 1, u64::MAX, u64::from(u32::MAX), 1 << 31, 1 << 40, i64::MAX as u64, length as u64];
            let number = one_of(&numbers, random).to_le_bytes();
            let bytes = if random.random_bool(0.5) { &number[..4] } else { &number[..] };
            for (to, from) in input[start..].iter_mut().zip(bytes) {
                *to = *from;
            }
        }
        _ => {
            let (start, end) = stretch(length, 8, random);
            let from = if words.is_empty() || random.random_bool(0.2) { ODD } else { words };
            let word = *one_of(from, random);
            let end = if random.random_bool(0.5) { start } else { end };
            input.splice(start..end, word.bytes());
        }
    }
}

fn runs_of_digits(text: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, _) in text.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()) {
        match runs.last_mut() {
            Some((_, end)) if *end == at => *end = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

fn of_json(bytes: &[u8], random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let mut root: Value = serde_json::from_slice(bytes).ok()?;
    let mut raw = Vec::new();
    for _ in 0..times(random) {
        of_value(&mut root, &mut raw, random);
    }
    Some(spelled(&root, &raw).into_bytes())
}

fn of_lines(bytes: &[u8], random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..times(random) {
        let at = random.random_range(0..lines.len());
        if let Some(line) = of_json(&lines[at], random) {
            lines[at] = line;
        }
    }
    Some(lines.join(&b'\n'))
}

fn of_safetensors(bytes: &[u8], random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
    let (header, tensors) = bytes.get(8..)?.split_at_checked(length)?;
    let mut header = of_json(header, random)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Some([&(header.len() as u64).to_le_bytes(), &header[..], tensors].concat())
}

/// Stands for the text of that number.
fn placeholder(number: usize) -> String {
    format!("@@{number}@@")
}

/// The JSON's text, with the odd values in their places: not all of them are JSON.
fn spelled(root: &Value, raw: &[String]) -> String {
    let mut text = root.to_string();
    for (number, odd) in raw.iter().enumerate() {
        text = text.replace(&format!("\"{}\"", placeholder(number)), odd);
    }
    text
}

fn odd(random: &mut ChaCha8Rng) -> String {
    let nested = |open: &str, close: &str, depth: usize| format!("{}{}", open.repeat(depth), close.repeat(depth));
    match random.random_range(0..40) {
        0 => nested("[", "]", random.random_range(1..3000)),
        1 => format!("{}0{}", "{\"a\":".repeat(500), "}".repeat(500)),
        2 => format!("\"{}\"", "a".repeat(random.random_range(1..20_000))),
        3 => format!("[{}0]", "0,".repeat(random.random_range(1..5_000))),
        4 => format!("\"{}\"", nested("(", ")*", random.random_range(1..200))),
        _ => (*one_of(ODD, random)).to_owned(),
    }
}

/// Every value in it, counted as [`nth`] counts.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(items) => items.values().map(size).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, left)),
        Value::Object(items) => items.values_mut().find_map(|item| nth(item, left)),
        _ => None,
    }
}

/// One change of a value somewhere in it.
fn of_value(root: &mut Value, raw: &mut Vec<String>, random: &mut ChaCha8Rng) {
    let count = size(root);
    let other = nth(root, &mut random.random_range(0..count)).cloned().unwrap_or_default();
    let Some(place) = nth(root, &mut random.random_range(0..count)) else { return };
    let mut put_odd = |random: &mut ChaCha8Rng| {
        raw.push(odd(random));
        Value::String(placeholder(raw.len() - 1))
    };
    match (random.random_range(0..8), place) {
        (0 | 1, Value::Object(items)) if !items.is_empty() => {
            let key = items.keys().nth(random.random_range(0..items.len())).cloned().unwrap_or_default();
            items.remove(&key);
        }
        (2, Value::Object(items)) if !items.is_empty() => {
            // Under another's name.
            let keys: Vec<String> = items.keys().cloned().collect();
            let (from, to) = (one_of(&keys, random), one_of(&keys, random));
            let value = items.remove(from).unwrap_or_default();
            items.insert(to.clone(), value);
        }
        (3, Value::Object(items)) => {
            let key = other.as_str().unwrap_or("x").to_owned();
            let value = put_odd(random);
            items.insert(key, value);
        }
        (0 | 1, Value::Array(items)) if !items.is_empty() => {
            items.remove(random.random_range(0..items.len()));
        }
        (2, Value::Array(items)) if !items.is_empty() => {
            let item = one_of(items, random).clone();
            items.insert(random.random_range(0..=items.len()), item);
        }
        (3, Value::Array(items)) => {
            let value = put_odd(random);
            items.push(value);
        }
        (4 | 5, place) => *place = other,
        (6, place) => *place = Value::Object(Map::from_iter([("a".to_owned(), place.take())])),
        (_, place) => *place = put_odd(random),
    }
}
