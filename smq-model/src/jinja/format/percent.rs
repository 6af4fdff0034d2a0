//! `"%s of %d" % (a, b)`.

use super::super::error::{Fault, Result};
use super::super::limits;
use super::super::show;
use super::super::value::Value;
use super::number::Spec;
use super::pad;

/// Python's `format % values`.
pub(crate) fn percent(format: &str, values: &Value) -> Result<String> {
    let listed = match values {
        Value::Tuple(t) => t.items.to_vec(),
        other => vec![other.clone()],
    };
    let mut values = Values {
        mapping: values,
        listed,
        next: 0,
        by_name: false,
    };
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut key = String::new();
            let mut open = 1;
            for c in chars.by_ref() {
                open += i32::from(c == '(') - i32::from(c == ')');
                if open == 0 {
                    break;
                }
                key.push(c);
            }
            if open != 0 {
                return Err(Fault::new("incomplete format key"));
            }
            named = Some(values.named(&key)?);
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| "#0- +".contains(*c)) {
            flags.push(flag);
        }
        let mut width = count(&mut chars, &mut values)?;
        if let Some(negative) = width.filter(|w| *w < 0) {
            flags.push('-');
            width = Some(-negative);
        }
        let precision = match chars.next_if_eq(&'.') {
            Some(_) => Some(count(&mut chars, &mut values)?.unwrap_or(0).max(0)),
            None => None,
        };
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(kind) = chars.next() else {
            return Err(Fault::new("incomplete format"));
        };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => values.next()?,
        };
        let width = limits::count(width.unwrap_or(0));
        let precision = precision.map(limits::count);
        limits::text(width)?;
        out += &one(&value, &flags, width, precision, kind)?;
        limits::text(out.len())?;
    }
    match values.next < values.listed.len() && !values.may_be_left() {
        true => Err(Fault::new(
            "not all arguments converted during string formatting",
        )),
        false => Ok(out),
    }
}

struct Values<'v> {
    mapping: &'v Value,
    listed: Vec<Value>,
    next: usize,
    by_name: bool,
}

impl Values<'_> {
    fn next(&mut self) -> Result<Value> {
        let short = || Fault::new("not enough arguments for format string");
        let value = self.listed.get(self.next).ok_or_else(short)?;
        self.next += 1;
        Ok(value.clone())
    }

    fn named(&mut self, key: &str) -> Result<Value> {
        let Value::Dict(dict) = self.mapping else {
            return Err(Fault::new("format requires a mapping"));
        };
        self.by_name = true;
        let missing = || Fault::new(format!("KeyError: '{key}'"));
        dict.get_str(key).cloned().ok_or_else(missing)
    }

    /// A dict (or another container, which Python takes for a mapping) may stay unused.
    fn may_be_left(&self) -> bool {
        let mapping = self.mapping;
        let subscriptable = matches!(
            mapping,
            Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_)
        );
        self.by_name || subscriptable
    }
}

type Chars<'t> = std::iter::Peekable<std::str::Chars<'t>>;

/// A width or a precision: digits, or `*` for the next value.
fn count(chars: &mut Chars<'_>, values: &mut Values<'_>) -> Result<Option<i128>> {
    if chars.next_if_eq(&'*').is_some() {
        let value = values.next()?;
        let number = value.as_int().ok_or_else(|| Fault::new("* wants int"))?;
        return Ok(Some(number));
    }
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    match digits.is_empty() {
        true => Ok(None),
        false => {
            let large = |_| Fault::new("width too big");
            Ok(Some(digits.parse().map_err(large)?))
        }
    }
}

fn one(
    value: &Value,
    flags: &str,
    width: usize,
    precision: Option<usize>,
    kind: char,
) -> Result<String> {
    let left = flags.contains('-');
    let spec = |kind| Spec {
        sign: match (flags.contains('+'), flags.contains(' ')) {
            (true, _) => '+',
            (false, true) => ' ',
            (false, false) => '-',
        },
        alternate: flags.contains('#'),
        precision,
        kind,
    };
    let numeric = |text: String| match (left, flags.contains('0')) {
        (true, _) => pad(&text, ' ', '<', width),
        (false, true) => pad(&text, '0', '=', width),
        (false, false) => pad(&text, ' ', '>', width),
    };
    let wants = |what: &str| {
        let found = value.type_name();
        Fault::new(format!("%{kind} format: {what} is required, not {found}"))
    };
    let text = match kind {
        's' => show::string(value),
        'r' => show::repr(value),
        'a' => return Err(Fault::unsupported("the format %a")),
        'c' => match (value.as_int(), value.as_str()) {
            (Some(code), _) => {
                let code = u32::try_from(code).ok().and_then(char::from_u32);
                let code = code.ok_or_else(|| Fault::new("%c arg not in range(0x110000)"))?;
                code.to_string()
            }
            (None, Some(text)) if text.chars().count() == 1 => text.to_owned(),
            _ => return Err(Fault::new("%c requires int or char")),
        },
        'd' | 'i' | 'u' => {
            let whole = match value {
                Value::Float(f) if f.is_finite() => f.trunc() as i128,
                other => other.as_int().ok_or_else(|| wants("a real number"))?,
            };
            return Ok(numeric(spec('d').integer(whole)?));
        }
        'o' | 'x' | 'X' => {
            let whole = value.as_int().ok_or_else(|| wants("an integer"))?;
            return Ok(numeric(spec(kind).integer(whole)?));
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = value.as_float().ok_or_else(|| {
                let found = value.type_name();
                Fault::new(format!("must be real number, not {found}"))
            })?;
            return Ok(numeric(spec(kind).float(number)?));
        }
        other => {
            return Err(Fault::new(format!(
                "unsupported format character '{other}'"
            )));
        }
    };
    let text: String = match precision {
        Some(most) if kind != 'c' => text.chars().take(most).collect(),
        _ => text,
    };
    Ok(pad(&text, ' ', if left { '<' } else { '>' }, width))
}
