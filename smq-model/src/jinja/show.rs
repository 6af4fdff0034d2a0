//! Values as Python prints them: `str` and `repr`.

use super::limits;
use super::value::{Callable, Dict, Value};

/// Python's `str(x)`, which is what `{{ x }}` writes.
pub(crate) fn string(value: &Value) -> String {
    match value {
        Value::Undefined(_) => String::new(),
        Value::Str(t) => t.text.to_string(),
        other => repr(other),
    }
}

/// A value as Python's `repr(x)` writes it.
pub(crate) fn repr(value: &Value) -> String {
    shown(value, 0)
}

/// `repr` of a value that is `depth` values deep in the one to show.
fn shown(value: &Value, depth: usize) -> String {
    if depth > limits::NESTING {
        return "...".into();
    }
    let joined = |items: &[Value]| {
        let items: Vec<String> = items.iter().map(|item| shown(item, depth + 1)).collect();
        items.join(", ")
    };
    let dict = |dict: &Dict| {
        let item = |(key, value): &(Value, Value)| {
            format!("{}: {}", shown(key, depth + 1), shown(value, depth + 1))
        };
        let items: Vec<String> = dict.iter().map(item).collect();
        format!("{{{}}}", items.join(", "))
    };
    match value {
        Value::Undefined(_) => "Undefined".into(),
        Value::None => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) => float(*f),
        Value::Str(t) if t.safe => format!("Markup({})", quoted(&t.text)),
        Value::Str(t) => quoted(&t.text),
        Value::List(l) => format!("[{}]", joined(l)),
        Value::Tuple(t) => match &*t.items {
            [only] => format!("({},)", shown(only, depth + 1)),
            items => format!("({})", joined(items)),
        },
        Value::Dict(d) => dict(d),
        Value::Range(r) => match r.step {
            1 => format!("range({}, {})", r.start, r.stop),
            step => format!("range({}, {}, {step})", r.start, r.stop),
        },
        Value::View(v) => format!("{}([{}])", v.kind, joined(&v.items)),
        Value::Iter(_) => "<generator>".into(),
        Value::Namespace(n) => format!("<Namespace {}>", dict(&n.borrow())),
        Value::Loop(l) => {
            let length = l.length.get().unwrap_or_default();
            format!("<LoopContext {}/{length}>", l.begun.get())
        }
        Value::Cycler(_) => "<Cycler>".into(),
        Value::Callable(c) => match &**c {
            Callable::Macro { node, .. } => format!("<Macro {}>", quoted(&node.name)),
            Callable::Method { name, .. } => format!("<built-in method {name}>"),
            Callable::Function(_) => "<function>".into(),
            Callable::Joiner { .. } => "<Joiner>".into(),
        },
    }
}

/// Python's `repr` of a float: the shortest digits that read back, an exponent from 1e16 on and
/// below 1e-4.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return match plain.contains('.') {
            true => plain,
            false => format!("{plain}.0"),
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Python's `repr` of a string.
pub(crate) fn quoted(text: &str) -> String {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                n @ 0..0x100 => out += &format!("\\x{n:02x}"),
                n @ 0x100..0x10000 => out += &format!("\\u{n:04x}"),
                n => out += &format!("\\U{n:08x}"),
            },
        }
    }
    out.push(quote);
    out
}

/// Python's `str.isprintable` of one character.
pub(crate) fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => false,
        c => !super::unicode::is_unprintable(c),
    }
}
