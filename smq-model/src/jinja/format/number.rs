//! Numbers with a given kind and precision, as C and Python format them.

use super::super::error::{Fault, Result};
use super::super::limits;

/// How a number is written.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    /// `+`, ` ` or `-`: what stands before a number that is not negative.
    pub(super) sign: char,
    /// `#`: prefixes of bases, points and zeros that are not needed.
    pub(super) alternate: bool,
    pub(super) precision: Option<usize>,
    pub(super) kind: char,
}

impl Spec {
    fn signed(self, negative: bool, digits: String) -> String {
        match (negative, self.sign) {
            (true, _) => format!("-{digits}"),
            (false, '-') => digits,
            (false, sign) => format!("{sign}{digits}"),
        }
    }

    /// An integer as `d`, `b`, `o`, `x` or `X`.
    pub(super) fn integer(self, value: i128) -> Result<String> {
        let size = value.unsigned_abs();
        let (prefix, digits) = match self.kind {
            'b' => ("0b", format!("{size:b}")),
            'o' => ("0o", format!("{size:o}")),
            'x' => ("0x", format!("{size:x}")),
            'X' => ("0X", format!("{size:X}")),
            _ => ("", size.to_string()),
        };
        let least = self.precision.unwrap_or(0);
        limits::text(least)?;
        let zeros = "0".repeat(least.saturating_sub(digits.len()));
        let prefix = if self.alternate { prefix } else { "" };
        Ok(self.signed(value < 0, format!("{prefix}{zeros}{digits}")))
    }

    /// A float as `e`, `f`, `g` or `%`, or in capitals.
    pub(super) fn float(self, value: f64) -> Result<String> {
        let precision = self.precision.unwrap_or(6);
        if precision > 1000 {
            return Err(Fault::new("precision too big"));
        }
        let negative = value.is_sign_negative() && !value.is_nan();
        let size = value.abs();
        let digits = if value.is_nan() {
            "nan".to_owned()
        } else if value.is_infinite() {
            "inf".to_owned()
        } else {
            match self.kind.to_ascii_lowercase() {
                'e' => exponent(size, precision),
                'g' => self.general(size, precision.max(1)),
                _ => format!("{size:.precision$}"),
            }
        };
        let point = match self.alternate && !digits.contains('.') && value.is_finite() {
            true => ".",
            false => "",
        };
        let digits = match digits.split_once('e') {
            Some((mantissa, exponent)) => format!("{mantissa}{point}e{exponent}"),
            None => format!("{digits}{point}"),
        };
        let text = self.signed(negative, digits);
        Ok(match self.kind.is_ascii_uppercase() {
            true => text.to_uppercase(),
            false => text,
        })
    }

    /// `g`: the shorter of fixed and scientific, without trailing zeros.
    fn general(self, size: f64, precision: usize) -> String {
        let scientific = exponent(size, precision - 1);
        let (_, power) = scientific.split_once('e').unwrap_or(("", "0"));
        let power: i64 = power.parse().unwrap_or_default();
        let trimmed = |text: &str| match text.contains('.') && !self.alternate {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text.to_owned(),
        };
        if power < -4 || power >= precision as i64 {
            let (mantissa, power) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
            return format!("{}e{power}", trimmed(mantissa));
        }
        let decimals = usize::try_from(precision as i64 - 1 - power).unwrap_or(0);
        trimmed(&format!("{size:.decimals$}"))
    }
}

fn exponent(size: f64, precision: usize) -> String {
    let text = format!("{size:.precision$e}");
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = match power.strip_prefix('-') {
        Some(power) => ('-', power),
        None => ('+', power),
    };
    format!("{mantissa}e{sign}{power:0>2}")
}
