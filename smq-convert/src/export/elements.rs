//! From a tensor of the .smq file to the bytes of a safetensors tensor.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use smq_format::{Defect, Dtype, Scales, TensorView, int4};

use crate::tensor::Layout as Major;

/// Bytes that one task makes, in whole rows.
const TASK_BYTES: usize = 256 << 10;

/// What rounding to two bytes did to a run of values.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rounding {
    /// Values seen.
    pub values: u64,
    /// Values that changed.
    pub inexact: u64,
    /// Largest `|rounded - v| / |v|`.
    pub max_relative_error: f64,
    /// Finite values that became infinite.
    pub overflowed: u64,
}

impl Rounding {
    /// Counts `value` and returns the bytes of it rounded, half to even.
    pub(super) fn add(&mut self, value: f32, to: Half) -> [u8; 2] {
        let (bytes, rounded) = to.round(value);
        self.values += 1;
        if rounded != value {
            let (value, rounded) = (f64::from(value), f64::from(rounded));
            self.inexact += 1;
            self.overflowed += u64::from(rounded.is_infinite());
            let error = ((rounded - value) / value).abs();
            self.max_relative_error = self.max_relative_error.max(error);
        }
        bytes
    }

    pub(super) fn merge(self, other: Self) -> Self {
        Rounding {
            values: self.values + other.values,
            inexact: self.inexact + other.inexact,
            max_relative_error: self.max_relative_error.max(other.max_relative_error),
            overflowed: self.overflowed + other.overflowed,
        }
    }
}

/// An element type of two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Half {
    /// The little-endian bytes of `value` rounded, and what they mean.
    pub(super) fn round(self, value: f32) -> ([u8; 2], f32) {
        match self {
            Half::Bf16 => {
                let rounded = bf16::from_f32(value);
                (rounded.to_le_bytes(), rounded.to_f32())
            }
            Half::F16 => {
                let rounded = f16::from_f32(value);
                (rounded.to_le_bytes(), rounded.to_f32())
            }
        }
    }

    /// As an element type of a checkpoint.
    #[must_use]
    pub fn dtype(self) -> Dtype {
        match self {
            Half::Bf16 => Dtype::Bf16,
            Half::F16 => Dtype::F16,
        }
    }
}

