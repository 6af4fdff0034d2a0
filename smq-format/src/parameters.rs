//! The `parameters` object of a tensor in the index: integers and strings to and from a [`Scheme`].

use serde::{Deserialize, Serialize};

use crate::error::Defect;
use crate::lut4::Levels;
use crate::scale::{EXPONENT_BITS, MAX_MANTISSA_BITS, MiniFloat, ScaleFormat};
use crate::scheme::{Dtype, GROUP_RANGE, MAX_OFFSET_BITS, Scheme, SchemeKind};

impl Scheme {
    pub(crate) fn to_wire(self) -> Parameters {
        match self {
            Scheme::Raw(dtype) => Parameters {
                dtype: Some(dtype),
                ..Parameters::default()
            },
            Scheme::Int4 { group, scales } => Parameters::grouped(group, scales),
            Scheme::Lut4 {
                group,
                scales,
                levels,
            } => Parameters {
                levels: Some(levels.to_string()),
                ..Parameters::grouped(group, scales)
            },
            Scheme::Nf4 { offset_bits } => Parameters {
                offset_bits: Some(i64::from(offset_bits)),
                ..Parameters::default()
            },
            Scheme::Fp8 => Parameters::default(),
        }
    }

    pub(crate) fn from_wire(tensor: &str, name: &str, wire: &Parameters) -> Result<Self, Defect> {
        let unknown = |_| Defect::UnknownScheme {
            tensor: tensor.to_owned(),
            scheme: name.to_owned(),
        };
        let kind: SchemeKind = name.parse().map_err(unknown)?;
        let group = || group(tensor, kind.name(), wire);
        let scheme = match kind {
            SchemeKind::Raw => Scheme::Raw(required(tensor, kind.name(), "dtype", wire.dtype)?),
            SchemeKind::Int4Mini => Scheme::Int4 {
                group: group()?,
                scales: ScaleFormat::Mini(mini_float(tensor, kind.name(), wire)?),
            },
            SchemeKind::Int4F16 => Scheme::Int4 {
                group: group()?,
                scales: ScaleFormat::F16,
            },
            SchemeKind::Int4F32 => Scheme::Int4 {
                group: group()?,
                scales: ScaleFormat::F32,
            },
            SchemeKind::Lut4Mini => Scheme::Lut4 {
                group: group()?,
                levels: levels(tensor, kind.name(), wire)?,
                scales: ScaleFormat::Mini(mini_float(tensor, kind.name(), wire)?),
            },
            SchemeKind::Lut4F16 => Scheme::Lut4 {
                group: group()?,
                levels: levels(tensor, kind.name(), wire)?,
                scales: ScaleFormat::F16,
            },
            SchemeKind::Lut4F32 => Scheme::Lut4 {
                group: group()?,
                levels: levels(tensor, kind.name(), wire)?,
                scales: ScaleFormat::F32,
            },
            SchemeKind::Nf4 => Scheme::Nf4 {
                offset_bits: offset_bits(tensor, kind.name(), wire)?,
            },
            SchemeKind::Fp8 => Scheme::Fp8,
        };
        // A parameter the scheme does not have is as wrong as one it lacks.
        match scheme.to_wire().first_extra(wire) {
            Some(extra) => Err(Defect::ParameterSet {
                tensor: tensor.to_owned(),
                scheme: scheme.name(),
                problem: "unexpected parameter",
                parameter: extra,
            }),
            None => Ok(scheme),
        }
    }
}

/// The `parameters` object of a tensor in the index.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    bias: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<Dtype>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exponent_bits: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    levels: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mantissa_bits: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_bits: Option<i64>,
}

impl Parameters {
    /// A group and what its scales are stored as.
    fn grouped(group: usize, scales: ScaleFormat) -> Self {
        let mut wire = Parameters {
            group: Some(group as i64),
            ..Parameters::default()
        };
        if let ScaleFormat::Mini(m) = scales {
            wire.bias = Some(i64::from(m.bias()));
            wire.exponent_bits = Some(i64::from(m.exponent_bits()));
            wire.mantissa_bits = Some(i64::from(m.mantissa_bits()));
        }
        wire
    }

