//! Calls: of functions, methods and macros.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::args::{self, Args};
use super::ast::Macro;
use super::error::{Fault, Result};
use super::heap::Items;
use super::interp::Interp;
use super::limits;
use super::methods;
use super::scope::Scope;
use super::show;
use super::value::{Callable, Cycler, Dict, Function, Range, Value};

impl Interp {
    pub(crate) fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        let callable = match callee {
            Value::Callable(callable) => callable,
            Value::Undefined(message) => return Err(Fault::new(&**message)),
            Value::Loop(state) => {
                let [items] = args.bind("loop", ["iterable"], 1)?;
                let items = items.unwrap_or(Value::None);
                return self.recurse(state, &items);
            }
            other => {
                let kind = other.type_name();
                return Err(Fault::new(format!("'{kind}' object is not callable")));
            }
        };
        match &**callable {
            Callable::Function(function) => self.function(*function, args),
            Callable::Method { receiver, name } => methods::call(self, receiver, name, args),
            Callable::Macro { node, scope } => self.call_macro(node, scope, args),
            Callable::Joiner { separator, used } => {
                args.none("joiner")?;
                Ok(match used.replace(true) {
                    true => separator.first().cloned().unwrap_or(Value::None),
                    false => Value::str(""),
                })
            }
        }
    }

    fn function(&mut self, function: Function, args: Args) -> Result<Value> {
        match function {
            Function::Range => range(args),
            Function::Dict => Ok(Value::Dict(Rc::new(dict(args)?))),
            Function::Namespace => {
                let attributes = dict(args)?;
                for name in attributes.keys().filter_map(Value::as_str) {
                    namespace_name(name)?;
                }
                Ok(self.namespace(attributes))
            }
            Function::Cycler => {
                if args.list.is_empty() || !args.named.is_empty() {
                    return Err(Fault::new("at least one item has to be provided"));
                }
                let items = Items::new(args.list);
                let at = Cell::new(0);
                Ok(Value::Cycler(Rc::new(Cycler { items, at })))
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                Ok(Value::Callable(Rc::new(Callable::Joiner {
                    separator: Items::new(vec![separator.unwrap_or_else(|| Value::str(", "))]),
                    used: Cell::new(false),
                })))
            }
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                let message = message.map(|m| show::string(&m)).unwrap_or_default();
                Err(Fault::new(message))
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                let format = args::string(format.as_ref(), "strftime_now()")?;
                Ok(Value::str((self.clock)(format.unwrap_or_default())?))
            }
        }
    }

    /// Calls a macro: its output is the value.
    pub(super) fn call_macro(
        &mut self,
        node: &Arc<Macro>,
        outer: &Rc<Scope>,
        args: Args,
    ) -> Result<Value> {
        let name = &node.name;
        let scope = outer.child();
        let count = node.params.len();
        let mut named = args.named;
        let mut take = |name: &str| {
            let at = named.iter().position(|(given, _)| &**given == name)?;
            Some(named.remove(at).1)
        };
        let plain = count - node.defaults.len();
        let mut given: Vec<Option<Value>> = Vec::with_capacity(count);
        for (at, param) in node.params.iter().enumerate() {
            given.push(match args.list.get(at) {
                Some(value) => Some(value.clone()),
                None => take(param),
            });
        }
        let names_caller = node.params.iter().any(|param| &**param == "caller");
        if node.uses.caller && !names_caller {
            let caller = take("caller").unwrap_or_else(|| Value::undefined("No caller defined"));
            scope.set(&Arc::from("caller"), caller);
        }
        if node.uses.kwargs {
            let mut rest = Dict::default();
            for (key, value) in std::mem::take(&mut named) {
                rest.set(Value::str(key), value)?;
            }
            scope.set(&Arc::from("kwargs"), Value::Dict(Rc::new(rest)));
        } else if let Some((extra, _)) = named.first() {
            return Err(Fault::new(format!(
                "macro '{name}' takes no keyword argument '{extra}'"
            )));
        }
        if node.uses.varargs {
            let rest = args.list.iter().skip(count).cloned().collect();
            scope.set(&Arc::from("varargs"), Value::tuple(rest));
        } else if args.list.len() > count {
            return Err(Fault::new(format!(
                "macro '{name}' takes not more than {count} argument(s)"
            )));
        }
        for (at, (param, value)) in node.params.iter().zip(given).enumerate() {
            let value = match (
                value,
                at.checked_sub(plain).and_then(|d| node.defaults.get(d)),
            ) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, &scope)?,
                (None, None) => Value::undefined(format!("parameter '{param}' was not provided")),
            };
            scope.set(param, value);
        }
        let mut out = String::new();
        self.exec(&node.body, &scope, &mut out)?;
        Ok(Value::str(out))
    }
}

fn range(args: Args) -> Result<Value> {
    let [a, b, c] = args.bind_places("range", ["start", "stop", "step"], 1)?;
    let a = args::integer(a.as_ref(), 0)?;
    let (start, stop) = match &b {
        Some(b) => (a, args::integer(Some(b), 0)?),
        None => (0, a),
    };
    let step = args::integer(c.as_ref(), 1)?;
    if step == 0 {
        return Err(Fault::new("range() arg 3 must not be zero"));
    }
    let range = Range { start, stop, step };
    match range.len() > limits::RANGE {
        true => Err(Fault::new(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).",
            limits::RANGE
        ))),
        false => Ok(Value::Range(range)),
    }
}

/// Python's `dict(...)`: of a dict or of pairs, and of names.
fn dict(args: Args) -> Result<Dict> {
    let mut dict = Dict::default();
    let mut list = args.list.into_iter();
    match list.next() {
        Some(Value::Dict(given)) => dict = given.copied(),
        Some(pairs) => {
            for pair in pairs.iterate()? {
                let mut pair = pair.iterate()?.into_iter();
                match (pair.next(), pair.next(), pair.next()) {
                    (Some(key), Some(value), None) => dict.set(key, value)?,
                    _ => {
                        return Err(Fault::new(
                            "dictionary update sequence elements must have length 2",
                        ));
                    }
                }
            }
        }
        None => {}
    }
    if list.next().is_some() {
        return Err(Fault::new("dict expected at most 1 argument"));
    }
    for (name, value) in args.named {
        dict.set(Value::str(name), value)?;
    }
    Ok(dict)
}

/// Refuses what a namespace may not hold.
pub(super) fn namespace_name(name: &str) -> Result<()> {
    match name.starts_with('_') {
        true => Err(Fault::new(format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got \
             '{name}'. Please rename the attribute."
        ))),
        false => Ok(()),
    }
}
