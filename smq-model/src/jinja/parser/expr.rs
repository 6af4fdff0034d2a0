//! Parses expressions, a function for each precedence of operators.

use std::sync::Arc;

use super::super::ast::{Call, CallArgs, Comparison, Const, Expr, Filter, Math};
use super::super::checks;
use super::super::error::{Fault, Result};
use super::super::filters;
use super::super::lexer::Token;
use super::Parser;

/// Links of a chain such as `a + b + c`, each of which nests the ones before it.
const MAX_CHAIN: usize = 200;
/// Links of all chains of a tag together.
const MAX_LINKS: usize = 2000;

impl Parser {
    pub(super) fn expression(&mut self, conditional: bool) -> Result<Expr> {
        self.nested(|p| match conditional {
            true => p.conditional(),
            false => p.or(),
        })
    }

    fn conditional(&mut self) -> Result<Expr> {
        let mark = self.unknown.len();
        let mut yes = self.or()?;
        while self.skip_name("if") {
            let test = Box::new(self.or()?);
            let no = match self.skip_name("else") {
                true => Some(Box::new(self.expression(true)?)),
                false => None,
            };
            self.unknown.truncate(mark);
            yes = Expr::Cond {
                test,
                yes: Box::new(yes),
                no,
            };
        }
        Ok(yes)
    }

    /// Left-associative operators: what `link` reads and adds to what stands before it.
    fn chain(
        &mut self,
        first: Expr,
        link: impl Fn(&mut Self, Expr) -> Result<(Expr, bool)>,
    ) -> Result<Expr> {
        let mut left = first;
        for _ in 0..MAX_CHAIN {
            let (next, more) = link(self, left)?;
            left = next;
            if !more {
                return Ok(left);
            }
            self.links += 1;
            if self.links > MAX_LINKS {
                break;
            }
        }
        self.fail(format!(
            "an expression has more than {MAX_CHAIN} operators in a row, or {MAX_LINKS} in all"
        ))
    }

    fn or(&mut self) -> Result<Expr> {
        let first = self.and()?;
        self.chain(first, |p, left| match p.skip_name("or") {
            true => Ok((Expr::Or(Box::new(left), Box::new(p.and()?)), true)),
            false => Ok((left, false)),
        })
    }