    /// Name of the first parameter that `other` has and `self` lacks.
    fn first_extra(&self, other: &Parameters) -> Option<&'static str> {
        [
            ("bias", self.bias.is_some(), other.bias.is_some()),
            ("dtype", self.dtype.is_some(), other.dtype.is_some()),
            (
                "exponent_bits",
                self.exponent_bits.is_some(),
                other.exponent_bits.is_some(),
            ),
            ("group", self.group.is_some(), other.group.is_some()),
            ("levels", self.levels.is_some(), other.levels.is_some()),
            (
                "mantissa_bits",
                self.mantissa_bits.is_some(),
                other.mantissa_bits.is_some(),
            ),
            (
                "offset_bits",
                self.offset_bits.is_some(),
                other.offset_bits.is_some(),
            ),
        ]
        .into_iter()
        .find_map(|(name, ours, theirs)| (theirs && !ours).then_some(name))
    }
}

pub(crate) fn parameter(
    tensor: &str,
    parameter: &'static str,
    actual: i64,
    allowed: String,
) -> Defect {
    Defect::Parameter {
        tensor: tensor.to_owned(),
        parameter,
        actual,
        allowed,
    }
}

fn required<T>(
    tensor: &str,
    scheme: &'static str,
    parameter: &'static str,
    value: Option<T>,
) -> Result<T, Defect> {
    value.ok_or_else(|| Defect::ParameterSet {
        tensor: tensor.to_owned(),
        scheme,
        problem: "missing parameter",
        parameter,
    })
}

fn in_range(
    tensor: &str,
    name: &'static str,
    value: i64,
    range: std::ops::RangeInclusive<i64>,
) -> Result<i64, Defect> {
    if range.contains(&value) {
        return Ok(value);
    }
    let allowed = format!("{} to {}", range.start(), range.end());
    Err(parameter(tensor, name, value, allowed))
}

fn group(tensor: &str, scheme: &'static str, wire: &Parameters) -> Result<usize, Defect> {
    let group = required(tensor, scheme, "group", wire.group)?;
    let range = *GROUP_RANGE.start() as i64..=*GROUP_RANGE.end() as i64;
    Ok(in_range(tensor, "group", group, range)? as usize)
}

fn mini_float(tensor: &str, scheme: &'static str, wire: &Parameters) -> Result<MiniFloat, Defect> {
    let exponent_bits = required(tensor, scheme, "exponent_bits", wire.exponent_bits)?;
    let widths = i64::from(*EXPONENT_BITS.start())..=i64::from(*EXPONENT_BITS.end());
    let exponent_bits = in_range(tensor, "exponent_bits", exponent_bits, widths)? as u32;
    let mantissa_bits = required(tensor, scheme, "mantissa_bits", wire.mantissa_bits)?;
    let limit = i64::from(MAX_MANTISSA_BITS);
    let mantissa_bits = in_range(tensor, "mantissa_bits", mantissa_bits, 0..=limit)? as u32;
    let bias = required(tensor, scheme, "bias", wire.bias)?;
    let range = MiniFloat::bias_range(exponent_bits);
    let allowed = i64::from(*range.start())..=i64::from(*range.end());
    let bias = in_range(tensor, "bias", bias, allowed)? as i16;
    MiniFloat::new(exponent_bits, mantissa_bits, bias)
        .ok_or_else(|| parameter(tensor, "bias", i64::from(bias), "another".to_owned()))
}

fn levels(tensor: &str, scheme: &'static str, wire: &Parameters) -> Result<Levels, Defect> {
    let digits = required(tensor, scheme, "levels", wire.levels.as_deref())?;
    Levels::from_hex(digits).map_err(|problem| Defect::Levels {
        tensor: tensor.to_owned(),
        problem,
    })
}

fn offset_bits(tensor: &str, scheme: &'static str, wire: &Parameters) -> Result<u32, Defect> {
    let bits = required(tensor, scheme, "offset_bits", wire.offset_bits)?;
    Ok(in_range(tensor, "offset_bits", bits, 0..=i64::from(MAX_OFFSET_BITS))? as u32)
}
