//! Jinja's tests: `value is name`.
//!
//! Not here: filters; those are `filters.rs`.

use super::ast::Comparison;
use super::call::Given;
use super::run::Run;
use super::value::{Value, equal};
use super::{Fault, Outcome, characters, filters, print};

const NAMES: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" | "equalto" | "==" => Comparison::Equal,
        "ne" | "!=" => Comparison::Unequal,
        "lt" | "lessthan" | "<" => Comparison::Less,
        "le" | "<=" => Comparison::LessEqual,
        "gt" | "greaterthan" | ">" => Comparison::Greater,
        "ge" | ">=" => Comparison::GreaterEqual,
        "in" => Comparison::In,
        _ => return None,
    })
}

impl Run {
    /// `value is name(given)`.
    pub(crate) fn test(&mut self, value: &Value, name: &str, given: &Given) -> Outcome<bool> {
        let comparison = comparison(name);
        if comparison.is_some() || matches!(name, "divisibleby" | "sameas") {
            let [other] = given.plain(1)?;
            let other = other.unwrap_or(Value::None);
            return match comparison {
                Some(comparison) => self.compare(comparison, value, &other),
                None if name == "sameas" => self.same(value, &other),
                None => {
                    let rest = super::operators::binary(super::ast::Operator::Modulo, value, &other, &mut self.meter)?;
                    Ok(!rest.is_true())
                }
            };
        }
        given.none()?;
        self.is(value, name)
    }

    /// The tests without an argument.
    fn is(&mut self, value: &Value, name: &str) -> Outcome<bool> {
        let remainder = |value: &Value| match value.as_int() {
            Some(number) => Ok(number.rem_euclid(2)),
            None => Err(Fault::new(format!("a {} is neither odd nor even", value.type_name()))),
        };
        Ok(match name {
            "boolean" => matches!(value, Value::Bool(_)),
            "callable" => value.is_callable(),
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "escaped" => false,
            "even" => remainder(value)? == 0,
            "odd" => remainder(value)? == 1,
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "float" => matches!(value, Value::Float(_)),
            "integer" => matches!(value, Value::Int(_)),
            "number" => value.as_float().is_some(),
            "string" => matches!(value, Value::Text(_)),
            "none" => matches!(value, Value::None),
            "mapping" => matches!(value, Value::Dict(_)),
            "iterable" => matches!(
                value,
                Value::Undefined(_)
                    | Value::Text(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::View(..)
                    | Value::Dict(_)
                    | Value::Range(_)
                    | Value::Iterator(_)
                    | Value::Loop(_)
            ),
            "sequence" => matches!(
                value,
                Value::Undefined(_)
                    | Value::Text(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range(_)
            ),
            "lower" | "upper" => {
                let text = print::text(value, &mut self.meter)?;
                characters::is(&text, if name == "lower" { "islower" } else { "isupper" })
            }
            "filter" => value.as_text().is_some_and(|name| filters::NAMES.contains(&name)),
            "test" => value.as_text().is_some_and(|name| NAMES.contains(&name)),
            _ => return Err(Fault::new(format!("the test `{name}` is unknown"))),
        })
    }

    /// Whether two are one and the same: for what has no identity of its own, equal and of one type.
    fn same(&mut self, one: &Value, other: &Value) -> Outcome<bool> {
        Ok(one.type_name() == other.type_name() && equal(one, other, &mut self.meter)?)
    }
}
