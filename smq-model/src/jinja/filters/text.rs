//! Filters that take a text, such as `trim` and `replace`.

use super::super::args::{self, Args};
use super::super::ast::Math;
use super::super::error::{Fault, Result};
use super::super::interp::Interp;
use super::super::json;
use super::super::limits;
use super::super::methods;
use super::super::ops;
use super::super::show;
use super::super::value::{Dict, Value};
use super::attribute;

pub(super) fn apply(interp: &mut Interp, name: &str, value: Value, args: Args) -> Result<Value> {
    // What Jinja calls soft_str: text stays what it is, anything else is printed.
    let text = show::string(&value);
    let safe = matches!(&value, Value::Str(text) if text.safe);
    let again = |new: String| match safe {
        true => Value::markup(new),
        false => Value::str(new),
    };
    Ok(match name {
        "capitalize" | "lower" | "title" | "upper" => {
            args.none(name)?;
            again(match name {
                "capitalize" => methods::capitalize(&text),
                "lower" => methods::lower(&text),
                "title" => methods::title_words(&text),
                _ => methods::upper(&text),
            })
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let width = width.unwrap_or(Value::Int(80));
            let text = Value::str(text);
            methods::call(interp, &text, "center", Args::new(vec![width]))?
        }
        "e" | "escape" => args
            .none(name)
            .map(|()| Value::markup(ops::escaped(&value)))?,
        "forceescape" => args
            .none(name)
            .map(|()| Value::markup(ops::escape(&text)))?,
        "safe" => args.none(name).map(|()| Value::markup(text))?,
        "string" => args.none(name).map(|()| again(text))?,
        "format" => {
            let values = match (args.list.is_empty(), args.named.is_empty()) {
                (false, false) => {
                    return Err(Fault::new(
                        "can't handle positional and keyword arguments at the same time",
                    ));
                }
                (true, false) => {
                    let mut dict = Dict::default();
                    for (key, value) in args.named {
                        dict.set(Value::str(key), value)?;
                    }
                    Value::Dict(dict.into())
                }
                _ => Value::tuple(args.list),
            };
            ops::math(Math::Mod, &again(text), &values)?
        }
        "indent" => indent(&value, args)?,
        "join" => {
            let [separator, path] = args.bind(name, ["d", "attribute"], 0)?;
            let separator = separator.map(|s| show::string(&s)).unwrap_or_default();
            let mut out = String::new();
            for (at, item) in value.iterate()?.iter().enumerate() {
                if at > 0 {
                    out += &separator;
                }
                out += &show::string(&attribute(interp, item, path.as_ref(), None)?);
                limits::text(out.len())?;
            }
            Value::str(out)
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let shown = |v: Option<Value>| v.map(|v| show::string(&v)).unwrap_or_default();
            let count = match count {
                None | Some(Value::None) => -1,
                count => args::integer(count.as_ref(), -1)?,
            };
            Value::str(methods::replace(&text, &shown(old), &shown(new), count)?)
        }
        "tojson" => to_json(&value, args)?,
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let chars = args::string(chars.as_ref(), name)?;
            again(methods::strip(&text, chars, true, true).to_owned())
        }
        "truncate" => truncate(value, args)?,
        "urlencode" => args.none(name).and_then(|()| url_encode(&value))?,
        _ => {
            args.none(name)?;
            let mut words = 0;
            let mut within = false;
            for c in text.chars() {
                let word = c.is_alphanumeric() || c == '_';
                words += i128::from(word && !within);
                within = word;
            }
            Value::Int(words)
        }
    })
}

fn indent(value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let (first, blank) = (
        args::flag(first.as_ref(), false),
        args::flag(blank.as_ref(), false),
    );
    let indention = match &width {
        Some(Value::Str(text)) => text.text.to_string(),
        width => {
            let width = args::integer(width.as_ref(), 4)?;
            let width = limits::count(width);
            limits::text(width)?;
            " ".repeat(width)
        }
    };
    // Adding a line's end makes of an empty text one line, and refuses what is no text.
    let text = ops::math(Math::Add, value, &Value::str("\n"))?;
    let lines = methods::lines(&show::string(&text), false);
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 && (blank || !line.is_empty())) || (at == 0 && first) {
            out += &indention;
        }
        out += line;
        limits::text(out.len())?;
    }
    Ok(match value {
        Value::Str(text) if text.safe => Value::markup(out),
        _ => Value::str(out),
    })
}

fn truncate(value: Value, args: Args) -> Result<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill, end, leeway] = args.bind("truncate", names, 0)?;
    let length = args::integer(length.as_ref(), 255)?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        leeway => args::integer(leeway.as_ref(), 5)?,
    };
    let end = args::string(end.as_ref(), "truncate")?.unwrap_or("...");
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return Err(Fault::new(format!(
            "expected length >= {end_length}, got {length}"
        )));
    }
    let found = value.len().ok_or_else(|| {
        let kind = value.type_name();
        Fault::new(format!("object of type '{kind}' has no len()"))
    })?;
    if found as i128 <= length + leeway {
        return Ok(value);
    }
    let Some(text) = value.as_str() else {
        return Err(Fault::new("truncate: a str is expected"));
    };
    let keep = limits::count(length - end_length);
    let cut: String = text.chars().take(keep).collect();
    let cut = match args::flag(kill.as_ref(), false) {
        true => cut.as_str(),
        false => cut
            .rsplit_once(' ')
            .map_or(cut.as_str(), |(before, _)| before),
    };
    Ok(Value::str(cut.to_owned() + end))
}

fn url_encode(value: &Value) -> Result<Value> {
    let pairs = match value {
        Value::Dict(dict) => dict.pairs(),
        Value::Str(_) => return Ok(Value::str(url_quote(value, false))),
        other => match other.iterate() {
            Ok(pairs) => pairs,
            Err(_) => return Ok(Value::str(url_quote(other, false))),
        },
    };
    let mut parts = Vec::new();
    for pair in pairs {
        let Ok([key, value]) = <[Value; 2]>::try_from(pair.iterate()?) else {
            return Err(Fault::new("urlencode: pairs are expected"));
        };
        parts.push(format!(
            "{}={}",
            url_quote(&key, true),
            url_quote(&value, true)
        ));
    }
    Ok(Value::str(parts.join("&")))
}

fn url_quote(value: &Value, query: bool) -> String {
    let mut out = String::new();
    for byte in show::string(value).bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// transformers' `tojson`: `json.dumps` with these of its options, and nothing escaped for HTML.
fn to_json(value: &Value, args: Args) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = args.bind("tojson", names, 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.text.to_string()),
        width => {
            let width = args::integer(width.as_ref(), 0)?;
            let width = limits::count(width);
            limits::text(width.saturating_mul(100))?;
            Some(" ".repeat(width))
        }
    };
    let (between, after_key) = match separators {
        None | Some(Value::None) => match indent {
            Some(_) => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
        },
        Some(pair) => match pair.iterate()?.as_slice() {
            [Value::Str(between), Value::Str(after_key)] => {
                (between.text.to_string(), after_key.text.to_string())
            }
            _ => return Err(Fault::new("tojson: separators are two strings")),
        },
    };
    let style = json::Style {
        ascii: args::flag(ascii.as_ref(), false),
        indent,
        between,
        after_key,
        sorted: args::flag(sorted.as_ref(), false),
    };
    Ok(Value::str(json::dumps(value, &style)?))
}