/// Where the bytes come from.
pub(super) enum Content<'a> {
    /// As they are; a row is a byte.
    Bytes(Cow<'a, [u8]>),
    /// Dequantized to f32.
    F32(TensorView<'a>),
    /// Dequantized and rounded to `to`.
    Rounded { view: TensorView<'a>, to: Half },
    /// Integers as `pack_to_int32` of compressed-tensors (`compressors/pack_quantized/helpers.py`)
    /// packs them: `q + 8` of column `c` in bits `4 (c mod 8)` of word `c div 8` of the row, unused
    /// bits zero. A row of output-major words is an output's; of input-major ones, those of eight
    /// columns, by which the columns must be divided.
    Packed {
        nibbles: &'a [u8],
        columns: usize,
        major: Major,
    },
    /// So many `times` the scales rounded to `to`, `[out, groups]` or, input-major, `[groups, out]`.
    Scales {
        view: TensorView<'a>,
        scales: Scales<'a>,
        groups: usize,
        to: Half,
        major: Major,
        times: f32,
    },
    /// `[rows, words]` words of 32 bits that are all the same.
    Words {
        word: u32,
        rows: usize,
        words: usize,
    },
    /// The group of each of so many columns, in 32 bits; a row is a column.
    GroupOf { columns: usize, group: usize },
}

impl<'a> Content<'a> {
    pub(super) fn dequantized(view: TensorView<'a>, dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Content::F32(view),
            Dtype::Bf16 => Content::Rounded {
                view,
                to: Half::Bf16,
            },
            Dtype::F16 => Content::Rounded {
                view,
                to: Half::F16,
            },
        }
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Content::Bytes(bytes) => bytes.len(),
            Content::F32(view) | Content::Rounded { view, .. } => view.matrix_shape().0,
            Content::Packed {
                nibbles,
                columns,
                major,
            } => match major {
                Major::OutputMajor => nibbles.len() / int4::row_bytes(*columns),
                Major::InputMajor => columns / 8,
            },
            Content::Scales {
                view,
                groups,
                major,
                ..
            } => match major {
                Major::OutputMajor => view.matrix_shape().0,
                Major::InputMajor => *groups,
            },
            Content::Words { rows, .. } => *rows,
            Content::GroupOf { columns, .. } => *columns,
        }
    }

    pub(super) fn row_bytes(&self) -> usize {
        match self {
            Content::Bytes(_) => 1,
            Content::F32(view) => 4 * view.matrix_shape().1,
            Content::Rounded { view, .. } => 2 * view.matrix_shape().1,
            Content::Packed {
                nibbles,
                columns,
                major,
            } => match major {
                Major::OutputMajor => 4 * columns.div_ceil(8),
                Major::InputMajor => 4 * (nibbles.len() / int4::row_bytes(*columns)),
            },
            Content::Scales {
                view,
                groups,
                major,
                ..
            } => match major {
                Major::OutputMajor => 2 * groups,
                Major::InputMajor => 2 * view.matrix_shape().0,
            },
            Content::Words { words, .. } => 4 * words,
            Content::GroupOf { .. } => 4,
        }
    }

    /// Makes the bytes of `rows`, on all threads. Returns what rounding did to weights.
    ///
    /// # Errors
    /// An invalid scale code.
    pub(super) fn fill(&self, rows: Range<usize>, out: &mut Vec<u8>) -> Result<Rounding, Defect> {
        let row_bytes = self.row_bytes();
        out.resize(rows.len() * row_bytes, 0);
        let task_rows = (TASK_BYTES / row_bytes).max(1);
        out.par_chunks_mut(task_rows * row_bytes)
            .enumerate()
            .map(|(task, out)| {
                let first = rows.start + task * task_rows;
                self.fill_serial(first..first + out.len() / row_bytes, out)
            })
            .try_reduce(Rounding::default, |a, b| Ok(a.merge(b)))
    }

    fn fill_serial(&self, rows: Range<usize>, out: &mut [u8]) -> Result<Rounding, Defect> {
        let mut rounding = Rounding::default();
        let dequantized = |view: &TensorView| {
            let mut values = vec![0.0; rows.len() * view.matrix_shape().1];
            view.dequantize_rows(rows.clone(), &mut values)?;
            Ok::<_, Defect>(values)
        };
        match self {
            Content::Bytes(bytes) => out.copy_from_slice(&bytes[rows]),
            Content::F32(view) => {
                for (out, value) in out
                    .as_chunks_mut::<4>()
                    .0
                    .iter_mut()
                    .zip(dequantized(view)?)
                {
                    *out = value.to_le_bytes();
                }
            }
            Content::Rounded { view, to } => {
                for (out, value) in out
                    .as_chunks_mut::<2>()
                    .0
                    .iter_mut()
                    .zip(dequantized(view)?)
                {
                    *out = rounding.add(value, *to);
                }
            }
            Content::Packed {
                nibbles,
                columns,
                major,
            } => match major {
                Major::OutputMajor => pack(nibbles, *columns, rows, out),
                Major::InputMajor => pack_across(nibbles, *columns, rows, out),
            },
            Content::Scales {
                view,
                scales,
                groups,
                to,
                major,
                times,
            } => {
                let bytes = |scale| to.round(times * to.round(scale).1).0;
                let out = out.as_chunks_mut::<2>().0;
                match major {
                    Major::OutputMajor => {
                        let range = rows.start * groups..rows.end * groups;
                        let mut values = vec![0.0; range.len()];
                        scales.decode(range, &mut values)?;
                        for (out, scale) in out.iter_mut().zip(values) {
                            *out = bytes(scale);
                        }
                    }
                    Major::InputMajor => {
                        let outputs = view.matrix_shape().0;
                        let mut values = vec![0.0; rows.len()];
                        for output in 0..outputs {
                            let first = output * groups;
                            scales.decode(first + rows.start..first + rows.end, &mut values)?;
                            for (group, &scale) in values.iter().enumerate() {
                                out[group * outputs + output] = bytes(scale);
                            }
                        }
                    }
                }
            }
            Content::Words { word, .. } => {
                out.as_chunks_mut::<4>().0.fill(word.to_le_bytes());
            }
            Content::GroupOf { group, .. } => {
                for (out, column) in out.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
                    *out = ((column / group) as u32).to_le_bytes();
                }
            }
        }
        Ok(rounding)
    }
}

