//! A rendering: statements, scopes and assignments.
//!
//! Not here: loops (`loops.rs`), macros (`macros.rs`), expressions (`eval.rs`).

mod loops;
mod macros;

use super::ast::{Arguments, Expr, Kind, Statement, Target};
use super::meter::Meter;
use super::value::Value;
use super::{Fault, Outcome};
use loops::Loop;
use macros::Defined;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) type Scope = BTreeMap<Arc<str>, Value>;

/// The effect of a statement on the loop around it.
#[derive(PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    Break,
    Continue,
}

/// The state of a rendering. Values that can change are stored here, and a [`Value`] has their number.
pub(crate) struct Run {
    pub(crate) meter: Meter,
    pub(crate) out: String,
    /// The template's inputs.
    pub(crate) variables: BTreeMap<String, Value>,
    /// Variables that the template has set outside of every scope.
    pub(crate) module: Scope,
    /// Scopes within each other, the innermost last.
    pub(crate) scopes: Vec<Scope>,
    pub(crate) iterators: Vec<Vec<Value>>,
    pub(crate) namespaces: Vec<Scope>,
    /// Items, and the index of the next one.
    pub(crate) cyclers: Vec<(Vec<Value>, usize)>,
    /// The separator, and whether the joiner was called before.
    pub(crate) joiners: Vec<(Value, bool)>,
    pub(crate) macros: Vec<Defined>,
    pub(crate) loops: Vec<Loop>,
}

impl Run {
    pub(crate) fn new(variables: BTreeMap<String, Value>) -> Self {
        Self {
            meter: Meter::new(),
            out: String::new(),
            variables,
            module: Scope::new(),
            scopes: Vec::new(),
            iterators: Vec::new(),
            namespaces: Vec::new(),
            cyclers: Vec::new(),
            joiners: Vec::new(),
            macros: Vec::new(),
            loops: Vec::new(),
        }
    }

    /// The text that a template writes.
    pub(crate) fn template(mut self, body: &[Statement]) -> Outcome<String> {
        self.body(body)?;
        Ok(self.out)
    }

    pub(crate) fn body(&mut self, body: &[Statement]) -> Outcome<Flow> {
        for statement in body {
            self.meter.enter().map_err(|fault| fault.at(statement.line))?;
            let flow = self.statement(&statement.kind).map_err(|fault| fault.at(statement.line))?;
            self.meter.leave();
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, kind: &Kind) -> Outcome<Flow> {
        match kind {
            Kind::Text(text) => self.write(text)?,
            Kind::Print(expression) => {
                let value = self.eval(expression)?;
                match &value {
                    Value::Text(text) => self.write(text)?,
                    other => {
                        let text = super::print::text(other, &mut self.meter)?;
                        self.write(&text)?;
                    }
                }
            }
            Kind::If(branches) => {
                for (condition, body) in branches {
                    let holds = match condition {
                        Some(condition) => self.eval(condition)?.is_true(),
                        None => true,
                    };
                    if holds {
                        return self.body(body);
                    }
                }
            }
            Kind::For(source) => {
                let over = self.eval(&source.over)?;
                self.run_loop(source, &over, 0)?;
            }
            Kind::Set(target, value) => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            Kind::SetBlock(target, filters, body) => {
                let text = self.captured(Scope::new(), body)?;
                let value = self.filtered(text, filters)?;
                self.assign(target, value)?;
            }
            Kind::Macro(source) => {
                let value = self.define(source)?;
                self.set(source.name.clone(), value);
            }
            Kind::CallBlock(source, call) => self.call_block(source, call)?,
            Kind::Filter(filters, body) => {
                let text = self.captured(Scope::new(), body)?;
                let value = self.filtered(text, filters)?;
                let text = super::print::text(&value, &mut self.meter)?;
                self.write(&text)?;
            }
            Kind::With(values, body) => return self.with(values, body),
            Kind::Scope(body) => return self.scoped(Scope::new(), body),
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn with(&mut self, values: &[(Target, Expr)], body: &[Statement]) -> Outcome<Flow> {
        // All values are computed before any has its name.
        let values = values.iter().map(|(target, value)| Ok((target, self.eval(value)?)));
        let values = values.collect::<Outcome<Vec<_>>>()?;
        self.scopes.push(Scope::new());
        for (target, value) in values {
            self.assign(target, value)?;
        }
        let flow = self.body(body)?;
        self.scopes.pop();
        Ok(flow)
    }

    pub(crate) fn write(&mut self, text: &str) -> Outcome<()> {
        self.meter.bytes(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    pub(crate) fn scoped(&mut self, scope: Scope, body: &[Statement]) -> Outcome<Flow> {
        self.scopes.push(scope);
        let flow = self.body(body)?;
        self.scopes.pop();
        Ok(flow)
    }

    /// The text that a body writes in a scope of its own.
    pub(crate) fn captured(&mut self, scope: Scope, body: &[Statement]) -> Outcome<Value> {
        let outer = std::mem::take(&mut self.out);
        self.scoped(scope, body)?;
        let text = std::mem::replace(&mut self.out, outer);
        Value::new_text(text, &mut self.meter)
    }

    fn filtered(&mut self, mut value: Value, filters: &[(Arc<str>, Arguments)]) -> Outcome<Value> {
        for (name, arguments) in filters {
            let given = self.arguments(arguments)?;
            value = self.filter(&value, name, given)?;
        }
        Ok(value)
    }

    pub(crate) fn set(&mut self, name: Arc<str>, value: Value) {
        self.scopes.last_mut().unwrap_or(&mut self.module).insert(name, value);
    }

    pub(crate) fn assign(&mut self, target: &Target, value: Value) -> Outcome<()> {
        match target {
            Target::Name(name) => self.set(name.clone(), value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(number) = self.lookup(name) else {
                    return Err(Fault::new(format!("`{name}` is no namespace: its attributes cannot be set")));
                };
                if attribute.starts_with('_') {
                    return Err(Fault::new(format!("a namespace cannot hold `{attribute}`")));
                }
                self.meter.items(2)?;
                if let Some(names) = self.namespaces.get_mut(number) {
                    names.insert(attribute.clone(), value);
                }
            }
            Target::Tuple(targets) => {
                let values = self.items(&value)?;
                if values.len() != targets.len() {
                    return Err(Fault::new(format!("{} values for {} names", values.len(), targets.len())));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
        }
        Ok(())
    }
}
