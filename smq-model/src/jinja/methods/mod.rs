//! Methods of Python's built-in types.

mod case;
mod split;
mod text;

use std::rc::Rc;

use super::args::{self, Args};
use super::error::{Fault, Result};
use super::heap::Items;
use super::interp::Interp;
use super::limits;
use super::ops;
use super::value::{Value, View};

pub(crate) use case::{capitalize, is_all_lower, is_all_upper, lower, title_words, upper};
pub(crate) use split::lines;
pub(crate) use text::{replace, strip};

const LIST: [&str; 3] = ["copy", "count", "index"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
/// What would change a list or a dict, which the immutable sandbox forbids.
const LIST_CHANGES: [&str; 8] = [
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Whether the sandbox keeps a method away because it changes its object.
pub(crate) fn mutates(value: &Value, name: &str) -> bool {
    match value {
        Value::List(_) => LIST_CHANGES.contains(&name),
        Value::Dict(_) => DICT_CHANGES.contains(&name),
        _ => false,
    }
}

/// Whether an object has a method of this name.
pub(crate) fn exists(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => text::METHODS.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) | Value::Range(_) => matches!(name, "count" | "index"),
        Value::Dict(_) => DICT.contains(&name),
        Value::Bool(_) | Value::Int(_) => {
            matches!(
                name,
                "bit_length" | "bit_count" | "conjugate" | "is_integer" | "to_bytes"
            )
        }
        Value::Float(_) => matches!(
            name,
            "is_integer" | "conjugate" | "hex" | "as_integer_ratio"
        ),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        Value::Undefined(_)
        | Value::None
        | Value::View(_)
        | Value::Iter(_)
        | Value::Namespace(_)
        | Value::Callable(_) => false,
    }
}

/// Calls the method `name` of a value.
pub(crate) fn call(interp: &mut Interp, value: &Value, name: &str, args: Args) -> Result<Value> {
    limits::time()?;
    limits::space()?;
    match value {
        Value::Str(text) => text::call(interp, text, name, args),
        Value::Loop(state) => interp.loop_method(state, name, args),
        Value::Dict(dict) => {
            let view = |kind, items| {
                let items = Items::new(items);
                Ok(Value::View(Rc::new(View { kind, items })))
            };
            match name {
                "get" => {
                    let [key, default] = args.bind_places("get", ["key", "default"], 1)?;
                    let key = key.unwrap_or(Value::None);
                    let default = default.unwrap_or(Value::None);
                    Ok(dict.get(&key).cloned().unwrap_or(default))
                }
                "items" => args
                    .none("items")
                    .and_then(|()| view("dict_items", dict.pairs())),
                "keys" => {
                    args.none("keys")?;
                    view("dict_keys", dict.keys().cloned().collect())
                }
                "values" => {
                    args.none("values")?;
                    let values = dict.iter().map(|(_, value)| value.clone());
                    view("dict_values", values.collect())
                }
                "copy" => args.none("copy").map(|()| value.clone()),
                _ => Err(unsupported(value, name)),
            }
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(_) => sequence(value, name, args),
        Value::Cycler(cycler) => {
            args.none(name)?;
            let at = cycler.at.get();
            match name {
                "next" => {
                    cycler.at.set((at + 1) % cycler.items.len().max(1));
                    Ok(cycler.items.get(at).cloned().unwrap_or(Value::None))
                }
                _ => {
                    cycler.at.set(0);
                    Ok(Value::None)
                }
            }
        }
        Value::Float(f) if name == "is_integer" => {
            args.none(name)?;
            Ok(Value::Bool(f.is_finite() && f.fract() == 0.0))
        }
        Value::Bool(_) | Value::Int(_) if name == "bit_length" => {
            args.none(name)?;
            let size = value.as_int().unwrap_or_default().unsigned_abs();
            Ok(Value::Int(i128::from(u128::BITS - size.leading_zeros())))
        }
        other => Err(unsupported(other, name)),
    }
}

fn unsupported(value: &Value, name: &str) -> Fault {
    Fault::unsupported(&format!("the method '{name}' of a {}", value.type_name()))
}

/// Methods of lists, tuples and ranges.
fn sequence(value: &Value, name: &str, args: Args) -> Result<Value> {
    let items = value.iterate()?;
    match name {
        "copy" => args.none("copy").map(|()| Value::list(items)),
        "count" => {
            let [item] = args.bind_places("count", ["value"], 1)?;
            let item = item.unwrap_or(Value::None);
            let count = items.iter().filter(|other| ops::equal(other, &item));
            Ok(Value::Int(count.count() as i128))
        }
        "index" => {
            let [item, start, stop] = args.bind_places("index", ["value", "start", "stop"], 1)?;
            let item = item.unwrap_or(Value::None);
            let bound = |bound: Option<&Value>, default: usize| -> Result<usize> {
                let bound = args::integer(bound, default as i128)?;
                let from_end = if bound < 0 {
                    bound + items.len() as i128
                } else {
                    bound
                };
                Ok(usize::try_from(from_end).unwrap_or(0).min(items.len()))
            };
            let start = bound(start.as_ref(), 0)?;
            let stop = bound(stop.as_ref(), items.len())?;
            let mut within = (start..stop).filter(|at| ops::equal(&items[*at], &item));
            match within.next() {
                Some(at) => Ok(Value::Int(at as i128)),
                None => Err(Fault::new(format!(
                    "{} is not in {}",
                    super::show::repr(&item),
                    value.type_name()
                ))),
            }
        }
        _ => Err(unsupported(value, name)),
    }
}
