//! Filters that take numbers, such as `round`.

use super::super::args::{self, Args};
use super::super::ast::Math;
use super::super::error::{Fault, Result};
use super::super::interp::Interp;
use super::super::ops;
use super::super::value::Value;
use super::{attribute, plain_number};

pub(super) fn apply(interp: &mut Interp, name: &str, value: Value, args: Args) -> Result<Value> {
    match name {
        "abs" => {
            args.none(name)?;
            match (&value, value.as_int()) {
                (Value::Float(f), _) => Ok(Value::Float(f.abs())),
                (_, Some(i)) => Ok(Value::Int(i.saturating_abs())),
                _ => {
                    let kind = value.type_name();
                    Err(Fault::new(format!("bad operand type for abs(): '{kind}'")))
                }
            }
        }
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            if let Value::Undefined(message) = &value {
                return Err(Fault::new(&**message));
            }
            let default = default.unwrap_or(Value::Float(0.0));
            Ok(to_float(&value).map_or(default, Value::Float))
        }
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"], 0)?;
            let base = args::integer(base.as_ref(), 10)?;
            let default = default.unwrap_or(Value::Int(0));
            to_int(&value, base).map(|int| int.map_or(default, Value::Int))
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"], 0)?;
            let precision = args::integer(precision.as_ref(), 0)?;
            let method = args::string(method.as_ref(), name)?.unwrap_or("common");
            round(&value, precision, method)
        }
        _ => {
            let [path, start] = args.bind(name, ["attribute", "start"], 0)?;
            let mut sum = start.unwrap_or(Value::Int(0));
            if let Value::Str(_) = sum {
                return Err(Fault::new(
                    "sum() can't sum strings [use ''.join(seq) instead]",
                ));
            }
            for item in value.iterate()? {
                let item = attribute(interp, &item, path.as_ref(), None)?;
                sum = ops::math(Math::Add, &sum, &item)?;
            }
            Ok(sum)
        }
    }
}

/// Python's `float(x)`; `None` for a TypeError or a ValueError.
fn to_float(value: &Value) -> Option<f64> {
    let Some(text) = value.as_str() else {
        return value.as_float();
    };
    let text = plain_number(text)?.to_lowercase();
    match text.trim_start_matches(['+', '-']) {
        "inf" | "infinity" | "nan" => text.parse().ok(),
        // Rust reads what Python reads, and no more once letters other than e are out.
        digits if digits.contains(|c: char| c.is_alphabetic() && c != 'e') => None,
        _ => text.parse().ok(),
    }
}

/// Jinja's `int`: `None` where its default stands in.
fn to_int(value: &Value, base: i128) -> Result<Option<i128>> {
    let large = || Fault::new("an integer is too large");
    let whole = |f: f64| match f.is_finite() && f.abs() < 1e38 {
        true => Ok(f.trunc() as i128),
        false => Err(large()),
    };
    match value {
        Value::Undefined(message) => return Err(Fault::new(&**message)),
        Value::Float(f) if f.is_nan() => return Ok(None),
        Value::Float(f) if f.is_infinite() => {
            return Err(Fault::new("cannot convert float infinity to integer"));
        }
        Value::Float(f) => return whole(*f).map(Some),
        _ => {}
    }
    if let Some(int) = value.as_int() {
        return Ok(Some(int));
    }
    let Some(text) = value.as_str() else {
        return Ok(None);
    };
    if let Some(int) = plain_number(text).and_then(|text| parse_int(&text, base)) {
        return int.map(Some).ok_or_else(large);
    }
    match to_float(value).filter(|f| f.is_finite()) {
        Some(f) => whole(f).map(Some),
        None => Ok(None),
    }
}

/// Python's `int(text, base)`: `None` if it is no number, `Some(None)` if it is too large a one.
fn parse_int(text: &str, base: i128) -> Option<Option<i128>> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0b", 2), ("0o", 8), ("0x", 16)];
    let prefix = prefixed
        .iter()
        .find(|(p, radix)| lower.starts_with(p) && (base == 0 || base == i128::from(*radix)));
    let (digits, radix) = match prefix {
        Some((prefix, radix)) => (&lower[prefix.len()..], *radix),
        None if base == 0 => (lower.as_str(), 10),
        None => (lower.as_str(), u32::try_from(base).ok()?),
    };
    let number = (2..=36).contains(&radix)
        && !digits.is_empty()
        && digits.chars().all(|c| c.is_digit(radix));
    if !number {
        return None;
    }
    let size = i128::from_str_radix(digits, radix).ok();
    Some(size.map(|size| if negative { -size } else { size }))
}

fn round(value: &Value, precision: i128, method: &str) -> Result<Value> {
    if let Value::Undefined(message) = value {
        return Err(Fault::new(&**message));
    }
    let kind = value.type_name();
    let number = value
        .as_float()
        .ok_or_else(|| Fault::new(format!("type {kind} doesn't define __round__ method")))?;
    let digits = i32::try_from(precision.clamp(-400, 400)).unwrap_or(0);
    match method {
        "common" => match value.as_int() {
            Some(int) if digits >= 0 => Ok(Value::Int(int)),
            Some(int) => {
                let unit = 10_i128.checked_pow(digits.unsigned_abs());
                Ok(Value::Int(unit.map_or(0, |unit| round_to(int, unit))))
            }
            None if !number.is_finite() => Ok(Value::Float(number)),
            None if digits >= 0 => {
                let digits = usize::try_from(digits).unwrap_or(0);
                let text = format!("{number:.digits$}");
                Ok(Value::Float(text.parse().unwrap_or(number)))
            }
            None => {
                let unit = 10_f64.powi(-digits);
                Ok(Value::Float((number / unit).round_ties_even() * unit))
            }
        },
        "ceil" | "floor" => {
            let unit = 10_f64.powi(digits);
            let scaled = number * unit;
            let whole = if method == "ceil" {
                scaled.ceil()
            } else {
                scaled.floor()
            };
            Ok(Value::Float(whole / unit))
        }
        _ => Err(Fault::new("method must be common, ceil or floor")),
    }
}

/// To a multiple of `unit`, halves to the even one.
fn round_to(int: i128, unit: i128) -> i128 {
    let (down, rest) = (int.div_euclid(unit), int.rem_euclid(unit));
    let up = match (rest * 2).cmp(&unit) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => down.rem_euclid(2),
        std::cmp::Ordering::Greater => 1,
    };
    (down + up) * unit
}
