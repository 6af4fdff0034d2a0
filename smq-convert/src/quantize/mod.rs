//! Quantizes one tensor: codes, scales and error figures; int4 in a single pass over its weights, a
//! code book that is learned in two.
//!
//! The arithmetic is `spec/method.md`. Every sum has a fixed order (16 lanes within a group, then
//! groups, then rows), so the result does not depend on the number of threads or on the processor.

mod fp8;
mod grid;
mod keep;
mod kernel;
mod levels;
mod nf4;
mod nf4_kernel;
mod restore;
mod settled;
mod statistics;
mod sums;

use rayon::prelude::*;
use smq_format::scale::{ScaleFormat, Zero, round_mantissa};
use smq_format::statistics::{ErrorSummary, TensorStatistics};
use smq_format::{Dtype, Family, Scheme, bits, int4};
pub use smq_format::{LevelChoice, Levels};

use fp8::quantize_fp8;
use grid::Book;
pub(crate) use grid::Grid;
pub(crate) use keep::keep;
use kernel::GroupError;
pub(crate) use kernel::{Isa, Kernel, LANES, ROUND, for_each_isa};
use nf4::quantize_nf4;
pub(crate) use nf4::{SettledAbsmax, settled_nf4};
pub(crate) use restore::restore;
pub(crate) use settled::{SettledScales, settled};
pub use smq_format::{ScaleChoice, ScaleRule};
use statistics::RowSums;

/// The published reference's floor under `max|w|`.
const MAX_ABS_FLOOR: f32 = 1e-8;

/// What quantized weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Integers with a scale a group (`int4-*`).
    Int4(QuantizeOptions),
    /// Indices into a code book, with a scale a group (`lut4-*`).
    Lut4 {
        /// Groups, scales and rule, as for int4.
        options: QuantizeOptions,
        /// Where the levels come from.
        levels: LevelChoice,
    },
    /// bitsandbytes' NF4 with double quantization (`nf4-dq`).
    Nf4,
    /// FP8 E4M3 with a scale a row (`fp8-e4m3`).
    Fp8,
}

impl Method {
    /// Which kind it is, whatever its options; what the command line calls it.
    pub fn family(self) -> Family {
        match self {
            Method::Int4(_) => Family::Int4,
            Method::Lut4 { .. } => Family::Lut4,
            Method::Nf4 => Family::Nf4,
            Method::Fp8 => Family::Fp8,
        }
    }

    /// Group, scales and rule, of a method that has them.
    pub fn options(self) -> Option<QuantizeOptions> {
        match self {
            Method::Int4(options) | Method::Lut4 { options, .. } => Some(options),
            Method::Nf4 | Method::Fp8 => None,
        }
    }

    /// What the codes of a matrix `w` with rows of `columns` stand for; `None` where groups have no
    /// scale of their own to choose.
    ///
    /// # Errors
    /// The first weight that is not finite.
    pub(crate) fn grid(self, w: &[f32], columns: usize) -> Result<Option<Grid>, QuantizeError> {
        match self {
            Method::Int4(_) => Ok(Some(Grid::Int4)),
            Method::Lut4 { options, levels } => {
                let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
                let levels = levels::levels(levels, &bytes, Dtype::F32, columns, &options)?;
                Ok(Some(Grid::Book(Book::new(levels))))
            }
            Method::Nf4 | Method::Fp8 => Ok(None),
        }
    }

    /// Quantizes `[rows, columns]` elements of `dtype`, little-endian, at any alignment.
    ///
    /// # Errors
    /// The first weight that is not finite, or a scale over f16's range.
    pub fn quantize(
        self,
        name: &str,
        bytes: &[u8],
        dtype: Dtype,
        shape: (usize, usize),
    ) -> Result<Quantized, QuantizeError> {
        match self {
            Method::Int4(options) => quantize(name, bytes, dtype, shape, &options),
            Method::Lut4 { options, levels } => {
                let levels = levels::levels(levels, bytes, dtype, shape.1, &options)?;
                let grid = Grid::Book(Book::new(levels));
                quantize_grid(name, bytes, dtype, shape, &options, &grid)
            }
            Method::Nf4 => quantize_nf4(name, bytes, dtype, shape),
            Method::Fp8 => quantize_fp8(name, bytes, dtype, shape),
        }
    }
}

