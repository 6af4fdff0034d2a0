//! Schemes: how one tensor's elements are stored, and which blobs that takes.

use serde::{Deserialize, Serialize};

use crate::bits::stream_bytes;
use crate::error::Defect;
use crate::int4::row_bytes;
use crate::nf4;
use crate::parameters::parameter;
use crate::scale::ScaleFormat;

/// Names of every scheme this version reads.
pub const KNOWN_SCHEMES: &str = "raw, int4-e5mx, int4-f16, int4-f32, nf4-dq, fp8-e4m3";
/// Smallest and largest group, in elements.
pub const GROUP_RANGE: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// Bits of the largest finite f32: an NF4 offset is finite and not negative.
pub const MAX_OFFSET_BITS: u32 = 0x7f7f_ffff;

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
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Elements of a `raw` tensor, row-major, little-endian; codes of an `fp8-e4m3` one, `[out, in]` bytes.
    Data,
    /// int4: row-major, `[out, ceil(in / 2)]` bytes; `nf4-dq`: `ceil(out * in / 2)` bytes.
    Nibbles,
    /// int4: the scale stream, row-major `[out, ceil(in / group)]` codes; `fp8-e4m3`: `[out]` f32.
    Scales,
    /// `nf4-dq`: one code a block of 64 elements, `[ceil(out * in / 64)]` bytes.
    Absmax,
    /// `nf4-dq`: one f32 for 256 absmax codes, `[ceil(blocks / 256)]`.
    NestedAbsmax,
}

impl Role {
    /// Name in the index.
    pub fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Nibbles => "nibbles",
            Role::Scales => "scales",
            Role::Absmax => "absmax",
            Role::NestedAbsmax => "nested_absmax",
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
    /// bitsandbytes' NF4, blocks of 64 elements of the flattened tensor, double-quantized.
    Nf4 {
        /// Bits of the f32 that is added to every dequantized absmax; at most [`MAX_OFFSET_BITS`].
        offset_bits: u32,
    },
    /// FP8 E4M3FN with one f32 scale a row.
    Fp8,
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
            Scheme::Nf4 { .. } => "nf4-dq",
            Scheme::Fp8 => "fp8-e4m3",
        }
    }

    /// Whether the weights were quantized, so that there is something to know about their errors.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Scheme::Raw(_))
    }

    /// Elements of a row of `columns` that error figures are taken over (`spec/method.md`, "Statistics"): an int4
    /// group, 64 for `nf4-dq`, a whole row for `fp8-e4m3`; `None` for `raw`.
    pub fn group(self, columns: usize) -> Option<usize> {
        match self {
            Scheme::Raw(_) => None,
            Scheme::Int4 { group, .. } => Some(group),
            Scheme::Nf4 { .. } => Some(nf4::BLOCK_ELEMS),
            Scheme::Fp8 => Some(columns.max(1)),
        }
    }

    /// Groups, as [`Scheme::group`] has them, of a tensor of `shape` `[out, in]`; 0 for `raw`.
    pub fn groups(self, shape: &[usize]) -> usize {
        match *shape {
            [rows, columns] => self
                .group(columns)
                .map_or(0, |group| rows * columns.div_ceil(group)),
            _ => 0,
        }
    }

    /// The blobs of a tensor of `shape`, in file order, with their lengths in bytes.
    ///
    /// # Errors
    /// The first reason why `tensor` cannot have this scheme and shape.
    pub fn blob_lengths(self, tensor: &str, shape: &[usize]) -> Result<Vec<(Role, u64)>, Defect> {
        let overflow = || overflow(tensor);
        let elems = shape
            .iter()
            // A zero counts as 1, so that whether it overflows does not depend on the order.
            .try_fold(1u64, |n, &d| n.checked_mul(d.max(1) as u64))
            .filter(|&n| n <= i64::MAX as u64)
            .ok_or_else(overflow)?;
        let elems = if shape.contains(&0) { 0 } else { elems };
        if let Scheme::Raw(dtype) = self {
            let bytes = elems.checked_mul(dtype.bytes() as u64);
            return Ok(vec![(Role::Data, bytes.ok_or_else(overflow)?)]);
        }
        self.check_parameters(tensor)?;
        let &[rows, columns] = shape else {
            return Err(Defect::NotMatrix {
                tensor: tensor.to_owned(),
                scheme: self.name(),
                dims: shape.len(),
            });
        };
        // An empty matrix would let a tiny file name 2^60 rows, which a reader then loops over.
        if elems == 0 {
            let allowed = "dimensions of at least 1".to_owned();
            return Err(parameter(tensor, "shape", 0, allowed));
        }
        let rows = rows as u64;
        Ok(match self {
            Scheme::Raw(_) => Vec::new(), // returned above
            Scheme::Int4 { group, scales } => {
                let nibbles = rows
                    .checked_mul(row_bytes(columns) as u64)
                    .ok_or_else(overflow)?;
                let stream = rows
                    .checked_mul(columns.div_ceil(group) as u64)
                    .and_then(|codes| stream_bytes(codes, scales.width_bits()))
                    .ok_or_else(overflow)?;
                vec![(Role::Nibbles, nibbles), (Role::Scales, stream)]
            }
            Scheme::Nf4 { .. } => {
                let blocks = elems.div_ceil(nf4::BLOCK_ELEMS as u64);
                let nested_blocks = blocks.div_ceil(nf4::NESTED_BLOCK_CODES as u64);
                vec![
                    (Role::Nibbles, elems.div_ceil(2)),
                    (Role::Absmax, blocks),
                    (Role::NestedAbsmax, nested_blocks * 4),
                ]
            }
            Scheme::Fp8 => vec![
                (Role::Data, elems),
                (Role::Scales, rows.checked_mul(4).ok_or_else(overflow)?),
            ],
        })
    }

    /// Ranges of what the type itself does not limit.
    fn check_parameters(self, tensor: &str) -> Result<(), Defect> {
        match self {
            Scheme::Int4 { group, .. } if !GROUP_RANGE.contains(&group) => Err(parameter(
                tensor,
                "group",
                i64::try_from(group).unwrap_or(i64::MAX),
                format!("{} to {}", GROUP_RANGE.start(), GROUP_RANGE.end()),
            )),
            Scheme::Nf4 { offset_bits } if offset_bits > MAX_OFFSET_BITS => Err(parameter(
                tensor,
                "offset_bits",
                i64::from(offset_bits),
                format!("0 to {MAX_OFFSET_BITS}"),
            )),
            _ => Ok(()),
        }
    }
}

fn overflow(tensor: &str) -> Defect {
    Defect::ElementOverflow {
        tensor: tensor.to_owned(),
    }
}
