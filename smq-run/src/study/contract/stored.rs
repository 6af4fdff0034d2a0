//! What a config's weights are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smq_format::{Dtype, Family, SchemeKind, UnknownName};

/// What a config's weights are: `bf16`, or quantized to a [`Family`].
///
/// A contract may also name the scheme of a family that has one: `nf4-dq` is `nf4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Stored {
    /// The checkpoint as it is.
    Bf16,
    /// Quantized to this family, wherever the target says so.
    Quantized(Family),
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bf16 => Dtype::Bf16.fmt(f),
            Self::Quantized(family) => family.fmt(f),
        }
    }
}

impl FromStr for Stored {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        if word == Dtype::Bf16.name() {
            return Ok(Self::Bf16);
        }
        let of_kind = |kind: SchemeKind| match kind {
            SchemeKind::Nf4 | SchemeKind::Fp8 => kind.family(),
            // Those of int4 and lut4 differ in their scales, which a config says apart.
            SchemeKind::Raw
            | SchemeKind::Int4Mini
            | SchemeKind::Int4F16
            | SchemeKind::Int4F32
            | SchemeKind::Lut4Mini
            | SchemeKind::Lut4F16
            | SchemeKind::Lut4F32 => None,
        };
        let family = word.parse().ok();
        let family = family.or_else(|| word.parse().ok().and_then(of_kind));
        family.map(Self::Quantized).ok_or_else(|| UnknownName {
            expected: format!(
                "{}, {}",
                Dtype::Bf16,
                Family::ALL.map(Family::name).join(", ")
            ),
        })
    }
}

impl TryFrom<String> for Stored {
    type Error = String;

    fn try_from(word: String) -> Result<Self, Self::Error> {
        word.parse()
            .map_err(|unknown| format!("scheme is {word:?}, {unknown}"))
    }
}

impl From<Stored> for String {
    fn from(stored: Stored) -> Self {
        stored.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_printed_by_its_name_and_read_by_its_one_scheme_too() {
        for (word, stored) in [
            ("bf16", Stored::Bf16),
            ("int4", Stored::Quantized(Family::Int4)),
            ("lut4", Stored::Quantized(Family::Lut4)),
            ("nf4", Stored::Quantized(Family::Nf4)),
            ("fp8", Stored::Quantized(Family::Fp8)),
        ] {
            assert_eq!(word.parse(), Ok(stored));
            assert_eq!(stored.to_string(), word);
        }
        assert_eq!("nf4-dq".parse(), Ok(Stored::Quantized(Family::Nf4)));
        assert_eq!("fp8-e4m3".parse(), Ok(Stored::Quantized(Family::Fp8)));
        // An int4 scheme names its scales, which a config says apart.
        for word in ["int4-e5mx", "int4-f32", "raw", "f16", ""] {
            let error = word.parse::<Stored>().unwrap_err().to_string();
            assert_eq!(error, "expected bf16, int4, lut4, nf4, fp8", "{word}");
        }
    }
}
