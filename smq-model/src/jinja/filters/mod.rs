//! Jinja's filters: `x | upper`.

mod numbers;
mod select;
mod sequences;
mod text;

use super::args::Args;
use super::error::{Fault, Result};
use super::interp::Interp;
use super::lexer::is_space;
use super::limits;
use super::ops;
use super::unicode;
use super::value::Value;

const FILTERS: [&str; 47] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

/// Filters of Jinja's that no chat template has a use for.
const LEFT_OUT: [&str; 7] = [
    "filesizeformat",
    "pprint",
    "random",
    "striptags",
    "urlize",
    "wordwrap",
    "xmlattr",
];

/// Whether there is a filter of this name.
pub(crate) fn exists(name: &str) -> bool {
    FILTERS.contains(&name)
}

/// Why a filter cannot be applied.
pub(crate) fn unknown(name: &str) -> Fault {
    match LEFT_OUT.contains(&name) {
        true => Fault::unsupported(&format!("the filter '{name}'")),
        false => Fault::new(format!("No filter named '{name}'.")),
    }
}

/// What a filter makes of a value.
pub(crate) fn apply(interp: &mut Interp, name: &str, value: Value, args: Args) -> Result<Value> {
    limits::time()?;
    limits::space()?;
    match name {
        "abs" | "float" | "int" | "round" | "sum" => numbers::apply(interp, name, value, args),
        "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
            select::apply(interp, name, value, args)
        }
        "batch" | "dictsort" | "first" | "groupby" | "items" | "last" | "list" | "max" | "min"
        | "reverse" | "slice" | "sort" | "unique" => sequences::apply(interp, name, value, args),
        "attr" => {
            let [attribute] = args.bind(name, ["name"], 1)?;
            let attribute = attribute.unwrap_or(Value::None);
            let Some(attribute) = attribute.as_str() else {
                return Err(Fault::new("attribute name must be string"));
            };
            interp.only_attribute(&value, attribute)
        }
        "count" | "length" => {
            args.none(name)?;
            let length = match &value {
                Value::Loop(state) => Some(interp.loop_length(state)?),
                other => other.len(),
            };
            let none = || {
                let kind = value.type_name();
                Fault::new(format!("object of type '{kind}' has no len()"))
            };
            Ok(Value::Int(length.ok_or_else(none)? as i128))
        }
        "d" | "default" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let falsy = boolean.is_some_and(|b| b.truth()) && !value.truth();
            Ok(match value.is_undefined() || falsy {
                true => default.unwrap_or_else(|| Value::str("")),
                false => value,
            })
        }
        known if exists(known) => text::apply(interp, known, value, args),
        other => Err(unknown(other)),
    }
}

/// The attribute that `attribute=` names: a path of names and indices, with a default for what is
/// not there. `None` is the value itself.
fn attribute(
    interp: &mut Interp,
    value: &Value,
    path: Option<&Value>,
    default: Option<&Value>,
) -> Result<Value> {
    let mut value = value.clone();
    let parts = match path {
        None | Some(Value::None) => Vec::new(),
        Some(Value::Str(path)) => path
            .text
            .split('.')
            .map(|part| match part.parse::<i128>() {
                Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                _ => Value::str(part),
            })
            .collect(),
        Some(other) => vec![other.clone()],
    };
    for part in &parts {
        value = interp.item(&value, part)?;
        if let (true, Some(default)) = (value.is_undefined(), default) {
            value = default.clone();
        }
    }
    Ok(value)
}

/// A string in lower case, so that sorting and the like ignore case; anything else as it is.
fn ignore_case(value: Value, case_sensitive: bool) -> Result<Value> {
    // One filter makes as many of them as a list has items.
    limits::time()?;
    limits::space()?;
    Ok(match (&value, case_sensitive) {
        (Value::Str(text), false) => Value::str(text.text.to_lowercase()),
        _ => value,
    })
}

/// Python's `sorted` by keys: stable, also in reverse.
fn sorted(mut items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        let mut runs = items.chunks(width);
        while let Some(left) = runs.next() {
            merge(left, runs.next().unwrap_or_default(), reverse, &mut merged)?;
        }
        items = merged;
        width *= 2;
    }
    Ok(items.into_iter().map(|(_, value)| value).collect())
}

type Keyed = (Value, Value);

fn merge(
    mut left: &[Keyed],
    mut right: &[Keyed],
    reverse: bool,
    out: &mut Vec<Keyed>,
) -> Result<()> {
    while let ([l, l_rest @ ..], [r, r_rest @ ..]) = (left, right) {
        let right_first = match reverse {
            true => ops::less(&l.0, &r.0)?,
            false => ops::less(&r.0, &l.0)?,
        };
        if right_first {
            out.push(r.clone());
            right = r_rest;
        } else {
            out.push(l.clone());
            left = l_rest;
        }
    }
    out.extend_from_slice(left);
    out.extend_from_slice(right);
    Ok(())
}

/// Text of a number as Python's `int` and `float` read it: without white space around it, with
/// underscores only between digits, and with decimals of any script.
fn plain_number(text: &str) -> Option<String> {
    let ascii = |c: char| match unicode::decimal(c) {
        Some(digit) => char::from_digit(digit, 10).unwrap_or(c),
        None => c,
    };
    let text: String = text.trim_matches(is_space).chars().map(ascii).collect();
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_alphanumeric)
    };
    let misplaced =
        |at: usize| bytes[at] == b'_' && !(is_digit(at.checked_sub(1)) && is_digit(Some(at + 1)));
    match (0..bytes.len()).any(misplaced) {
        true => None,
        false => Some(text.replace('_', "")),
    }
}
