//! Statements of a template, executed one after another.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::ast::{Filter, For, Node, Stmt, Target};
use super::call::namespace_name;
use super::error::{Fault, Result};
use super::filters;
use super::heap::Queue;
use super::interp::Interp;
use super::limits;
use super::scope::Scope;
use super::show;
use super::value::{Callable, Loop, Value};

/// How a list of statements ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Done,
    Break,
    Continue,
}

impl Interp {
    pub(crate) fn exec(
        &mut self,
        body: &[Node],
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<()> {
        self.statements(body, scope, out).map(|_| ())
    }

    fn statements(&mut self, body: &[Node], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        for node in body {
            let flow = self
                .deeper(|interp| interp.statement(&node.stmt, scope, out))
                .map_err(|fault| fault.at(node.line))?;
            limits::text(out.len())?;
            if flow != Flow::Done {
                return Ok(flow);
            }
        }
        Ok(Flow::Done)
    }

    fn statement(&mut self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        match stmt {
            Stmt::Data(text) => out.push_str(text),
            Stmt::Print(values) => {
                for value in values {
                    out.push_str(&show::string(&self.eval(value, scope)?));
                }
            }
            Stmt::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.truth() {
                        return self.statements(body, scope, out);
                    }
                }
                return self.statements(otherwise, scope, out);
            }
            Stmt::For(node) => {
                let items = self.eval(&node.items, scope)?;
                self.run_loop(node, scope, &items, 0, out)?;
            }
            Stmt::Set(target, value) => {
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::SetBlock(target, filters, body) => {
                let text = self.captured(body, &scope.child())?;
                let value = self.filtered(filters, Value::str(text), scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::Macro(node) => self.define(node, scope),
            Stmt::Call(caller, call) => {
                let callee = self.eval(&call.callee, scope)?;
                let mut args = self.args(&call.args, scope)?;
                let caller = Value::Callable(Rc::new(Callable::Macro {
                    node: Arc::clone(caller),
                    scope: Rc::clone(scope),
                }));
                args.named.push((Arc::from("caller"), caller));
                out.push_str(&show::string(&self.call(&callee, args)?));
            }
            Stmt::Filter(filters, body) => {
                let text = self.captured(body, &scope.child())?;
                let value = self.filtered(filters, Value::str(text), scope)?;
                out.push_str(&show::string(&value));
            }
            Stmt::With(pairs, body) => {
                let inner = scope.child();
                for (target, value) in pairs {
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.statements(body, &inner, out);
            }
            Stmt::Block(body) => self.exec(body, &scope.outermost().child(), out)?,
            Stmt::Generation(body) => self.exec(body, &scope.child(), out)?,
            Stmt::Load(tag) => {
                return Err(Fault::new(format!(
                    "'{tag}' finds no other template to load"
                )));
            }
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Done)
    }

    fn captured(&mut self, body: &[Node], scope: &Rc<Scope>) -> Result<String> {
        let mut text = String::new();
        self.exec(body, scope, &mut text)?;
        Ok(text)
    }

    fn filtered(
        &mut self,
        filters: &[Filter],
        mut value: Value,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        for filter in filters {
            let args = self.args(&filter.args, scope)?;
            value = filters::apply(self, &filter.name, value, args)?;
        }
        Ok(value)
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Tuple(targets) => {
                let values = value.iterate()?;
                let (want, found) = (targets.len(), values.len());
                if want < found {
                    let message = format!("too many values to unpack (expected {want})");
                    return Err(Fault::new(message));
                }
                if want > found {
                    let message =
                        format!("not enough values to unpack (expected {want}, got {found})");
                    return Err(Fault::new(message));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
            Target::Attr(object, name) => {
                namespace_name(name)?;
                match scope.get(object) {
                    Some(Value::Namespace(namespace)) => {
                        namespace.borrow_mut().set(Value::str(name), value)?;
                    }
                    _ => {
                        let message = "cannot assign attribute on non-namespace object";
                        return Err(Fault::new(message));
                    }
                }
            }
        }
        Ok(())
    }

    /// The body of a recursive loop over other items: `loop(items)`.
    pub(super) fn recurse(&mut self, state: &Rc<Loop>, items: &Value) -> Result<Value> {
        if !state.node.recursive {
            return Err(Fault::new(
                "The loop must have the 'recursive' marker to be called recursively.",
            ));
        }
        let mut out = String::new();
        let depth = state.depth0 + 1;
        self.run_loop(&state.node, &state.scope, items, depth, &mut out)?;
        Ok(Value::str(out))
    }

    fn run_loop(
        &mut self,
        node: &Arc<For>,
        scope: &Rc<Scope>,
        items: &Value,
        depth0: usize,
        out: &mut String,
    ) -> Result<()> {
        let items = match items {
            // `{% for k in loop %}` and the like have no items of their own.
            Value::Loop(_) => return Err(Fault::unsupported("a loop over 'loop'")),
            other => other.iterate()?,
        };
        let state = Rc::new(Loop {
            node: Arc::clone(node),
            scope: Rc::clone(scope),
            depth0,
            length: Cell::new(node.test.is_none().then_some(items.len())),
            rest: RefCell::new(Queue::new(items)),
            ahead: RefCell::default(),
            current: RefCell::default(),
            before: RefCell::default(),
            begun: Cell::new(0),
            last_changed: RefCell::default(),
        });
        let name = Arc::from("loop");
        while let Some(item) = self.next_item(&state)? {
            let inner = scope.child();
            inner.set(&name, Value::Loop(Rc::clone(&state)));
            self.assign(&node.target, item, &inner)?;
            if self.statements(&node.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        match state.begun.get() {
            0 => self.exec(&node.otherwise, &scope.child(), out),
            _ => Ok(()),
        }
    }

    /// Begins the next pass.
    fn next_item(&mut self, state: &Rc<Loop>) -> Result<Option<Value>> {
        let ahead = state.ahead.take();
        let next = match ahead {
            Some(item) => Some(item),
            None => self.pull(state)?,
        };
        if let Some(item) = &next {
            state.begun.set(state.begun.get() + 1);
            let before = state.current.replace(Some(item.clone()));
            state.before.replace(before);
        }
        Ok(next)
    }

    /// The next item that the loop's condition lets through.
    fn pull(&mut self, state: &Rc<Loop>) -> Result<Option<Value>> {
        loop {
            let next = state.rest.borrow_mut().pop_front();
            let Some(item) = next else {
                return Ok(None);
            };
            // A loop whose length is known has been filtered to its end.
            let test = state
                .node
                .test
                .as_ref()
                .filter(|_| state.length.get().is_none());
            let Some(test) = test else {
                return Ok(Some(item));
            };
            let scope = state.scope.child();
            self.assign(&state.node.target, item.clone(), &scope)?;
            if self.eval(test, &scope)?.truth() {
                return Ok(Some(item));
            }
        }
    }

    /// The item after this one, taken early.
    fn peek(&mut self, state: &Rc<Loop>) -> Result<Option<Value>> {
        if state.ahead.borrow().is_none() {
            let next = self.pull(state)?;
            state.ahead.replace(next);
        }
        Ok(state.ahead.borrow().clone())
    }

    pub(super) fn loop_length(&mut self, state: &Rc<Loop>) -> Result<usize> {
        if let Some(length) = state.length.get() {
            return Ok(length);
        }
        let mut rest = Queue::default();
        while let Some(item) = self.pull(state)? {
            rest.push_back(item);
        }
        let ahead = usize::from(state.ahead.borrow().is_some());
        let length = rest.len() + ahead + state.begun.get();
        state.rest.replace(rest);
        state.length.set(Some(length));
        Ok(length)
    }

    /// An attribute of `loop` that is no method.
    pub(super) fn loop_attribute(&mut self, state: &Rc<Loop>, name: &str) -> Result<Option<Value>> {
        let index = state.begun.get();
        let number = |n: usize| Some(Value::Int(n as i128));
        Ok(match name {
            "index" => number(index),
            "index0" => number(index.saturating_sub(1)),
            "length" => number(self.loop_length(state)?),
            "revindex" => number((self.loop_length(state)? + 1).saturating_sub(index)),
            "revindex0" => number(self.loop_length(state)?.saturating_sub(index)),
            "first" => Some(Value::Bool(index == 1)),
            "last" => Some(Value::Bool(self.peek(state)?.is_none())),
            "depth" => number(state.depth0 + 1),
            "depth0" => number(state.depth0),
            "previtem" => Some(match state.before.borrow().clone() {
                Some(item) => item,
                None => Value::undefined("there is no previous item"),
            }),
            "nextitem" => Some(match self.peek(state)? {
                Some(item) => item,
                None => Value::undefined("there is no next item"),
            }),
            _ => None,
        })
    }

    /// Calls `loop.cycle(...)` or `loop.changed(...)`.
    pub(super) fn loop_method(&self, state: &Rc<Loop>, name: &str, args: Args) -> Result<Value> {
        let values = args.list;
        match name {
            "cycle" => {
                let at = state.begun.get().saturating_sub(1) % values.len().max(1);
                let none = || Fault::new("no items for cycling given");
                values.get(at).cloned().ok_or_else(none)
            }
            _ => {
                let values = Value::tuple(values);
                let mut last = state.last_changed.borrow_mut();
                let changed = last
                    .as_ref()
                    .is_none_or(|last| !super::ops::equal(last, &values));
                *last = Some(values);
                Ok(Value::Bool(changed))
            }
        }
    }
}
