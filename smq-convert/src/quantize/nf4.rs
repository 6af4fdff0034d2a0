//! NF4 with double quantization as bitsandbytes 0.50.2 computes it on a CPU (`spec/method.md`,
//! "NF4").
//!
//! Two passes: each block's absmax and nibbles, and the errors. The absmax values are quantized in
//! between, which takes one pass over a 64th of the data.

use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;
use smq_format::nf4::{
    ABSMAX_MIDPOINTS, BLOCK_ELEMS, NESTED_BLOCK_CODES, absmax, blocks, dequantize, pack,
};
use smq_format::{Defect, Dtype, Nf4Scales, Scheme};

use super::kernel::GroupError;
use super::statistics::{exponents, summarise};
use super::{Group, Kernel, QuantizeError, Quantized, first_not_finite};

/// Blocks that one task takes: whole bytes of nibbles, since a block has 32.
const TASK_BLOCKS: usize = 1024;
/// Blocks whose errors are found together, so that they stay in the nearest cache.
const GROUP_TASK_BLOCKS: usize = 32;
/// Entries of the table that an absmax code is looked up in.
const TABLE_LEN: usize = 1 << 16;

/// Quantizes `[rows, columns]` elements of `dtype`, little-endian, at any alignment, to `nf4-dq`.
///
/// # Errors
/// The first weight that is not finite.
pub(super) fn quantize_nf4(
    name: &str,
    bytes: &[u8],
    dtype: Dtype,
    (rows, columns): (usize, usize),
) -> Result<Quantized, QuantizeError> {
    let kernel = Kernel::detect();
    let source = Source {
        kernel,
        bytes,
        dtype,
        elems: rows * columns,
    };
    let (exact, nibbles) = source.blocks();
    if let Some(block) = exact
        .par_iter()
        .position_first(|absmax| !absmax.is_finite())
    {
        let first = block * BLOCK_ELEMS;
        let mut w = vec![0.0; BLOCK_ELEMS.min(source.elems - first)];
        source.widen(first..first + w.len(), &mut w);
        return Err(first_not_finite_of(&w, first, columns));
    }
    let absmax = SettledAbsmax::new(&exact);
    let groups = source.groups(columns, &nibbles, &exact, &absmax.values);
    Ok(finish(name, columns, &groups, nibbles, absmax))
}

/// Absmax values as the file will hold them.
#[derive(Debug)]
pub(crate) struct SettledAbsmax {
    offset: f32,
    codes: Vec<u8>,
    nested: Vec<f32>,
    /// Dequantized, one a block.
    pub(crate) values: Vec<f32>,
}

impl SettledAbsmax {
    /// Double-quantizes the blocks' exact absmax values.
    pub(crate) fn new(exact: &[f32]) -> Self {
        let offset = mean(exact);
        let (codes, nested) = quantize_absmax(exact, offset);
        let values = codes
            .par_iter()
            .with_min_len(NESTED_BLOCK_CODES)
            .enumerate()
            .map(|(block, &code)| absmax(code, nested[block / NESTED_BLOCK_CODES], offset))
            .collect();
        Self {
            offset,
            codes,
            nested,
            values,
        }
    }

    /// As a file holds them.
    ///
    /// # Errors
    /// A nested absmax that is not finite.
    pub(super) fn stored(scales: &Nf4Scales) -> Result<Self, Defect> {
        let nested = 0..scales.absmax.len().div_ceil(NESTED_BLOCK_CODES);
        Ok(Self {
            offset: scales.offset,
            codes: scales.absmax.to_vec(),
            nested: nested.map(|i| scales.nested(i)).collect::<Result<_, _>>()?,
            values: scales.decode_all()?,
        })
    }

    /// Takes for each block, of all values that its code can have, what `best` says, and keeps
    /// what it had where `best` says nothing. The offset and the nested absmax values stay.
    pub(crate) fn choose(
        &mut self,
        best: impl Fn(usize, &mut dyn Iterator<Item = f32>) -> Option<f32> + Sync,
    ) {
        let (nested, offset) = (&self.nested, self.offset);
        let codes = self.codes.par_iter_mut().zip(&mut self.values);
        codes.enumerate().for_each(|(block, (code, value))| {
            let of = |code: u8| absmax(code, nested[block / NESTED_BLOCK_CODES], offset);
            if let Some(found) = best(block, &mut (0..=u8::MAX).map(of)) {
                let first = (0..=u8::MAX).find(|&code| of(code) == found);
                (*code, *value) = (first.unwrap_or(*code), found);
            }
        });
    }
}