/// Both layouts put the even column into the low half of a byte and words are little-endian, so the
/// bytes keep their places, and adding 8 to a 4-bit two's-complement integer flips its top bit.
fn pack(nibbles: &[u8], columns: usize, rows: Range<usize>, out: &mut [u8]) {
    let row_bytes = int4::row_bytes(columns);
    let out_row_bytes = 4 * columns.div_ceil(8);
    for (row, out) in rows.zip(out.chunks_exact_mut(out_row_bytes)) {
        let (used, padding) = out.split_at_mut(row_bytes);
        let nibbles = &nibbles[row * row_bytes..(row + 1) * row_bytes];
        for (out, byte) in used.iter_mut().zip(nibbles) {
            *out = byte ^ 0x88;
        }
        if let (1, Some(last)) = (columns % 2, used.last_mut()) {
            *last &= 0x0f;
        }
        padding.fill(0);
    }
}

/// The same words, those of an output in a column: `rows` are words of an output's row, which must
/// be whole.
fn pack_across(nibbles: &[u8], columns: usize, rows: Range<usize>, out: &mut [u8]) {
    let outputs = nibbles.chunks_exact(int4::row_bytes(columns));
    let (count, out) = (outputs.len(), out.as_chunks_mut::<4>().0);
    for (output, nibbles) in outputs.enumerate() {
        let words = &nibbles.as_chunks::<4>().0[rows.clone()];
        for (at, word) in words.iter().enumerate() {
            out[at * count + output] = word.map(|byte| byte ^ 0x88);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// compressed-tensors' definition, one integer at a time.
    fn pack_naive(row: &[i8]) -> Vec<u8> {
        let mut words = vec![0u32; row.len().div_ceil(8)];
        for (column, &q) in row.iter().enumerate() {
            words[column / 8] |= ((i32::from(q) + 8) as u32) << (4 * (column % 8));
        }
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn packs_as_compressed_tensors(
            columns in prop_oneof![1usize..70, (1usize..9).prop_map(|words| 8 * words)],
            rows in 1usize..4,
            seed in prop::collection::vec(-8i8..=7, 210),
        ) {
            let matrix: Vec<&[i8]> = seed.chunks_exact(columns).cycle().take(rows).collect();
            let row_bytes = int4::row_bytes(columns);
            let mut nibbles = vec![0; rows * row_bytes];
            for (row, out) in matrix.iter().zip(nibbles.chunks_exact_mut(row_bytes)) {
                int4::pack_row(row, out);
            }
            let major = Major::OutputMajor;
            let content = Content::Packed { nibbles: &nibbles, columns, major };
            let mut out = vec![0xff; 7];
            content.fill(0..rows, &mut out).unwrap();
            let expected: Vec<u8> = matrix.iter().flat_map(|row| pack_naive(row)).collect();
            prop_assert_eq!(&out, &expected);
            if columns % 8 != 0 {
                return Ok(());
            }
            // The same words, transposed, in any split of the rows.
            let major = Major::InputMajor;
            let across = Content::Packed { nibbles: &nibbles, columns, major };
            prop_assert_eq!((across.rows(), across.row_bytes()), (columns / 8, 4 * rows));
            for at in 0..columns / 8 {
                across.fill(at..at + 1, &mut out).unwrap();
                for (row, word) in out.chunks_exact(4).enumerate() {
                    prop_assert_eq!(word, &expected[4 * (row * columns / 8 + at)..][..4]);
                }
            }
        }
    }

    #[test]
    fn rounding_is_counted() {
        let mut rounding = Rounding::default();
        // 1 + 1/256 is half way between bf16's 1 and 1 + 1/128, and goes to the even one.
        for value in [0.0, 1.0, -7.0 * 1.03125, 1.0 + 1.0 / 256.0] {
            rounding.add(value, Half::Bf16);
        }
        let expected = Rounding {
            values: 4,
            inexact: 1,
            max_relative_error: 1.0 / 257.0,
            overflowed: 0,
        };
        // 7 * 33/32 = 231/32: 231 has 8 bits, so it is exact.
        assert_eq!(rounding, expected);
        rounding.add(f32::MAX, Half::Bf16);
        assert_eq!(rounding.overflowed, 1);
    }
}
