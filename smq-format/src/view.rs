//! Typed views of a tensor's bytes in the map.

use std::ops::Range;

use half::f16;

use crate::error::Defect;
use crate::index::TensorEntry;
use crate::scheme::{Dtype, Scheme};
use crate::stored_scales::{Nf4Scales, RowScales, Scales};
use crate::{Levels, fp8, int4, lut4, nf4};

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
        /// Type of the elements, which is that of the checkpoint.
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
        /// Consecutive elements of a row that share a scale.
        group: usize,
    },
    /// Indices into a code book, and scales, of a `[out, in]` matrix.
    Lut4 {
        /// Row-major `[out, ceil(in / 2)]` bytes.
        nibbles: &'a [u8],
        /// Row-major `[out, ceil(in / group)]` scales.
        scales: Scales<'a>,
        /// Consecutive elements of a row that share a scale.
        group: usize,
        /// The code book: the level that each index of four bits stands for.
        levels: Levels,
    },
    /// NF4 of a `[out, in]` matrix, in blocks of 64 elements of the flattened tensor.
    Nf4 {
        /// `ceil(out * in / 2)` bytes, the even element in the high half.
        nibbles: &'a [u8],
        /// The double-quantized absmax of each block.
        scales: Nf4Scales<'a>,
    },
    /// FP8 E4M3FN of a `[out, in]` matrix.
    Fp8 {
        /// Row-major `[out, in]` codes.
        codes: &'a [u8],
        /// The scale of each row, `[out]`.
        scales: RowScales<'a>,
    },
}

