//! The values of a call's arguments.
//!
//! Not here: the filters, tests, methods, functions and macros that are called; each have their file.

use super::value::Value;
use super::{Fault, Outcome};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) positional: Vec<Value>,
    pub(crate) named: Vec<(Arc<str>, Value)>,
}

impl Given {
    /// The arguments of these parameters, given by position or by name.
    pub(crate) fn named<const N: usize>(&self, parameters: [&str; N]) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Fault::new(format!("{} arguments are given, at most {N} are taken", self.positional.len())));
        }
        let mut values: [Option<Value>; N] = std::array::from_fn(|at| self.positional.get(at).cloned());
        for (name, value) in &self.named {
            let at = parameters.iter().position(|parameter| *parameter == &**name);
            match at.and_then(|at| values.get_mut(at)) {
                Some(place @ None) => *place = Some(value.clone()),
                Some(Some(_)) => return Err(Fault::new(format!("the argument `{name}` is given twice"))),
                None => return Err(Fault::new(format!("there is no argument `{name}`"))),
            }
        }
        Ok(values)
    }

    /// The arguments of parameters without names; the first `needed` must be given.
    pub(crate) fn plain<const N: usize>(&self, needed: usize) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() < needed {
            return Err(Fault::new(format!("{needed} arguments are needed, {} are given", self.positional.len())));
        }
        self.named([""; N])
    }

    /// No arguments.
    pub(crate) fn none(&self) -> Outcome<()> {
        self.plain::<0>(0).map(|_| ())
    }

    /// The first positional argument, and the other arguments.
    pub(crate) fn split_first(mut self) -> Outcome<(Value, Self)> {
        if self.positional.is_empty() {
            return Err(Fault::new("an argument is missing"));
        }
        let first = self.positional.remove(0);
        Ok((first, self))
    }
}

/// A whole number given, or the default.
pub(crate) fn whole(value: Option<&Value>, default: i128) -> Outcome<i128> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_int() {
            Some(number) => Ok(number),
            None => Err(Fault::new(format!("a whole number is needed, not a {}", value.type_name()))),
        },
    }
}

/// A text given.
pub(crate) fn needed_text(value: Option<&Value>) -> Outcome<Arc<str>> {
    match value {
        Some(Value::Text(text)) => Ok(text.clone()),
        Some(other) => Err(Fault::new(format!("a text is needed, not a {}", other.type_name()))),
        None => Err(Fault::new("a text is needed")),
    }
}
