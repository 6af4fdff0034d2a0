//! Methods of strings, which do what Python's do.

use super::super::args::{self, Args};
use super::super::error::{Fault, Result};
use super::super::format::{self, Fields};
use super::super::interp::Interp;
use super::super::lexer::is_space;
use super::super::limits;
use super::super::show;
use super::super::unicode;
use super::super::value::{Text, Value};
use super::{case, split};

pub(super) const METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

pub(super) fn call(interp: &mut Interp, text: &Text, name: &str, args: Args) -> Result<Value> {
    let safe = text.safe;
    let text = &*text.text;
    let again = |new: String| match safe {
        true => Value::markup(new),
        false => Value::str(new),
    };
    let list = |parts: Vec<String>| Value::list(parts.into_iter().map(&again).collect());
    let all = |test: fn(char) -> bool| Value::Bool(!text.is_empty() && text.chars().all(test));
    Ok(match name {
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            args.none(name)?;
            again(match name {
                "capitalize" => case::capitalize(text),
                "casefold" => case::casefold(text),
                "lower" => case::lower(text),
                "swapcase" => case::swapcase(text),
                "title" => case::title(text),
                _ => case::upper(text),
            })
        }
        "isalnum" | "isalpha" | "isascii" | "isdecimal" | "isdigit" | "isidentifier"
        | "islower" | "isnumeric" | "isprintable" | "isspace" | "istitle" | "isupper" => {
            args.none(name)?;
            match name {
                "isalnum" => all(|c| unicode::is_letter(c) || unicode::is_numeric(c)),
                "isalpha" => all(unicode::is_letter),
                "isascii" => Value::Bool(text.is_ascii()),
                "isdecimal" => all(unicode::is_decimal),
                "isdigit" => all(unicode::is_digit),
                "isidentifier" => {
                    let starts = |c: char| c == '_' || unicode::is_letter(c);
                    let mut chars = text.chars();
                    let first = chars.next().is_some_and(starts);
                    Value::Bool(first && chars.all(|c| starts(c) || unicode::is_decimal(c)))
                }
                "islower" => Value::Bool(case::is_all_lower(text)),
                "isnumeric" => all(unicode::is_numeric),
                "isprintable" => Value::Bool(text.chars().all(show::is_printable)),
                "isspace" => all(is_space),
                "istitle" => Value::Bool(case::is_title(text)),
                _ => Value::Bool(case::is_all_upper(text)),
            }
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind_places(name, ["width", "fillchar"], 1)?;
            let fill = args::string(fill.as_ref(), name)?.unwrap_or(" ");
            let width = args::integer(width.as_ref(), 0)?;
            again(justified(text, name, width, fill)?)
        }
        "count" => {
            let (part, text) = within(text, name, args)?;
            let count = match (part.as_str(), text) {
                (_, None) => 0,
                ("", Some(text)) => text.chars().count() + 1,
                (part, Some(text)) => text.matches(part).count(),
            };
            Value::Int(count as i128)
        }
        "find" | "index" | "rfind" | "rindex" => search(text, name, args)?,
        "startswith" | "endswith" => ends(text, name, args)?,
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind_places(name, ["chars"], 0)?;
            let chars = args::string(chars.as_ref(), name)?;
            again(strip(text, chars, name != "rstrip", name != "lstrip").to_owned())
        }
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let separator = args::string(separator.as_ref(), name)?;
            let most = args::integer(most.as_ref(), -1)?;
            list(split::split(text, separator, most, name == "rsplit")?)
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            list(split::lines(text, args::flag(keep.as_ref(), false)))
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind_places(name, ["sep"], 1)?;
            let separator = required(separator.as_ref(), name)?;
            let parts = split::partition(text, separator, name == "rpartition")?;
            Value::tuple(parts.into_iter().map(&again).collect())
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.bind_places(name, ["part"], 1)?;
            let part = required(part.as_ref(), name)?;
            let rest = match name {
                "removeprefix" => text.strip_prefix(part),
                _ => text.strip_suffix(part),
            };
            again(rest.unwrap_or(text).to_owned())
        }
        "replace" => {
            let [old, new, count] = args.bind_places(name, ["old", "new", "count"], 2)?;
            let (old, new) = (required(old.as_ref(), name)?, required(new.as_ref(), name)?);
            again(replace(text, old, new, args::integer(count.as_ref(), -1)?)?)
        }
        "join" => {
            let [items] = args.bind_places(name, ["iterable"], 1)?;
            let mut out = String::new();
            for (at, item) in items.unwrap_or(Value::None).iterate()?.iter().enumerate() {
                let Some(item) = item.as_str() else {
                    let kind = item.type_name();
                    return Err(Fault::new(format!(
                        "sequence item {at}: expected str instance, {kind} found"
                    )));
                };
                if at > 0 {
                    out += text;
                }
                out += item;
                limits::text(out.len())?;
            }
            again(out)
        }
        "zfill" => {
            let [width] = args.bind_places(name, ["width"], 1)?;
            let width = args::integer(width.as_ref(), 0)?;
            let sign = text.starts_with(['-', '+']);
            let (sign, digits) = text.split_at(usize::from(sign));
            let width = width - sign.len() as i128;
            again(sign.to_owned() + &justified(digits, "rjust", width, "0")?)
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            let size = limits::count(args::integer(size.as_ref(), 8)?);
            limits::text(size.saturating_mul(text.len()))?;
            again(expand_tabs(text, size))
        }
        "format" | "format_map" => {
            let mut fields = MethodFields { interp, args };
            if name == "format_map" {
                let [map] = std::mem::take(&mut fields.args).bind_places(name, ["map"], 1)?;
                let Some(Value::Dict(map)) = map else {
                    return Err(Fault::new("format_map() takes a mapping"));
                };
                for (key, value) in map.iter() {
                    let key = show::string(key);
                    fields.args.named.push((key.into(), value.clone()));
                }
            }
            again(format::braces(text, &mut fields)?)
        }
        other => {
            return Err(Fault::unsupported(&format!(
                "the method '{other}' of a str"
            )));
        }
    })
}