/// How a tensor is quantized to int4, or to a code book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// Consecutive elements of a row that share a scale.
    pub group: usize,
    /// What the scales become.
    pub scales: ScaleChoice,
    /// How they are chosen.
    pub rule: ScaleRule,
}

/// A quantized tensor: the bytes to store, and what they lose.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// How it is stored, with the tensor's bias.
    pub scheme: Scheme,
    /// The tensor's blobs, in the order of [`Scheme::blob_lengths`].
    pub blobs: Vec<Vec<u8>>,
    /// What was lost, group by group and in all.
    pub statistics: TensorStatistics,
}

/// Why a tensor cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QuantizeError {
    /// A NaN or infinity.
    NotFinite {
        /// Row of the element, from 0.
        row: usize,
        /// Column of the element, from 0.
        column: usize,
        /// The value, which is infinite or no number.
        value: f32,
    },
    /// A scale over f16's range.
    ScaleOverflow(f32),
}

/// A group's results before the tensor's bias is known.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    /// The exact scale, [`Grid::exact_scale`]; 0 for an all-zero group.
    exact: f32,
    /// The scale in use.
    stored: f32,
    /// `stored` is not what the rounding gave: it was under the window.
    under_window: bool,
    errors: GroupError,
    exact_errors: GroupError,
}

/// Quantizes `[rows, columns]` elements of `dtype`, little-endian, at any alignment, to int4.
///
/// # Errors
/// The first weight that is not finite, or a scale over f16's range.
pub fn quantize(
    name: &str,
    bytes: &[u8],
    dtype: Dtype,
    shape: (usize, usize),
    options: &QuantizeOptions,
) -> Result<Quantized, QuantizeError> {
    quantize_grid(name, bytes, dtype, shape, options, &Grid::Int4)
}

fn quantize_grid(
    name: &str,
    bytes: &[u8],
    dtype: Dtype,
    (rows, columns): (usize, usize),
    options: &QuantizeOptions,
    grid: &Grid,
) -> Result<Quantized, QuantizeError> {
    let kernel = Kernel::detect();
    let groups_a_row = columns.div_ceil(options.group);
    let row_bytes = int4::row_bytes(columns);
    let source_row_bytes = columns * dtype.bytes();
    let mut nibbles = vec![0u8; rows * row_bytes];
    let mut groups = vec![Group::default(); rows * groups_a_row];

    let quantize_row =
        |buffer: &mut RowBuffer, row: usize, nibbles: &mut [u8], groups: &mut [Group]| {
            let source = &bytes[row * source_row_bytes..(row + 1) * source_row_bytes];
            kernel.widen(dtype, source, &mut buffer.weights);
            for (g, group) in groups.iter_mut().enumerate() {
                let range = g * options.group..columns.min((g + 1) * options.group);
                *group = quantize_group(&kernel, options, grid, buffer, range.clone()).ok_or_else(
                    || first_not_finite(&buffer.weights[range], row, g * options.group),
                )?;
            }
            kernel.pack_row(&buffer.codes, nibbles);
            Ok(())
        };
    nibbles
        .par_chunks_mut(row_bytes)
        .zip(groups.par_chunks_mut(groups_a_row))
        .enumerate()
        .with_min_len(8)
        .try_for_each_init(
            || RowBuffer::new(columns),
            |buffer, (row, (nibbles, groups))| quantize_row(buffer, row, nibbles, groups),
        )?;

    let format = scale_format(options.scales, largest_scale(&groups))?;
    let codes: Vec<u32> = {
        let mut codes = vec![0; groups.len()];
        codes
            .par_chunks_mut(groups_a_row)
            .zip(groups.par_chunks_mut(groups_a_row))
            .zip(nibbles.par_chunks_mut(row_bytes))
            .enumerate()
            .with_min_len(64)
            .for_each(|(row, ((codes, groups), nibbles))| {
                let mut stale = Vec::new();
                for (g, (code, group)) in codes.iter_mut().zip(groups.iter_mut()).enumerate() {
                    let encoded = format.encode(group.stored);
                    *code = encoded.code;
                    if encoded.under_window {
                        group.stored = format.decode(encoded.code).unwrap_or(0.0);
                        group.under_window = true;
                        stale.push(g);
                    }
                }
                if stale.is_empty() {
                    return;
                }
                // Only now is the window known: redo the groups whose scale fell under it.
                let source = &bytes[row * source_row_bytes..(row + 1) * source_row_bytes];
                let mut buffer = RowBuffer::new(columns);
                kernel.widen(dtype, source, &mut buffer.weights);
                for (column, code) in buffer.codes[..columns].iter_mut().enumerate() {
                    let (low, high) = grid.unpack(nibbles[column / 2]);
                    *code = if column % 2 == 0 { low } else { high };
                }
                for g in stale {
                    let range = g * options.group..columns.min((g + 1) * options.group);
                    let (w, q) = (&buffer.weights[range.clone()], &mut buffer.codes[range]);
                    // Not finite weights have been refused.
                    let largest = kernel.max_abs(w).unwrap_or(f32::INFINITY);
                    groups[g].errors = grid.quantize(&kernel, (w, largest), groups[g].stored, q);
                }
                kernel.pack_row(&buffer.codes, nibbles);
            });
        codes
    };
    Ok(finish(
        name,
        &groups,
        nibbles,
        codes,
        grid.scheme(options, format),
        format,
        columns,
    ))
}

