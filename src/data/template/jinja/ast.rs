//! The syntax tree of a template: statements and expressions.
//!
//! Not here: how text becomes these (`parser.rs`, `expressions.rs`) and what they do (`run/`, `eval.rs`).

use super::Value;
use std::sync::Arc;

/// A statement and the line where it starts.
#[derive(Debug)]
pub struct Statement {
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
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
pub struct For {
    pub target: Target,
    pub over: Expr,
    /// Items for which this is false are skipped, and not counted.
    pub only: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}

/// The target of an assignment.
#[derive(Debug)]
pub enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub struct Macro {
    pub name: Arc<str>,
    pub parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub body: Vec<Statement>,
    pub takes_more: TakesMore,
}

/// Whether a macro's body reads further arguments; else more arguments than parameters are a fault.
#[derive(Debug, Clone, Copy, Default)]
pub struct TakesMore {
    pub varargs: bool,
    pub kwargs: bool,
}

/// Arguments of a call.
#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Arc<str>, Expr)>,
    /// `*list` and `**dict`.
    pub more: Option<Box<Expr>>,
    pub more_named: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
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
pub enum Expr {
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
