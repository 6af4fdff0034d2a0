//! How int4 scales are asked for: their format before a tensor's bias is known, and the rule that
//! chooses them. A code book has the same, and a word for where its levels come from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::names::{UnknownName, names};
use crate::scale::{EXPONENT_BITS, MAX_MANTISSA_BITS, MiniFloat, ScaleFormat};

/// What scales become: a [`ScaleFormat`] before the tensor's bias is known.
///
/// Its text is `f32`, `f16`, or `eXmY` such as `e5m5`; capitals are read too.
///
/// ```
/// use smq_format::ScaleChoice;
///
/// let choice: ScaleChoice = "E5M3".parse()?;
/// assert_eq!(choice, ScaleChoice::e5(3));
/// assert_eq!(choice.to_string(), "e5m3");
/// # Ok::<(), smq_format::UnknownName>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleChoice {
    /// Exact f32 (config C3 of the study).
    F32,
    /// IEEE half precision, as GPTQ stores scales.
    F16,
    /// `sign | exponent | mantissa` of these widths; E5Mx has 5 exponent bits.
    Mini {
        /// Exponent bits, 2 to 8.
        exponent_bits: u32,
        /// Mantissa bits, 0 to 10; the leading one is not stored.
        mantissa_bits: u32,
    },
}

impl ScaleChoice {
    /// E5Mx, with x of 0 to 10.
    #[must_use]
    pub const fn e5(mantissa_bits: u32) -> Self {
        Self::Mini {
            exponent_bits: 5,
            mantissa_bits,
        }
    }

    /// x of E5Mx; `None` of any other format.
    #[must_use]
    pub const fn e5_mantissa_bits(self) -> Option<u32> {
        match self {
            Self::Mini {
                exponent_bits: 5,
                mantissa_bits,
            } => Some(mantissa_bits),
            Self::Mini { .. } | Self::F16 | Self::F32 => None,
        }
    }

    /// Bits of one stored scale.
    #[must_use]
    pub const fn width_bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 => 16,
            Self::Mini {
                exponent_bits,
                mantissa_bits,
            } => 1 + exponent_bits + mantissa_bits,
        }
    }

    /// The format with the bias that fits `largest`, the tensor's largest scale after rounding.
    /// `None` where the widths are out of range or `largest` is not finite.
    #[must_use]
    pub fn format(self, largest: f32) -> Option<ScaleFormat> {
        match self {
            Self::F32 => Some(ScaleFormat::F32),
            Self::F16 => Some(ScaleFormat::F16),
            Self::Mini {
                exponent_bits,
                mantissa_bits,
            } => {
                MiniFloat::for_largest(exponent_bits, mantissa_bits, largest).map(ScaleFormat::Mini)
            }
        }
    }
}

impl From<ScaleFormat> for ScaleChoice {
    fn from(format: ScaleFormat) -> Self {
        match format {
            ScaleFormat::F32 => Self::F32,
            ScaleFormat::F16 => Self::F16,
            ScaleFormat::Mini(m) => Self::Mini {
                exponent_bits: m.exponent_bits(),
                mantissa_bits: m.mantissa_bits(),
            },
        }
    }
}

impl fmt::Display for ScaleChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.pad("f32"),
            Self::F16 => f.pad("f16"),
            Self::Mini {
                exponent_bits,
                mantissa_bits,
            } => f.pad(&format!("e{exponent_bits}m{mantissa_bits}")),
        }
    }
}

/// Spelled as what it was made from: the bias is the tensor's.
impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ScaleChoice::from(*self).fmt(f)
    }
}

impl FromStr for ScaleChoice {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let mini = || {
            let (exponent, mantissa) = lower.strip_prefix('e')?.split_once('m')?;
            let (exponent_bits, mantissa_bits) = (exponent.parse().ok()?, mantissa.parse().ok()?);
            let in_range =
                EXPONENT_BITS.contains(&exponent_bits) && mantissa_bits <= MAX_MANTISSA_BITS;
            in_range.then_some(Self::Mini {
                exponent_bits,
                mantissa_bits,
            })
        };
        let found = match lower.as_str() {
            "f32" => Some(Self::F32),
            "f16" => Some(Self::F16),
            _ => mini(),
        };
        // A number has one spelling: neither `e05m5` nor `e+5m5` is one.
        let found = found.filter(|choice| choice.to_string() == lower);
        found.ok_or_else(|| UnknownName {
            expected: format!(
                "f32, f16, or eXmY with X {} to {} and Y 0 to {MAX_MANTISSA_BITS}",
                EXPONENT_BITS.start(),
                EXPONENT_BITS.end()
            ),
        })
    }
}

impl Serialize for ScaleChoice {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ScaleChoice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|unknown: UnknownName| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &unknown.expected.as_str())
        })
    }
}

/// The width of a scale as `--mbits` has it: mantissa bits of E5Mx, 0 to 10, or -1 for exact f32
/// scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MantissaBits(Option<u32>);

impl MantissaBits {
    /// No rounding at all: the scales stay exact, in f32.
    pub const EXACT: Self = Self(None);

    /// x of E5Mx; `None` over 10.
    #[must_use]
    pub const fn new(mantissa_bits: u32) -> Option<Self> {
        if mantissa_bits <= MAX_MANTISSA_BITS {
            Some(Self(Some(mantissa_bits)))
        } else {
            None
        }
    }
}