/// A tensor whose nibbles and scale codes are settled, with its statistics.
fn finish(
    name: &str,
    groups: &[Group],
    nibbles: Vec<u8>,
    codes: Vec<u32>,
    scheme: Scheme,
    format: ScaleFormat,
    columns: usize,
) -> Quantized {
    let group = scheme.group(columns).unwrap_or(columns);
    let exponents = statistics::exponents(&codes, |&code| format.decode(code));
    let statistics = statistics::summarise(name, groups, exponents, group, columns);
    Quantized {
        scheme,
        blobs: vec![nibbles, bits::pack(codes, format.width_bits())],
        statistics,
    }
}

fn largest_scale(groups: &[Group]) -> f32 {
    let scales = groups.par_iter().with_min_len(1 << 12);
    scales.map(|g| g.stored.abs()).reduce(|| 0.0, f32::max)
}

/// The format with the bias of a tensor whose largest scale, after rounding, is `largest`.
pub(crate) fn scale_format(
    choice: ScaleChoice,
    largest: f32,
) -> Result<ScaleFormat, QuantizeError> {
    let overflow = QuantizeError::ScaleOverflow(largest);
    match choice {
        ScaleChoice::F16 if largest > 65504.0 => Err(overflow),
        ScaleChoice::F32 | ScaleChoice::F16 | ScaleChoice::Mini { .. } => {
            choice.format(largest).ok_or(overflow)
        }
    }
}

/// The scale that `options` give the weights of a group, as its format rounds it, the window apart;
/// `None` where one is not finite.
pub(crate) fn group_scale(w: &[f32], options: &QuantizeOptions, grid: &Grid) -> Option<f32> {
    let mut buffer = RowBuffer {
        weights: w.to_vec(),
        codes: vec![0; w.len()],
    };
    let range = 0..w.len();
    quantize_group(&Kernel::detect(), options, grid, &mut buffer, range).map(|group| group.stored)
}

/// Quantizes the weights of `range`; `None` where one is not finite.
fn quantize_group(
    kernel: &Kernel,
    options: &QuantizeOptions,
    grid: &Grid,
    buffer: &mut RowBuffer,
    range: std::ops::Range<usize>,
) -> Option<Group> {
    let w = &buffer.weights[range.clone()];
    let q = &mut buffer.codes[range];
    let max_abs = kernel.max_abs(w)?;
    if max_abs == 0.0 {
        q.fill(grid.zero_code());
        return Some(Group::default());
    }
    let exact = grid.exact_scale(options.rule, w, max_abs);
    let mut stored = round_scale(options, exact);
    let w = (w, max_abs);
    let [mut errors, exact_errors] = match stored == exact {
        true => [grid.quantize(kernel, w, stored, q); 2],
        false => grid.quantize_beside(kernel, w, stored, exact, q),
    };
    if let Some(step) = neighbours(options) {
        for bits in [stored.to_bits() - step, stored.to_bits() + step] {
            let candidate = f32::from_bits(bits);
            let found = grid.errors(kernel, w, candidate);
            if candidate.is_normal() && found.squared_error < errors.squared_error {
                (stored, errors) = (candidate, found);
            }
        }
        errors = grid.quantize(kernel, w, stored, q);
    }
    Some(Group {
        exact,
        stored,
        under_window: options.scales == ScaleChoice::F16
            && stored.abs() < half::f16::MIN_POSITIVE.to_f32(),
        errors,
        exact_errors,
    })
}

