//! From tokens to expressions, with Jinja's order of operators: `~` binds tighter than `+`, and `**` to the left.
//!
//! Not here: statements; those are `parser.rs`.

use super::ast::{Arguments, Comparison, Expr, Operator};
use super::lexer::Kind;
use super::parser::Parser;
use super::{Outcome, Value};
use std::sync::Arc;

impl Parser {
    /// Expressions with commas between them are a tuple. `conditional` allows `a if b`; a name among `ends` ends it.
    pub(crate) fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Outcome<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                if !self.skip(",") {
                    break;
                }
                is_tuple = true;
            }
            let ended = matches!(self.peek(), Kind::BlockEnd | Kind::PrintEnd | Kind::Operator(")"));
            if ended || ends.iter().any(|end| self.is_name(end)) {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.any()? });
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => Ok(Expr::Tuple(items.into_iter().chain([last]).collect())),
            None => self.unexpected("an expression"),
        }
    }

    /// One expression.
    pub(crate) fn expression(&mut self) -> Outcome<Expr> {
        self.enter()?;
        let mut value = self.any()?;
        while self.skip_name("if") {
            let condition = self.any()?;
            let otherwise = if self.skip_name("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::If(Box::new(condition), Box::new(value), otherwise);
            self.count()?;
        }
        self.leave();
        Ok(value)
    }

    fn any(&mut self) -> Outcome<Expr> {
        let first = self.all()?;
        let mut terms = vec![first];
        while self.skip_name("or") {
            terms.push(self.all()?);
        }
        Ok(one_or(terms, Expr::Any))
    }

    fn all(&mut self) -> Outcome<Expr> {
        let first = self.negation()?;
        let mut terms = vec![first];
        while self.skip_name("and") {
            terms.push(self.negation()?);
        }
        Ok(one_or(terms, Expr::All))
    }

    fn negation(&mut self) -> Outcome<Expr> {
        if !self.skip_name("not") {
            return self.comparison();
        }
        self.enter()?;
        let term = self.negation()?;
        self.leave();
        Ok(Expr::Not(Box::new(term)))
    }

    fn comparison(&mut self) -> Outcome<Expr> {
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let comparison = match self.peek() {
                Kind::Operator("==") => Comparison::Equal,
                Kind::Operator("!=") => Comparison::Unequal,
                Kind::Operator("<") => Comparison::Less,
                Kind::Operator("<=") => Comparison::LessEqual,
                Kind::Operator(">") => Comparison::Greater,
                Kind::Operator(">=") => Comparison::GreaterEqual,
                Kind::Name(name) if name == "in" => Comparison::In,
                Kind::Name(name) if name == "not" => {
                    if !matches!(self.peek_second(), Kind::Name(name) if name == "in") {
                        break;
                    }
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            others.push((comparison, self.sum()?));
        }
        Ok(if others.is_empty() { first } else { Expr::Compare(Box::new(first), others) })
    }

    /// Terms joined by operators of one rank, from the left.
    fn chain(&mut self, operators: &[(&'static str, Operator)], term: fn(&mut Self) -> Outcome<Expr>) -> Outcome<Expr> {
        let mut value = term(self)?;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| *self.peek() == Kind::Operator(sign)) {
            self.next();
            self.count()?;
            value = Expr::Binary(*operator, Box::new(value), Box::new(term(self)?));
        }
        Ok(value)
    }

    fn sum(&mut self) -> Outcome<Expr> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Outcome<Expr> {
        let first = self.product()?;
        let mut terms = vec![first];
        while self.skip("~") {
            terms.push(self.product()?);
        }
        Ok(one_or(terms, Expr::Concat))
    }

    fn product(&mut self) -> Outcome<Expr> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Modulo),
        ];
        self.chain(&operators, Self::power)
    }

    fn power(&mut self) -> Outcome<Expr> {
        self.chain(&[("**", Operator::Power)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Outcome<Expr> {
        self.enter()?;
        let value = if self.skip("-") {
            Expr::Negative(Box::new(self.unary(false)?))
        } else if self.skip("+") {
            Expr::Positive(Box::new(self.unary(false)?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value, with_filters)?;
        self.leave();
        Ok(value)
    }

    fn primary(&mut self) -> Outcome<Expr> {
        Ok(match self.next() {
            Kind::Name(name) => match &*name {
                "true" | "True" => Expr::Constant(Value::Bool(true)),
                "false" | "False" => Expr::Constant(Value::Bool(false)),
                "none" | "None" => Expr::Constant(Value::None),
                _ => {
                    self.takes_more.varargs |= name == "varargs";
                    self.takes_more.kwargs |= name == "kwargs";
                    Expr::Name(name.into())
                }
            },
            Kind::String(mut text) => {
                while let Kind::String(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Expr::Constant(Value::Text(text.into()))
            }
            Kind::Integer(number) => Expr::Constant(Value::Int(number)),
            Kind::Float(number) => Expr::Constant(Value::Float(number)),
            Kind::Operator("(") => {
                if self.skip(")") {
                    return Ok(Expr::Tuple(Vec::new()));
                }
                let value = self.tuple(true, &[])?;
                self.needed(")")?;
                value
            }
            Kind::Operator("[") => {
                let mut items = Vec::new();
                while !self.skip("]") {
                    if !items.is_empty() {
                        self.needed(",")?;
                        if self.skip("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                Expr::List(items)
            }
            Kind::Operator("{") => {
                let mut entries = Vec::new();
                while !self.skip("}") {
                    if !entries.is_empty() {
                        self.needed(",")?;
                        if self.skip("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.needed(":")?;
                    entries.push((key, self.expression()?));
                }
                Expr::Dict(entries)
            }
            _ => return self.fault("an expression is missing or broken"),
        })
    }

    /// Attributes, items, calls, and (`with_filters`) filters and tests after a value.
    fn postfix(&mut self, mut value: Expr, with_filters: bool) -> Outcome<Expr> {
        let mut filtered = false;
        loop {
            value = if !filtered && self.skip(".") {
                match self.next() {
                    Kind::Name(name) => Expr::Attribute(Box::new(value), name.into()),
                    Kind::Integer(number) => Expr::Item(Box::new(value), Box::new(Expr::Constant(Value::Int(number)))),
                    _ => return self.fault("a name or a number must follow the dot"),
                }
            } else if !filtered && self.skip("[") {
                self.subscript(value)?
            } else if self.skip("(") {
                Expr::Call(Box::new(value), self.arguments()?)
            } else if with_filters && self.skip("|") {
                filtered = true;
                let (name, arguments) = self.filter()?;
                Expr::Filter(Box::new(value), name, arguments)
            } else if with_filters && self.skip_name("is") {
                filtered = true;
                self.test(value)?
            } else {
                return Ok(value);
            };
            self.count()?;
        }
    }

    fn subscript(&mut self, value: Expr) -> Outcome<Expr> {
        let mut parts: [Option<Box<Expr>>; 3] = [None, None, None];
        let mut colons = 0;
        while !self.skip("]") {
            if self.skip(":") {
                colons += 1;
                if colons > 2 {
                    return self.fault("a slice has more than three parts");
                }
            } else if parts[colons].is_some() {
                return self.unexpected("`]`");
            } else {
                parts[colons] = Some(Box::new(self.expression()?));
            }
        }
        match (colons, parts) {
            (0, [Some(item), ..]) => Ok(Expr::Item(Box::new(value), item)),
            (0, _) => self.unexpected("an index"),
            (_, parts) => Ok(Expr::Slice(Box::new(value), parts)),
        }
    }

    /// A filter after its `|`.
    pub(crate) fn filter(&mut self) -> Outcome<(Arc<str>, Arguments)> {
        let name = self.dotted_name()?;
        let arguments = if self.skip("(") { self.arguments()? } else { Arguments::default() };
        Ok((name, arguments))
    }

    fn dotted_name(&mut self) -> Outcome<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.skip(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.into())
    }

    /// A test after its `is`; one argument may stand without parentheses.
    fn test(&mut self, value: Expr) -> Outcome<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        let has_argument = match self.peek() {
            Kind::Operator("(") => {
                self.next();
                arguments = self.arguments()?;
                false
            }
            Kind::Name(name) if name == "is" => return self.fault("tests cannot be chained with `is`"),
            Kind::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Kind::String(_) | Kind::Integer(_) | Kind::Float(_) | Kind::Operator("[" | "{") => true,
            _ => false,
        };
        if has_argument {
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument, false)?);
        }
        let test = Expr::Test(Box::new(value), name, arguments);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    /// Arguments after `(`, the `)` included.
    fn arguments(&mut self) -> Outcome<Arguments> {
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.skip(")") {
            if !std::mem::take(&mut first) {
                self.needed(",")?;
                if self.skip(")") {
                    break;
                }
            }
            let named = matches!((self.peek(), self.peek_second()), (Kind::Name(_), Kind::Operator("=")));
            if self.skip("**") {
                arguments.more_named = Some(Box::new(self.expression()?));
            } else if self.skip("*") {
                arguments.more = Some(Box::new(self.expression()?));
            } else if named {
                let name = self.name()?;
                self.needed("=")?;
                arguments.named.push((name, self.expression()?));
            } else if arguments.named.is_empty() && arguments.more.is_none() && arguments.more_named.is_none() {
                arguments.positional.push(self.expression()?);
            } else {
                return self.fault("a positional argument follows a named one");
            }
        }
        Ok(arguments)
    }
}

/// The only term, or an expression of several.
fn one_or(mut terms: Vec<Expr>, several: fn(Vec<Expr>) -> Expr) -> Expr {
    match terms.pop() {
        Some(only) if terms.is_empty() => only,
        last => several(terms.into_iter().chain(last).collect()),
    }
}
