//! Figures of a file as people read them.

use indicatif::DecimalBytes;

pub(crate) use crate::number::count;

/// `1,234,567 bytes (1.23 MB)`; the second form only where it helps.
pub(crate) fn bytes(n: u64) -> String {
    if n < 1000 {
        return format!("{n} bytes");
    }
    format!("{} bytes ({})", count(n), DecimalBytes(n))
}

/// Four significant digits with an exponent: `8.712e-3`.
pub(crate) fn scientific(v: f64) -> String {
    format!("{v:.3e}")
}

/// A percentage with its sign, or `-` where there is none.
pub(crate) fn signed_percent(v: Option<f64>) -> String {
    match v {
        // Also catches -0.001, which would print as "-0.00".
        Some(p) if p.abs() < 0.005 => "0.00".to_owned(),
        Some(p) => format!("{p:+.2}"),
        None => "-".to_owned(),
    }
}

/// Decibels, `inf` for an exact tensor.
pub(crate) fn decibels(v: Option<f64>) -> String {
    v.map_or_else(|| "inf".to_owned(), |db| format!("{db:.2}"))
}

/// Bits for each weight, or `-` for no weights.
pub(crate) fn bits(v: Option<f64>) -> String {
    v.map_or_else(|| "-".to_owned(), |b| format!("{b:.3}"))
}

/// `part` of `whole` in percent; `None` where `whole` is zero.
pub(crate) fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * part as f64 / whole as f64)
}

/// Bits for each of `elems` in `bytes`; `None` where there are none.
pub(crate) fn bits_per_elem(bytes: u64, elems: u64) -> Option<f64> {
    (elems > 0).then(|| 8.0 * bytes as f64 / elems as f64)
}

/// A shape as a list: `[3072, 8192]`.
pub(crate) fn shape(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// `3072x8192`, where room is scarce.
pub(crate) fn times(dims: &[usize]) -> String {
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    dims.join("x")
}

/// Text from a file, with control characters escaped so that they cannot drive a terminal.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A bar of `#`, `width` long where `value` is `largest`; never empty for a positive value.
pub(crate) fn bar(value: f64, largest: f64, width: usize) -> String {
    if !(value > 0.0 && largest > 0.0) {
        return String::new();
    }
    let length = (value / largest * width as f64).round() as usize;
    "#".repeat(length.clamp(1, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_people_read() {
        assert_eq!(bytes(12), "12 bytes");
        assert_eq!(bytes(1 << 20), "1,048,576 bytes (1.05 MB)");
        assert_eq!(scientific(0.008_712_4), "8.712e-3");
        assert_eq!(signed_percent(Some(-0.001)), "0.00");
        assert_eq!(signed_percent(Some(1.234)), "+1.23");
        assert_eq!(decibels(None), "inf");
        assert_eq!(shape(&[3, 4]), "[3, 4]");
        assert_eq!(times(&[3, 4]), "3x4");
        assert_eq!(printable("a\u{1b}[2Jé"), "a\\u{1b}[2Jé");
        assert_eq!(bar(0.001, 1.0, 10), "#");
        assert_eq!(bar(f64::NAN, 1.0, 10), "");
        assert_eq!(bits_per_elem(1, 0), None);
    }
}
