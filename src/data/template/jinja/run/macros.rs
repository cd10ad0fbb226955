//! Macros and call blocks.
//!
//! Not here: the statements of a body; those are in `mod.rs`.

use super::{Run, Scope};
use crate::data::template::jinja::ast::{Expr, Macro};
use crate::data::template::jinja::call::Given;
use crate::data::template::jinja::print;
use crate::data::template::jinja::value::Value;
use crate::data::template::jinja::{Fault, Outcome};
use std::sync::Arc;

/// A macro, and the scopes where it was defined.
pub(crate) struct Defined {
    source: Arc<Macro>,
    scopes: Vec<Scope>,
}

impl Run {
    pub(crate) fn define(&mut self, source: &Arc<Macro>) -> Outcome<Value> {
        let names: usize = self.scopes.iter().map(Scope::len).sum();
        self.meter.items(names * 2 + self.scopes.len() + 4)?;
        self.macros.push(Defined { source: source.clone(), scopes: self.scopes.clone() });
        Ok(Value::Macro(self.macros.len() - 1))
    }

    pub(crate) fn call_block(&mut self, source: &Arc<Macro>, call: &Expr) -> Outcome<()> {
        let Expr::Call(callee, arguments) = call else {
            return Err(Fault::new("`{% call %}` needs a call"));
        };
        let caller = self.define(source)?;
        let callee = self.eval(callee)?;
        let mut given = self.arguments(arguments)?;
        given.named.push((Arc::from("caller"), caller));
        let value = self.call(&callee, given)?;
        let text = print::text(&value, &mut self.meter)?;
        self.write(&text)
    }

    /// The text that a macro writes.
    pub(crate) fn call_macro(&mut self, number: usize, given: Given) -> Outcome<Value> {
        let Some(defined) = self.macros.get(number) else { return Ok(Value::undefined()) };
        let source = defined.source.clone();
        let names: usize = defined.scopes.iter().map(Scope::len).sum();
        let scopes = defined.scopes.clone();
        self.meter.enter()?;
        self.meter.items(names * 2 + scopes.len() + source.parameters.len())?;
        let outer = std::mem::replace(&mut self.scopes, scopes);
        let scope = self.bind(&source, given)?;
        let text = self.captured(scope, &source.body)?;
        self.scopes = outer;
        self.meter.leave();
        Ok(text)
    }

    /// A macro's parameters with their values.
    fn bind(&mut self, source: &Macro, given: Given) -> Outcome<Scope> {
        let mut named = given.named;
        let mut positional = given.positional.into_iter();
        self.scopes.push(Scope::new());
        for (name, default) in &source.parameters {
            let by_name = named.iter().position(|(known, _)| known == name);
            let value = match (positional.next(), by_name) {
                (Some(_), Some(_)) => return Err(Fault::new(format!("`{name}` is given twice to {}", source.name))),
                (Some(value), None) => value,
                (None, Some(at)) => named.remove(at).1,
                (None, None) => match default {
                    Some(default) => self.eval(default)?,
                    None => Value::Undefined(Some(name.clone())),
                },
            };
            self.set(name.clone(), value);
        }
        let mut scope = self.scopes.pop().unwrap_or_default();
        if let Some(at) = named.iter().position(|(name, _)| &**name == "caller") {
            scope.insert(Arc::from("caller"), named.remove(at).1);
        }
        let more: Vec<Value> = positional.collect();
        if !more.is_empty() && !source.takes_more.varargs {
            return Err(Fault::new(format!("{} takes {} arguments at most", source.name, source.parameters.len())));
        }
        if let Some((name, _)) = named.first().filter(|_| !source.takes_more.kwargs) {
            return Err(Fault::new(format!("{} has no argument `{name}`", source.name)));
        }
        if source.takes_more.varargs {
            scope.insert(Arc::from("varargs"), Value::tuple(more, &mut self.meter)?);
        }
        if source.takes_more.kwargs {
            let named = named.into_iter().map(|(name, value)| (Value::Text(name), value)).collect();
            scope.insert(Arc::from("kwargs"), Value::dict(named, &mut self.meter)?);
        }
        Ok(scope)
    }

    pub(crate) fn macro_attribute(&mut self, number: usize, name: &str) -> Outcome<Option<Value>> {
        let Some(source) = self.macros.get(number).map(|defined| defined.source.clone()) else { return Ok(None) };
        Ok(match name {
            "name" => Some(Value::Text(source.name.clone())),
            "arguments" => {
                let names = source.parameters.iter().map(|(name, _)| Value::Text(name.clone())).collect();
                Some(Value::tuple(names, &mut self.meter)?)
            }
            _ => None,
        })
    }
}