/// The tensor with `codes`, `[rows, columns]` and below 16, under `absmax`; its errors are against
/// `w`, and those of exact absmax values are plain quantization's.
pub(crate) fn settled_nf4(
    name: &str,
    w: &[f32],
    columns: usize,
    absmax: SettledAbsmax,
    codes: &[i8],
) -> Quantized {
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let source = Source {
        kernel: Kernel::detect(),
        bytes: &bytes,
        dtype: Dtype::F32,
        elems: w.len(),
    };
    let largest = |w: &[f32]| source.kernel.max_abs(w).unwrap_or_default();
    let exact: Vec<f32> = w.par_chunks(BLOCK_ELEMS).map(largest).collect();
    let codes: Vec<u8> = codes.iter().map(|q| q.cast_unsigned()).collect();
    let mut nibbles = vec![0; codes.len().div_ceil(2)];
    pack(&codes, &mut nibbles);
    let mut groups = source.groups(columns, &nibbles, &exact, &absmax.values);
    let plain = source.groups(columns, &source.blocks().1, &exact, &exact);
    for (group, plain) in groups.iter_mut().zip(plain) {
        group.exact_errors = plain.exact_errors;
    }
    finish(name, columns, &groups, nibbles, absmax)
}

fn finish(
    name: &str,
    columns: usize,
    groups: &[Group],
    nibbles: Vec<u8>,
    absmax: SettledAbsmax,
) -> Quantized {
    let exponents = exponents(&absmax.values, |&absmax| Some(absmax));
    Quantized {
        scheme: Scheme::Nf4 {
            offset_bits: absmax.offset.to_bits(),
        },
        statistics: summarise(name, groups, exponents, BLOCK_ELEMS, columns),
        blobs: vec![
            nibbles,
            absmax.codes,
            absmax.nested.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ],
    }
}

/// The tensor's elements, flattened.
struct Source<'a> {
    kernel: Kernel,
    bytes: &'a [u8],
    dtype: Dtype,
    elems: usize,
}

impl Source<'_> {
    fn widen(&self, elems: Range<usize>, out: &mut [f32]) {
        let width = self.dtype.bytes();
        let bytes = &self.bytes[elems.start * width..elems.end * width];
        self.kernel.widen(self.dtype, bytes, out);
    }

    /// `max|w|` and the nibbles of each block, as [`Kernel::nf4_blocks`] has them.
    fn blocks(&self) -> (Vec<f32>, Vec<u8>) {
        let mut absmax = vec![0.0; blocks(self.elems)];
        let mut nibbles = vec![0; self.elems.div_ceil(2)];
        let elems = TASK_BLOCKS * BLOCK_ELEMS;
        self.bytes
            .par_chunks(elems * self.dtype.bytes())
            .zip(absmax.par_chunks_mut(TASK_BLOCKS))
            .zip(nibbles.par_chunks_mut(elems / 2))
            .for_each(|((bytes, absmax), nibbles)| {
                self.kernel.nf4_blocks(self.dtype, bytes, absmax, nibbles);
            });
        (absmax, nibbles)
    }

    /// The errors of each run of [`BLOCK_ELEMS`] elements of a row, with the stored absmax and the
    /// exact one.
    fn groups(&self, columns: usize, nibbles: &[u8], exact: &[f32], stored: &[f32]) -> Vec<Group> {
        match columns.is_multiple_of(BLOCK_ELEMS) {
            true => self.groups_of_blocks(nibbles, exact, stored),
            false => self.groups_of_rows(columns, nibbles, exact, stored),
        }
    }

    /// [`Self::groups`] where each run is a block.
    fn groups_of_blocks(&self, nibbles: &[u8], exact: &[f32], stored: &[f32]) -> Vec<Group> {
        let mut groups = vec![Group::default(); exact.len()];
        let elems = GROUP_TASK_BLOCKS * BLOCK_ELEMS;
        groups
            .par_chunks_mut(GROUP_TASK_BLOCKS)
            .zip(self.bytes.par_chunks(elems * self.dtype.bytes()))
            .zip(nibbles.par_chunks(elems / 2))
            .zip(exact.par_chunks(GROUP_TASK_BLOCKS))
            .zip(stored.par_chunks(GROUP_TASK_BLOCKS))
            .with_min_len(16)
            .for_each(|((((groups, bytes), nibbles), exact), stored)| {
                let mut absmax = [[0.0; 2]; GROUP_TASK_BLOCKS];
                let mut errors = [[GroupError::default(); 2]; GROUP_TASK_BLOCKS];
                for (pair, (stored, exact)) in absmax.iter_mut().zip(stored.iter().zip(exact)) {
                    *pair = [*stored, *exact];
                }
                self.kernel
                    .nf4_errors(self.dtype, bytes, nibbles, &absmax, &mut errors);
                for ((group, [errors, exact_errors]), exact) in
                    groups.iter_mut().zip(errors).zip(exact)
                {
                    group.exact = *exact;
                    group.errors = errors;
                    group.exact_errors = exact_errors;
                }
            });
        groups
    }

    /// [`Self::groups`] where a block may run over the end of a row; of other columns the twin of
    /// [`Self::groups_of_blocks`].
    fn groups_of_rows(
        &self,
        columns: usize,
        nibbles: &[u8],
        exact: &[f32],
        stored: &[f32],
    ) -> Vec<Group> {
        let groups_a_row = columns.div_ceil(BLOCK_ELEMS);
        let mut groups = vec![Group::default(); self.elems / columns * groups_a_row];
        let ones = vec![1.0; groups_a_row + 1];
        groups
            .par_chunks_mut(groups_a_row)
            .enumerate()
            .with_min_len(8)
            .for_each_init(
                || [(); 3].map(|()| vec![0.0; columns]),
                |[w, v, v_exact], (row, groups)| {
                    let first = row * columns;
                    self.widen(first..first + columns, w);
                    // The codes' values, looked up once; a value times 1 is itself.
                    dequantize(nibbles, &ones, first, v);
                    v_exact.copy_from_slice(v);
                    scale(v_exact, &exact[first / BLOCK_ELEMS..], first);
                    scale(v, &stored[first / BLOCK_ELEMS..], first);
                    let runs = w.chunks(BLOCK_ELEMS).zip(v.chunks(BLOCK_ELEMS));
                    let runs = runs.zip(v_exact.chunks(BLOCK_ELEMS));
                    for (group, ((w, v), v_exact)) in groups.iter_mut().zip(runs) {
                        group.exact = self.kernel.max_abs(w).unwrap_or_default();
                        group.errors = self.kernel.compare(w, v);
                        group.exact_errors = self.kernel.compare(w, v_exact);
                    }
                },
            );
        groups
    }
}

