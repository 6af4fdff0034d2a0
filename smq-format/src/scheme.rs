//! Schemes: how one tensor's elements are stored, and which blobs that takes.

use crate::bits::stream_bytes;
use crate::error::Defect;
use crate::int4::row_bytes;
use crate::lut4::Levels;
use crate::names::names;
use crate::nf4;
use crate::parameters::parameter;
use crate::scale::ScaleFormat;

/// Smallest and largest group, in elements.
pub const GROUP_RANGE: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// Bits of the largest finite f32: an NF4 offset is finite and not negative.
pub const MAX_OFFSET_BITS: u32 = 0x7f7f_ffff;

/// Element type of a `raw` tensor, and of a tensor's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE half precision, with 5 exponent and 10 mantissa bits.
    F16,
    /// IEEE single precision, with 8 exponent and 23 mantissa bits.
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
}

names!(Dtype {
    Bf16 => "bf16",
    F16 => "f16",
    F32 => "f32",
});

/// What a blob of a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Elements of a `raw` tensor, row-major, little-endian; codes of an `fp8-e4m3` one, `[out,
    /// in]` bytes.
    Data,
    /// int4, lut4: row-major, `[out, ceil(in / 2)]` bytes; `nf4-dq`: `ceil(out * in / 2)` bytes.
    Nibbles,
    /// int4, lut4: the scale stream, row-major `[out, ceil(in / group)]` codes; `fp8-e4m3`: `[out]`
    /// f32.
    Scales,
    /// `nf4-dq`: one code a block of 64 elements, `[ceil(out * in / 64)]` bytes.
    Absmax,
    /// `nf4-dq`: one f32 for 256 absmax codes, `[ceil(blocks / 256)]`.
    NestedAbsmax,
}

names!(Role {
    Data => "data",
    Nibbles => "nibbles",
    Scales => "scales",
    Absmax => "absmax",
    NestedAbsmax => "nested_absmax",
});

/// A [`Scheme`] without its parameters: what the index calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchemeKind {
    /// [`Scheme::Raw`], whose elements are stored as they were.
    Raw,
    /// [`Scheme::Int4`] with scales of [`ScaleFormat::Mini`], whatever the widths.
    Int4Mini,
    /// [`Scheme::Int4`] with f16 scales.
    Int4F16,
    /// [`Scheme::Int4`] with f32 scales.
    Int4F32,
    /// [`Scheme::Lut4`] with scales of [`ScaleFormat::Mini`], whatever the widths.
    Lut4Mini,
    /// [`Scheme::Lut4`] with f16 scales.
    Lut4F16,
    /// [`Scheme::Lut4`] with f32 scales.
    Lut4F32,
    /// [`Scheme::Nf4`], as bitsandbytes has it.
    Nf4,
    /// [`Scheme::Fp8`], with a scale for each row.
    Fp8,
}

names!(SchemeKind {
    Raw => "raw",
    Int4Mini => "int4-e5mx",
    Int4F16 => "int4-f16",
    Int4F32 => "int4-f32",
    Lut4Mini => "lut4-e5mx",
    Lut4F16 => "lut4-f16",
    Lut4F32 => "lut4-f32",
    Nf4 => "nf4-dq",
    Fp8 => "fp8-e4m3",
});

/// What weights are quantized to, before a group, the scales' format or a tensor's offset are
/// known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Integers with a scale a group (`int4-*`).
    Int4,
    /// Indices into 16 levels of the tensor, with a scale a group (`lut4-*`).
    Lut4,
    /// bitsandbytes' NF4 with double quantization (`nf4-dq`).
    Nf4,
    /// FP8 E4M3 with a scale a row (`fp8-e4m3`).
    Fp8,
}

names!(Family {
    Int4 => "int4",
    Lut4 => "lut4",
    Nf4 => "nf4",
    Fp8 => "fp8",
});

impl SchemeKind {
    /// What it is a scheme of; `None` of `raw`.
    #[must_use]
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::Raw => None,
            Self::Int4Mini | Self::Int4F16 | Self::Int4F32 => Some(Family::Int4),
            Self::Lut4Mini | Self::Lut4F16 | Self::Lut4F32 => Some(Family::Lut4),
            Self::Nf4 => Some(Family::Nf4),
            Self::Fp8 => Some(Family::Fp8),
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
    /// 4-bit indices into a code book, with one scale a group of consecutive elements of a row.
    Lut4 {
        /// Elements a group; the last group of a row may be shorter.
        group: usize,
        /// Format of the scales.
        scales: ScaleFormat,
        /// What the indices stand for.
        levels: Levels,
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
    /// What the index calls it.
    pub fn kind(self) -> SchemeKind {
        match self {
            Scheme::Raw(_) => SchemeKind::Raw,
            Scheme::Int4 { scales, .. } => match scales {
                ScaleFormat::Mini(_) => SchemeKind::Int4Mini,
                ScaleFormat::F16 => SchemeKind::Int4F16,
                ScaleFormat::F32 => SchemeKind::Int4F32,
            },
            Scheme::Lut4 { scales, .. } => match scales {
                ScaleFormat::Mini(_) => SchemeKind::Lut4Mini,
                ScaleFormat::F16 => SchemeKind::Lut4F16,
                ScaleFormat::F32 => SchemeKind::Lut4F32,
            },
            Scheme::Nf4 { .. } => SchemeKind::Nf4,
            Scheme::Fp8 => SchemeKind::Fp8,
        }
    }

    /// The name that the index has for it, [`SchemeKind::name`].
    pub fn name(self) -> &'static str {
        self.kind().name()
    }

    /// Whether the weights were quantized, so that there is something to know about their errors.
    pub fn is_quantized(self) -> bool {
        self.kind().family().is_some()
    }

    /// Elements of a row of `columns` that error figures are taken over (`spec/method.md`,
    /// "Statistics"): an int4 or lut4 group, 64 for `nf4-dq`, a whole row for `fp8-e4m3`; `None`
    /// for `raw`.
    pub fn group(self, columns: usize) -> Option<usize> {
        match self {
            Scheme::Raw(_) => None,
            Scheme::Int4 { group, .. } | Scheme::Lut4 { group, .. } => Some(group),
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
            Scheme::Int4 { group, scales } | Scheme::Lut4 { group, scales, .. } => {
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
            Scheme::Int4 { group, .. } | Scheme::Lut4 { group, .. }
                if !GROUP_RANGE.contains(&group) =>
            {
                Err(parameter(
                    tensor,
                    "group",
                    i64::try_from(group).unwrap_or(i64::MAX),
                    format!("{} to {}", GROUP_RANGE.start(), GROUP_RANGE.end()),
                ))
            }
            Scheme::Nf4 { offset_bits } if offset_bits > MAX_OFFSET_BITS => Err(parameter(
                tensor,
                "offset_bits",
                i64::from(offset_bits),
                format!("0 to {MAX_OFFSET_BITS}"),
            )),
            Scheme::Raw(_)
            | Scheme::Int4 { .. }
            | Scheme::Lut4 { .. }
            | Scheme::Nf4 { .. }
            | Scheme::Fp8 => Ok(()),
        }
    }
}

fn overflow(tensor: &str) -> Defect {
    Defect::ElementOverflow {
        tensor: tensor.to_owned(),
    }
}
