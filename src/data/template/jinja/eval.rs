//! Evaluates expressions.
//!
//! Not here: statements (`run/`), and the operators, methods, filters and tests themselves.

use super::ast::{Arguments, Comparison, Expr};
use super::call::Given;
use super::run::Run;
use super::value::{Value, equal, order};
use super::{Fault, Outcome, operators, print};
use std::cmp::Ordering;
use std::sync::Arc;

/// Scopes that are searched for a name in a step.
const SCOPES_A_STEP: usize = 4;

impl Run {
    /// The value of an expression.
    pub(crate) fn eval(&mut self, expression: &Expr) -> Outcome<Value> {
        self.meter.enter()?;
        let value = self.eval_within(expression)?;
        self.meter.leave();
        Ok(value)
    }

    fn eval_within(&mut self, expression: &Expr) -> Outcome<Value> {
        match expression {
            Expr::Constant(value) => Ok(value.clone()),
            Expr::Name(name) => {
                self.meter.steps(self.scopes.len() / SCOPES_A_STEP)?;
                Ok(self.lookup(name))
            }
            Expr::List(items) => {
                let items = self.eval_all(items)?;
                Value::list(items, &mut self.meter)
            }
            Expr::Tuple(items) => {
                let items = self.eval_all(items)?;
                Value::tuple(items, &mut self.meter)
            }
            Expr::Dict(entries) => self.eval_dict(entries),
            Expr::Attribute(value, name) => {
                let value = self.eval(value)?;
                self.attribute(&value, name)
            }
            Expr::Item(value, key) => {
                let (value, key) = (self.eval(value)?, self.eval(key)?);
                self.item(&value, &key)
            }
            Expr::Slice(value, parts) => self.eval_slice(value, parts),
            Expr::Call(callee, arguments) => {
                let callee = self.eval(callee)?;
                let given = self.arguments(arguments)?;
                self.call(&callee, given)
            }
            Expr::Filter(value, name, arguments) => {
                let value = self.eval(value)?;
                let given = self.arguments(arguments)?;
                self.filter(&value, name, given)
            }
            Expr::Test(value, name, arguments) => {
                let value = self.eval(value)?;
                let given = self.arguments(arguments)?;
                self.test(&value, name, &given).map(Value::Bool)
            }
            Expr::Negative(value) => operators::signed(&self.eval(value)?, true),
            Expr::Positive(value) => operators::signed(&self.eval(value)?, false),
            Expr::Not(value) => Ok(Value::Bool(!self.eval(value)?.is_true())),
            Expr::Binary(operator, left, right) => {
                let (left, right) = (self.eval(left)?, self.eval(right)?);
                operators::binary(*operator, &left, &right, &mut self.meter)
            }
            Expr::Concat(terms) => self.eval_concat(terms),
            Expr::Compare(first, others) => self.eval_comparison(first, others),
            Expr::All(terms) => self.eval_until(terms, false),
            Expr::Any(terms) => self.eval_until(terms, true),
            Expr::If(condition, value, otherwise) => {
                if self.eval(condition)?.is_true() {
                    return self.eval(value);
                }
                otherwise.as_ref().map_or(Ok(Value::undefined()), |otherwise| self.eval(otherwise))
            }
        }
    }

    fn eval_all(&mut self, expressions: &[Expr]) -> Outcome<Vec<Value>> {
        expressions.iter().map(|expression| self.eval(expression)).collect()
    }

