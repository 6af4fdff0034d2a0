//! Numbers as people read them, in the text and the tables of all three programs.
//!
//! A comma divides the thousands of counts, bytes and rates from 1,000 on. Shapes, the sizes of
//! groups and windows, and whatever is an option's value stand as the command line takes them, and
//! what programs read, as JSON, CSV and errors, has no commas at all.

use std::fmt::Display;

/// A whole number: `1,234,567`.
#[must_use]
pub fn count(n: impl Display) -> String {
    grouped(&n.to_string())
}

/// So many of something: `1 tensor`, `1,234 tensors`.
#[must_use]
pub fn plural(n: usize, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A number with so many digits behind the point: `1,234.6`.
#[must_use]
pub fn fixed(value: f64, digits: usize) -> String {
    grouped(&format!("{value:.digits$}"))
}

/// As [`fixed`], with `absent` in place of what there is none of.
#[must_use]
pub fn fixed_or(value: Option<f64>, digits: usize, absent: &str) -> String {
    value.map_or_else(|| absent.to_owned(), |v| fixed(v, digits))
}

/// Puts commas into the digits before the point; what is no number, as `inf`, has none.
fn grouped(number: &str) -> String {
    let start = number.len() - number.trim_start_matches(['-', '+']).len();
    let whole = number[start..]
        .bytes()
        .take_while(u8::is_ascii_digit)
        .count();
    let mut out = String::with_capacity(number.len() + whole / 3);
    for (i, c) in number.char_indices() {
        let place = i.wrapping_sub(start);
        if place > 0 && place < whole && (whole - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_divide_thousands() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1567, "1,567"),
            (12_345, "12,345"),
            (123_456, "123,456"),
            (-1_234_567, "-1,234,567"),
            (i64::MAX, "9,223,372,036,854,775,807"),
        ] {
            assert_eq!(count(n), text);
        }
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn digits_behind_the_point_have_none() {
        assert_eq!(fixed(1567.26, 1), "1,567.3");
        assert_eq!(fixed(-1_234_567.0, 0), "-1,234,567");
        assert_eq!(fixed(0.123_456_7, 7), "0.1234567");
        assert_eq!(fixed(999.96, 1), "1,000.0");
        assert_eq!(fixed(f64::INFINITY, 1), "inf");
        assert_eq!(fixed(f64::NAN, 3), "NaN");
        assert_eq!(fixed_or(None, 1, "-"), "-");
        assert_eq!(fixed_or(Some(4518.0), 0, "-"), "4,518");
    }
}
