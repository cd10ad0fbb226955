//! From tokens to statements.
//!
//! Not here: expressions; those are `expressions.rs`.

use super::ast::{Arguments, Expr, For, Kind, Macro, Statement, TakesMore, Target};
use super::lexer::{Kind as TokenKind, Token};
use super::{Fault, Outcome};
use std::sync::Arc;

/// Most statements, brackets and terms within each other.
const DEPTH: usize = 200;
/// Most operators, calls and attributes in one tag. Each may be a level of the tree, which is dropped level by level.
const LONGEST_TAG: usize = 2000;

/// A macro's parameters with their defaults.
type Parameters = Vec<(Arc<str>, Option<Expr>)>;

/// Reads tokens, one ahead.
pub(crate) struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    /// Operators read in the current tag.
    operators: usize,
    /// The further arguments that the current macro reads.
    pub(crate) takes_more: TakesMore,
}

impl Parser {
    pub(crate) fn new(tokens: Vec<Token>) -> Self {
        Self { tokens, at: 0, depth: 0, operators: 0, takes_more: TakesMore::default() }
    }

    /// The token that comes next; the last one is `End` and stays.
    pub(crate) fn peek(&self) -> &TokenKind {
        self.tokens.get(self.at).map_or(&TokenKind::End, |token| &token.kind)
    }

