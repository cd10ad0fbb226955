//! Jinja's filters on single values and texts: `value|name(given)`.
//!
//! Not here: filters on lists; those are in `lists.rs`.

use super::call::{Given, needed_text, whole};
use super::run::Run;
use super::value::Value;
use super::{Fault, Outcome, characters, dump, fields, print, strings};
use std::sync::Arc;

/// All filters.
pub(crate) const NAMES: [&str; 46] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
];

/// Every word with a capital, by Jinja's own idea of a word.
fn titled(text: &str) -> String {
    let mut starts = true;
    let mut new = String::new();
    for c in text.chars() {
        if starts {
            new.push_str(&characters::cased(&c.to_string(), "upper"))
        } else {
            new.extend(c.to_lowercase())
        }
        starts = characters::is_space(c) || "-({[<".contains(c);
    }
    new
}

fn escaped(text: &str) -> String {
    let mut new = String::new();
    for c in text.chars() {
        match c {
            '&' => new.push_str("&amp;"),
            '<' => new.push_str("&lt;"),
            '>' => new.push_str("&gt;"),
            '"' => new.push_str("&#34;"),
            '\'' => new.push_str("&#39;"),
            c => new.push(c),
        }
    }
    new
}

impl Run {
    /// `value|name(given)`.
    pub(crate) fn filter(&mut self, value: &Value, name: &str, given: Given) -> Outcome<Value> {
        match name {
            "abs" => {
                given.none()?;
                match (value.as_int(), value.as_float()) {
                    (Some(number), _) => Ok(Value::Int(number.saturating_abs())),
                    (None, Some(number)) => Ok(Value::Float(number.abs())),
                    _ => Err(Fault::new(format!("a {} has no absolute value", value.type_name()))),
                }
            }
            "attr" => {
                let [name] = given.named(["name"])?;
                let name = needed_text(name.as_ref())?;
                // Only attributes: a dict's keys are not attributes.
                if matches!(value, Value::Dict(_)) {
                    return Ok(Value::Undefined(Some(name)));
                }
                self.attribute(value, &name)
            }
            "d" | "default" => {
                let [default, boolean] = given.named(["default_value", "boolean"])?;
                let boolean = boolean.is_some_and(|boolean| boolean.is_true());
                let replaced = value.is_undefined() || boolean && !value.is_true();
                Ok(if replaced { default.unwrap_or_else(|| Value::text("")) } else { value.clone() })
            }
            "int" | "float" => number(value, name, &given, self),
            "round" => round(value, &given),
            "length" | "count" => {
                given.none()?;
                let length = self.length(value)?;
                Ok(Value::Int(i128::try_from(length).unwrap_or_default()))
            }
            "tojson" => dump::to_json(value, &given, &mut self.meter),
            "format" => {
                let format = print::text(value, &mut self.meter)?;
                let values = fields::given_values(&given, &mut self.meter)?;
                fields::percent(&format, &values, &mut self.meter)
            }
            "safe" | "string" => {
                given.none()?;
                self.soft_text(value).map(Value::Text)
            }
            "upper" | "lower" | "capitalize" | "title" | "trim" | "replace" | "center" | "indent" | "truncate"
            | "wordcount" | "e" | "escape" | "forceescape" => {
                let text = self.soft_text(value)?;
                self.text_filter(&text, name, &given)
            }
            _ => self.list_filter(value, name, given),
        }
    }

    fn soft_text(&mut self, value: &Value) -> Outcome<Arc<str>> {
        match value {
            Value::Text(text) => Ok(text.clone()),
            other => print::text(other, &mut self.meter).map(Into::into),
        }
    }

    fn text_filter(&mut self, text: &str, name: &str, given: &Given) -> Outcome<Value> {
        self.meter.read(text)?;
        let new = match name {
            "upper" | "lower" | "capitalize" => {
                given.none()?;
                characters::cased(text, name)
            }
            "title" => {
                given.none()?;
                titled(text)
            }
            "trim" => {
                let [set] = given.named(["chars"])?;
                let set = match set {
                    None | Some(Value::None) => None,
                    set => Some(needed_text(set.as_ref())?),
                };
                self.meter.steps(text.len().saturating_mul(set.as_ref().map_or(0, |set| set.len())) / 16)?;
                strings::stripped(text, set.as_deref(), true, true).to_owned()
            }
            "replace" => {
                let [old, new, count] = given.named(["old", "new", "count"])?;
                let old = self.soft_text(&old.ok_or_else(|| Fault::new("replace needs two texts"))?)?;
                let new = self.soft_text(&new.ok_or_else(|| Fault::new("replace needs two texts"))?)?;
                let count = whole(count.as_ref().filter(|count| !matches!(count, Value::None)), -1)?;
                return strings::replaced(text, &old, &new, count, &mut self.meter);
            }
            "center" => {
                let [width] = given.named(["width"])?;
                let positional = vec![width.unwrap_or(Value::Int(80))];
                return strings::call(self, text, "center", &Given { positional, named: Vec::new() });
            }
            "indent" => return self.indent(text, given),
            "truncate" => return self.truncate(text, given),
            "wordcount" => {
                given.none()?;
                let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
                return Ok(Value::Int(i128::try_from(words.count()).unwrap_or_default()));
            }
            _ => {
                given.none()?;
                escaped(text)
            }
        };
        Value::new_text(new, &mut self.meter)
    }

