//! Loops, and the variable `loop`.
//!
//! Not here: the statements of a body; those are in `mod.rs`.

use super::{Flow, Run, Scope};
use crate::data::template::jinja::ast::For;
use crate::data::template::jinja::call::Given;
use crate::data::template::jinja::value::{Value, equal};
use crate::data::template::jinja::{Fault, Outcome};
use std::sync::Arc;

/// A loop that runs, or has run.
pub(crate) struct Loop {
    source: Arc<For>,
    items: Vec<Value>,
    at: usize,
    depth: usize,
    /// The arguments of the last `changed`.
    last: Option<Vec<Value>>,
    running: bool,
}

impl Run {
    pub(crate) fn run_loop(&mut self, source: &Arc<For>, over: &Value, depth: usize) -> Outcome<()> {
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
        // A loop's state is kept until the rendering ends: it may be used later.
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
    pub(crate) fn call_loop(&mut self, number: usize, given: &Given) -> Outcome<Value> {
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

    pub(crate) fn loop_attribute(&mut self, number: usize, name: &str) -> Outcome<Option<Value>> {
        let Some(this) = self.loops.get(number) else { return Ok(None) };
        if !this.running {
            return Err(Fault::new("`loop` is used after its loop has ended"));
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

    pub(crate) fn loop_method(&mut self, number: usize, name: &str, given: &Given) -> Outcome<Value> {
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
}
