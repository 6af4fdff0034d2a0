//! `x.name`, `x[key]` and `x[a:b:c]`, within the limits of Jinja's immutable sandbox.

use std::rc::Rc;

use super::error::{Fault, Result};
use super::interp::Interp;
use super::methods;
use super::show;
use super::value::{Callable, Range, Value};

/// What Python's `getattr` finds.
enum Attribute {
    Found(Value),
    /// Something that the sandbox keeps out of reach.
    Unsafe,
    Absent,
}

impl Interp {
    /// Jinja's `x.name`: the attribute, or else the item.
    pub(crate) fn attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        match self.python_attribute(value, name)? {
            Attribute::Found(found) => Ok(found),
            Attribute::Unsafe => Ok(unsafe_attribute(value, name)),
            Attribute::Absent => {
                let key = Value::str(name);
                Ok(python_item(value, &key).unwrap_or_else(|| missing(value, &key)))
            }
        }
    }

    /// Jinja's `x[key]`: the item, or else the attribute.
    pub(crate) fn item(&mut self, value: &Value, key: &Value) -> Result<Value> {
        if let Value::Undefined(message) = value {
            return Err(Fault::new(&**message));
        }
        if let Some(item) = python_item(value, key) {
            return Ok(item);
        }
        let Some(name) = key.as_str() else {
            return Ok(missing(value, key));
        };
        Ok(match self.python_attribute(value, name)? {
            Attribute::Found(found) => found,
            Attribute::Unsafe => unsafe_attribute(value, name),
            Attribute::Absent => missing(value, key),
        })
    }

    /// The attribute alone, as the filter `attr` looks it up.
    pub(crate) fn only_attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        Ok(match self.python_attribute(value, name)? {
            Attribute::Found(found) => found,
            Attribute::Unsafe => unsafe_attribute(value, name),
            Attribute::Absent => missing(value, &Value::str(name)),
        })
    }

    fn python_attribute(&mut self, value: &Value, name: &str) -> Result<Attribute> {
        if let Value::Undefined(message) = value {
            return Err(Fault::new(&**message));
        }
        if name.starts_with("__") && name.ends_with("__") {
            return Ok(Attribute::Unsafe);
        }
        let found = match value {
            Value::Namespace(namespace) => namespace.borrow().get_str(name).cloned(),
            Value::Loop(state) => self.loop_attribute(state, name)?,
            Value::Tuple(tuple) => {
                let field = tuple.fields.iter().position(|field| *field == name);
                field.and_then(|at| tuple.items.get(at)).cloned()
            }
            Value::Range(range) => match name {
                "start" => Some(Value::Int(range.start)),
                "stop" => Some(Value::Int(range.stop)),
                "step" => Some(Value::Int(range.step)),
                _ => None,
            },
            Value::Cycler(cycler) if name == "current" => {
                cycler.items.get(cycler.at.get()).cloned()
            }
            Value::Callable(callable) => match (&**callable, name) {
                (Callable::Macro { node, .. }, "name") => Some(Value::str(&node.name)),
                (Callable::Macro { node, .. }, "arguments") => {
                    Some(Value::tuple(node.params.iter().map(Value::str).collect()))
                }
                _ => None,
            },
            Value::Undefined(_)
            | Value::None
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Str(_)
            | Value::List(_)
            | Value::Dict(_)
            | Value::View(_)
            | Value::Iter(_)
            | Value::Cycler(_) => None,
        };
        Ok(match found {
            Some(found) => Attribute::Found(found),
            None if methods::mutates(value, name) => Attribute::Unsafe,
            None if methods::exists(value, name) => {
                let (receiver, name) = (value.clone(), Rc::from(name));
                Attribute::Found(Value::Callable(Rc::new(Callable::Method {
                    receiver,
                    name,
                })))
            }
            None => Attribute::Absent,
        })
    }
}

