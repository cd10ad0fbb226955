//! Format strings: `'%s' % values` and `'{}'.format(values)`.
//!
//! Not here: `str` and `repr` themselves; those are `print.rs`.

use super::call::Given;
use super::meter::Meter;
use super::print;
use super::value::Value;
use super::{Fault, Outcome};

/// The widest field and the most digits of a format string.
const LONGEST_FIELD: usize = 10_000;

/// How one value is written: Python's format specification.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    alternate: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: char,
}

impl Spec {
    fn new() -> Self {
        let kind = '\0';
        Self { fill: ' ', align: None, sign: '-', alternate: false, width: 0, group: None, precision: None, kind }
    }

    fn padded(&self, body: &str, default: char, meter: &mut Meter) -> Outcome<String> {
        let missing = self.width.saturating_sub(body.chars().count());
        meter.bytes(body.len().saturating_add(missing.saturating_mul(self.fill.len_utf8())))?;
        let fill = |count: usize| self.fill.to_string().repeat(count);
        Ok(match self.align.unwrap_or(default) {
            '<' => format!("{body}{}", fill(missing)),
            '^' => format!("{}{body}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => {
                let sign = usize::from(body.starts_with(['-', '+', ' ']));
                format!("{}{}{}", &body[..sign], fill(missing), &body[sign..])
            }
            _ => format!("{}{body}", fill(missing)),
        })
    }

    fn text(&self, text: &str, meter: &mut Meter) -> Outcome<String> {
        let kept = match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_owned(),
        };
        self.padded(&kept, '<', meter)
    }

    fn number(&self, value: &Value, meter: &mut Meter) -> Outcome<String> {
        // The digits after the point are computed before they are padded.
        meter.bytes(self.precision.unwrap_or(0))?;
        let precision = self.precision.unwrap_or(6);
        let digits = match (self.kind, value.as_int(), value.as_float()) {
            ('d' | 'n' | '\0', Some(number), _) => number.unsigned_abs().to_string(),
            ('x', Some(number), _) => format!("{}{:x}", self.prefix("0x"), number.unsigned_abs()),
            ('X', Some(number), _) => format!("{}{:X}", self.prefix("0X"), number.unsigned_abs()),
            ('o', Some(number), _) => format!("{}{:o}", self.prefix("0o"), number.unsigned_abs()),
            ('b', Some(number), _) => format!("{}{:b}", self.prefix("0b"), number.unsigned_abs()),
            ('f' | 'F', _, Some(number)) => format!("{:.precision$}", number.abs()),
            ('e' | 'E', _, Some(number)) => exponent(&format!("{:.precision$e}", number.abs())),
            ('g' | 'G', _, Some(number)) => general(number.abs(), precision.max(1)),
            ('%', _, Some(number)) => format!("{:.precision$}%", number.abs() * 100.0),
            ('\0', None, Some(number)) => match self.precision {
                Some(precision) => general(number.abs(), precision.max(1)),
                None => print::float(number.abs()),
            },
            (kind, ..) => {
                return Err(Fault::new(format!("a {} cannot be formatted as `{kind}`", value.type_name())));
            }
        };
        let digits = if matches!(self.kind, 'E' | 'G') { digits.to_uppercase() } else { digits };
        let digits = match self.group {
            Some(separator) => grouped(&digits, separator),
            None => digits,
        };
        let negative = value.as_float().is_some_and(|number| number.is_sign_negative());
        let sign = match self.sign {
            _ if negative => "-",
            '+' => "+",
            ' ' => " ",
            _ => "",
        };
        self.padded(&format!("{sign}{digits}"), '>', meter)
    }

    fn prefix(&self, prefix: &'static str) -> &'static str {
        if self.alternate { prefix } else { "" }
    }
}

