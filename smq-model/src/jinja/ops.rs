//! Operators with the results and the errors of Python's.

use std::cmp::Ordering;

use super::ast::{Comparison, Math};
use super::error::{Fault, Result};
use super::format;
use super::limits;
use super::show;
use super::value::{Range, Value, hashable};

/// Whether two values are equal by Python's `==`.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    equal_at(a, b, 0)
}

/// Whether two values are equal that are `depth` values deep in the ones to compare.
fn equal_at(a: &Value, b: &Value, depth: usize) -> bool {
    if depth > limits::NESTING {
        return false;
    }
    let equal = |a: &Value, b: &Value| equal_at(a, b, depth + 1);
    let all_equal =
        |a: &[Value], b: &[Value]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b));
    match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            a.text.len() == b.text.len() && !limits::is_moot(a.text.len()) && a.text == b.text
        }
        (Value::List(a), Value::List(b)) => all_equal(a, b),
        (Value::Tuple(a), Value::Tuple(b)) => all_equal(&a.items, &b.items),
        (Value::Dict(a), Value::Dict(b)) => {
            let same =
                |(key, value): &(Value, Value)| b.get(key).is_some_and(|other| equal(value, other));
            a.len() == b.len() && a.iter().all(same)
        }
        (Value::Range(a), Value::Range(b)) => same_range(*a, *b),
        (Value::View(a), Value::View(b)) if a.kind == b.kind && a.kind != "dict_values" => {
            let within = |item: &Value| b.items.iter().any(|other| equal(item, other));
            a.items.len() == b.items.len() && a.items.iter().all(within)
        }
        _ => match numbers(a, b) {
            Some(order) => order == Some(Ordering::Equal),
            None => a.same_as(b),
        },
    }
}

fn same_range(a: Range, b: Range) -> bool {
    match (a.len(), b.len()) {
        (0, 0) => true,
        (1, 1) => a.start == b.start,
        (m, n) => m == n && a.start == b.start && a.step == b.step,
    }
}

/// How two numbers compare; `Some(None)` if one is not a number (NaN), `None` if one is no number.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return Some(Some(a.cmp(&b)));
    }
    Some(a.as_float()?.partial_cmp(&b.as_float()?))
}

/// Python's order, which only some types have among themselves. `op` is for the error's words.
fn order(a: &Value, b: &Value, op: &str, depth: usize) -> Result<Option<Ordering>> {
    if depth > limits::NESTING {
        return Err(Fault::new("maximum recursion depth exceeded in comparison"));
    }
    limits::time()?;
    if let Value::Undefined(message) = a {
        return Err(Fault::new(&**message));
    }
    if let Value::Undefined(message) = b {
        return Err(Fault::new(&**message));
    }
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => return Ok(Some(a.text.cmp(&b.text))),
        (Value::List(a), Value::List(b)) => return lexicographic(a, b, op, depth),
        (Value::Tuple(a), Value::Tuple(b)) => return lexicographic(&a.items, &b.items, op, depth),
        _ => {}
    }
    numbers(a, b).ok_or_else(|| {
        let (a, b) = (a.type_name(), b.type_name());
        Fault::new(format!(
            "'{op}' not supported between instances of '{a}' and '{b}'"
        ))
    })
}

fn lexicographic(a: &[Value], b: &[Value], op: &str, depth: usize) -> Result<Option<Ordering>> {
    match a.iter().zip(b).find(|(a, b)| !equal(a, b)) {
        Some((a, b)) => order(a, b, op, depth + 1),
        None => Ok(Some(a.len().cmp(&b.len()))),
    }
}

/// Python's `<`, by which it sorts.
pub(crate) fn less(a: &Value, b: &Value) -> Result<bool> {
    compare(Comparison::Lt, a, b)
}

/// A comparison, `in` among them.
pub(crate) fn compare(comparison: Comparison, a: &Value, b: &Value) -> Result<bool> {
    Ok(match comparison {
        Comparison::Eq => equal(a, b),
        Comparison::Ne => !equal(a, b),
        Comparison::In => contains(b, a)?,
        Comparison::NotIn => !contains(b, a)?,
        Comparison::Lt => order(a, b, "<", 0)? == Some(Ordering::Less),
        Comparison::Gt => order(a, b, ">", 0)? == Some(Ordering::Greater),
        Comparison::Le => {
            let order = order(a, b, "<=", 0)?;
            matches!(order, Some(Ordering::Less | Ordering::Equal))
        }
        Comparison::Ge => {
            let order = order(a, b, ">=", 0)?;
            matches!(order, Some(Ordering::Greater | Ordering::Equal))
        }
    })
}