    fn indent(&mut self, text: &str, given: &Given) -> Outcome<Value> {
        let [width, first, blank] = given.named(["width", "first", "blank"])?;
        let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let (first, blank) = (is_true(first), is_true(blank));
        let indent = match width {
            Some(Value::Text(text)) => text.to_string(),
            width => {
                let width = usize::try_from(whole(width.as_ref(), 4)?.max(0)).unwrap_or(usize::MAX);
                self.meter.bytes(width)?;
                " ".repeat(width)
            }
        };
        // Jinja adds a line break, and joins the lines that `splitlines` finds.
        let text = format!("{text}\n");
        let given = Given::default();
        let lines = strings::call(self, &text, "splitlines", &given)?;
        let mut new = String::new();
        for (at, line) in self.items(&lines)?.iter().enumerate() {
            let line = line.as_text().unwrap_or_default();
            let indented = if at == 0 { first } else { blank || !line.is_empty() };
            self.meter.bytes(line.len() + indent.len() + 1)?;
            new.push_str(if at == 0 { "" } else { "\n" });
            new.push_str(if indented { &indent } else { "" });
            new.push_str(line);
        }
        Ok(Value::Text(new.into()))
    }

    fn truncate(&mut self, text: &str, given: &Given) -> Outcome<Value> {
        let [length, kill_words, end, leeway] = given.named(["length", "killwords", "end", "leeway"])?;
        let (length, leeway) = (whole(length.as_ref(), 255)?, whole(leeway.as_ref(), 5)?);
        let end = match end {
            None => "...".into(),
            end => needed_text(end.as_ref())?,
        };
        let count = |text: &str| i128::try_from(text.chars().count()).unwrap_or(i128::MAX);
        if length < count(&end) || leeway < 0 {
            return Err(Fault::new("truncate: the length is shorter than the end"));
        }
        if count(text) <= length.saturating_add(leeway) {
            return Value::new_text(text.to_owned(), &mut self.meter);
        }
        let kept = usize::try_from(length - count(&end)).unwrap_or_default();
        let mut cut: String = text.chars().take(kept).collect();
        let kill_words = kill_words.is_some_and(|kill_words| kill_words.is_true());
        if let Some(at) = cut.rfind(' ').filter(|_| !kill_words) {
            cut.truncate(at);
        }
        Value::new_text(cut + &end, &mut self.meter)
    }
}

#[allow(clippy::cast_possible_truncation)]
fn number(value: &Value, name: &str, given: &Given, run: &mut Run) -> Outcome<Value> {
    let float = |text: &str| {
        let plain = strings::stripped(text, None, true, true).replace('_', "");
        plain.parse::<f64>().ok()
    };
    if name == "float" {
        let [default] = given.named(["default"])?;
        let found = match value {
            Value::Text(text) => float(text),
            other => other.as_float(),
        };
        return Ok(found.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)));
    }
    let [default, base] = given.named(["default", "base"])?;
    let base = u32::try_from(whole(base.as_ref(), 10)?).ok().filter(|base| matches!(base, 2..=36));
    let base = base.ok_or_else(|| Fault::new("int: the base must be from 2 to 36"))?;
    let found = match value {
        Value::Text(text) => {
            run.meter.read(text)?;
            let plain = strings::stripped(text, None, true, true).replace('_', "").to_lowercase();
            let (sign, digits) = match plain.strip_prefix('-') {
                Some(digits) => (-1, digits),
                None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
            };
            let digits = match base {
                16 => digits.strip_prefix("0x").unwrap_or(digits),
                8 => digits.strip_prefix("0o").unwrap_or(digits),
                2 => digits.strip_prefix("0b").unwrap_or(digits),
                _ => digits,
            };
            let whole = i128::from_str_radix(digits, base).ok().filter(|_| !digits.starts_with(['+', '-']));
            whole
                .map(|number| sign * number)
                .or_else(|| float(text).filter(|number| number.is_finite()).map(|number| number as i128))
        }
        other => {
            other.as_int().or_else(|| other.as_float().filter(|number| number.is_finite()).map(|number| number as i128))
        }
    };
    Ok(found.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn round(value: &Value, given: &Given) -> Outcome<Value> {
    let [precision, method] = given.named(["precision", "method"])?;
    let precision = whole(precision.as_ref(), 0)?;
    if !(-30..=300).contains(&precision) {
        return Err(Fault::new("round: a precision from -30 to 300 is supported"));
    }
    let number = value.as_float().ok_or_else(|| Fault::new(format!("a {} cannot be rounded", value.type_name())))?;
    let method = method.as_ref().map_or(Ok("common".into()), |method| needed_text(Some(method)))?;
    let power = 10f64.powi(precision as i32);
    match &*method {
        "ceil" => Ok(Value::Float((number * power).ceil() / power)),
        "floor" => Ok(Value::Float((number * power).floor() / power)),
        "common" => match value.as_int() {
            Some(whole) if precision >= 0 => Ok(Value::Int(whole)),
            Some(whole) => {
                let unit = 10i128.pow(precision.unsigned_abs() as u32);
                let (below, rest) = (whole.div_euclid(unit), whole.rem_euclid(unit));
                let up = rest * 2 > unit || rest * 2 == unit && below % 2 != 0;
                let rounded = (below + i128::from(up)).checked_mul(unit);
                rounded.map(Value::Int).ok_or_else(|| Fault::new("round: the number is too large"))
            }
            None if precision == 0 => Ok(Value::Float(number.round_ties_even())),
            // Rust writes the digits correctly rounded, as Python does before it reads them back.
            None if precision > 0 => {
                let digits = precision as usize;
                Ok(Value::Float(format!("{number:.digits$}").parse().unwrap_or(number)))
            }
            None => Ok(Value::Float((number * power).round_ties_even() / power)),
        },
        other => Err(Fault::new(format!("round: the method `{other}` is unknown"))),
    }
}
