//! The syntax tree of a template: statements and expressions.
//!
//! Not here: how text becomes these (`parser.rs`, `expressions.rs`) and what they do (`run/`, `eval.rs`).

use super::Value;
use std::sync::Arc;

/// A statement and the line where it starts.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) line: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Text(Arc<str>),
    Print(Expr),
    /// Conditions in order, each with its body; a body without one comes last.
    If(Vec<(Option<Expr>, Vec<Statement>)>),
    For(Arc<For>),
    Set(Target, Expr),
    /// `{% set x %}...{% endset %}`, through filters.
    SetBlock(Target, Vec<(Arc<str>, Arguments)>, Vec<Statement>),
    Macro(Arc<Macro>),
    /// `{% call(parameters) callee(arguments) %}...{% endcall %}`.
    CallBlock(Arc<Macro>, Expr),
    Filter(Vec<(Arc<str>, Arguments)>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    /// A body in a scope of its own: `{% generation %}`.
    Scope(Vec<Statement>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) over: Expr,
    /// Items for which this is false are skipped, and not counted.
    pub(crate) only: Option<Expr>,
    pub(crate) recursive: bool,
    pub(crate) body: Vec<Statement>,
    pub(crate) otherwise: Vec<Statement>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(crate) struct Macro {
    pub(crate) name: Arc<str>,
    pub(crate) parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub(crate) body: Vec<Statement>,
    pub(crate) takes_more: TakesMore,
}

/// Whether a macro's body reads further arguments; else more arguments than parameters are a fault.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TakesMore {
    pub(crate) varargs: bool,
    pub(crate) kwargs: bool,
}

/// Arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Arc<str>, Expr)>,
    /// `*list` and `**dict`.
    pub(crate) more: Option<Box<Expr>>,
    pub(crate) more_named: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Debug)]
pub(crate) enum Expr {
    Constant(Value),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    /// Start, stop and step.
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Arguments),
    Filter(Box<Expr>, Arc<str>, Arguments),
    Test(Box<Expr>, Arc<str>, Arguments),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    /// Condition, value, and the value otherwise (undefined if there is none).
    If(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}
