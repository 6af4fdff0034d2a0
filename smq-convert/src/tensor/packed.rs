//! The integers and scales of one int4 tensor, in .smq's order.

use std::ops::Range;

use rayon::prelude::*;
use smq_format::{Dtype, int4, widen};

/// Where the parts of an int4 tensor are; its integers have the source tensor's own place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    pub(crate) group: usize,
    pub(crate) scale_dtype: Dtype,
    pub(crate) scale_shard: usize,
    pub(crate) scale_range: Range<usize>,
}

/// Both hold `q + 8` in bits `4 (i mod 8)` of little-endian 32-bit word `i div 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Integers `[out, in / 8]`, `i` the column; scales `[out, groups]`.
    OutputMajor,
    /// Integers `[in / 8, out]`, `i` the column; scales `[groups, out]`.
    InputMajor,
}

/// An int4 tensor `[rows, columns]` of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedView<'a> {
    pub(crate) packed: &'a Packed,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
}

impl PackedView<'_> {
    /// Groups of a row.
    fn groups(&self) -> usize {
        self.columns.div_ceil(self.packed.group)
    }

    /// Fills `nibbles`, `[rows, ceil(columns / 2)]` bytes, and `scales`, `[rows, groups]`, of a
    /// range of rows.
    pub(crate) fn fill(&self, rows: Range<usize>, nibbles: &mut [u8], scales: &mut [f32]) {
        let (row_bytes, groups) = (int4::row_bytes(self.columns), self.groups());
        let dtype = self.packed.scale_dtype;
        let scale_bytes = dtype.bytes();
        match self.packed.layout {
            Layout::OutputMajor => {
                let source_row_bytes = 4 * self.columns.div_ceil(8);
                for (row, out) in rows.clone().zip(nibbles.chunks_exact_mut(row_bytes)) {
                    let source = &self.codes[row * source_row_bytes..][..row_bytes];
                    // Adding or subtracting 8 flips the top bit of 4.
                    for (out, byte) in out.iter_mut().zip(source) {
                        *out = byte ^ 0x88;
                    }
                    if let (1, Some(last)) = (self.columns % 2, out.last_mut()) {
                        *last &= 0x0f;
                    }
                }
                let range = rows.start * groups * scale_bytes..rows.end * groups * scale_bytes;
                widen(dtype, &self.scales[range], scales);
            }
            Layout::InputMajor => {
                for word in 0..self.columns / 8 {
                    for (i, row) in rows.clone().enumerate() {
                        let source = &self.codes[4 * (word * self.rows + row)..][..4];
                        let out = &mut nibbles[i * row_bytes + 4 * word..][..4];
                        for (out, byte) in out.iter_mut().zip(source) {
                            *out = byte ^ 0x88;
                        }
                    }
                }
                for group in 0..groups {
                    for (i, row) in rows.clone().enumerate() {
                        let at = (group * self.rows + row) * scale_bytes;
                        let out = &mut scales[i * groups + group..][..1];
                        widen(dtype, &self.scales[at..at + scale_bytes], out);
                    }
                }
            }
        }
    }

    /// `w = q s` in f32 of a range of rows into `out`, `[rows, columns]`.
    pub(crate) fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (row_bytes, groups) = (int4::row_bytes(self.columns), self.groups());
        let mut nibbles = vec![0; rows.len() * row_bytes];
        let mut scales = vec![0.0; rows.len() * groups];
        self.fill(rows, &mut nibbles, &mut scales);
        let rows = nibbles
            .chunks_exact(row_bytes)
            .zip(scales.chunks_exact(groups));
        for (out, (nibbles, scales)) in out.chunks_exact_mut(self.columns).zip(rows) {
            int4::dequantize_row(nibbles, scales, self.packed.group, out);
        }
    }
}

impl PackedView<'_> {
    /// The whole of `w = q s`, little-endian f32.
    pub(crate) fn to_f32_bytes(self) -> Vec<u8> {
        const BLOCK_ROWS: usize = 16;
        let mut bytes = vec![0; 4 * self.rows * self.columns];
        let blocks = bytes.par_chunks_mut(4 * BLOCK_ROWS * self.columns);
        blocks.enumerate().for_each(|(block, out)| {
            let first = block * BLOCK_ROWS;
            let mut weights = vec![0.0; out.len() / 4];
            self.dequantize_rows(first..first + weights.len() / self.columns, &mut weights);
            for (out, weight) in out.as_chunks_mut::<4>().0.iter_mut().zip(weights) {
                *out = weight.to_le_bytes();
            }
        });
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Little-endian words that hold `integers` eight a word, the unused ones 15 to show that
    /// nobody reads them.
    fn words(integers: &[i8]) -> Vec<[u8; 4]> {
        let word = |eight: &[i8]| {
            (0..8).fold(0u32, |word, i| {
                let stored = eight.get(i).map_or(15, |&q| (i32::from(q) + 8) as u32);
                word | stored << (4 * i)
            })
        };
        integers.chunks(8).map(|e| word(e).to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn both_layouts_give_integers_and_scales(
            (rows, columns) in (1usize..20, 1usize..40),
            group in 1usize..20,
            seed in prop::collection::vec(-8i8..=7, 800),
            input_major in any::<bool>(),
        ) {
            let columns = if input_major { columns * 8 } else { columns };
            let groups = columns.div_ceil(group);
            let q = |row: usize, column: usize| seed[(row * columns + column) % seed.len()];
            let scale = |row: usize, g: usize| 0.5 + (row * groups + g) as f32;
            let row = |r| (0..columns).map(|c| q(r, c)).collect::<Vec<_>>();
            let row_words: Vec<Vec<[u8; 4]>> = (0..rows).map(|r| words(&row(r))).collect();
            let (mut codes, mut scales) = (Vec::new(), Vec::new());
            if input_major {
                for word in 0..columns / 8 {
                    codes.extend(row_words.iter().flat_map(|row| row[word]));
                }
                for g in 0..groups {
                    scales.extend((0..rows).flat_map(|r| scale(r, g).to_le_bytes()));
                }
            } else {
                codes.extend(row_words.iter().flatten().flatten());
                for r in 0..rows {
                    scales.extend((0..groups).flat_map(|g| scale(r, g).to_le_bytes()));
                }
            }
            let packed = Packed {
                layout: if input_major { Layout::InputMajor } else { Layout::OutputMajor },
                group,
                scale_dtype: Dtype::F32,
                scale_shard: 0,
                scale_range: 0..0,
            };
            let (codes, scales) = (&codes, &scales);
            let view = PackedView { packed: &packed, rows, columns, codes, scales };
            let range = rows / 3..rows;
            let mut nibbles = vec![0xff; range.len() * int4::row_bytes(columns)];
            let mut found = vec![0.0; range.len() * groups];
            view.fill(range.clone(), &mut nibbles, &mut found);
            let mut weights = vec![0.0; range.len() * columns];
            view.dequantize_rows(range.clone(), &mut weights);
            for (i, row) in range.enumerate() {
                let expected: Vec<i8> = (0..columns).map(|c| q(row, c)).collect();
                let mut bytes = vec![0; int4::row_bytes(columns)];
                int4::pack_row(&expected, &mut bytes);
                prop_assert_eq!(&nibbles[i * bytes.len()..][..bytes.len()], &bytes);
                for g in 0..groups {
                    prop_assert_eq!(found[i * groups + g], scale(row, g));
                }
                for c in 0..columns {
                    let expected = f32::from(q(row, c)) * scale(row, c / group);
                    prop_assert_eq!(weights[i * columns + c], expected);
                }
            }
        }
    }
}