/// Python's `item in container`.
fn contains(container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Str(t) => match item.as_str() {
            Some(part) => Ok(t.text.contains(part)),
            None => {
                let kind = item.type_name();
                Err(Fault::new(format!(
                    "'in <string>' requires string as left operand, not {kind}"
                )))
            }
        },
        Value::Dict(_) if !hashable(item) => {
            let kind = item.type_name();
            Err(Fault::new(format!("unhashable type: '{kind}'")))
        }
        Value::Dict(d) => Ok(d.get(item).is_some()),
        Value::Iter(i) => {
            // A search takes the items it has seen.
            let mut items = i.borrow_mut();
            while let Some(next) = items.pop_front() {
                if equal(&next, item) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => match other.iterate() {
            Ok(items) => Ok(items.iter().any(|other| equal(other, item))),
            Err(_) => {
                let kind = other.type_name();
                Err(Fault::new(format!(
                    "argument of type '{kind}' is not iterable"
                )))
            }
        },
    }
}

/// Python's `+`, `-`, `*`, `/`, `//`, `%` and `**`.
pub(crate) fn math(math: Math, a: &Value, b: &Value) -> Result<Value> {
    if let (Math::Mod, Value::Str(format)) = (math, a) {
        let text = format::percent(&format.text, b)?;
        return Ok(match format.safe {
            true => Value::markup(text),
            false => Value::str(text),
        });
    }
    for operand in [a, b] {
        if let Value::Undefined(message) = operand {
            return Err(Fault::new(&**message));
        }
    }
    let result = match (a.as_int(), b.as_int()) {
        (Some(a), Some(b)) => integers(math, a, b)?,
        _ => match (a.as_float(), b.as_float()) {
            (Some(a), Some(b)) => Some(Value::Float(floats(math, a, b)?)),
            _ => sequences(math, a, b)?,
        },
    };
    result.ok_or_else(|| {
        let (a, b) = (a.type_name(), b.type_name());
        let op = match math {
            Math::Add if a == "str" => {
                return Fault::new(format!("can only concatenate str (not \"{b}\") to str"));
            }
            Math::Add => "+",
            Math::Sub => "-",
            Math::Mul => "*",
            Math::Div => "/",
            Math::FloorDiv => "//",
            Math::Mod => "%",
            Math::Pow => "** or pow()",
        };
        Fault::new(format!(
            "unsupported operand type(s) for {op}: '{a}' and '{b}'"
        ))
    })
}

fn integers(math: Math, a: i128, b: i128) -> Result<Option<Value>> {
    let large = || Fault::new("an integer is too large");
    let by_zero = || Fault::new("integer division or modulo by zero");
    let whole = match math {
        Math::Add => a.checked_add(b),
        Math::Sub => a.checked_sub(b),
        Math::Mul => a.checked_mul(b),
        Math::FloorDiv | Math::Mod if b == 0 => return Err(by_zero()),
        Math::FloorDiv => {
            let quotient = a.checked_div_euclid(b).ok_or_else(large)?;
            // Python rounds down, division by Euclid towards a remainder of no sign.
            let exact = a.rem_euclid(b) == 0;
            Some(if b < 0 && !exact {
                quotient - 1
            } else {
                quotient
            })
        }
        Math::Mod => {
            let rest = a.checked_rem_euclid(b).ok_or_else(large)?;
            Some(if b < 0 && rest != 0 { rest + b } else { rest })
        }
        Math::Div => return Ok(Some(Value::Float(floats(math, a as f64, b as f64)?))),
        Math::Pow if b < 0 => return Ok(Some(Value::Float(floats(math, a as f64, b as f64)?))),
        Math::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    Ok(Some(Value::Int(whole.ok_or_else(large)?)))
}

fn floats(math: Math, a: f64, b: f64) -> Result<f64> {
    let by_zero = |what: &str| Err(Fault::new(what));
    Ok(match math {
        Math::Add => a + b,
        Math::Sub => a - b,
        Math::Mul => a * b,
        Math::Div if b == 0.0 => return by_zero("division by zero"),
        Math::Div => a / b,
        Math::FloorDiv if b == 0.0 => return by_zero("float floor division by zero"),
        Math::FloorDiv => {
            let quotient = (a - modulo(a, b)) / b;
            let floor = quotient.floor();
            if quotient - floor > 0.5 {
                floor + 1.0
            } else {
                floor
            }
        }
        Math::Mod if b == 0.0 => return by_zero("float modulo"),
        Math::Mod => modulo(a, b),
        Math::Pow if a == 0.0 && b < 0.0 => {
            return by_zero("0.0 cannot be raised to a negative power");
        }
        Math::Pow if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 => {
            return Err(Fault::unsupported("a complex number"));
        }
        Math::Pow => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Fault::new("(34, 'Numerical result out of range')"));
            }
            power
        }
    })
}

