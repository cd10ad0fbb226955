//! Jinja as chat templates use it: what Transformers renders with Jinja2 in its sandbox, under bounds in time and memory.
//!
//! A template comes with a model and is somebody else's program. Every operator and every value here is our own, so
//! that each step and each byte is charged to a `Meter`, every value has a bounded depth, and nothing
//! overflows the stack. A library's engine bounds its steps, but not what a value does when it is compared, printed or
//! dropped.
//!
//! Left out, and refused by name: `include`, `import`, `extends`, `autoescape`, and the filters that make web pages.
//!
//! Not here: where a template comes from and its variables; those are in the parent module.

mod ast;
mod call;
mod characters;
mod clock;
mod dump;
mod eval;
mod expressions;
mod fields;
mod filters;
mod globals;
mod lexer;
mod lists;
mod meter;
mod methods;
mod operators;
mod parser;
mod print;
mod run;
mod sequences;
mod strings;
mod tests;
mod value;

pub(crate) use lexer::LONGEST;
use std::collections::BTreeMap;
use value::Value;

/// Why a template cannot be read or rendered.
#[derive(Debug)]
pub struct Fault {
    /// What happened, or the template's own message if it raised.
    pub(crate) message: String,
    /// The template's line, from 1; 0 if none is known.
    pub line: usize,
    /// Whether a bound in time, memory or depth ended the rendering.
    pub bound: bool,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), line: 0, bound: false }
    }

    fn bound(message: impl Into<String>) -> Self {
        Self { bound: true, ..Self::new(message) }
    }

    /// The same fault with its line, unless a line is known already.
    fn at(mut self, line: usize) -> Self {
        self.line = if self.line == 0 { line } else { self.line };
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "{} (line {line} of the template)", self.message),
        }
    }
}

type Outcome<T> = Result<T, Fault>;

/// A template, read once and rendered often.
#[derive(Debug)]
pub struct Program {
    body: Vec<ast::Statement>,
}

impl Program {
    /// Reads a template, with `trim_blocks` and `lstrip_blocks` as Transformers sets them.
    ///
    /// # Errors
    /// The template is no Jinja, uses what is left out here, or is too long or too deep.
    pub fn parse(source: &str) -> Outcome<Self> {
        Ok(Self { body: parser::Parser::new(lexer::tokens(source)?).template()? })
    }

    /// What `strftime_now` returns here for each string of a template that may be its format; empty if the template does not
    /// call it, or has a macro of that name.
    ///
    /// # Errors
    /// The template is no Jinja.
    pub(crate) fn times(source: &str) -> Outcome<BTreeMap<String, String>> {
        let tokens = lexer::tokens(source)?;
        let is = |token: &lexer::Token, word: &str| matches!(&token.kind, lexer::Kind::Name(name) if name == word);
        let own = tokens.windows(2).any(|pair| is(&pair[0], "macro") && is(&pair[1], "strftime_now"));
        let asks = !own && tokens.iter().any(|token| is(token, "strftime_now"));
        let formats = tokens.into_iter().filter_map(|token| match token.kind {
            lexer::Kind::String(format) if asks => Some(format),
            _ => None,
        });
        let timed = formats.map(|format| (clock::strftime(&format), format)).filter(|(time, format)| time != format);
        Ok(timed.map(|(time, format)| (format, time)).collect())
    }

    /// The text that the template writes, given its variables. It takes at most a second and about a gigabyte.
    ///
    /// # Errors
    /// The template raises, misuses a value, or reaches a bound.
    pub fn render(&self, variables: &serde_json::Map<String, serde_json::Value>) -> Outcome<String> {
        let variables = variables.iter().map(|(name, value)| (name.clone(), Value::from(value)));
        let variables: BTreeMap<String, Value> = variables.collect();
        run::Run::new(variables).template(&self.body)
    }
}
