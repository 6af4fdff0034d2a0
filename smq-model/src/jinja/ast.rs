//! A template as a tree, which the parser makes and the interpreter walks.

use std::sync::Arc;

/// A name: of a variable, an attribute, a filter.
pub(crate) type Name = Arc<str>;

/// A statement and what it holds.
#[derive(Debug)]
pub(crate) enum Stmt {
    Data(String),
    Print(Vec<Expr>),
    If(Vec<(Expr, Vec<Node>)>, Vec<Node>),
    For(Arc<For>),
    Set(Target, Expr),
    /// `{% set x %}...{% endset %}`, through the filters given.
    SetBlock(Target, Vec<Filter>, Vec<Node>),
    Macro(Arc<Macro>),
    /// `{% call(args) f() %}...{% endcall %}`: the body is a macro named `caller`.
    Call(Arc<Macro>, Call),
    Filter(Vec<Filter>, Vec<Node>),
    With(Vec<(Target, Expr)>, Vec<Node>),
    Block(Vec<Node>),
    /// `{% generation %}`: marks what the assistant says, and renders as its body does.
    Generation(Vec<Node>),
    /// `include` and the like: there is nothing else to load, which fails when it comes to that.
    Load(Name),
    Break,
    Continue,
}

/// A statement and its line, counted from 1.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) stmt: Stmt,
}

/// `{% for target in items if test %}`.
#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) items: Expr,
    pub(crate) test: Option<Expr>,
    pub(crate) recursive: bool,
    pub(crate) body: Vec<Node>,
    pub(crate) otherwise: Vec<Node>,
}

/// A macro, or the body of a call block.
#[derive(Debug)]
pub(crate) struct Macro {
    pub(crate) name: Name,
    pub(crate) params: Vec<Name>,
    /// Defaults, which belong to the last parameters.
    pub(crate) defaults: Vec<Expr>,
    pub(crate) body: Vec<Node>,
    pub(crate) uses: Uses,
}

/// Names that a macro has only if its body asks for them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uses {
    pub(crate) caller: bool,
    pub(crate) varargs: bool,
    pub(crate) kwargs: bool,
}

/// What is assigned to.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Name),
    Tuple(Vec<Target>),
    /// An attribute of a namespace.
    Attr(Name, Name),
}

/// A filter and its arguments.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) name: Name,
    pub(crate) args: CallArgs,
}

/// A call of a function, a method or a macro.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) callee: Expr,
    pub(crate) args: CallArgs,
}

/// Arguments of a call, a filter or a test.
#[derive(Debug, Default)]
pub(crate) struct CallArgs {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Name, Expr)>,
    /// The list that `*list` hands over as further arguments.
    pub(crate) list: Option<Expr>,
    /// The dictionary that `**dict` hands over as further named arguments.
    pub(crate) dict: Option<Expr>,
}

/// An expression, which has a value wherever the template uses it.
#[derive(Debug)]
pub(crate) enum Expr {
    Const(Const),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attr(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Call>),
    Filter(Box<Expr>, Box<Filter>),
    Test(Box<Expr>, Box<Filter>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Math(Math, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `yes if test else no`.
    Cond {
        test: Box<Expr>,
        yes: Box<Expr>,
        no: Option<Box<Expr>>,
    },
}

/// A value that the template spells out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
}

/// The operators of arithmetic, as Python has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Math {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// The operators that compare two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}