/// `1.5e7` as C writes it: `1.5e+07`.
fn exponent(text: &str) -> String {
    let Some((digits, power)) = text.split_once('e') else { return text.to_owned() };
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

/// C's `%g`.
fn general(value: f64, precision: usize) -> String {
    let scientific = format!("{value:.*e}", precision - 1);
    let power: i64 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or_default();
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    let digits = i64::try_from(precision).unwrap_or(i64::MAX);
    if power < -4 || power >= digits {
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return exponent(&format!("{}e{power}", trimmed(digits)));
    }
    trimmed(&format!("{value:.*}", usize::try_from(digits - 1 - power).unwrap_or_default()))
}

fn grouped(digits: &str, separator: char) -> String {
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut text = String::new();
    for (at, digit) in digits[..whole].chars().enumerate() {
        if at > 0 && (whole - at) % 3 == 0 {
            text.push(separator);
        }
        text.push(digit);
    }
    text + &digits[whole..]
}

/// A number at the start of a text, and the rest. Rust counts to 65535 here, and no template needs that much.
fn leading_number(text: &str) -> Outcome<(Option<usize>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match text[..end].parse() {
        Ok(number) if number <= LONGEST_FIELD => Ok((Some(number), &text[end..])),
        _ if end == 0 => Ok((None, text)),
        _ => Err(Fault::bound(format!("a format string asks for more than {LONGEST_FIELD} characters"))),
    }
}

/// `format % values`.
pub(crate) fn percent(format: &str, values: &Value, meter: &mut Meter) -> Outcome<Value> {
    let single = [values.clone()];
    let (list, mut used) = match values {
        Value::Tuple(sequence) => (&sequence.items[..], 0),
        _ => (&single[..], 0),
    };
    let next = |used: &mut usize| {
        *used += 1;
        list.get(*used - 1).cloned().ok_or_else(|| Fault::new("a format string has more fields than values"))
    };
    let mut by_name = matches!(values, Value::Dict(_));
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        meter.steps(1)?;
        let mut named = None;
        if let Some(inner) = rest.strip_prefix('(') {
            let (name, after) = inner.split_once(')').ok_or_else(|| Fault::new("a format key is not closed"))?;
            let Value::Dict(dict) = values else { return Err(Fault::new("a format string with names needs a dict")) };
            let found = dict.get_name(name, meter)?;
            named = Some(found.ok_or_else(|| Fault::new(format!("a format string names `{name}`, which is missing")))?);
            (rest, by_name) = (after, true);
        }
        let (spec, after) = percent_spec(rest)?;
        rest = after;
        if spec.kind == '%' {
            text.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next(&mut used)?,
        };
        text.push_str(&percent_field(spec, &value, meter)?);
    }
    if !by_name && used < list.len() {
        return Err(Fault::new("a format string has fewer fields than values"));
    }
    Value::new_text(text + rest, meter)
}

/// Flags, width, precision and kind of a field after its `%`, and the rest of the text.
fn percent_spec(mut rest: &str) -> Outcome<(Spec, &str)> {
    let mut spec = Spec { align: Some('>'), ..Spec::new() };
    while let Some(flag) = rest.chars().next().filter(|c| "#0- +".contains(*c)) {
        match flag {
            '#' => spec.alternate = true,
            '-' => (spec.align, spec.fill) = (Some('<'), ' '),
            '0' if spec.align != Some('<') => (spec.align, spec.fill) = (Some('='), '0'),
            ' ' | '+' if spec.sign != '+' => spec.sign = flag,
            _ => {}
        }
        rest = &rest[1..];
    }
    if rest.starts_with('*') || rest.starts_with(".*") {
        return Err(Fault::new("`*` in a format string is not supported"));
    }
    let (width, after) = leading_number(rest)?;
    (spec.width, rest) = (width.unwrap_or(0), after);
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = leading_number(after)?;
        (spec.precision, rest) = (Some(precision.unwrap_or(0)), after);
    }
    rest = rest.trim_start_matches(['h', 'l', 'L']);
    spec.kind = rest.chars().next().ok_or_else(|| Fault::new("a format string is not complete"))?;
    rest = &rest[spec.kind.len_utf8()..];
    Ok((spec, rest))
}

fn percent_field(mut spec: Spec, value: &Value, meter: &mut Meter) -> Outcome<String> {
    let (kind, numeric) = (spec.kind, value.as_float().is_some());
    match kind {
        's' | 'r' | 'a' => {
            let shown = if kind == 's' { print::text(value, meter)? } else { print::shown(value, meter)? };
            spec.fill = ' ';
            spec.align = spec.align.filter(|align| *align != '=').or(Some('>'));
            spec.text(&shown, meter)
        }
        'c' => {
            let c = match value {
                Value::Text(text) => Some(text.chars().collect::<Vec<_>>()).filter(|all| all.len() == 1),
                other => other.as_int().and_then(|code| char::from_u32(u32::try_from(code).ok()?)).map(|c| vec![c]),
            };
            let c = c.ok_or_else(|| Fault::new("`%c` needs one character"))?;
            spec.text(&c.into_iter().collect::<String>(), meter)
        }
        'd' | 'i' | 'u' if numeric => {
            spec.kind = 'd';
            #[allow(clippy::cast_possible_truncation)]
            let whole = value.as_int().or(value.as_float().map(|number| number.trunc() as i128));
            let digits = spec.precision.take().unwrap_or(0);
            let number = whole.unwrap_or_default();
            let padded = format!("{:0>digits$}", number.unsigned_abs());
            let sign = match spec.sign {
                _ if number < 0 => "-",
                '+' => "+",
                ' ' => " ",
                _ => "",
            };
            spec.padded(&format!("{sign}{padded}"), '>', meter)
        }
        'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' if numeric => spec.number(value, meter),
        _ => Err(Fault::new(format!("a {} cannot be formatted as `%{kind}`", value.type_name()))),
    }
}

