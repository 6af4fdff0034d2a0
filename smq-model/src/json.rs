//! JSON as Python reads it, since the files beside a model are written and read by Python programs.
//!
//! Python takes `NaN`, `Infinity` and `-Infinity` for numbers, a number over the range of f64 for
//! an infinity, and the last of several equal keys. JSON proper has no such numbers. They become
//! `{"__float__": "Infinity"}` here, which is how transformers 5 writes them into a config.json:
//! whoever wants a number there refuses them by name, and whoever writes the value out again keeps
//! its meaning.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// How a file begins that Git LFS has not fetched yet.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// What to do about such a file.
pub(crate) const LFS_REMEDY: &str =
    "is a Git LFS pointer, not the file itself; fetch it with git lfs pull, or download it again";

/// Reads a JSON object; `file` is what errors name, a path for example.
///
/// # Errors
/// [`Error::File`] with line and column where the text is not JSON, or saying what else it is.
pub fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>> {
    let problem = |problem: String| Error::file(file, problem);
    let text = text(bytes).map_err(problem)?;
    let value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            let (plain, replaced) = without_special_floats(text);
            let again = match replaced.is_empty() {
                true => Err(error),
                false => serde_json::from_str(&plain),
            };
            again.map_err(|e| problem(format!("is not valid JSON: {}", located(&e, &replaced))))?
        }
    };
    let found = match value {
        // A text that is nothing but NaN has become an object too.
        Value::Object(map) if text.trim_start().starts_with('{') => return Ok(map),
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) | Value::Object(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a JSON array",
    };
    Err(problem(format!("holds {found}, expected a JSON object")))
}

/// The text of a file whose contents must be UTF-8; `file` is what errors name.
///
/// # Errors
/// [`Error::File`] where it is not, or is a pointer of Git LFS.
pub(crate) fn utf8<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str> {
    if bytes.starts_with(LFS_POINTER) {
        return Err(Error::file(file, LFS_REMEDY));
    }
    std::str::from_utf8(bytes).map_err(|e| Error::file(file, not_utf8(e)))
}

fn not_utf8(error: std::str::Utf8Error) -> String {
    format!(
        "is not UTF-8 at byte {}; save it as UTF-8",
        error.valid_up_to()
    )
}

/// The text of a file that should be JSON, or what is in the way.
fn text(bytes: &[u8]) -> std::result::Result<&str, String> {
    if bytes.trim_ascii().is_empty() {
        return Err("is empty, expected a JSON object; download it again".to_owned());
    }
    if bytes.starts_with(LFS_POINTER) {
        return Err(LFS_REMEDY.to_owned());
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(
            "begins with a byte order mark, which transformers refuses too; save it as UTF-8 \
             without one"
                .to_owned(),
        );
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("is UTF-16, expected UTF-8; save it as UTF-8".to_owned());
    }
    std::str::from_utf8(bytes).map_err(not_utf8)
}

/// Where a replacement ends in the new text, and by how many columns it is longer than what it
/// stands for; by less than none where that is a number of many digits.
struct Replaced {
    line: usize,
    end_column: usize,
    longer: isize,
}

/// The text with an object in place of each number that JSON does not have.
fn without_special_floats(text: &str) -> (String, Vec<Replaced>) {
    let mut out = String::with_capacity(text.len() + 64);
    let mut replaced = Vec::new();
    let (mut line, mut line_start) = (1, 0);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => string_length(rest),
            c if c == '-' || c.is_ascii_alphanumeric() => {
                let in_word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
                rest.find(|c| !in_word(c)).unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        let put = special_float(token);
        out.push_str(&put);
        if first == '\n' {
            (line, line_start) = (line + 1, out.len());
        }
        if put != token {
            replaced.push(Replaced {
                line,
                end_column: out.len() - line_start,
                longer: put.len().cast_signed() - token.len().cast_signed(),
            });
        }
        rest = after;
    }
    (out, replaced)
}

/// Bytes of the string that `text` begins with, its quotes included; all of it where it does not
/// end.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    });
    end.map_or(text.len(), |at| at + 2)
}

