//! `tojson`: Python's `json.dumps`, items in the order in which they were inserted.

use super::error::{Fault, Result};
use super::limits;
use super::ops;
use super::show;
use super::value::Value;

/// Options of `json.dumps` that chat templates may give.
pub(crate) struct Style {
    pub(crate) ascii: bool,
    /// What a level is indented by; without it everything is on one line.
    pub(crate) indent: Option<String>,
    pub(crate) between: String,
    pub(crate) after_key: String,
    pub(crate) sorted: bool,
}

/// JSON of a value.
pub(crate) fn dumps(value: &Value, style: &Style) -> Result<String> {
    let mut out = String::new();
    write(value, style, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<()> {
    limits::text(out.len())?;
    if depth > limits::NESTING {
        return Err(Fault::new("maximum recursion depth exceeded"));
    }
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(f) => out.push_str(&float(*f)),
        Value::Str(t) => quote(&t.text, style.ascii, out),
        Value::List(l) => list(l, style, depth, out)?,
        Value::Tuple(t) => list(&t.items, style, depth, out)?,
        Value::Dict(d) => {
            let mut items: Vec<&(Value, Value)> = d.iter().collect();
            if style.sorted {
                sort(&mut items)?;
            }
            if items.is_empty() {
                out.push_str("{}");
                return Ok(());
            }
            out.push('{');
            for (at, (key, value)) in items.into_iter().enumerate() {
                separate(at, style, depth, out);
                quote(&key_text(key)?, style.ascii, out);
                out.push_str(&style.after_key);
                write(value, style, depth + 1, out)?;
            }
            newline(style, depth, out);
            out.push('}');
        }
        other @ (Value::Undefined(_)
        | Value::Range(_)
        | Value::View(_)
        | Value::Iter(_)
        | Value::Namespace(_)
        | Value::Loop(_)
        | Value::Cycler(_)
        | Value::Callable(_)) => {
            let kind = other.type_name();
            let message = format!("Object of type {kind} is not JSON serializable");
            return Err(Fault::new(message));
        }
    }
    Ok(())
}

fn list(items: &[Value], style: &Style, depth: usize, out: &mut String) -> Result<()> {
    if items.is_empty() {
        out.push_str("[]");
        return Ok(());
    }
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        separate(at, style, depth, out);
        write(item, style, depth + 1, out)?;
    }
    newline(style, depth, out);
    out.push(']');
    Ok(())
}

fn separate(at: usize, style: &Style, depth: usize, out: &mut String) {
    if at > 0 {
        out.push_str(&style.between);
    }
    newline(style, depth + 1, out);
}

fn newline(style: &Style, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        out.push_str(&indent.repeat(depth));
    }
}

fn sort(items: &mut [&(Value, Value)]) -> Result<()> {
    for at in 1..items.len() {
        let mut place = at;
        while place > 0 && ops::less(&items[place].0, &items[place - 1].0)? {
            items.swap(place, place - 1);
            place -= 1;
        }
    }
    Ok(())
}

fn key_text(key: &Value) -> Result<String> {
    Ok(match key {
        Value::Str(t) => t.text.to_string(),
        Value::None => "null".into(),
        Value::Bool(true) => "true".into(),
        Value::Bool(false) => "false".into(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) => float(*f),
        other => {
            let kind = other.type_name();
            return Err(Fault::new(format!(
                "keys must be str, int, float, bool or None, not {kind}"
            )));
        }
    })
}

fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else {
        show::float(value)
    }
}

fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if ascii && (!c.is_ascii() || c == '\x7f') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
