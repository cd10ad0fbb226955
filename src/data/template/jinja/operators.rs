//! Operators between values, as Python has them.
//!
//! Not here: equality and order (`value.rs`), `in` (`sequences.rs`), `%` of texts (`fields.rs`).

use super::ast::Operator;
use super::meter::Meter;
use super::value::Value;
use super::{Fault, Outcome, fields};

pub(crate) fn binary(operator: Operator, left: &Value, right: &Value, meter: &mut Meter) -> Outcome<Value> {
    match (operator, left, right) {
        (Operator::Modulo, Value::Text(format), _) => return fields::percent(format, right, meter),
        (Operator::Add, Value::Text(one), Value::Text(other)) => {
            meter.bytes(one.len().saturating_add(other.len()))?;
            return Ok(Value::Text(format!("{one}{other}").into()));
        }
        (Operator::Add, Value::List(one), Value::List(other)) => {
            meter.items(one.items.len() + other.items.len())?;
            return Value::list(one.items.iter().chain(&other.items).cloned().collect(), meter);
        }
        (Operator::Add, Value::Tuple(one), Value::Tuple(other)) => {
            meter.items(one.items.len() + other.items.len())?;
            return Value::tuple(one.items.iter().chain(&other.items).cloned().collect(), meter);
        }
        (Operator::Multiply, Value::Text(_) | Value::List(_) | Value::Tuple(_), _) if right.as_int().is_some() => {
            return repeat(left, right, meter);
        }
        (Operator::Multiply, _, Value::Text(_) | Value::List(_) | Value::Tuple(_)) if left.as_int().is_some() => {
            return repeat(right, left, meter);
        }
        _ => {}
    }
    if let (Some(one), Some(other)) = (left.as_int(), right.as_int()) {
        return whole(operator, one, other);
    }
    match (left.as_float(), right.as_float()) {
        (Some(one), Some(other)) => float(operator, one, other),
        _ => Err(unfit(operator, left, right)),
    }
}

fn unfit(operator: Operator, left: &Value, right: &Value) -> Fault {
    let sign = match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Modulo => "%",
        Operator::Power => "**",
    };
    let named = |value: &Value| match value {
        Value::Undefined(Some(name)) => format!("undefined value (`{name}`)"),
        other => other.type_name().to_owned(),
    };
    Fault::new(format!("`{sign}` between {} and {}", named(left), named(right)))
}

fn repeat(value: &Value, count: &Value, meter: &mut Meter) -> Outcome<Value> {
    let count = usize::try_from(count.as_int().unwrap_or_default().max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Text(text) => {
            meter.bytes(text.len().saturating_mul(count))?;
            Ok(Value::Text(text.repeat(count).into()))
        }
        Value::List(sequence) | Value::Tuple(sequence) => {
            let length = sequence.items.len().saturating_mul(count);
            meter.items(length)?;
            let items = sequence.items.iter().cycle().take(length).cloned().collect();
            if matches!(value, Value::List(_)) { Value::list(items, meter) } else { Value::tuple(items, meter) }
        }
        _ => Ok(Value::undefined()),
    }
}

fn whole(operator: Operator, one: i128, other: i128) -> Outcome<Value> {
    let by_zero = || Fault::new("division by zero");
    let floor_divide = |one: i128, other: i128| {
        let quotient = one.checked_div(other)?;
        Some(if one % other != 0 && (one < 0) != (other < 0) { quotient - 1 } else { quotient })
    };
    let result = match operator {
        Operator::Add => one.checked_add(other),
        Operator::Subtract => one.checked_sub(other),
        Operator::Multiply => one.checked_mul(other),
        Operator::FloorDivide | Operator::Modulo if other == 0 => return Err(by_zero()),
        Operator::FloorDivide => floor_divide(one, other),
        Operator::Modulo => floor_divide(one, other).and_then(|quotient| one.checked_sub(quotient.checked_mul(other)?)),
        Operator::Power if other >= 0 => u32::try_from(other).ok().and_then(|power| one.checked_pow(power)),
        #[allow(clippy::cast_precision_loss)]
        Operator::Divide | Operator::Power => return float(operator, one as f64, other as f64),
    };
    result.map(Value::Int).ok_or_else(|| Fault::new("a whole number of more than 127 bits is not supported"))
}

fn float(operator: Operator, one: f64, other: f64) -> Outcome<Value> {
    if other == 0.0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Modulo) {
        return Err(Fault::new("division by zero"));
    }
    let modulo = || {
        let rest = one % other;
        if rest != 0.0 && (rest < 0.0) != (other < 0.0) { rest + other } else { rest }
    };
    Ok(Value::Float(match operator {
        Operator::Add => one + other,
        Operator::Subtract => one - other,
        Operator::Multiply => one * other,
        Operator::Divide => one / other,
        Operator::FloorDivide => ((one - modulo()) / other).round(),
        Operator::Modulo => modulo(),
        Operator::Power if one == 0.0 && other < 0.0 => return Err(Fault::new("zero to a negative power")),
        Operator::Power if one < 0.0 && other.fract() != 0.0 => {
            return Err(Fault::new("a root of a negative number is not supported"));
        }
        Operator::Power => one.powf(other),
    }))
}

/// `-value`, or `+value`.
pub(crate) fn signed(value: &Value, negative: bool) -> Outcome<Value> {
    match (value.as_int(), value.as_float()) {
        (Some(number), _) if !negative => Ok(Value::Int(number)),
        (Some(number), _) => number.checked_neg().map(Value::Int).ok_or_else(|| Fault::new("the number is too large")),
        (None, Some(number)) => Ok(Value::Float(if negative { -number } else { number })),
        _ => Err(Fault::new(format!("a {} has no sign", value.type_name()))),
    }
}
