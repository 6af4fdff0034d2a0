//! Numbers and strings as Jinja writes them.

use super::error::{Fault, Result};
use super::lexer::Token;

/// A number at the start of `text` and its bytes; behind a dot it is an index, so no float.
pub(crate) fn number(text: &str, behind_dot: bool) -> Result<Option<(Token, usize)>> {
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(u8::is_ascii_digit) {
        return Ok(None);
    }
    let whole = digits(bytes, 0);
    let mut end = whole;
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(bytes, end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = digits(bytes, end + 1 + sign);
        }
    }
    if end > whole && !behind_dot {
        let plain = text[..end].replace('_', "");
        let value = plain.parse().map_err(|_| bad(&text[..end]))?;
        return Ok(Some((Token::Float(value), end)));
    }
    let prefixed = match bytes.get(1).map(u8::to_ascii_lowercase) {
        _ if bytes[0] != b'0' => None,
        Some(b'b') => Some(2),
        Some(b'o') => Some(8),
        Some(b'x') => Some(16),
        _ => None,
    };
    if let Some(radix) = prefixed {
        let is_digit = |b: &u8| char::from(*b).is_digit(radix) || *b == b'_';
        let end = 2 + bytes[2..].iter().take_while(|b| is_digit(b)).count();
        let plain = text[2..end].replace('_', "");
        if !plain.is_empty() {
            let value = i128::from_str_radix(&plain, radix).map_err(|_| bad(&text[..end]))?;
            return Ok(Some((Token::Int(value), end)));
        }
    }
    // A zero is followed by nothing but zeros: `007` is `00` and `7`, which no grammar accepts.
    let end = match bytes[0] {
        b'0' => bytes.iter().take_while(|b| **b == b'0').count(),
        _ => whole,
    };
    let plain = text[..end].replace('_', "");
    let value = plain.parse().map_err(|_| bad(&text[..end]))?;
    Ok(Some((Token::Int(value), end)))
}

fn bad(text: &str) -> Fault {
    Fault::new(format!("the number {text} is too large"))
}

/// Where a run of digits that began before `from` ends; single underscores may stand between.
fn digits(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b), _) if b.is_ascii_digit() => at += 1,
            (Some(b'_'), Some(b)) if b.is_ascii_digit() && at > from => at += 2,
            _ => return at,
        }
    }
}

/// Bytes of a string literal, quotes included; `None` if `text` begins with none.
pub(crate) fn string_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match (escaped, c) {
            (true, _) => escaped = false,
            (false, '\\') => escaped = true,
            (false, c) if c == quote => return Some(at + 1),
            (false, _) => {}
        }
    }
    None
}

/// The text of a literal without its quotes: what Python makes of it by
/// `.encode("ascii", "backslashreplace").decode("unicode-escape")`.
pub(crate) fn unescape(literal: &str) -> Result<String> {
    let mut ascii = String::with_capacity(literal.len());
    for c in literal.chars() {
        match u32::from(c) {
            0..0x80 => ascii.push(c),
            n @ 0x80..0x100 => ascii += &format!("\\x{n:02x}"),
            n @ 0x100..0x10000 => ascii += &format!("\\u{n:04x}"),
            n => ascii += &format!("\\U{n:08x}"),
        }
    }
    let mut out = String::with_capacity(literal.len());
    let mut rest = ascii.as_str();
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            return Err(Fault::new("\\ at end of string"));
        };
        rest = &rest[1..];
        let (digits, radix) = match c {
            'x' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='7' => {
                rest = &ascii[ascii.len() - rest.len() - 1..];
                let octal = |b: &u8| (b'0'..=b'7').contains(b);
                (rest.bytes().take(3).take_while(octal).count(), 8)
            }
            'N' => return Err(Fault::unsupported("the \\N escape of a string")),
            _ => {
                match plain_escape(c) {
                    Some(text) => out += text,
                    None => out.extend(['\\', c]),
                }
                continue;
            }
        };
        let code = rest.get(..digits).ok_or_else(truncated)?;
        let is_number = code.chars().all(|c| c.is_digit(radix));
        let code = u32::from_str_radix(code, radix).ok().filter(|_| is_number);
        let code = code.ok_or_else(truncated)?;
        let lone = || Fault::new(format!("the string escape {code:#x} is no character"));
        out.push(char::from_u32(code).ok_or_else(lone)?);
        rest = &rest[digits..];
    }
    out += rest;
    Ok(out)
}

fn truncated() -> Fault {
    Fault::new("truncated escape in a string")
}

fn plain_escape(c: char) -> Option<&'static str> {
    Some(match c {
        '\n' => "",
        '\\' => "\\",
        '\'' => "'",
        '"' => "\"",
        'a' => "\x07",
        'b' => "\x08",
        'f' => "\x0c",
        'n' => "\n",
        'r' => "\r",
        't' => "\t",
        'v' => "\x0b",
        _ => return None,
    })
}
