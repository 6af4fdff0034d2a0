//! Weight matrices as they are stored, and their elements.

use std::ops::Range;

use smq_format::{Dtype, Levels, fp8, int4, lut4, nf4, widen};

/// A weight matrix `[rows, cols]` (out, in) whose bytes stay in the map.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The bytes.
    pub data: Weights<'a>,
}

/// How a matrix is stored.
#[derive(Debug, Clone)]
pub enum Weights<'a> {
    /// Little-endian elements, row-major.
    Dense {
        /// Element type.
        dtype: Dtype,
        /// `[rows, cols]` elements.
        bytes: &'a [u8],
    },
    /// Two's-complement nibbles and one f32 scale a group.
    Int4 {
        /// `[rows, ceil(cols / 2)]`, low nibble = even column.
        nibbles: &'a [u8],
        /// Decoded, `[rows, ceil(cols / group)]`.
        scales: Vec<f32>,
        /// Columns a scale.
        group: usize,
    },
    /// Indices into a code book and one f32 scale a group.
    Lut4 {
        /// `[rows, ceil(cols / 2)]`, low nibble = even column.
        nibbles: &'a [u8],
        /// Decoded, `[rows, ceil(cols / group)]`.
        scales: Vec<f32>,
        /// Columns a scale.
        group: usize,
        /// The code book.
        levels: Levels,
    },
    /// NF4 codes in blocks of 64 of the flattened matrix.
    Nf4 {
        /// `ceil(rows * cols / 2)` bytes, high nibble = even element.
        nibbles: &'a [u8],
        /// Dequantized, one a block.
        absmax: Vec<f32>,
        /// Each weight is rounded to bf16, as where bitsandbytes multiplies in bf16.
        bf16: bool,
    },
    /// E4M3 codes, none of them NaN; the product quantizes its activations to E4M3 too.
    Fp8 {
        /// `[rows, cols]`.
        codes: &'a [u8],
        /// `[rows]`.
        scales: Vec<f32>,
    },
}

impl Matrix<'_> {
    /// With NF4 weights rounded to bf16; no other scheme's weights are rounded.
    #[must_use]
    pub fn in_bf16(mut self) -> Self {
        if let Weights::Nf4 { bf16, .. } = &mut self.data {
            *bf16 = true;
        }
        self
    }

    /// Bytes that one pass over the weights reads.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        match &self.data {
            Weights::Dense { bytes, .. } => bytes.len(),
            Weights::Int4 {
                nibbles, scales, ..
            }
            | Weights::Lut4 {
                nibbles, scales, ..
            } => nibbles.len() + 4 * scales.len(),
            Weights::Nf4 {
                nibbles, absmax, ..
            } => nibbles.len() + 4 * absmax.len(),
            Weights::Fp8 { codes, scales } => codes.len() + 4 * scales.len(),
        }
    }

    /// Writes `rows` as f32 into `out`, `[rows, cols]`.
    pub fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        match &self.data {
            Weights::Dense { dtype, bytes } => {
                let row_bytes = self.cols * dtype.bytes();
                widen(
                    *dtype,
                    &bytes[rows.start * row_bytes..rows.end * row_bytes],
                    out,
                );
            }
            Weights::Nf4 {
                nibbles,
                absmax,
                bf16,
            } => {
                let first = rows.start * self.cols;
                nf4::dequantize(nibbles, &absmax[first / nf4::BLOCK_ELEMS..], first, out);
                if *bf16 {
                    for v in out {
                        *v = half::bf16::from_f32(*v).to_f32();
                    }
                }
            }
            Weights::Fp8 { scales, .. } => {
                self.fp8_values(rows.clone(), out);
                for (out, scale) in out.chunks_exact_mut(self.cols).zip(&scales[rows]) {
                    out.iter_mut().for_each(|v| *v *= scale);
                }
            }
            Weights::Int4 { group, .. } | Weights::Lut4 { group, .. } => {
                let (nibbles, scales) = self.nibble_rows(rows);
                let (row_bytes, groups) = (self.cols.div_ceil(2), self.cols.div_ceil(*group));
                let rows = nibbles
                    .chunks_exact(row_bytes)
                    .zip(scales.chunks_exact(groups));
                for ((nibbles, scales), out) in rows.zip(out.chunks_exact_mut(self.cols)) {
                    match &self.data {
                        Weights::Lut4 { levels, .. } => {
                            lut4::dequantize_row(nibbles, scales, *group, *levels, out);
                        }
                        Weights::Int4 { .. }
                        | Weights::Dense { .. }
                        | Weights::Nf4 { .. }
                        | Weights::Fp8 { .. } => {
                            int4::dequantize_row(nibbles, scales, *group, out);
                        }
                    }
                }
            }
        }
    }

    /// Values of FP8 codes, scales left out.
    pub(super) fn fp8_values(&self, rows: Range<usize>, out: &mut [f32]) {
        if let Weights::Fp8 { codes, .. } = &self.data {
            let codes = &codes[rows.start * self.cols..rows.end * self.cols];
            for (out, code) in out.iter_mut().zip(codes) {
                *out = fp8::VALUES[usize::from(*code)];
            }
        }
    }

    /// Nibbles and scales of rows that each start a byte and a group.
    pub(super) fn nibble_rows(&self, rows: Range<usize>) -> (&[u8], &[f32]) {
        let (nibbles, scales, group) = match &self.data {
            Weights::Int4 {
                nibbles,
                scales,
                group,
            }
            | Weights::Lut4 {
                nibbles,
                scales,
                group,
                ..
            } => (nibbles, scales, *group),
            Weights::Nf4 {
                nibbles, absmax, ..
            } => (nibbles, absmax, nf4::BLOCK_ELEMS),
            Weights::Dense { .. } | Weights::Fp8 { .. } => return (&[], &[]),
        };
        let (row_bytes, groups) = (self.cols.div_ceil(2), self.cols.div_ceil(group));
        (
            &nibbles[rows.start * row_bytes..rows.end * row_bytes],
            &scales[rows.start * groups..rows.end * groups],
        )
    }

    /// The group length where the fused kernel needs packed activations.
    pub(super) fn packed_group(&self) -> Option<usize> {
        match &self.data {
            // A group over the whole row is one group of any even length.
            Weights::Int4 { group, .. } | Weights::Lut4 { group, .. } if *group >= self.cols => {
                Some(self.cols.next_multiple_of(2))
            }
            Weights::Int4 { group, .. } | Weights::Lut4 { group, .. }
                if group.is_multiple_of(2) =>
            {
                Some(*group)
            }
            Weights::Nf4 { bf16: false, .. } if self.cols.is_multiple_of(nf4::BLOCK_ELEMS) => {
                Some(nf4::BLOCK_ELEMS)
            }
            Weights::Int4 { .. }
            | Weights::Lut4 { .. }
            | Weights::Nf4 { .. }
            | Weights::Dense { .. }
            | Weights::Fp8 { .. } => None,
        }
    }
}
