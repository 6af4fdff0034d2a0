//! Schemes: how one tensor's elements are stored, and which blobs that takes.

use serde::{Deserialize, Serialize};

use crate::bits::stream_bytes;
use crate::error::Defect;
use crate::int4::row_bytes;
use crate::scale::{MAX_MANTISSA_BITS, MiniFloat, ScaleFormat};

/// Names of every scheme this version reads.
pub const KNOWN_SCHEMES: &str = "raw, int4-e5mx, int4-f16, int4-f32";
/// Smallest and largest group, in elements.
pub const GROUP_RANGE: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// Element type of a `raw` tensor, and of a tensor's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// Name in the index.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a blob of a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Elements of a `raw` tensor, row-major, little-endian.
    Data,
    /// Nibbles, row-major, `[out, ceil(in / 2)]` bytes.
    Nibbles,
    /// The scale stream, row-major `[out, ceil(in / group)]` codes.
    Scales,
}

impl Role {
    /// Name in the index.
    pub fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Nibbles => "nibbles",
            Role::Scales => "scales",
        }
    }
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Elements as they are.
    Raw(Dtype),
    /// Signed 4-bit integers with one scale a group of consecutive elements of a row.
    Int4 {
        /// Elements a group; the last group of a row may be shorter.
        group: usize,
        /// Format of the scales.
        scales: ScaleFormat,
    },
}

impl Scheme {
    /// Name in the index.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Raw(_) => "raw",
            Scheme::Int4 { scales, .. } => match scales {
                ScaleFormat::Mini(_) => "int4-e5mx",
                ScaleFormat::F16 => "int4-f16",
                ScaleFormat::F32 => "int4-f32",
            },
        }
    }

    /// Groups of an int4 tensor of `shape` `[out, in]`, row-major; 0 for `raw`.
    pub fn groups(self, shape: &[usize]) -> usize {
        match (self, shape) {
            (Scheme::Int4 { group, .. }, &[rows, columns]) => rows * columns.div_ceil(group),
            _ => 0,
        }
    }

    /// The blobs of a tensor of `shape`, in file order, with their lengths in bytes.
    ///
    /// # Errors
    /// The first reason why `tensor` cannot have this scheme and shape.
    pub fn blob_lengths(self, tensor: &str, shape: &[usize]) -> Result<Vec<(Role, u64)>, Defect> {
        let overflow = || Defect::ElementOverflow {
            tensor: tensor.to_owned(),
        };
        let elems = shape
            .iter()
            // A zero counts as 1, so that whether it overflows does not depend on the order.
            .try_fold(1u64, |n, &d| n.checked_mul(d.max(1) as u64))
            .filter(|&n| n <= i64::MAX as u64)
            .ok_or_else(overflow)?;
        let elems = if shape.contains(&0) { 0 } else { elems };
        match (self, shape) {
            (Scheme::Raw(dtype), _) => {
                let bytes = elems
                    .checked_mul(dtype.bytes() as u64)
                    .ok_or_else(overflow)?;
                Ok(vec![(Role::Data, bytes)])
            }
            (Scheme::Int4 { group, scales }, &[rows, columns]) => {
                if !GROUP_RANGE.contains(&group) {
                    return Err(parameter(
                        tensor,
                        "group",
                        i64::try_from(group).unwrap_or(i64::MAX),
                        format!("{} to {}", GROUP_RANGE.start(), GROUP_RANGE.end()),
                    ));
                }
                // An empty matrix would let a tiny file name 2^60 rows, which a reader then loops over.
                if rows == 0 || columns == 0 {
                    return Err(parameter(
                        tensor,
                        "shape",
                        0,
                        "dimensions of at least 1".to_owned(),
                    ));
                }
                let (rows, groups) = (rows as u64, columns.div_ceil(group) as u64);
                let nibbles = rows
                    .checked_mul(row_bytes(columns) as u64)
                    .ok_or_else(overflow)?;
                let stream = rows
                    .checked_mul(groups)
                    .and_then(|codes| stream_bytes(codes, scales.width_bits()))
                    .ok_or_else(overflow)?;
                Ok(vec![(Role::Nibbles, nibbles), (Role::Scales, stream)])
            }
            (Scheme::Int4 { .. }, _) => Err(Defect::NotMatrix {
                tensor: tensor.to_owned(),
                scheme: self.name(),
                dims: shape.len(),
            }),
        }
    }

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
        ]
        .into_iter()
        .find_map(|(name, ours, theirs)| (theirs && !ours).then_some(name))
    }
}

fn parameter(tensor: &str, parameter: &'static str, actual: i64, allowed: String) -> Defect {
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
