//! `"{} of {name!r:>8}".format(a, name=b)`.

use super::super::error::{Fault, Result};
use super::super::limits;
use super::super::show;
use super::super::value::{Text, Value};
use super::number::Spec;
use super::pad;

/// Where the values of fields come from.
pub(crate) trait Fields {
    /// The value of a first part: a number, or a name.
    fn first(&self, name: &str) -> Result<Value>;
    /// What `value.name` gives.
    fn attribute(&mut self, value: &Value, name: &str) -> Result<Value>;
    /// What `value[key]` gives.
    fn item(&mut self, value: &Value, key: Value) -> Result<Value>;
}

/// A text from a format as Python's `format.format(...)` makes it.
pub(crate) fn braces(format: &str, fields: &mut dyn Fields) -> Result<String> {
    Formatter { next: 0, fields }.run(format, 2)
}

struct Formatter<'f> {
    /// The field that `{}` takes next.
    next: usize,
    fields: &'f mut dyn Fields,
}

impl Formatter<'_> {
    fn run(&mut self, format: &str, depth: usize) -> Result<String> {
        if depth == 0 {
            return Err(Fault::new("Max string recursion exceeded"));
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out += &rest[..at];
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out += brace;
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(Fault::new("Single '}' encountered in format string"));
            }
            let end = field_end(rest)?;
            out += &self.field(&rest[..end], depth)?;
            limits::text(out.len())?;
            rest = &rest[end + 1..];
        }
        Ok(out + rest)
    }

    fn field(&mut self, field: &str, depth: usize) -> Result<String> {
        let name_end = field.find(['!', ':']).unwrap_or(field.len());
        let (name, mut rest) = field.split_at(name_end);
        let mut value = self.value(name)?;
        if let Some(conversion) = rest.strip_prefix('!') {
            let kind = conversion.chars().next();
            let shown = match kind {
                Some('s') => show::string(&value),
                Some('r') => show::repr(&value),
                _ => return Err(Fault::unsupported("this conversion of a format string")),
            };
            value = Value::str(shown);
            rest = &conversion[1..];
        }
        let spec = match rest.strip_prefix(':') {
            Some(spec) => self.run(spec, depth - 1)?,
            None if rest.is_empty() => String::new(),
            None => return Err(Fault::new("expected ':' after conversion specifier")),
        };
        formatted(&value, &spec)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        let first_end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(first_end);
        let mut value = match first {
            "" => {
                self.next += 1;
                self.fields.first(&(self.next - 1).to_string())?
            }
            first => self.fields.first(first)?,
        };
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let missing = || Fault::new("Missing ']' in format string");
                let (key, after) = after.split_once(']').ok_or_else(missing)?;
                let key = match key.parse::<i128>() {
                    Ok(index) if key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                    _ => Value::str(key),
                };
                value = self.fields.item(&value, key)?;
                rest = after;
            } else if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = self.fields.attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else {
                return Err(Fault::new(
                    "Only '.' or '[' may follow ']' in format field specifier",
                ));
            }
        }
        Ok(value)
    }
}

/// Where the `}` of a field is, fields within its specification passed over.
fn field_end(text: &str) -> Result<usize> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        open += i32::from(c == '{') - i32::from(c == '}');
        if open == 0 {
            return Ok(at);
        }
    }
    Err(Fault::new("expected '}' before end of string"))
}

/// A value as Python's `format(value, spec)` writes it.
fn formatted(value: &Value, spec: &str) -> Result<String> {
    let wrong = || {
        let kind = value.type_name();
        Fault::new(format!("unsupported format string '{spec}' of a '{kind}'"))
    };
    if spec.is_empty() {
        return Ok(show::string(value));
    }
    let mut chars = spec.chars().peekable();
    let (mut fill, mut align) = (' ', None);
    let mut ahead = spec.chars();
    match (ahead.next(), ahead.next()) {
        (Some(f), Some(a)) if "<>=^".contains(a) => {
            (fill, align) = (f, Some(a));
            chars.nth(1);
        }
        (Some(a), _) if "<>=^".contains(a) => {
            align = Some(a);
            chars.next();
        }
        _ => {}
    }
    let sign = chars.next_if(|c| "+- ".contains(*c));
    let alternate = chars.next_if_eq(&'#').is_some();
    if chars.next_if_eq(&'0').is_some() && align.is_none() {
        (fill, align) = ('0', Some('='));
    }
    let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        digits
    };
    let width: usize = match number(&mut chars).as_str() {
        "" => 0,
        digits => digits.parse().map_err(|_| wrong())?,
    };
    limits::text(width)?;
    let separator = chars.next_if(|c| ",_".contains(*c));
    let precision = match chars.next_if_eq(&'.') {
        Some(_) => Some(number(&mut chars).parse().map_err(|_| wrong())?),
        None => None,
    };
    let kind = chars.next();
    if chars.next().is_some() {
        return Err(wrong());
    }
    let spec = |kind, precision| Spec {
        sign: sign.unwrap_or('-'),
        alternate,
        precision,
        kind,
    };
    let (text, default) = match (value, kind) {
        (Value::Str(Text { text, .. }), None | Some('s')) => {
            if sign.is_some() || alternate || separator.is_some() || align == Some('=') {
                return Err(wrong());
            }
            let cut = text.chars().take(precision.unwrap_or(usize::MAX));
            (cut.collect(), '<')
        }
        (Value::Int(_) | Value::Bool(_), None | Some('d' | 'b' | 'o' | 'x' | 'X' | 'n'))
            if precision.is_none() =>
        {
            let whole = value.as_int().ok_or_else(wrong)?;
            let text = spec(kind.unwrap_or('d'), None).integer(whole)?;
            (grouped(&text, separator), '>')
        }
        (Value::Int(_) | Value::Bool(_), Some('c')) => {
            let code = value.as_int().and_then(|i| u32::try_from(i).ok());
            let c = code.and_then(char::from_u32).ok_or_else(wrong)?;
            (c.to_string(), '<')
        }
        (Value::Float(f), None) if precision.is_none() && !alternate => {
            let shown = show::float(f.abs());
            let negative = f.is_sign_negative();
            let before = match (negative, sign) {
                (true, _) => "-".to_owned(),
                (false, Some(sign)) if sign != '-' => sign.to_string(),
                (false, _) => String::new(),
            };
            (grouped(&format!("{before}{shown}"), separator), '>')
        }
        (Value::Int(_) | Value::Bool(_) | Value::Float(_), Some('%')) => {
            let number = value.as_float().ok_or_else(wrong)?;
            let text = spec('f', precision).float(number * 100.0)?;
            (grouped(&text, separator) + "%", '>')
        }
        (Value::Int(_) | Value::Bool(_) | Value::Float(_), Some(k)) if "eEfFgG".contains(k) => {
            let number = value.as_float().ok_or_else(wrong)?;
            (grouped(&spec(k, precision).float(number)?, separator), '>')
        }
        _ => return Err(wrong()),
    };
    Ok(pad(&text, fill, align.unwrap_or(default), width))
}

/// A number with separators between groups of three digits.
fn grouped(text: &str, separator: Option<char>) -> String {
    let Some(separator) = separator else {
        return text.to_owned();
    };
    let start = text
        .find(|c: char| c.is_ascii_digit())
        .unwrap_or(text.len());
    let (sign, rest) = text.split_at(start);
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, tail) = rest.split_at(end);
    let mut out = sign.to_owned();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(separator);
        }
        out.push(digit);
    }
    out + tail
}