fn special_float(token: &str) -> Cow<'_, str> {
    let name = match token {
        "NaN" => "NaN",
        "Infinity" => "Infinity",
        "-Infinity" => "-Infinity",
        _ if token.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
            match token.parse::<f64>() {
                Ok(f64::INFINITY) => "Infinity",
                Ok(f64::NEG_INFINITY) => "-Infinity",
                _ => return token.into(),
            }
        }
        _ => return token.into(),
    };
    format!("{{\"__float__\":\"{name}\"}}").into()
}

/// The parser's message with the place in the text as it was given.
fn located(error: &serde_json::Error, replaced: &[Replaced]) -> String {
    let (line, column) = (error.line(), error.column());
    let before = |r: &&Replaced| r.line == line && r.end_column <= column;
    let shift: isize = replaced.iter().filter(before).map(|r| r.longer).sum();
    let text = error.to_string();
    let place = format!(" at line {line} column {column}");
    let reason = text.strip_suffix(&place).unwrap_or(&text);
    let column = column.saturating_add_signed(-shift);
    format!("{reason} at line {line} column {column}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(text: &str) -> Value {
        Value::Object(parse_object("a.json", text.as_bytes()).unwrap())
    }

    fn refused(bytes: &[u8]) -> String {
        parse_object("a.json", bytes).unwrap_err().to_string()
    }

    /// What `json.loads` of Python 3.11 makes of the same texts, infinities as transformers 5.24
    /// writes them.
    #[test]
    fn what_python_takes_for_numbers() {
        let inf = json!({"__float__": "Infinity"});
        assert_eq!(
            parsed(r#"{"a": [0.0, Infinity, -Infinity, NaN], "b": 1e400, "c": -1e400}"#),
            json!({"a": [0.0, inf, {"__float__": "-Infinity"}, {"__float__": "NaN"}],
                   "b": inf, "c": {"__float__": "-Infinity"}})
        );
        // Not in strings, whatever they hold.
        assert_eq!(
            parsed(r#"{"NaN": "a \" Infinity, \\", "b": NaN, "c\\": "-Infinity"}"#),
            json!({"NaN": "a \" Infinity, \\", "b": {"__float__": "NaN"}, "c\\": "-Infinity"})
        );
        assert_eq!(
            parsed(r#"{"a": 1, "a": 2, "b": 1000000000000000019884624838656}"#),
            json!({"a": 2, "b": 1e30})
        );
        assert_eq!(parsed(" {\"é\": \"日本\"}\r\n"), json!({"é": "日本"}));
    }

    #[test]
    fn the_place_is_that_of_the_text_as_given() {
        assert_eq!(
            refused(b"{\n  \"a\": 1,\n}"),
            "a.json: is not valid JSON: trailing comma at line 3 column 1"
        );
        let plain = refused(b"{\"a\": [12345678, 123, -12345678],,}");
        let special = refused(b"{\"a\": [Infinity, NaN, -Infinity],,}");
        assert_eq!(special, plain);
        assert!(plain.ends_with("column 34"), "{plain}");
        // A number that is longer than what stands for it.
        let plain = refused(b"{\"a\": [1234567890123456789012345e1, 1],,}");
        let long = refused(b"{\"a\": [1234567890123456789012e+309, 1],,}");
        assert_eq!(long, plain);
        assert!(plain.ends_with("column 40"), "{plain}");
        let later = refused(b"{\"a\": NaN,\n \"b\": Infinit}");
        assert!(later.contains("line 2 column 7"), "{later}");
        let cut = refused(b"{\"a\": NaN, \"b");
        assert!(cut.contains("EOF") && cut.ends_with("column 13"), "{cut}");
    }

    #[test]
    fn what_is_no_json_is_named() {
        for (bytes, expected) in [
            (&b""[..], "is empty"),
            (b" \n", "is empty"),
            (b"[1]", "holds a JSON array"),
            (b"NaN", "holds a number"),
            (b"\xef\xbb\xbf{}", "byte order mark"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (b"{\"a\": \"\xff\"}", "not UTF-8 at byte 7"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"<!DOCTYPE html>", "expected value at line 1 column 1"),
            (b"{'a': 1}", "line 1 column 2"),
        ] {
            let message = refused(bytes);
            assert!(message.starts_with("a.json: "), "{message}");
            assert!(message.contains(expected), "{message}");
        }
    }
}
