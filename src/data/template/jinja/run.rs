//! A rendering: statements, scopes, loops and macros.
//!
//! Not here: expressions; those are `eval.rs`.

use super::ast::{Arguments, For, Kind, Macro, Statement, Target};
use super::call::Given;
use super::meter::Meter;
use super::value::{Value, equal};
use super::{Fault, Outcome};
use std::collections::BTreeMap;
use std::sync::Arc;

type Scope = BTreeMap<Arc<str>, Value>;

/// What a statement does to the loop around it.
#[derive(PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// A rendering under way. What can change lies here by number; values name it.
pub struct Run {
    pub meter: Meter,
    out: String,
    /// What the template was given.
    pub variables: BTreeMap<String, Value>,
    /// What the template has set outside of every scope.
    pub module: Scope,
    /// Scopes within each other, the innermost last.
    pub scopes: Vec<Scope>,
    pub iterators: Vec<Vec<Value>>,
    pub namespaces: Vec<Scope>,
    /// Items and which comes next.
    pub cyclers: Vec<(Vec<Value>, usize)>,
    /// The separator and whether it was asked for before.
    pub joiners: Vec<(Value, bool)>,
    macros: Vec<Defined>,
    loops: Vec<Loop>,
}

/// A macro, and the scopes where it was defined.
struct Defined {
    source: Arc<Macro>,
    scopes: Vec<Scope>,
}

/// A loop that runs, or has run.
struct Loop {
    source: Arc<For>,
    items: Vec<Value>,
    at: usize,
    depth: usize,
    /// What `changed` was asked last.
    last: Option<Vec<Value>>,
    running: bool,
}