impl<'a> TensorView<'a> {
    /// `blobs` are the entry's, already checked to have the scheme's roles and lengths.
    pub(crate) fn new(entry: &'a TensorEntry, blobs: &[&'a [u8]]) -> Self {
        let scales_of = |stream, format| Scales {
            stream,
            format,
            count: entry.scheme.groups(&entry.shape),
            tensor: &entry.name,
        };
        let data = match entry.scheme {
            Scheme::Raw(dtype) => TensorData::Raw {
                dtype,
                bytes: blobs[0],
            },
            Scheme::Int4 { group, scales } => TensorData::Int4 {
                nibbles: blobs[0],
                scales: scales_of(blobs[1], scales),
                group,
            },
            Scheme::Lut4 {
                group,
                scales,
                levels,
            } => TensorData::Lut4 {
                nibbles: blobs[0],
                scales: scales_of(blobs[1], scales),
                group,
                levels,
            },
            Scheme::Nf4 { offset_bits } => TensorData::Nf4 {
                nibbles: blobs[0],
                scales: Nf4Scales {
                    absmax: blobs[1],
                    nested_absmax: blobs[2],
                    offset: f32::from_bits(offset_bits),
                    tensor: &entry.name,
                },
            },
            Scheme::Fp8 => TensorData::Fp8 {
                codes: blobs[0],
                scales: RowScales {
                    bytes: blobs[1],
                    tensor: &entry.name,
                },
            },
        };
        TensorView { entry, data }
    }

    /// Name in the checkpoint.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// Row-major shape, `[out, in]` for a linear layer.
    pub fn shape(&self) -> &'a [usize] {
        &self.entry.shape
    }

    /// How it is stored.
    pub fn scheme(&self) -> Scheme {
        self.entry.scheme
    }

    /// What the index says of the tensor.
    pub fn entry(&self) -> &'a TensorEntry {
        self.entry
    }

    /// The bytes of the tensor, by what they are.
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

    /// Dequantizes rows into `out`, row-major `[rows, columns]` in f32, as `spec/format.md` has it.
    ///
    /// # Errors
    /// An invalid scale or element.
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
            } => grouped_rows(
                columns,
                nibbles,
                scales,
                group,
                rows,
                out,
                int4::dequantize_row,
            )?,
            TensorData::Lut4 {
                nibbles,
                scales,
                group,
                levels,
            } => grouped_rows(
                columns,
                nibbles,
                scales,
                group,
                rows,
                out,
                |nibbles, scales, group, out| {
                    lut4::dequantize_row(nibbles, scales, group, levels, out);
                },
            )?,
            TensorData::Nf4 { nibbles, scales } => {
                let first = rows.start * columns;
                let blocks = first / nf4::BLOCK_ELEMS..nf4::blocks(rows.end * columns);
                let mut absmax = vec![0.0; blocks.len()];
                scales.decode(blocks, &mut absmax)?;
                nf4::dequantize(nibbles, &absmax, first, out);
            }
            TensorData::Fp8 { codes, scales } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    let scale = scales.scale(row)?;
                    let codes = &codes[row * columns..(row + 1) * columns];
                    check_codes(self.name(), row, codes)?;
                    for (out, &code) in out.iter_mut().zip(codes) {
                        *out = fp8::VALUES[usize::from(code)] * scale;
                    }
                }
            }
        }
        Ok(())
    }

    /// Dequantizes the whole tensor.
    ///
    /// # Errors
    /// An invalid scale or element.
    pub fn dequantize(&self) -> Result<Vec<f32>, Defect> {
        let (rows, columns) = self.matrix_shape();
        let mut out = vec![0.0; rows * columns];
        self.dequantize_rows(0..rows, &mut out)?;
        Ok(out)
    }

    /// Checks what the hashes cannot: scales, codes without a meaning, and unused bits.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn check(&self) -> Result<(), Defect> {
        let (rows, columns) = self.matrix_shape();
        match self.data {
            TensorData::Raw { .. } => Ok(()),
            TensorData::Int4 {
                nibbles, scales, ..
            }
            | TensorData::Lut4 {
                nibbles, scales, ..
            } => {
                scales.check()?;
                let mut bytes = nibbles.chunks_exact(int4::row_bytes(columns));
                match bytes.position(|row| columns % 2 == 1 && row[row.len() - 1] >> 4 != 0) {
                    Some(row) => Err(Defect::NibblePadding {
                        tensor: self.entry.name.clone(),
                        row: row as u64,
                    }),
                    None => Ok(()),
                }
            }
            TensorData::Nf4 { nibbles, scales } => {
                for i in 0..scales.nested_absmax.len() / 4 {
                    scales.nested(i)?;
                }
                match nibbles.last() {
                    Some(byte) if rows * columns % 2 == 1 && byte & 15 != nf4::ZERO_CODE => {
                        Err(Defect::Nf4Padding {
                            tensor: self.entry.name.clone(),
                        })
                    }
                    _ => Ok(()),
                }
            }
            TensorData::Fp8 { codes, scales } => {
                scales.decode_all()?;
                let mut rows = codes.chunks_exact(columns).enumerate();
                rows.try_for_each(|(row, codes)| check_codes(self.name(), row, codes))
            }
        }
    }
}

/// Rows of `columns` elements, two a byte, with a scale a group, each dequantized by
/// `dequantize_row`.
fn grouped_rows(
    columns: usize,
    nibbles: &[u8],
    scales: Scales,
    group: usize,
    rows: Range<usize>,
    out: &mut [f32],
    dequantize_row: impl Fn(&[u8], &[f32], usize, &mut [f32]),
) -> Result<(), Defect> {
    let groups = columns.div_ceil(group);
    let row_bytes = int4::row_bytes(columns);
    let mut row_scales = vec![0.0; groups];
    for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
        scales.decode(row * groups..(row + 1) * groups, &mut row_scales)?;
        let nibbles = &nibbles[row * row_bytes..(row + 1) * row_bytes];
        dequantize_row(nibbles, &row_scales, group, out);
    }
    Ok(())
}

/// Refuses a NaN among the FP8 codes of a row.
fn check_codes(tensor: &str, row: usize, codes: &[u8]) -> Result<(), Defect> {
    // Without an exit in the loop, which keeps it wide.
    if !codes
        .iter()
        .fold(false, |nan, &code| nan | fp8::is_nan(code))
    {
        return Ok(());
    }
    let element = codes.iter().take_while(|code| !fp8::is_nan(**code)).count();
    Err(Defect::Fp8Nan {
        tensor: tensor.to_owned(),
        row: row as u64,
        element: element as u64,
    })
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
            // The upper half of an f32, NaNs included; `bf16::to_f32` would look for those.
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
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
