//! Jinja's tests: `x is defined`.

use super::args::Args;
use super::ast::{Comparison, Math};
use super::error::{Fault, Result};
use super::filters;
use super::methods;
use super::ops;
use super::show;
use super::value::{Callable, Value};

const TESTS: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether there is a test of this name.
pub(crate) fn exists(name: &str) -> bool {
    TESTS.contains(&name)
}

/// What a test says.
pub(crate) fn apply(name: &str, value: &Value, args: Args) -> Result<bool> {
    if let Some(comparison) = comparison(name) {
        let [other] = args.bind(name, ["other"], 1)?;
        return ops::compare(comparison, value, &other.unwrap_or(Value::None));
    }
    match name {
        "divisibleby" => {
            let [number] = args.bind(name, ["num"], 1)?;
            let rest = ops::math(Math::Mod, value, &number.unwrap_or(Value::None))?;
            return Ok(ops::equal(&rest, &Value::Int(0)));
        }
        "sameas" => {
            let [other] = args.bind(name, ["other"], 1)?;
            return Ok(other.is_some_and(|other| value.same_as(&other)));
        }
        _ => args.none(name)?,
    }
    Ok(match name {
        "odd" | "even" => {
            let rest = ops::math(Math::Mod, value, &Value::Int(2))?;
            ops::equal(&rest, &Value::Int(i128::from(name == "odd")))
        }
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => value.as_str().is_some_and(filters::exists),
        "test" => value.as_str().is_some_and(exists),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "lower" => methods::is_all_lower(&show::string(value)),
        "upper" => methods::is_all_upper(&show::string(value)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "sequence" => matches!(
            value,
            Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
                | Value::Undefined(_)
        ),
        "iterable" => matches!(
            value,
            Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
                | Value::Undefined(_)
                | Value::View(_)
                | Value::Iter(_)
                | Value::Loop(_)
        ),
        "callable" => match value {
            Value::Callable(callable) => match &**callable {
                Callable::Method { .. }
                | Callable::Macro { .. }
                | Callable::Function(_)
                | Callable::Joiner { .. } => true,
            },
            Value::Loop(_) | Value::Undefined(_) => true,
            _ => false,
        },
        "escaped" => matches!(value, Value::Str(text) if text.safe),
        other => return Err(Fault::new(format!("No test named '{other}'."))),
    })
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "in" => Comparison::In,
        "==" | "eq" | "equalto" => Comparison::Eq,
        "!=" | "ne" => Comparison::Ne,
        ">" | "gt" | "greaterthan" => Comparison::Gt,
        ">=" | "ge" => Comparison::Ge,
        "<" | "lt" | "lessthan" => Comparison::Lt,
        "<=" | "le" => Comparison::Le,
        _ => return None,
    })
}