/// Multiplies the elements from `first` of the flattened tensor with their block's absmax; `absmax`
/// starts with the first one's.
fn scale(values: &mut [f32], absmax: &[f32], first: usize) {
    let (head, blocks) = values.split_at_mut(values.len().min(head_elems(first)));
    let blocks = blocks.chunks_mut(BLOCK_ELEMS);
    let head = Some(head).filter(|head| !head.is_empty());
    for (values, absmax) in head.into_iter().chain(blocks).zip(absmax) {
        values.iter_mut().for_each(|v| *v *= absmax);
    }
}

/// Elements before the first block that starts at or after `first`.
fn head_elems(first: usize) -> usize {
    first.next_multiple_of(BLOCK_ELEMS) - first
}

fn first_not_finite_of(w: &[f32], first: usize, columns: usize) -> QuantizeError {
    let at = w.iter().position(|v| !v.is_finite()).unwrap_or(0);
    let (row, column) = ((first + at) / columns, (first + at) % columns);
    first_not_finite(&w[at..], row, column)
}

/// In f64 and in order: as near to the mean as f32 is, at any number of threads.
fn mean(absmax: &[f32]) -> f32 {
    let sum: f64 = absmax.iter().copied().map(f64::from).sum();
    (sum / absmax.len().max(1) as f64) as f32
}

/// Codes, one for each absmax, and the nested absmax of each 256.
fn quantize_absmax(absmax: &[f32], offset: f32) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; absmax.len()];
    let nested = absmax
        .par_chunks(NESTED_BLOCK_CODES)
        .zip(codes.par_chunks_mut(NESTED_BLOCK_CODES))
        .with_min_len(8)
        .map(|(absmax, codes)| {
            let nested = absmax.iter().fold(0f32, |m, v| m.max((v - offset).abs()));
            if nested != 0.0 {
                let inverse = 1.0 / nested;
                for (code, absmax) in codes.iter_mut().zip(absmax) {
                    *code = absmax_code((absmax - offset) * inverse);
                }
            }
            nested
        })
        .collect();
    (codes, nested)
}

/// The code of a normalized absmax: looked up at the nearest of 65,536 points, as bitsandbytes
/// does.
fn absmax_code(v: f32) -> u8 {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let last = (TABLE_LEN - 1) as f32;
        let point = |i: usize| (2 * i) as f32 / last - 1.0;
        // Points ascend, so the count of midpoints below them does.
        let below = |v: f32| ABSMAX_MIDPOINTS.partition_point(|m| *m < v) as u8;
        (0..TABLE_LEN).map(|i| below(point(i))).collect()
    });
    let unit = (v.clamp(-1.0, 1.0) + 1.0) * 0.5;
    // The multiply-add is rounded once. A NaN, of an absmax whose reciprocal overflowed, becomes
    // point 0.
    let point = unit.mul_add((TABLE_LEN - 1) as f32, 0.5) as usize;
    TABLE[point.min(TABLE_LEN - 1)]
}

#[cfg(test)]
mod tests;