/// Python's `x[key]`; `None` for a TypeError or a LookupError.
fn python_item(value: &Value, key: &Value) -> Option<Value> {
    if let Value::Dict(dict) = value {
        return dict.get(key).cloned();
    }
    let index = key.as_int()?;
    let at = |len: usize| {
        let index = if index < 0 {
            index + len as i128
        } else {
            index
        };
        usize::try_from(index).ok().filter(|at| *at < len)
    };
    match value {
        Value::List(list) => list.get(at(list.len())?).cloned(),
        Value::Tuple(tuple) => tuple.items.get(at(tuple.items.len())?).cloned(),
        Value::Str(t) => {
            let at = at(t.text.chars().count())?;
            t.text.chars().nth(at).map(|c| Value::str(c.to_string()))
        }
        Value::Range(range) => range.iter().nth(at(range.len())?).map(Value::Int),
        _ => None,
    }
}

fn unsafe_attribute(value: &Value, name: &str) -> Value {
    let kind = value.type_name();
    Value::undefined(format!(
        "access to attribute '{name}' of '{kind}' object is unsafe."
    ))
}

fn missing(value: &Value, key: &Value) -> Value {
    let object = match value {
        Value::None => "None".to_owned(),
        other => format!("{} object", other.type_name()),
    };
    let key_shown = show::repr(key);
    Value::undefined(match key {
        Value::Str(_) => format!("'{object}' has no attribute {key_shown}"),
        _ => format!("{object} has no element {key_shown}"),
    })
}

/// A part of a text or list, as Python's `x[start:stop:step]` takes it.
pub(crate) fn slice(value: &Value, bounds: [Option<Value>; 3]) -> Result<Value> {
    let len = match value {
        Value::Undefined(message) => return Err(Fault::new(&**message)),
        Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => {
            value.len().unwrap_or(0)
        }
        other => {
            let kind = other.type_name();
            return Err(Fault::new(format!("'{kind}' object is not subscriptable")));
        }
    };
    let range = slice_range(len as i128, bounds)?;
    let pick = |items: &[Value]| -> Vec<Value> {
        let item = |at: i128| usize::try_from(at).ok().and_then(|at| items.get(at));
        range.iter().filter_map(item).cloned().collect()
    };
    Ok(match value {
        Value::List(list) => Value::list(pick(list)),
        Value::Tuple(tuple) => Value::tuple(pick(&tuple.items)),
        Value::Range(whole) => Value::Range(Range {
            start: whole.start + range.start * whole.step,
            stop: whole.start + range.stop * whole.step,
            step: whole.step * range.step,
        }),
        Value::Str(text) => {
            let chars: Vec<char> = text.text.chars().collect();
            let char_at = |at: i128| usize::try_from(at).ok().and_then(|at| chars.get(at));
            let cut: String = range.iter().filter_map(char_at).collect();
            match text.safe {
                true => Value::markup(cut),
                false => Value::str(cut),
            }
        }
        other => other.clone(),
    })
}

/// Where a slice begins and ends in a sequence of `len`, as Python's `slice.indices` says.
fn slice_range(len: i128, bounds: [Option<Value>; 3]) -> Result<Range> {
    let mut numbers = [None; 3];
    for (number, bound) in numbers.iter_mut().zip(&bounds) {
        *number = match bound {
            None | Some(Value::None) => None,
            Some(Value::Undefined(_)) => return Err(no_index()),
            Some(value) => Some(value.as_int().ok_or_else(no_index)?),
        };
    }
    let [start, stop, step] = numbers;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Fault::new("slice step cannot be zero"));
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| {
        let bound = if bound < 0 {
            bound.saturating_add(len)
        } else {
            bound
        };
        bound.clamp(low, high)
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    Ok(Range {
        start: start.map_or(first, clamp),
        stop: stop.map_or(last, clamp),
        // A longer step than the sequence takes one item all the same.
        step: step.clamp(-len.max(1) - 1, len.max(1) + 1),
    })
}

fn no_index() -> Fault {
    Fault::new("slice indices must be integers or None or have an __index__ method")
}