    fn eval_dict(&mut self, entries: &[(Expr, Expr)]) -> Outcome<Value> {
        let mut values = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            values.push((self.eval(key)?, self.eval(value)?));
        }
        Value::dict(values, &mut self.meter)
    }

    fn eval_slice(&mut self, value: &Expr, parts: &[Option<Box<Expr>>; 3]) -> Outcome<Value> {
        let value = self.eval(value)?;
        let mut values = [None, None, None];
        for (value, part) in values.iter_mut().zip(parts) {
            *value = part.as_ref().map(|part| self.eval(part)).transpose()?;
        }
        self.slice(&value, values)
    }

    fn eval_concat(&mut self, terms: &[Expr]) -> Outcome<Value> {
        let mut text = String::new();
        for term in terms {
            let value = self.eval(term)?;
            text.push_str(&print::text(&value, &mut self.meter)?);
        }
        Value::new_text(text, &mut self.meter)
    }

    /// Evaluates terms up to the first whose truth is `stop`, and returns the last value.
    fn eval_until(&mut self, terms: &[Expr], stop: bool) -> Outcome<Value> {
        let mut value = Value::undefined();
        for term in terms {
            value = self.eval(term)?;
            if value.is_true() == stop {
                break;
            }
        }
        Ok(value)
    }

    fn eval_comparison(&mut self, first: &Expr, others: &[(Comparison, Expr)]) -> Outcome<Value> {
        let mut left = self.eval(first)?;
        for (comparison, right) in others {
            let right = self.eval(right)?;
            if !self.compare(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(crate) fn compare(&mut self, comparison: Comparison, left: &Value, right: &Value) -> Outcome<bool> {
        let holds: fn(Ordering) -> bool = match comparison {
            Comparison::Equal => return equal(left, right, &mut self.meter),
            Comparison::Unequal => return Ok(!equal(left, right, &mut self.meter)?),
            Comparison::In => return self.contains(right, left),
            Comparison::NotIn => return Ok(!self.contains(right, left)?),
            Comparison::Less => Ordering::is_lt,
            Comparison::LessEqual => Ordering::is_le,
            Comparison::Greater => Ordering::is_gt,
            Comparison::GreaterEqual => Ordering::is_ge,
        };
        Ok(order(left, right, &mut self.meter)?.is_some_and(holds))
    }

    /// Arguments with their values.
    pub(crate) fn arguments(&mut self, arguments: &Arguments) -> Outcome<Given> {
        let mut given = Given { positional: self.eval_all(&arguments.positional)?, named: Vec::new() };
        for (name, value) in &arguments.named {
            given.named.push((name.clone(), self.eval(value)?));
        }
        if let Some(more) = &arguments.more {
            let more = self.eval(more)?;
            given.positional.extend(self.items(&more)?);
        }
        if let Some(more) = &arguments.more_named {
            let Value::Dict(dict) = self.eval(more)? else { return Err(Fault::new("`**` needs a dict")) };
            self.meter.items(dict.entries.len())?;
            for (key, value) in &dict.entries {
                given.named.push((super::call::needed_text(Some(key))?, value.clone()));
            }
        }
        Ok(given)
    }

    /// `callee(given)`.
    pub(crate) fn call(&mut self, callee: &Value, given: Given) -> Outcome<Value> {
        match callee {
            Value::Function(name) => self.call_function(name, given),
            Value::Method(method) => self.call_method(&method.0, method.1, &given),
            Value::Macro(number) => self.call_macro(*number, given),
            Value::Joiner(number) => self.join_next(*number, &given),
            Value::Loop(number) => self.call_loop(*number, &given),
            Value::Undefined(Some(name)) => Err(Fault::new(format!("`{name}` is undefined and cannot be called"))),
            other => Err(Fault::new(format!("a {} cannot be called", other.type_name()))),
        }
    }

    /// The variable of a name: the innermost scope's, else the template's, else an input, else a function.
    pub(crate) fn lookup(&self, name: &Arc<str>) -> Value {
        let mut scopes = self.scopes.iter().rev().chain([&self.module]);
        let found = scopes.find_map(|scope| scope.get(name)).or_else(|| self.variables.get(&**name));
        let found = found.cloned().or_else(|| super::globals::function(name));
        found.unwrap_or_else(|| Value::Undefined(Some(name.clone())))
    }
}