/// `format.format(values)`.
pub(crate) fn braces(format: &str, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let mut text = String::new();
    let mut rest = format;
    let mut automatic = 0;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
            continue;
        }
        let Some(end) = rest.find('}').filter(|_| brace == "{") else {
            return Err(Fault::new("a format string has a brace too many"));
        };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        if field.contains('{') {
            return Err(Fault::new("a field within a field of a format string is not supported"));
        }
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (field, conversion) = field.split_once('!').unwrap_or((field, ""));
        let value = lookup(field, &mut automatic, given, meter)?;
        text.push_str(&match conversion {
            "" => formatted(&value, spec, meter)?,
            "s" => formatted(&Value::Text(print::text(&value, meter)?.into()), spec, meter)?,
            "r" => formatted(&Value::Text(print::shown(&value, meter)?.into()), spec, meter)?,
            other => return Err(Fault::new(format!("`!{other}` in a format string is not supported"))),
        });
    }
    Value::new_text(text + rest, meter)
}

/// The value of a field: `0`, `name` or nothing (the next value), each with any number of `[key]` after it.
fn lookup(field: &str, automatic: &mut usize, given: &Given, meter: &mut Meter) -> Outcome<Value> {
    let (name, mut keys) = field.split_at(field.find(['[', '.']).unwrap_or(field.len()));
    let missing = || Fault::new(format!("a format string asks for `{name}`, which is not given"));
    let mut value = if name.is_empty() {
        *automatic += 1;
        given.positional.get(*automatic - 1).cloned().ok_or_else(missing)?
    } else if let Ok(at) = name.parse::<usize>() {
        given.positional.get(at).cloned().ok_or_else(missing)?
    } else {
        given.named.iter().find(|(known, _)| &**known == name).map(|(_, value)| value.clone()).ok_or_else(missing)?
    };
    while !keys.is_empty() {
        let key = keys.strip_prefix('[').and_then(|inner| inner.split_once(']'));
        let (key, after) = key.ok_or_else(|| Fault::new("attributes in a format string are not supported"))?;
        let found = match (&value, key.parse::<usize>()) {
            (Value::List(sequence) | Value::Tuple(sequence), Ok(at)) => sequence.items.get(at).cloned(),
            (Value::Dict(dict), Ok(at)) => dict.get(&Value::Int(i128::try_from(at).unwrap_or(-1)), meter)?,
            (Value::Dict(dict), Err(_)) => dict.get_name(key, meter)?,
            _ => None,
        };
        value = found.ok_or_else(|| Fault::new(format!("a format string asks for `[{key}]`, which is missing")))?;
        keys = after;
    }
    Ok(value)
}

/// `format(value, spec)`.
fn formatted(value: &Value, spec: &str, meter: &mut Meter) -> Outcome<String> {
    if spec.is_empty() {
        return print::text(value, meter);
    }
    let mut parsed = Spec::new();
    let mut rest = spec;
    let mut characters = rest.chars();
    let (first, second) = (characters.next().unwrap_or_default(), characters.next());
    if second.is_some_and(|c| "<>^=".contains(c)) {
        (parsed.fill, parsed.align) = (first, second);
        rest = &rest[first.len_utf8() + 1..];
    } else if "<>^=".contains(first) {
        parsed.align = Some(first);
        rest = &rest[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        parsed.sign = sign;
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('#') {
        (parsed.alternate, rest) = (true, after);
    }
    if rest.starts_with('0') && parsed.align.is_none() {
        (parsed.fill, parsed.align) = ('0', Some('='));
    }
    let (width, after) = leading_number(rest)?;
    (parsed.width, rest) = (width.unwrap_or(0), after);
    if let Some(separator) = rest.chars().next().filter(|c| ",_".contains(*c)) {
        parsed.group = Some(separator);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = leading_number(after)?;
        (parsed.precision, rest) = (precision, after);
    }
    let mut kind = rest.chars();
    parsed.kind = kind.next().unwrap_or('\0');
    if kind.next().is_some() {
        return Err(Fault::new(format!("`{spec}` is no format that is supported")));
    }
    match value {
        Value::Text(text) if matches!(parsed.kind, 's' | '\0') && parsed.align != Some('=') => parsed.text(text, meter),
        Value::Int(_) | Value::Float(_) => parsed.number(value, meter),
        Value::Bool(_) if parsed.kind != '\0' => parsed.number(value, meter),
        other => Err(Fault::new(format!("a {} cannot be formatted as `{spec}`", other.type_name()))),
    }
}

/// The values of `format|format(...)`: a tuple, or a dict of those given by name.
pub(crate) fn given_values(given: &Given, meter: &mut Meter) -> Outcome<Value> {
    if given.named.is_empty() {
        return Value::tuple(given.positional.clone(), meter);
    }
    if !given.positional.is_empty() {
        return Err(Fault::new("format takes values by position or by name, not both"));
    }
    Value::dict(given.named.iter().map(|(name, value)| (Value::Text(name.clone()), value.clone())).collect(), meter)
}