/// The remainder with the divisor's sign.
fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    match rest {
        0.0 => 0.0_f64.copysign(b),
        rest if (rest < 0.0) != (b < 0.0) => rest + b,
        rest => rest,
    }
}

fn sequences(math: Math, a: &Value, b: &Value) -> Result<Option<Value>> {
    Ok(match (math, a, b) {
        (Math::Add, Value::Str(x), Value::Str(y)) => {
            limits::text(x.text.len() + y.text.len())?;
            Some(match (x.safe, y.safe) {
                (false, false) => Value::str([&**x.text, &**y.text].concat()),
                _ => Value::markup(format!("{}{}", escaped(a), escaped(b))),
            })
        }
        (Math::Add, Value::List(x), Value::List(y)) => {
            limits::items(x.len() + y.len())?;
            Some(Value::list(x.iter().chain(y.iter()).cloned().collect()))
        }
        (Math::Add, Value::Tuple(x), Value::Tuple(y)) => {
            limits::items(x.items.len() + y.items.len())?;
            Some(Value::tuple(
                x.items.iter().chain(y.items.iter()).cloned().collect(),
            ))
        }
        (Math::Mul, sequence, times) | (Math::Mul, times, sequence) if times.as_int().is_some() => {
            let times = limits::count(times.as_int().unwrap_or_default());
            repeated(sequence, times)?
        }
        _ => None,
    })
}

fn repeated(sequence: &Value, times: usize) -> Result<Option<Value>> {
    Ok(match sequence {
        Value::Str(t) => {
            limits::text(t.text.len().saturating_mul(times))?;
            Some(match t.safe {
                true => Value::markup(t.text.repeat(times)),
                false => Value::str(t.text.repeat(times)),
            })
        }
        Value::List(l) => {
            limits::items(l.len().saturating_mul(times))?;
            Some(Value::list(cycle(l, times)))
        }
        Value::Tuple(t) => {
            limits::items(t.items.len().saturating_mul(times))?;
            Some(Value::tuple(cycle(&t.items, times)))
        }
        _ => None,
    })
}

fn cycle(items: &[Value], times: usize) -> Vec<Value> {
    let length = items.len() * times;
    items.iter().cycle().take(length).cloned().collect()
}

/// Text with the characters of HTML escaped, unless it is safe already.
pub(crate) fn escaped(value: &Value) -> String {
    match value {
        Value::Str(t) if t.safe => t.text.to_string(),
        other => escape(&show::string(other)),
    }
}

/// Text with the characters of HTML escaped.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;")
}

/// Python's unary minus and plus.
pub(crate) fn signed(value: &Value, negative: bool) -> Result<Value> {
    let sign = if negative { '-' } else { '+' };
    match (value, value.as_int()) {
        (Value::Undefined(message), _) => Err(Fault::new(&**message)),
        (Value::Float(f), _) => Ok(Value::Float(if negative { -f } else { *f })),
        (_, Some(i)) => Ok(Value::Int(if negative { i.saturating_neg() } else { i })),
        (other, None) => {
            let kind = other.type_name();
            Err(Fault::new(format!(
                "bad operand type for unary {sign}: '{kind}'"
            )))
        }
    }
}