    pub(crate) fn peek_second(&self) -> &TokenKind {
        self.tokens.get(self.at + 1).map_or(&TokenKind::End, |token| &token.kind)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |token| token.line)
    }

    pub(crate) fn next(&mut self) -> TokenKind {
        let kind = self.peek().clone();
        self.at += 1;
        kind
    }

    pub(crate) fn fault<T>(&self, message: impl Into<String>) -> Outcome<T> {
        Err(Fault::new(message).at(self.line()))
    }

    pub(crate) fn unexpected<T>(&self, expected: &str) -> Outcome<T> {
        let found = match self.peek() {
            TokenKind::Text(_) | TokenKind::BlockStart | TokenKind::PrintStart => "more text".to_owned(),
            TokenKind::BlockEnd => "`%}`".to_owned(),
            TokenKind::PrintEnd => "`}}`".to_owned(),
            TokenKind::Name(name) => format!("`{name}`"),
            TokenKind::Operator(operator) => format!("`{operator}`"),
            TokenKind::String(_) | TokenKind::Integer(_) | TokenKind::Float(_) => "a value".to_owned(),
            TokenKind::End => "the template's end".to_owned(),
        };
        self.fault(format!("expected {expected}, found {found}"))
    }

    pub(crate) fn enter(&mut self) -> Outcome<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault::bound(format!("the template nests more than {DEPTH} deep")).at(self.line()));
        }
        Ok(())
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Counts an operator.
    pub(crate) fn count(&mut self) -> Outcome<()> {
        self.operators += 1;
        if self.operators > LONGEST_TAG {
            return Err(Fault::bound(format!("more than {LONGEST_TAG} operators in one tag")).at(self.line()));
        }
        Ok(())
    }

    /// Consumes an operator if it comes next.
    pub(crate) fn skip(&mut self, operator: &str) -> bool {
        let found = matches!(self.peek(), TokenKind::Operator(found) if *found == operator);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn needed(&mut self, operator: &str) -> Outcome<()> {
        if self.skip(operator) { Ok(()) } else { self.unexpected(&format!("`{operator}`")) }
    }

    pub(crate) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), TokenKind::Name(found) if found == name)
    }

    /// Consumes a keyword if it comes next.
    pub(crate) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn name(&mut self) -> Outcome<Arc<str>> {
        match self.peek() {
            TokenKind::Name(name) => {
                let name = Arc::from(name.as_str());
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn block_end(&mut self) -> Outcome<()> {
        if *self.peek() == TokenKind::BlockEnd {
            self.at += 1;
            return Ok(());
        }
        self.unexpected("`%}`")
    }

    /// A whole template.
    pub(crate) fn template(&mut self) -> Outcome<Vec<Statement>> {
        let (body, _) = self.body(&[])?;
        Ok(body)
    }

    /// Statements up to a tag with one of these names, which is consumed up to its name; without names, up to the template's
    /// end.
    fn body(&mut self, ends: &[&str]) -> Outcome<(Vec<Statement>, Arc<str>)> {
        self.enter()?;
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.operators = 0;
            let kind = match self.next() {
                TokenKind::Text(text) => Kind::Text(text.into()),
                TokenKind::PrintStart => {
                    let value = self.tuple(true, &[])?;
                    if self.next() != TokenKind::PrintEnd {
                        self.at -= 1;
                        return self.unexpected("`}}`");
                    }
                    Kind::Print(value)
                }
                TokenKind::BlockStart => {
                    let name = self.name()?;
                    if ends.contains(&&*name) {
                        self.leave();
                        return Ok((body, name));
                    }
                    self.statement(&name)?
                }
                _ if ends.is_empty() => {
                    self.leave();
                    return Ok((body, Arc::from("")));
                }
                _ => {
                    self.at -= 1;
                    return self.unexpected(&format!("`{{% {} %}}`", ends.join(" %}` or `{% ")));
                }
            };
            body.push(Statement { line, kind });
        }
    }

    /// A body up to its one end tag, that tag included.
    fn block(&mut self, end: &str) -> Outcome<Vec<Statement>> {
        let (body, _) = self.body(&[end])?;
        self.block_end()?;
        Ok(body)
    }

    /// A statement after its name, its tags included.
    fn statement(&mut self, name: &str) -> Outcome<Kind> {
        let kind = match name {
            "if" => return self.if_statement(),
            "for" => return self.for_statement(),
            "set" => return self.set_statement(),
            "macro" => {
                let name = self.name()?;
                let parameters = self.parameters()?;
                return Ok(Kind::Macro(self.macro_body(name, parameters, "endmacro")?));
            }
            "call" => {
                let parameters = if *self.peek() == TokenKind::Operator("(") { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(call, Expr::Call(..)) {
                    return self.fault("`{% call %}` needs a call");
                }
                return Ok(Kind::CallBlock(self.macro_body(Arc::from("caller"), parameters, "endcall")?, call));
            }
            "filter" => {
                let filters = self.filter_chain(true)?;
                self.block_end()?;
                return Ok(Kind::Filter(filters, self.block("endfilter")?));
            }
            "with" => return self.with_statement(),
            "generation" => {
                self.block_end()?;
                return Ok(Kind::Scope(self.block("endgeneration")?));
            }
            "break" => Kind::Break,
            "continue" => Kind::Continue,
            _ => return self.fault(format!("the tag `{{% {name} %}}` is unknown or not supported here")),
        };
        self.block_end()?;
        Ok(kind)
    }

    fn if_statement(&mut self) -> Outcome<Kind> {
        let mut branches = Vec::new();
        let mut condition = Some(self.tuple(false, &[])?);
        self.block_end()?;
        loop {
            let ends: &[&str] = if condition.is_some() { &["elif", "else", "endif"] } else { &["endif"] };
            let (body, end) = self.body(ends)?;
            branches.push((condition, body));
            condition = match &*end {
                "elif" => Some(self.tuple(false, &[])?),
                _ => None,
            };
            self.block_end()?;
            if &*end == "endif" {
                return Ok(Kind::If(branches));
            }
        }
    }

    fn for_statement(&mut self) -> Outcome<Kind> {
        let target = self.target(true)?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let over = self.tuple(false, &["recursive"])?;
        let only = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.block_end()?;
        let (body, end) = self.body(&["else", "endfor"])?;
        self.block_end()?;
        let otherwise = if &*end == "else" { self.block("endfor")? } else { Vec::new() };
        Ok(Kind::For(Arc::new(For { target, over, only, recursive, body, otherwise })))
    }

    fn set_statement(&mut self) -> Outcome<Kind> {
        let target = self.target(true)?;
        if self.skip("=") {
            let value = self.tuple(true, &[])?;
            self.block_end()?;
            return Ok(Kind::Set(target, value));
        }
        let filters = self.filter_chain(false)?;
        self.block_end()?;
        Ok(Kind::SetBlock(target, filters, self.block("endset")?))
    }

    fn with_statement(&mut self) -> Outcome<Kind> {
        let mut values = Vec::new();
        while *self.peek() != TokenKind::BlockEnd {
            if !values.is_empty() {
                self.needed(",")?;
            }
            let target = self.target(false)?;
            self.needed("=")?;
            values.push((target, self.expression()?));
        }
        self.block_end()?;
        Ok(Kind::With(values, self.block("endwith")?))
    }

    /// The target of an assignment: a name, a namespace's attribute, or (`tuple`) several of these.
    fn target(&mut self, tuple: bool) -> Outcome<Target> {
        self.enter()?;
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.skip("(") {
                targets.push(self.target(true)?);
                self.needed(")")?;
            } else {
                let name = self.name()?;
                targets.push(match self.skip(".") {
                    true => Target::Attribute(name, self.name()?),
                    false => Target::Name(name),
                });
            }
            if !tuple || !self.skip(",") {
                break;
            }
            is_tuple = true;
            // A comma may come last.
            if !matches!(self.peek(), TokenKind::Operator("(")) && (self.is_name("in") || !self.peeks_name()) {
                break;
            }
        }
        self.leave();
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => Ok(Target::Tuple(targets.into_iter().chain([last]).collect())),
            None => self.unexpected("a name"),
        }
    }

    fn peeks_name(&self) -> bool {
        matches!(self.peek(), TokenKind::Name(_))
    }

    fn parameters(&mut self) -> Outcome<Parameters> {
        let mut parameters: Parameters = Vec::new();
        self.needed("(")?;
        while !self.skip(")") {
            if !parameters.is_empty() {
                self.needed(",")?;
            }
            let name = self.name()?;
            let default = if self.skip("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return self.fault("a parameter without a default follows one with a default");
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// The rest of a macro or call block after its head.
    fn macro_body(&mut self, name: Arc<str>, parameters: Parameters, end: &str) -> Outcome<Arc<Macro>> {
        self.block_end()?;
        let outer = std::mem::take(&mut self.takes_more);
        let body = self.block(end)?;
        let takes_more = std::mem::replace(&mut self.takes_more, outer);
        Ok(Arc::new(Macro { name, parameters, body, takes_more }))
    }

    /// `name(arguments) | name | ...`; its first `|` is left out where `started`.
    fn filter_chain(&mut self, mut started: bool) -> Outcome<Vec<(Arc<str>, Arguments)>> {
        let mut filters = Vec::new();
        while std::mem::take(&mut started) || self.skip("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }
}
