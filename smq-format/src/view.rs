//! Typed views of a tensor's bytes in the map.

use std::ops::Range;

use half::{bf16, f16};

use crate::bits::code_at;
use crate::error::Defect;
use crate::index::TensorEntry;
use crate::int4;
use crate::scale::ScaleFormat;
use crate::scheme::{Dtype, Scheme};

/// A tensor in an open file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    pub(crate) entry: &'a TensorEntry,
    pub(crate) data: TensorData<'a>,
}

/// A tensor's bytes, by scheme.
#[derive(Debug, Clone, Copy)]
pub enum TensorData<'a> {
    /// Elements as they are.
    Raw {
        /// Element type.
        dtype: Dtype,
        /// Row-major little-endian elements; the map aligns them to 256 bytes.
        bytes: &'a [u8],
    },
    /// Nibbles and scales of a `[out, in]` matrix.
    Int4 {
        /// Row-major `[out, ceil(in / 2)]` bytes.
        nibbles: &'a [u8],
        /// Row-major `[out, ceil(in / group)]` scales.
        scales: Scales<'a>,
        /// Elements a group.
        group: usize,
    },
}

/// The scale stream of an int4 tensor.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// The blob: codes LSB-first, then the zero tail.
    pub stream: &'a [u8],
    /// Format of a code.
    pub format: ScaleFormat,
    /// Number of codes.
    pub count: usize,
    tensor: &'a str,
}

impl<'a> Scales<'a> {
    /// The code of scale `i`, row-major.
    ///
    /// # Panics
    /// Where `i >= self.count`.
    #[inline]
    pub fn code(&self, i: usize) -> u32 {
        assert!(i < self.count, "scale {i} of {}", self.count);
        code_at(self.stream, self.format.width_bits(), i)
    }

    /// Decodes the scales of `range` into `out`, of the same length.
    ///
    /// # Errors
    /// The first invalid code.
    pub fn decode(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), Defect> {
        for (i, out) in range.zip(out) {
            let code = self.code(i);
            *out = self.format.decode(code).ok_or_else(|| {
                let (tensor, group) = (self.tensor.to_owned(), i as u64);
                match self.format {
                    ScaleFormat::Mini(_) => Defect::ScaleCode {
                        tensor,
                        group,
                        code,
                    },
                    _ => Defect::ScaleNotFinite { tensor, group },
                }
            })?;
        }
        Ok(())
    }

    /// Decodes every scale.
    ///
    /// # Errors
    /// The first invalid code.
    pub fn decode_all(&self) -> Result<Vec<f32>, Defect> {
        let mut out = vec![0.0; self.count];
        self.decode(0..self.count, &mut out)?;
        Ok(out)
    }

    /// Checks every code, the unused bits and the zero tail.
    pub(crate) fn check(&self) -> Result<(), Defect> {
        self.decode_all()?;
        let used_bits = self.count * self.format.width_bits() as usize;
        let (byte, bit) = (used_bits / 8, used_bits % 8);
        let unused = &self.stream[byte..];
        if unused.is_empty() || unused[0] >> bit != 0 || unused[1..].iter().any(|&b| b != 0) {
            return Err(Defect::ScalePadding {
                tensor: self.tensor.to_owned(),
            });
        }
        Ok(())
    }
}

impl<'a> TensorView<'a> {
    /// `blobs` are the entry's, already checked to have the scheme's lengths.
    pub(crate) fn new(entry: &'a TensorEntry, blobs: &[&'a [u8]]) -> Self {
        let data = match (entry.scheme, blobs) {
            (Scheme::Int4 { group, scales }, &[nibbles, stream]) => TensorData::Int4 {
                nibbles,
                scales: Scales {
                    stream,
                    format: scales,
                    count: entry.scheme.groups(&entry.shape),
                    tensor: &entry.name,
                },
                group,
            },
            (Scheme::Raw(dtype), &[bytes]) => TensorData::Raw { dtype, bytes },
            _ => unreachable!("blob roles are checked at open"),
        };
        TensorView { entry, data }
    }

    /// Name in the checkpoint.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// Row-major shape.
    pub fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// How it is stored.
    pub fn scheme(&self) -> Scheme {
        self.entry.scheme
    }

    /// The index entry.
    pub fn entry(&self) -> &'a TensorEntry {
        self.entry
    }

    /// The bytes.
    pub fn data(&self) -> TensorData<'a> {
        self.data
    }

    /// Rows and columns; a vector is one row, and further dimensions count as rows.
    pub fn matrix_shape(&self) -> (usize, usize) {
        match self.entry.shape.split_last() {
            Some((&columns, rows)) => (rows.iter().product(), columns),
            None => (1, 1),
        }
    }

    /// Dequantizes rows into `out`, row-major `[rows, columns]` in f32: `w' = q * s'`.
    ///
    /// # Errors
    /// An invalid scale code.
    ///
    /// # Panics
    /// Where `rows` is out of range or `out` has another length.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Defect> {
        let (total, columns) = self.matrix_shape();
        assert!(rows.start <= rows.end && rows.end <= total);
        assert_eq!(out.len(), rows.len() * columns);
        if columns == 0 {
            return Ok(());
        }
        match self.data {
            TensorData::Raw { dtype, bytes } => {
                let row_bytes = columns * dtype.bytes();
                widen(
                    dtype,
                    &bytes[rows.start * row_bytes..rows.end * row_bytes],
                    out,
                );
            }
            TensorData::Int4 {
                nibbles,
                scales,
                group,
            } => {
                let groups = columns.div_ceil(group);
                let row_bytes = int4::row_bytes(columns);
                let mut row_scales = vec![0.0; groups];
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    scales.decode(row * groups..(row + 1) * groups, &mut row_scales)?;
                    let nibbles = &nibbles[row * row_bytes..(row + 1) * row_bytes];
                    int4::dequantize_row(nibbles, &row_scales, group, out);
                }
            }
        }
        Ok(())
    }

    /// Dequantizes the whole tensor.
    ///
    /// # Errors
    /// An invalid scale code.
    pub fn dequantize(&self) -> Result<Vec<f32>, Defect> {
        let (rows, columns) = self.matrix_shape();
        let mut out = vec![0.0; rows * columns];
        self.dequantize_rows(0..rows, &mut out)?;
        Ok(out)
    }

    /// Checks what the hashes cannot: scale codes and unused bits.
    pub(crate) fn check(&self) -> Result<(), Defect> {
        let TensorData::Int4 {
            nibbles, scales, ..
        } = self.data
        else {
            return Ok(());
        };
        scales.check()?;
        let (_, columns) = self.matrix_shape();
        if columns % 2 == 1 {
            let mut rows = nibbles.chunks_exact(int4::row_bytes(columns));
            if let Some(row) = rows.position(|row| row[row.len() - 1] >> 4 != 0) {
                return Err(Defect::NibblePadding {
                    tensor: self.entry.name.clone(),
                    row: row as u64,
                });
            }
        }
        Ok(())
    }
}

/// Widens little-endian elements to f32, exactly; the bytes may be unaligned.
///
/// Always inlined, so that a caller compiled for a wider instruction set gets a wide loop.
///
/// # Panics
/// Where `bytes` is not `out.len()` elements.
#[inline(always)]
pub fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.bytes());
    match dtype {
        Dtype::Bf16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Dtype::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Dtype::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
}