    fn and(&mut self) -> Result<Expr> {
        let first = self.not()?;
        self.chain(first, |p, left| match p.skip_name("and") {
            true => Ok((Expr::And(Box::new(left), Box::new(p.not()?)), true)),
            false => Ok((left, false)),
        })
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Op("==") => Comparison::Eq,
                Token::Op("!=") => Comparison::Ne,
                Token::Op("<") => Comparison::Lt,
                Token::Op("<=") => Comparison::Le,
                Token::Op(">") => Comparison::Gt,
                Token::Op(">=") => Comparison::Ge,
                Token::Name(n) if n == "in" => Comparison::In,
                Token::Name(n) if n == "not" => match self.ahead(1) {
                    Token::Name(n) if n == "in" => {
                        self.at += 1;
                        Comparison::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.at += 1;
            rest.push((comparison, self.sum()?));
        }
        match rest.is_empty() {
            true => Ok(first),
            false => Ok(Expr::Compare(Box::new(first), rest)),
        }
    }

    fn sum(&mut self) -> Result<Expr> {
        let first = self.concat()?;
        self.math(&[("+", Math::Add), ("-", Math::Sub)], first, Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let mut parts = vec![self.product()?];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        match (parts.pop(), parts.is_empty()) {
            (Some(only), true) => Ok(only),
            (last, _) => {
                parts.extend(last);
                Ok(Expr::Concat(parts))
            }
        }
    }

    fn product(&mut self) -> Result<Expr> {
        let first = self.power()?;
        let operators = [
            ("*", Math::Mul),
            ("/", Math::Div),
            ("//", Math::FloorDiv),
            ("%", Math::Mod),
        ];
        self.math(&operators, first, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        let first = self.unary(true)?;
        self.math(&[("**", Math::Pow)], first, |p| p.unary(true))
    }

    fn math(
        &mut self,
        operators: &[(&str, Math)],
        first: Expr,
        operand: impl Fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        self.chain(first, |p, left| {
            let found = operators.iter().find(|(op, _)| p.is_op(op));
            let Some((_, math)) = found else {
                return Ok((left, false));
            };
            p.at += 1;
            let right = operand(p)?;
            Ok((Expr::Math(*math, Box::new(left), Box::new(right)), true))
        })
    }

    fn unary(&mut self, with_filter: bool) -> Result<Expr> {
        let sign = match self.peek() {
            Token::Op("-") => Some(Expr::Neg as fn(Box<Expr>) -> Expr),
            Token::Op("+") => Some(Expr::Pos as fn(Box<Expr>) -> Expr),
            _ => None,
        };
        let node = match sign {
            Some(sign) => {
                self.at += 1;
                sign(Box::new(self.nested(|p| p.unary(false))?))
            }
            None => self.primary()?,
        };
        let node = self.postfix(node)?;
        match with_filter {
            true => self.filtered(node),
            false => Ok(node),
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        Ok(match self.next() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expr::Const(Const::Bool(true)),
                "false" | "False" => Expr::Const(Const::Bool(false)),
                "none" | "None" => Expr::Const(Const::None),
                "self" => return Err(Fault::unsupported("'self'").at(self.line())),
                _ => {
                    self.uses.caller |= name == "caller";
                    self.uses.varargs |= name == "varargs";
                    self.uses.kwargs |= name == "kwargs";
                    Expr::Name(Arc::from(name))
                }
            },
            Token::Str(mut text) => {
                while let Token::Str(more) = self.peek() {
                    text += more;
                    self.at += 1;
                }
                Expr::Const(Const::Str(Arc::from(text)))
            }
            Token::Int(value) => Expr::Const(Const::Int(value)),
            Token::Float(value) => Expr::Const(Const::Float(value)),
            Token::Op("(") => {
                let inner = match self.is_op(")") {
                    true => Expr::Tuple(Vec::new()),
                    false => self.tuple(true, &[])?,
                };
                self.expect_op(")")?;
                inner
            }
            Token::Op("[") => Expr::List(self.items("]", |p| p.expression(true))?),
            Token::Op("{") => Expr::Dict(self.items("}", |p| {
                let key = p.expression(true)?;
                p.expect_op(":")?;
                Ok((key, p.expression(true)?))
            })?),
            token => {
                self.at -= 1;
                return self.fail(format!("unexpected {token}"));
            }
        })
    }

    /// Items with commas between them, and perhaps behind the last, up to `end`.
    fn items<T>(&mut self, end: &str, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_op(end) {
                break;
            }
            items.push(item(self)?);
        }
        self.expect_op(end)?;
        Ok(items)
    }

    /// An expression, or a tuple if commas follow.
    pub(super) fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Result<Expr> {
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            let end = self.is_op(")") || ends.iter().any(|end| self.is_name(end));
            if end || matches!(self.peek(), Token::BlockEnd | Token::VariableEnd) {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.skip_op(",") {
                break;
            }
            tuple = true;
        }
        match (items.pop(), tuple) {
            (None, _) => {
                let token = self.peek().clone();
                self.fail(format!("expected an expression, got {token}"))
            }
            (Some(only), false) => Ok(only),
            (Some(last), true) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    fn postfix(&mut self, node: Expr) -> Result<Expr> {
        self.chain(node, |p, node| match p.peek() {
            Token::Op(".") => {
                p.at += 1;
                let node = Box::new(node);
                let next = match p.next() {
                    Token::Name(name) => Expr::Attr(node, Arc::from(name)),
                    Token::Int(index) => Expr::Item(node, Box::new(Expr::Const(Const::Int(index)))),
                    _ => {
                        p.at -= 1;
                        return p.fail("expected name or number");
                    }
                };
                Ok((next, true))
            }
            Token::Op("[") => {
                p.at += 1;
                Ok((p.subscript(node)?, true))
            }
            Token::Op("(") => Ok((p.call(node)?, true)),
            _ => Ok((node, false)),
        })
    }

    /// The inside of `[...]` behind `node`.
    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        let node = Box::new(node);
        let start = match self.is_op(":") {
            true => None,
            false => {
                let first = self.expression(true)?;
                if self.skip_op("]") {
                    return Ok(Expr::Item(node, Box::new(first)));
                }
                if self.skip_op(",") {
                    let mut keys = vec![first];
                    keys.extend(self.items("]", |p| p.expression(true))?);
                    return Ok(Expr::Item(node, Box::new(Expr::Tuple(keys))));
                }
                Some(Box::new(first))
            }
        };
        self.expect_op(":")?;
        let mut part = |more: bool| -> Result<Option<Box<Expr>>> {
            match more && !self.is_op(":") && !self.is_op("]") && !self.is_op(",") {
                true => Ok(Some(Box::new(self.expression(true)?))),
                false => Ok(None),
            }
        };
        let stop = part(true)?;
        let stepped = self.skip_op(":");
        let mut part = |more: bool| -> Result<Option<Box<Expr>>> {
            match more && !self.is_op("]") && !self.is_op(",") {
                true => Ok(Some(Box::new(self.expression(true)?))),
                false => Ok(None),
            }
        };
        let step = part(stepped)?;
        self.expect_op("]")?;
        Ok(Expr::Slice(node, [start, stop, step]))
    }

    fn call(&mut self, callee: Expr) -> Result<Expr> {
        let args = self.call_args()?;
        Ok(Expr::Call(Box::new(Call { callee, args })))
    }

    fn call_args(&mut self) -> Result<CallArgs> {
        let mut args = CallArgs::default();
        self.expect_op("(")?;
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            let in_order = match (self.peek(), self.ahead(1)) {
                (Token::Op("*"), _) => {
                    self.at += 1;
                    let in_order = args.list.is_none() && args.dict.is_none();
                    args.list = Some(self.expression(true)?);
                    in_order
                }
                (Token::Op("**"), _) => {
                    self.at += 1;
                    let in_order = args.dict.is_none();
                    args.dict = Some(self.expression(true)?);
                    in_order
                }
                (Token::Name(name), Token::Op("=")) => {
                    let name = Arc::from(name.as_str());
                    self.at += 2;
                    args.named.push((name, self.expression(true)?));
                    args.dict.is_none()
                }
                _ => {
                    args.positional.push(self.expression(true)?);
                    args.list.is_none() && args.dict.is_none() && args.named.is_empty()
                }
            };
            if !in_order {
                return self.fail("invalid syntax for function call expression");
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn filtered(&mut self, node: Expr) -> Result<Expr> {
        self.chain(node, |p, node| match p.peek() {
            Token::Op("|") => {
                p.at += 1;
                let filter = p.filter()?;
                Ok((Expr::Filter(Box::new(node), Box::new(filter)), true))
            }
            Token::Name(name) if name == "is" => {
                p.at += 1;
                Ok((p.test(node)?, true))
            }
            Token::Op("(") => Ok((p.call(node)?, true)),
            _ => Ok((node, false)),
        })
    }

    /// The filters behind `|`, in the order in which they are applied.
    pub(super) fn filters(&mut self) -> Result<Vec<Filter>> {
        let mut filters = Vec::new();
        while self.skip_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    /// A filter's name and arguments.
    pub(super) fn filter(&mut self) -> Result<Filter> {
        let (name, line) = (self.dotted_name()?, self.line());
        if !filters::exists(&name) {
            let fault = filters::unknown(&name);
            self.unknown.push(fault.at(line));
        }
        let args = match self.is_op("(") {
            true => self.call_args()?,
            false => CallArgs::default(),
        };
        Ok(Filter { name, args })
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(Arc::from(name))
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        let negated = self.skip_name("not");
        let (name, line) = (self.dotted_name()?, self.line());
        if !checks::exists(&name) {
            let fault = Fault::new(format!("No test named '{name}'."));
            self.unknown.push(fault.at(line));
        }
        let mut args = CallArgs::default();
        match self.peek() {
            Token::Op("(") => args = self.call_args()?,
            Token::Name(n) if matches!(n.as_str(), "else" | "or" | "and") => {}
            Token::Name(n) if n == "is" => {
                return self.fail("You cannot chain multiple tests with is");
            }
            Token::Name(_)
            | Token::Str(_)
            | Token::Int(_)
            | Token::Float(_)
            | Token::Op("[" | "{") => {
                let argument = self.nested(Self::primary)?;
                args.positional.push(self.postfix(argument)?);
            }
            _ => {}
        }
        let test = Expr::Test(Box::new(node), Box::new(Filter { name, args }));
        Ok(match negated {
            true => Expr::Not(Box::new(test)),
            false => test,
        })
    }
}