impl From<MantissaBits> for ScaleChoice {
    fn from(bits: MantissaBits) -> Self {
        bits.0.map_or(Self::F32, Self::e5)
    }
}

impl fmt::Display for MantissaBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bits) => bits.fmt(f),
            None => f.pad("-1"),
        }
    }
}

impl FromStr for MantissaBits {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = match text {
            "-1" => Some(Self::EXACT),
            bits => bits.parse().ok().and_then(Self::new),
        };
        found.ok_or_else(|| UnknownName {
            expected: format!("-1 to {MAX_MANTISSA_BITS}"),
        })
    }
}

/// How a group's scale is chosen (`spec/method.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleRule {
    /// The published reference: `max|w| / 7`, mantissa rounded half to even, truncated where x = 0.
    Reference,
    /// As `reference`, but x = 0 rounds too.
    Nearest,
    /// Of the nearest scale and its two neighbours, the one with the least squared error of the
    /// group.
    Search,
    /// The element of largest magnitude maps to -8, through the scale's sign bit.
    Signed,
    /// With calibration alone: of all scales near the group's largest weight, of both signs, the
    /// one with the least squared error weighted by the squares of the inputs.
    Weighted,
}

impl ScaleRule {
    /// The rules that need nothing but the weights, and no calibration text.
    pub const OF_WEIGHTS: [Self; 4] = [Self::Reference, Self::Nearest, Self::Search, Self::Signed];
}

names!(ScaleRule {
    Reference => "reference",
    Nearest => "nearest",
    Search => "search",
    Signed => "signed",
    Weighted => "weighted",
});

/// Where the levels of a code book come from (`spec/method.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LevelChoice {
    /// Lloyd's rule on the tensor's own weights.
    Learned,
    /// NF4's values, rounded to bytes: the same of every tensor.
    Nf4,
}

names!(LevelChoice {
    Learned => "learned",
    Nf4 => "nf4",
});

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_format_is_read_as_it_is_written_and_in_capitals() {
        let mut all = vec![ScaleChoice::F32, ScaleChoice::F16];
        all.extend(EXPONENT_BITS.flat_map(|exponent_bits| {
            (0..=MAX_MANTISSA_BITS).map(move |mantissa_bits| ScaleChoice::Mini {
                exponent_bits,
                mantissa_bits,
            })
        }));
        for choice in all {
            let text = choice.to_string();
            assert_eq!(text, text.to_ascii_lowercase());
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(text.to_ascii_uppercase().parse(), Ok(choice));
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<ScaleChoice>(&json).unwrap(), choice);
            // With a bias it is spelled the same.
            let format = choice.format(0.03).unwrap();
            assert_eq!(format.to_string(), text);
            assert_eq!(ScaleChoice::from(format), choice);
        }
        assert_eq!(ScaleChoice::e5(5).to_string(), "e5m5");
        assert_eq!(format!("{:>6}|", ScaleChoice::e5(5)), "  e5m5|");
        assert_eq!(ScaleChoice::e5(10).e5_mantissa_bits(), Some(10));
        assert_eq!("e4m3".parse().map(ScaleChoice::e5_mantissa_bits), Ok(None));
    }

    #[test]
    fn other_text_is_no_format_and_the_message_says_what_is() {
        for text in [
            "", "e5", "m5", "e5m", "em5", "e1m2", "e9m2", "e5m11", "f8", "bf16", "e05m5", "e+5m5",
            "e5m5 ", "e5m5m5", "е5m5", "auto",
        ] {
            let error = text.parse::<ScaleChoice>().unwrap_err();
            let expected = "expected f32, f16, or eXmY with X 2 to 8 and Y 0 to 10";
            assert_eq!(error.to_string(), expected, "{text}");
        }
        let error = serde_json::from_str::<ScaleChoice>("\"E5M11\"").unwrap_err();
        let expected = "invalid value: string \"E5M11\", expected f32, f16, or eXmY";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn widths_are_those_of_e5mx_and_minus_one() {
        for (text, choice) in [
            ("-1", ScaleChoice::F32),
            ("0", ScaleChoice::e5(0)),
            ("10", ScaleChoice::e5(10)),
        ] {
            let bits: MantissaBits = text.parse().unwrap();
            assert_eq!(bits.to_string(), text);
            assert_eq!(ScaleChoice::from(bits), choice);
        }
        for text in ["11", "-2", "", "5.0", "auto", "4294967296"] {
            let error = text.parse::<MantissaBits>().unwrap_err();
            assert_eq!(error.to_string(), "expected -1 to 10", "{text}");
        }
    }

    #[test]
    fn rules_have_one_spelling() {
        for rule in ScaleRule::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
            let json = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<ScaleRule>(&json).unwrap(), rule);
        }
        let error = "best".parse::<ScaleRule>().unwrap_err().to_string();
        assert_eq!(
            error,
            "expected reference, nearest, search, signed, weighted"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_read(text in "[eEfF][0-9+]{0,2}[mM]?[0-9]{0,3}") {
            if let Ok(choice) = text.parse::<ScaleChoice>() {
                prop_assert_eq!(choice.to_string(), text.to_ascii_lowercase());
            }
        }
    }
}