fn required<'v>(value: Option<&'v Value>, what: &str) -> Result<&'v str> {
    let missing = || Fault::new(format!("{what}: a str is expected, not None"));
    args::string(value, what)?.ok_or_else(missing)
}

/// Python's `strip`, on one side or both.
pub(crate) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let gone = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left {
        text.trim_start_matches(gone)
    } else {
        text
    };
    if right {
        text.trim_end_matches(gone)
    } else {
        text
    }
}

fn justified(text: &str, how: &str, width: i128, fill: &str) -> Result<String> {
    if fill.chars().count() != 1 {
        return Err(Fault::new(
            "The fill character must be exactly one character long",
        ));
    }
    let width = limits::count(width);
    limits::text(width)?;
    let missing = width.saturating_sub(text.chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // Python's odd one out goes left if the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(fill.repeat(left) + text + &fill.repeat(missing - left))
}

/// Python's `str.replace`; `count` replacements at most, all if negative.
pub(crate) fn replace(text: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let found = match old {
        "" => text.chars().count() + 1,
        old => text.matches(old).count(),
    };
    limits::text(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(match usize::try_from(count) {
        Ok(count) => text.replacen(old, new, count),
        Err(_) => text.replace(old, new),
    })
}

/// A text's part between two indices of characters, and the byte where it begins; `None` where
/// the start is behind the end.
fn part<'t>(text: &'t str, start: Option<&Value>, stop: Option<&Value>) -> Result<Option<&'t str>> {
    let len = text.chars().count() as i128;
    let bound = |value: Option<&Value>, default: i128| -> Result<i128> {
        let bound = match value {
            None | Some(Value::None) => default,
            value => args::integer(value, default)?,
        };
        Ok(if bound < 0 {
            (bound + len).max(0)
        } else {
            bound
        })
    };
    let (start, stop) = (bound(start, 0)?, bound(stop, len)?.min(len));
    if start > stop {
        return Ok(None);
    }
    let byte = |at: i128| {
        let at = limits::count(at);
        text.char_indices()
            .nth(at)
            .map_or(text.len(), |(byte, _)| byte)
    };
    Ok(Some(&text[byte(start)..byte(stop)]))
}

fn within<'t>(text: &'t str, name: &str, args: Args) -> Result<(String, Option<&'t str>)> {
    let [sub, start, stop] = args.bind_places(name, ["sub", "start", "end"], 1)?;
    let sub = required(sub.as_ref(), name)?.to_owned();
    Ok((sub, part(text, start.as_ref(), stop.as_ref())?))
}

fn search(text: &str, name: &str, args: Args) -> Result<Value> {
    let (sub, range) = within(text, name, args)?;
    let found = range.and_then(|range| {
        let at = match name.starts_with('r') {
            true => range.rfind(&sub),
            false => range.find(&sub),
        }?;
        let before = range.as_ptr() as usize - text.as_ptr() as usize + at;
        Some(text[..before].chars().count())
    });
    match found {
        Some(at) => Ok(Value::Int(at as i128)),
        None if name.ends_with("index") => Err(Fault::new(format!("{name}: substring not found"))),
        None => Ok(Value::Int(-1)),
    }
}

fn ends(text: &str, name: &str, args: Args) -> Result<Value> {
    let [affix, start, stop] = args.bind_places(name, ["affix", "start", "end"], 1)?;
    let range = part(text, start.as_ref(), stop.as_ref())?;
    let affixes = match affix {
        Some(Value::Tuple(tuple)) => tuple.items.to_vec(),
        other => Vec::from_iter(other),
    };
    for affix in &affixes {
        let affix = required(Some(affix), name)?;
        let found = range.is_some_and(|range| match name {
            "startswith" => range.starts_with(affix),
            _ => range.ends_with(affix),
        });
        if found {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let missing = size - column % size;
                out += &" ".repeat(missing);
                column += missing;
            }
            '\t' => {}
            c => {
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
                out.push(c);
            }
        }
    }
    out
}

/// Fields of `str.format`: attributes are looked up as the sandbox allows.
struct MethodFields<'i> {
    interp: &'i mut Interp,
    args: Args,
}

impl Fields for MethodFields<'_> {
    fn first(&self, name: &str) -> Result<Value> {
        let value = match name.parse::<usize>() {
            Ok(at) => self.args.list.get(at),
            Err(_) => {
                let mut named = self.args.named.iter();
                named.find(|(n, _)| &**n == name).map(|(_, value)| value)
            }
        };
        let missing = || {
            Fault::new(match name.parse::<usize>() {
                Ok(at) => format!("Replacement index {at} out of range for positional args tuple"),
                Err(_) => format!("KeyError: '{name}'"),
            })
        };
        value.cloned().ok_or_else(missing)
    }

    fn attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        self.interp.attribute(value, name)
    }

    fn item(&mut self, value: &Value, key: Value) -> Result<Value> {
        self.interp.item(value, &key)
    }
}
