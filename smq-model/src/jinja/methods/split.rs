//! Python's ways to take a string apart.

use super::super::error::{Fault, Result};
use super::super::lexer::is_space;

/// Python's `str.split`, or `rsplit` from the right; `most` cuts at most, all if negative.
pub(super) fn split(
    text: &str,
    separator: Option<&str>,
    most: i128,
    right: bool,
) -> Result<Vec<String>> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(match separator {
        Some("") => return Err(Fault::new("empty separator")),
        Some(separator) if right => {
            let limit = most.saturating_add(1);
            let mut parts: Vec<String> =
                text.rsplitn(limit, separator).map(str::to_owned).collect();
            parts.reverse();
            parts
        }
        Some(separator) => {
            let limit = most.saturating_add(1);
            text.splitn(limit, separator).map(str::to_owned).collect()
        }
        None if right => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let cut = rest.rfind(is_space).filter(|_| parts.len() < most);
                let Some(cut) = cut else {
                    parts.push(rest.to_owned());
                    break;
                };
                let width = rest[cut..].chars().next().map_or(1, char::len_utf8);
                parts.push(rest[cut + width..].to_owned());
                rest = rest[..cut].trim_end_matches(is_space);
            }
            parts.reverse();
            parts
        }
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let cut = rest.find(is_space).filter(|_| parts.len() < most);
                let Some(cut) = cut else {
                    parts.push(rest.to_owned());
                    break;
                };
                parts.push(rest[..cut].to_owned());
                rest = rest[cut..].trim_start_matches(is_space);
            }
            parts
        }
    })
}

/// The lines of a text, as Python's `str.splitlines` divides it.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_end).unwrap_or(rest.len());
        let after = &rest[end..];
        let width = match after.starts_with("\r\n") {
            true => 2,
            false => after.chars().next().map_or(0, char::len_utf8),
        };
        let kept = if keep_ends { end + width } else { end };
        lines.push(rest[..kept].to_owned());
        rest = &rest[end + width..];
    }
    lines
}

/// Python's `str.partition`, or `rpartition`.
pub(super) fn partition(text: &str, separator: &str, right: bool) -> Result<[String; 3]> {
    if separator.is_empty() {
        return Err(Fault::new("empty separator"));
    }
    let found = match right {
        true => text.rsplit_once(separator),
        false => text.split_once(separator),
    };
    Ok(match (found, right) {
        (Some((before, after)), _) => [before.into(), separator.into(), after.into()],
        (None, true) => [String::new(), String::new(), text.into()],
        (None, false) => [text.into(), String::new(), String::new()],
    })
}
