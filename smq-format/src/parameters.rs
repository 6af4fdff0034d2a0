//! The `parameters` object of a tensor in the index: integers and a string to and from a [`Scheme`].

use serde::{Deserialize, Serialize};

use crate::error::Defect;
use crate::scale::{MAX_MANTISSA_BITS, MiniFloat, ScaleFormat};
use crate::scheme::{Dtype, GROUP_RANGE, KNOWN_SCHEMES, MAX_OFFSET_BITS, Scheme};

impl Scheme {
    pub(crate) fn to_wire(self) -> Parameters {
        match self {
            Scheme::Raw(dtype) => Parameters {
                dtype: Some(dtype),
                ..Parameters::default()
            },
            Scheme::Int4 { group, scales } => {
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
            Scheme::Nf4 { offset_bits } => Parameters {
                offset_bits: Some(i64::from(offset_bits)),
                ..Parameters::default()
            },
            Scheme::Fp8 => Parameters::default(),
        }
    }

    pub(crate) fn from_wire(tensor: &str, name: &str, wire: &Parameters) -> Result<Self, Defect> {
        let scheme = match name {
            "raw" => Scheme::Raw(required(tensor, "raw", "dtype", wire.dtype)?),
            "int4-e5mx" => Scheme::Int4 {
                group: group(tensor, "int4-e5mx", wire)?,
                scales: ScaleFormat::Mini(mini_float(tensor, wire)?),
            },
            "int4-f16" => Scheme::Int4 {
                group: group(tensor, "int4-f16", wire)?,
                scales: ScaleFormat::F16,
            },
            "int4-f32" => Scheme::Int4 {
                group: group(tensor, "int4-f32", wire)?,
                scales: ScaleFormat::F32,
            },
            "nf4-dq" => Scheme::Nf4 {
                offset_bits: offset_bits(tensor, wire)?,
            },
            "fp8-e4m3" => Scheme::Fp8,
            _ => {
                return Err(Defect::UnknownScheme {
                    tensor: tensor.to_owned(),
                    scheme: name.to_owned(),
                    known: KNOWN_SCHEMES,
                });
            }
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
    mantissa_bits: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_bits: Option<i64>,
}

impl Parameters {
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

fn mini_float(tensor: &str, wire: &Parameters) -> Result<MiniFloat, Defect> {
    let scheme = "int4-e5mx";
    let exponent_bits = required(tensor, scheme, "exponent_bits", wire.exponent_bits)?;
    let exponent_bits = in_range(tensor, "exponent_bits", exponent_bits, 2..=8)? as u32;
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

fn offset_bits(tensor: &str, wire: &Parameters) -> Result<u32, Defect> {
    let bits = required(tensor, "nf4-dq", "offset_bits", wire.offset_bits)?;
    Ok(in_range(tensor, "offset_bits", bits, 0..=i64::from(MAX_OFFSET_BITS))? as u32)
}
