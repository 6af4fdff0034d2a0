//! Text that comes from a file, made fit for a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with every control character but line breaks and tabs, and every character that turns
/// the direction of what follows, written as an escape such as `\u{1b}`. Whatever a file says of
/// itself, it cannot move the cursor, set colours, rename the window or reorder a line.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_hidden(c) {
            // Writing to a string does not fail.
            true => drop(write!(out, "{}", c.escape_unicode())),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The same of JSON, whose strings alone can hold such characters, and have escapes of their own.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match is_hidden(c) {
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

/// A cell of a table that a spreadsheet may open: text in which it would see a formula has an
/// apostrophe before it, which spreadsheets take for the sign of text. Numbers stay as they are.
#[must_use]
pub fn plain_cell(text: &str) -> Cow<'_, str> {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    match is_formula && text.parse::<f64>().is_err() {
        true => Cow::Owned(format!("'{text}")),
        false => Cow::Borrowed(text),
    }
}

fn is_hidden(c: char) -> bool {
    let is_direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\n' && c != '\t') || is_direction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spreadsheet_would_compute_is_text() {
        for formula in ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1"] {
            assert_eq!(plain_cell(formula), format!("'{formula}"));
        }
        for plain in ["-1.5e-3", "+2", "a=b", "", "model.layers.0", "-inf"] {
            assert_eq!(plain_cell(plain), plain);
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(
            printable("a\u{1b}[31mred\r\u{9b}\u{7f}\u{202e}b"),
            "a\\u{1b}[31mred\\u{d}\\u{9b}\\u{7f}\\u{202e}b"
        );
        assert_eq!(
            printable_json("\"\u{9b}\u{202e}\u{e9}\"\n"),
            "\"\\u009b\\u202e\u{e9}\"\n"
        );
        let plain = "line\n\tGrüße, 漢字";
        assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
    }
}
