//! The interpreter: expressions, and what statements and calls share.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::ast::{CallArgs, Const, Expr, Macro};
use super::checks;
use super::error::{Fault, Result};
use super::filters;
use super::index;
use super::limits;
use super::ops;
use super::scope::Scope;
use super::show;
use super::value::{Callable, Dict, Function, Value};

/// Writes the time by a format of `strftime`.
pub(crate) type Clock = fn(&str) -> Result<String>;

/// A rendering under way.
pub(crate) struct Interp {
    pub(super) clock: Clock,
    /// Frames that a macro was defined in: each holds the macro and the macro holds it.
    closures: Vec<Rc<Scope>>,
    /// Namespaces, which may hold themselves.
    namespaces: Vec<Rc<RefCell<Dict>>>,
    steps: u64,
    depth: usize,
}

impl Drop for Interp {
    fn drop(&mut self) {
        for scope in &self.closures {
            scope.clear();
        }
        for namespace in &self.namespaces {
            namespace.take();
        }
    }
}

impl Interp {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            closures: Vec::new(),
            namespaces: Vec::new(),
            steps: 0,
            depth: 0,
        }
    }

    /// Defines a macro in `scope`.
    pub(super) fn define(&mut self, node: &Arc<Macro>, scope: &Rc<Scope>) {
        let value = Value::Callable(Rc::new(Callable::Macro {
            node: Arc::clone(node),
            scope: Rc::clone(scope),
        }));
        scope.set(&node.name, value);
        self.closures.push(Rc::clone(scope));
    }

    pub(super) fn namespace(&mut self, attributes: Dict) -> Value {
        let namespace = Rc::new(RefCell::new(attributes));
        self.namespaces.push(Rc::clone(&namespace));
        Value::Namespace(namespace)
    }

    /// Runs `work` one level deeper, within the limits.
    pub(super) fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.steps += 1;
        if self.steps > limits::STEPS {
            let most = limits::STEPS;
            return Err(Fault::new(format!(
                "rendering takes more than {most} steps"
            )));
        }
        limits::time()?;
        limits::space()?;
        if self.depth >= limits::DEPTH {
            return Err(Fault::new("maximum recursion depth exceeded"));
        }
        self.depth += 1;
        let result = work(self);
        self.depth -= 1;
        result
    }

    pub(super) fn eval(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.deeper(|interp| interp.evaluate(expr, scope))
    }

    fn evaluate(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        Ok(match expr {
            Expr::Const(constant) => match constant {
                Const::None => Value::None,
                Const::Bool(b) => Value::Bool(*b),
                Const::Int(i) => Value::Int(*i),
                Const::Float(f) => Value::Float(*f),
                Const::Str(text) => Value::str(text),
            },
            Expr::Name(name) => match scope.get(name) {
                Some(value) => value,
                None => global(name)?,
            },
            Expr::List(items) => Value::list(self.eval_all(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.eval_all(items, scope)?),
            Expr::Dict(items) => {
                let mut dict = Dict::default();
                for (key, value) in items {
                    let key = self.eval(key, scope)?;
                    dict.set(key, self.eval(value, scope)?)?;
                }
                Value::Dict(Rc::new(dict))
            }
            Expr::Attr(object, name) => {
                let object = self.eval(object, scope)?;
                self.attribute(&object, name)?
            }
            Expr::Item(object, key) => {
                let object = self.eval(object, scope)?;
                let key = self.eval(key, scope)?;
                self.item(&object, &key)?
            }
            Expr::Slice(object, bounds) => {
                let object = self.eval(object, scope)?;
                let mut values = [const { None }; 3];
                for (value, bound) in values.iter_mut().zip(bounds) {
                    if let Some(bound) = bound {
                        *value = Some(self.eval(bound, scope)?);
                    }
                }
                index::slice(&object, values)?
            }
            Expr::Call(call) => {
                let callee = self.eval(&call.callee, scope)?;
                let args = self.args(&call.args, scope)?;
                self.call(&callee, args)?
            }
            Expr::Filter(input, filter) => {
                let input = self.eval(input, scope)?;
                let args = self.args(&filter.args, scope)?;
                filters::apply(self, &filter.name, input, args)?
            }
            Expr::Test(input, test) => {
                let input = self.eval(input, scope)?;
                let args = self.args(&test.args, scope)?;
                Value::Bool(checks::apply(&test.name, &input, args)?)
            }
            Expr::Not(operand) => Value::Bool(!self.eval(operand, scope)?.truth()),
            Expr::Neg(operand) => ops::signed(&self.eval(operand, scope)?, true)?,
            Expr::Pos(operand) => ops::signed(&self.eval(operand, scope)?, false)?,
            Expr::And(a, b) => {
                let a = self.eval(a, scope)?;
                if a.truth() { self.eval(b, scope)? } else { a }
            }
            Expr::Or(a, b) => {
                let a = self.eval(a, scope)?;
                if a.truth() { a } else { self.eval(b, scope)? }
            }
            Expr::Math(math, a, b) => {
                let a = self.eval(a, scope)?;
                ops::math(*math, &a, &self.eval(b, scope)?)?
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    text += &show::string(&self.eval(part, scope)?);
                    limits::text(text.len())?;
                }
                Value::str(text)
            }
            Expr::Compare(first, rest) => {
                let mut left = self.eval(first, scope)?;
                for (comparison, right) in rest {
                    let right = self.eval(right, scope)?;
                    if !ops::compare(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::Cond { test, yes, no } => match (self.eval(test, scope)?.truth(), no) {
                (true, _) => self.eval(yes, scope)?,
                (false, Some(no)) => self.eval(no, scope)?,
                (false, None) => Value::undefined(
                    "the inline if-expression evaluated to false and no else section was defined.",
                ),
            },
        })
    }

    fn eval_all(&mut self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    /// The values of a call's arguments.
    pub(super) fn args(&mut self, args: &CallArgs, scope: &Rc<Scope>) -> Result<Args> {
        let mut values = Args::new(self.eval_all(&args.positional, scope)?);
        for (name, value) in &args.named {
            let value = self.eval(value, scope)?;
            values.named.push((Arc::clone(name), value));
        }
        if let Some(list) = &args.list {
            values.list.extend(self.eval(list, scope)?.iterate()?);
        }
        if let Some(dict) = &args.dict {
            let dict = self.eval(dict, scope)?;
            let Value::Dict(dict) = &dict else {
                let kind = dict.type_name();
                return Err(Fault::new(format!(
                    "argument after ** must be a mapping, not {kind}"
                )));
            };
            for (key, value) in dict.iter() {
                let name = key
                    .as_str()
                    .ok_or_else(|| Fault::new("keywords must be strings"))?;
                values.named.push((name.into(), value.clone()));
            }
        }
        Ok(values)
    }
}

/// What every template knows by this name.
fn global(name: &str) -> Result<Value> {
    match Function::ALL.iter().find(|(known, _)| *known == name) {
        Some((_, function)) => Ok(Value::Callable(Rc::new(Callable::Function(*function)))),
        None if name == "lipsum" => Err(Fault::unsupported("the function 'lipsum'")),
        None => Ok(Value::undefined(format!("'{name}' is undefined"))),
    }
}