impl Run {
    pub fn new(variables: BTreeMap<String, Value>) -> Self {
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
    pub fn template(mut self, body: &[Statement]) -> Outcome<String> {
        self.body(body)?;
        Ok(self.out)
    }

    fn body(&mut self, body: &[Statement]) -> Outcome<Flow> {
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
            Kind::With(values, body) => {
                let mut scope = Scope::new();
                for (target, value) in values {
                    let value = self.eval(value)?;
                    if let Target::Name(name) = target {
                        scope.insert(name.clone(), value);
                    }
                }
                return self.scoped(scope, body);
            }
            Kind::Scope(body) => return self.scoped(Scope::new(), body),
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn write(&mut self, text: &str) -> Outcome<()> {
        self.meter.bytes(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    fn scoped(&mut self, scope: Scope, body: &[Statement]) -> Outcome<Flow> {
        self.scopes.push(scope);
        let flow = self.body(body)?;
        self.scopes.pop();
        Ok(flow)
    }

    /// What a body writes in a scope of its own.
    fn captured(&mut self, scope: Scope, body: &[Statement]) -> Outcome<Value> {
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

    fn set(&mut self, name: Arc<str>, value: Value) {
        self.scopes.last_mut().unwrap_or(&mut self.module).insert(name, value);
    }

    fn assign(&mut self, target: &Target, value: Value) -> Outcome<()> {
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

    fn run_loop(&mut self, source: &Arc<For>, over: &Value, depth: usize) -> Outcome<()> {
        let mut items = self.items(over)?;
        if let Some(only) = &source.only {
            let mut kept = Vec::new();
            for item in items {
                self.scopes.push(Scope::new());
                self.assign(&source.target, item.clone())?;
                if self.eval(only)?.is_true() {
                    kept.push(item);
                }
                self.scopes.pop();
            }
            items = kept;
        }
        if items.is_empty() {
            self.scoped(Scope::new(), &source.otherwise)?;
            return Ok(());
        }
        // What a loop may be asked for later is kept as long as the rendering.
        self.meter.items(8)?;
        let number = self.loops.len();
        let count = items.len();
        self.loops.push(Loop { source: source.clone(), items, at: 0, depth, last: None, running: true });
        for at in 0..count {
            self.loops[number].at = at;
            let item = self.loops[number].items[at].clone();
            let scope = Scope::from([(Arc::from("loop"), Value::Loop(number))]);
            self.scopes.push(scope);
            self.assign(&source.target, item)?;
            let flow = self.body(&source.body)?;
            self.scopes.pop();
            if flow == Flow::Break {
                break;
            }
        }
        self.loops[number].running = false;
        self.loops[number].items = Vec::new();
        Ok(())
    }

    /// `loop(over)` in a recursive loop: its text.
    pub fn call_loop(&mut self, number: usize, given: &Given) -> Outcome<Value> {
        let [over] = given.plain(1)?;
        let (source, depth) = match self.loops.get(number) {
            Some(this) if this.source.recursive => (this.source.clone(), this.depth + 1),
            _ => return Err(Fault::new("`loop` can be called in a recursive loop only")),
        };
        self.meter.enter()?;
        let outer = std::mem::take(&mut self.out);
        self.run_loop(&source, &over.unwrap_or(Value::None), depth)?;
        let text = std::mem::replace(&mut self.out, outer);
        self.meter.leave();
        Value::new_text(text, &mut self.meter)
    }

    pub fn loop_attribute(&mut self, number: usize, name: &str) -> Outcome<Option<Value>> {
        let Some(this) = self.loops.get(number) else { return Ok(None) };
        if !this.running {
            return Err(Fault::new("`loop` is asked for after its loop has ended"));
        }
        let int = |number: usize| Some(Value::Int(i128::try_from(number).unwrap_or_default()));
        let (at, count) = (this.at, this.items.len());
        Ok(match name {
            "index" => int(at + 1),
            "index0" => int(at),
            "revindex" => int(count - at),
            "revindex0" => int(count - at - 1),
            "length" => int(count),
            "depth" => int(this.depth + 1),
            "depth0" => int(this.depth),
            "first" => Some(Value::Bool(at == 0)),
            "last" => Some(Value::Bool(at + 1 == count)),
            "previtem" => at.checked_sub(1).and_then(|at| this.items.get(at).cloned()),
            "nextitem" => this.items.get(at + 1).cloned(),
            _ => None,
        })
    }

    pub fn loop_method(&mut self, number: usize, name: &str, given: &Given) -> Outcome<Value> {
        let Some(this) = self.loops.get(number) else { return Ok(Value::None) };
        if !given.named.is_empty() {
            return Err(Fault::new(format!("{name} takes no names")));
        }
        if name == "cycle" {
            let length = given.positional.len();
            return match length {
                0 => Err(Fault::new("cycle needs items")),
                _ => Ok(given.positional[this.at % length].clone()),
            };
        }
        let before = this.last.clone().unwrap_or_default();
        let mut same = this.last.is_some() && before.len() == given.positional.len();
        for (one, other) in before.iter().zip(&given.positional) {
            same = same && equal(one, other, &mut self.meter)?;
        }
        self.meter.items(given.positional.len())?;
        self.loops[number].last = Some(given.positional.clone());
        Ok(Value::Bool(!same))
    }

    fn define(&mut self, source: &Arc<Macro>) -> Outcome<Value> {
        let names: usize = self.scopes.iter().map(Scope::len).sum();
        self.meter.items(names * 2 + self.scopes.len() + 4)?;
        self.macros.push(Defined { source: source.clone(), scopes: self.scopes.clone() });
        Ok(Value::Macro(self.macros.len() - 1))
    }

    fn call_block(&mut self, source: &Arc<Macro>, call: &super::ast::Expr) -> Outcome<()> {
        let super::ast::Expr::Call(callee, arguments) = call else {
            return Err(Fault::new("`{% call %}` needs a call"));
        };
        let caller = self.define(source)?;
        let callee = self.eval(callee)?;
        let mut given = self.arguments(arguments)?;
        given.named.push((Arc::from("caller"), caller));
        let value = self.call(&callee, given)?;
        let text = super::print::text(&value, &mut self.meter)?;
        self.write(&text)
    }

    /// What a macro writes.
    pub fn call_macro(&mut self, number: usize, given: Given) -> Outcome<Value> {
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
        if !more.is_empty() && !source.takes_more.0 {
            return Err(Fault::new(format!("{} takes {} arguments at most", source.name, source.parameters.len())));
        }
        if let Some((name, _)) = named.first().filter(|_| !source.takes_more.1) {
            return Err(Fault::new(format!("{} has no argument `{name}`", source.name)));
        }
        if source.takes_more.0 {
            scope.insert(Arc::from("varargs"), Value::tuple(more, &mut self.meter)?);
        }
        if source.takes_more.1 {
            let named = named.into_iter().map(|(name, value)| (Value::Text(name), value)).collect();
            scope.insert(Arc::from("kwargs"), Value::dict(named, &mut self.meter)?);
        }
        Ok(scope)
    }

    pub fn macro_attribute(&mut self, number: usize, name: &str) -> Outcome<Option<Value>> {
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