/// The distance, in units of an f32's last place, of the scales beside a rounded one that the rule
/// tries too; `None` where it tries none. Exact scales have no neighbours, and f16's are not
/// searched.
fn neighbours(options: &QuantizeOptions) -> Option<u32> {
    match (options.rule, options.scales) {
        (ScaleRule::Search, ScaleChoice::Mini { mantissa_bits, .. }) => {
            Some(1 << (23 - mantissa_bits))
        }
        (ScaleRule::Search, ScaleChoice::F16 | ScaleChoice::F32)
        | (
            ScaleRule::Reference | ScaleRule::Nearest | ScaleRule::Signed | ScaleRule::Weighted,
            _,
        ) => None,
    }
}

/// A scale as its format rounds it, the window apart.
pub(crate) fn round_scale(options: &QuantizeOptions, s: f32) -> f32 {
    match options.scales {
        ScaleChoice::F32 => s,
        ScaleChoice::F16 => half::f16::from_f32(s).to_f32(),
        ScaleChoice::Mini { mantissa_bits, .. } => {
            let zero = match options.rule {
                ScaleRule::Reference => Zero::Truncate,
                ScaleRule::Nearest
                | ScaleRule::Search
                | ScaleRule::Signed
                | ScaleRule::Weighted => Zero::Nearest,
            };
            round_mantissa(s, mantissa_bits, zero)
        }
    }
}

fn first_not_finite(w: &[f32], row: usize, first_column: usize) -> QuantizeError {
    let at = w.iter().position(|v| !v.is_finite()).unwrap_or(0);
    QuantizeError::NotFinite {
        row,
        column: first_column + at,
        value: w[at],
    }
}

/// One row in f32 and its codes.
struct RowBuffer {
    weights: Vec<f32>,
    codes: Vec<i8>,
}

impl RowBuffer {
    fn new(columns: usize) -> Self {
        RowBuffer {
            weights: vec![0.0; columns],
            codes: vec![0; columns],
        }
    }
}

/// The error of rows that are already stored against their source, `[rows, columns]`: what
/// `smq-inspect --recheck` compares with the record. The sums have [`quantize()`]'s order, so they
/// are equal to the bit where nothing changed.
///
/// `source` and `stored` fill a row, `[columns]`, given its number.
///
/// # Errors
/// The first that `stored` returns.
pub(crate) fn remeasure<E: Send>(
    (rows, columns): (usize, usize),
    group: usize,
    source: impl Fn(usize, &mut [f32]) + Sync,
    stored: impl Fn(usize, &mut [f32]) -> Result<(), E> + Sync,
) -> Result<ErrorSummary, E> {
    let kernel = Kernel::detect();
    let groups_a_row = columns.div_ceil(group).max(1);
    let elems = (group, columns - columns.min((groups_a_row - 1) * group));
    let mut rel_mse = vec![0.0; rows * groups_a_row];
    let rows: Vec<_> = rel_mse
        .par_chunks_mut(groups_a_row)
        .enumerate()
        .with_min_len(8)
        .map_init(
            || (vec![0.0; columns], vec![0.0; columns]),
            |(w, v), (row, rel_mse)| {
                source(row, w);
                stored(row, v)?;
                let groups = w.chunks(group).zip(v.chunks(group));
                let errors = groups.map(|(w, v)| kernel.compare(w, v));
                Ok(RowSums::of(&kernel, errors, elems, rel_mse))
            },
        )
        .collect::<Result<_, E>>()?;
    Ok(statistics::summary(rows.into_iter(), rel_mse))
}

#[cfg(test)]
mod tests;
