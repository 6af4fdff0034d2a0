//! Tokens to a template: statements. Expressions are in [`expr`].

mod expr;

use std::sync::Arc;

use super::ast::{Expr, For, Macro, Node, Stmt, Target, Uses};
use super::error::{Fault, Result};
use super::lexer::{self, Token};

/// Statements and expressions may nest this deep: Python stops at about as many brackets.
const MAX_DEPTH: usize = 120;

/// Parses a whole template.
pub(crate) fn parse(source: &str) -> Result<Vec<Node>> {
    let mut parser = Parser {
        tokens: lexer::tokens(source)?,
        at: 0,
        depth: 0,
        links: 0,
        loops: 0,
        unknown: Vec::new(),
        uses: Uses::default(),
        refused: None,
    };
    let body = parser.body(&[])?;
    match parser.refused.or(parser.unknown.into_iter().next()) {
        Some(fault) => Err(fault),
        None => Ok(body),
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Operators in rows within this tag: each of them nests those before it.
    links: usize,
    /// For loops around here, within the innermost macro.
    loops: usize,
    /// Filters and tests that do not exist. Jinja minds when it compiles a template, but not
    /// within a condition, where the template may ask for them first.
    unknown: Vec<Fault>,
    /// What the innermost macro's body has asked for so far.
    uses: Uses,
    /// One of those whose statement no condition can excuse any more.
    refused: Option<Fault>,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.ahead(0)
    }

    fn ahead(&self, by: usize) -> &Token {
        self.tokens
            .get(self.at + by)
            .map_or(&Token::End, |(token, _)| token)
    }

    fn line(&self) -> usize {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |(_, line)| *line)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Fault::new(message).at(self.line()))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(o) if *o == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(n) if n == name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, found: bool, what: &str) -> Result<()> {
        match (found, self.peek()) {
            (true, _) => Ok(()),
            (false, Token::End) => {
                self.fail(format!("unexpected end of template, expected {what}"))
            }
            (false, token) => self.fail(format!("expected {what}, got {token}")),
        }
    }

    fn expect_op(&mut self, op: &str) -> Result<()> {
        let found = self.skip_op(op);
        self.expect(found, &format!("'{op}'"))
    }

    fn expect_name(&mut self) -> Result<Arc<str>> {
        let name = match self.peek() {
            Token::Name(name) => Some(Arc::from(name.as_str())),
            _ => None,
        };
        self.expect(name.is_some(), "a name")?;
        self.at += 1;
        Ok(name.unwrap_or_default())
    }

    fn expect_keyword(&mut self, name: &str) -> Result<()> {
        let found = self.skip_name(name);
        self.expect(found, &format!("'{name}'"))
    }

    fn expect_block_end(&mut self) -> Result<()> {
        let found = *self.peek() == Token::BlockEnd;
        self.expect(found, "end of statement block")?;
        self.at += 1;
        Ok(())
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return self.fail(format!("nests deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Statements up to a block that begins with one of `ends`, which is left as the next token;
    /// up to the end of the template where there is none.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Node>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.links = 0;
            match self.next() {
                Token::Data(text) => body.push(Node {
                    line,
                    stmt: Stmt::Data(text),
                }),
                Token::VariableBegin => {
                    let value = self.tuple(true, &[])?;
                    let found = *self.peek() == Token::VariableEnd;
                    self.expect(found, "end of print statement")?;
                    self.at += 1;
                    let stmt = Stmt::Print(vec![value]);
                    body.push(Node { line, stmt });
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    let stmt = self.nested(Self::statement)?;
                    self.expect_block_end()?;
                    body.push(Node { line, stmt });
                }
                Token::End if ends.is_empty() => return Ok(body),
                token => {
                    self.at -= 1;
                    let looked = ends.join("' or '");
                    return match token {
                        Token::End => self.fail(format!(
                            "unexpected end of template; Jinja was looking for '{looked}'"
                        )),
                        token => self.fail(format!("unexpected {token}")),
                    };
                }
            }
        }
    }

    /// The body of a statement whose head has been read, up to one of `ends`.
    fn block(&mut self, ends: &[&str]) -> Result<Vec<Node>> {
        self.skip_op(":");
        self.expect_block_end()?;
        self.body(ends)
    }

    /// A body that ends with `end`, which is read too. Nothing around it excuses what it names.
    fn hard_block(&mut self, end: &str) -> Result<Vec<Node>> {
        let mark = self.unknown.len();
        let body = self.block(&[end])?;
        self.at += 1;
        self.refuse(mark);
        Ok(body)
    }

    /// As [`Parser::hard_block`], where the loops around it cannot be left from within.
    fn function_block(&mut self, end: &str) -> Result<Vec<Node>> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.hard_block(end);
        self.loops = loops;
        body
    }

    /// The body of a macro or a call block, whose head has been read.
    fn macro_body(
        &mut self,
        name: Arc<str>,
        params: Vec<Arc<str>>,
        defaults: Vec<Expr>,
        end: &str,
    ) -> Result<Macro> {
        let without_default = params.len() - defaults.len();
        if params
            .iter()
            .take(without_default)
            .any(|param| &**param == "caller")
        {
            return self.fail("the special 'caller' argument must be given a default");
        }
        let outer = std::mem::take(&mut self.uses);
        let body = self.function_block(end);
        let uses = self.uses;
        self.uses = Uses {
            caller: outer.caller || uses.caller,
            varargs: outer.varargs || uses.varargs,
            kwargs: outer.kwargs || uses.kwargs,
        };
        let body = body?;
        Ok(Macro {
            name,
            params,
            defaults,
            body,
            uses,
        })
    }

    fn refuse(&mut self, mark: usize) {
        let first = self.unknown.drain(mark..).next();
        self.refused = self.refused.take().or(first);
    }

    fn statement(&mut self) -> Result<Stmt> {
        let Token::Name(tag) = self.peek().clone() else {
            return self.fail("tag name expected");
        };
        self.at += 1;
        match tag.as_str() {
            "if" => self.parse_if(),
            "for" => self.parse_for(),
            "set" => self.parse_set(),
            "macro" => {
                let name = self.expect_name()?;
                let (params, defaults) = self.signature()?;
                let node = self.macro_body(name, params, defaults, "endmacro")?;
                Ok(Stmt::Macro(Arc::new(node)))
            }
            "call" => {
                let (params, defaults) = match self.is_op("(") {
                    true => self.signature()?,
                    false => Default::default(),
                };
                let Expr::Call(call) = self.expression(true)? else {
                    return self.fail("expected call");
                };
                let name = Arc::from("caller");
                let caller = self.macro_body(name, params, defaults, "endcall")?;
                Ok(Stmt::Call(Arc::new(caller), *call))
            }
            "filter" => {
                let mut filters = vec![self.filter()?];
                filters.extend(self.filters()?);
                Ok(Stmt::Filter(filters, self.hard_block("endfilter")?))
            }
            "with" => self.parse_with(),
            "block" => {
                self.expect_name()?;
                self.skip_name("scoped");
                self.skip_name("required");
                let body = self.function_block("endblock")?;
                if let Token::Name(_) = self.peek() {
                    self.at += 1;
                }
                Ok(Stmt::Block(body))
            }
            "generation" => Ok(Stmt::Generation(self.function_block("endgeneration")?)),
            "print" => {
                let mut values = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    values.push(self.expression(true)?);
                }
                Ok(Stmt::Print(values))
            }
            "break" | "continue" if self.loops == 0 => self.fail(format!("'{tag}' outside loop")),
            "break" => Ok(Stmt::Break),
            "continue" => Ok(Stmt::Continue),
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.peek(), Token::BlockEnd | Token::End) {
                    self.at += 1;
                }
                Ok(Stmt::Load(Arc::from(tag)))
            }
            "autoescape" => Err(Fault::unsupported("the tag 'autoescape'").at(self.line())),
            _ => self.fail(format!("encountered unknown tag '{tag}'")),
        }
    }

    fn parse_if(&mut self) -> Result<Stmt> {
        let mark = self.unknown.len();
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            let body = self.block(&["elif", "else", "endif"])?;
            branches.push((test, body));
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                otherwise = self.block(&["endif"])?;
            }
            self.at += 1;
            self.unknown.truncate(mark);
            return Ok(Stmt::If(branches, otherwise));
        }
    }

    fn parse_for(&mut self) -> Result<Stmt> {
        let target = self.target(false, &["in"])?;
        self.expect_keyword("in")?;
        let items = self.tuple(false, &["recursive"])?;
        let mark = self.unknown.len();
        let test = match self.skip_name("if") {
            true => Some(self.expression(true)?),
            false => None,
        };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let body = self.block(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let otherwise = match self.skip_name("else") {
            true => self.block(&["endfor"])?,
            false => Vec::new(),
        };
        self.at += 1;
        self.refuse(mark);
        Ok(Stmt::For(Arc::new(For {
            target,
            items,
            test,
            recursive,
            body,
            otherwise,
        })))
    }

    fn parse_set(&mut self) -> Result<Stmt> {
        let target = self.target(true, &[])?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filters()?;
        Ok(Stmt::SetBlock(target, filters, self.hard_block("endset")?))
    }

    fn parse_with(&mut self) -> Result<Stmt> {
        let mut pairs = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !pairs.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect_op("=")?;
            pairs.push((target, self.expression(true)?));
        }
        Ok(Stmt::With(pairs, self.hard_block("endwith")?))
    }

    fn signature(&mut self) -> Result<(Vec<Arc<str>>, Vec<Expr>)> {
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            params.push(self.expect_name()?);
            if self.skip_op("=") {
                defaults.push(self.expression(true)?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
        }
        self.expect_op(")")?;
        Ok((params, defaults))
    }

    /// What is assigned to: names, tuples of them, attributes of namespaces.
    fn target(&mut self, namespace: bool, ends: &[&str]) -> Result<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            let end = self.is_op(")") || ends.iter().any(|end| self.is_name(end));
            if end || matches!(self.peek(), Token::BlockEnd | Token::VariableEnd) {
                break;
            }
            targets.push(self.nested(|p| p.one_target(namespace))?);
            if !self.skip_op(",") {
                break;
            }
            tuple = true;
        }
        match (targets.pop(), tuple) {
            (None, _) => self.fail("expected a name to assign to"),
            (Some(only), false) => Ok(only),
            (Some(last), true) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn one_target(&mut self, namespace: bool) -> Result<Target> {
        if self.skip_op("(") {
            let inner = self.target(namespace, &[])?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let name = self.expect_name()?;
        if matches!(
            &*name,
            "true" | "false" | "none" | "True" | "False" | "None"
        ) {
            return self.fail(format!("can't assign to '{name}'"));
        }
        if namespace && self.skip_op(".") {
            return Ok(Target::Attr(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }
}
