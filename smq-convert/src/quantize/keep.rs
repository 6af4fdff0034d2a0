//! Tensors that are int4 already: integers kept, scales re-encoded.

use std::ops::Range;

use rayon::prelude::*;
use smq_format::int4;

use super::{
    Grid, Group, Kernel, QuantizeError, QuantizeOptions, Quantized, ScaleChoice, finish,
    largest_scale, round_scale, scale_format,
};

/// Rows that are read together, since one cache line of a column-major source serves as many.
const BLOCK_ROWS: usize = 16;

/// Keeps the integers of a `[rows, columns]` tensor and rounds its scales to `options`; the
/// statistics compare with `q s` of the source. `fill` puts nibbles `[rows, ceil(columns / 2)]` and
/// scales `[rows, groups]` of a range of rows.
///
/// As everywhere, an all-zero group stores code 0 (spec/method.md), but exact f32 scales stay as
/// they are.
///
/// # Errors
/// The first scale or weight that is not finite, or a scale over f16's range.
pub(crate) fn keep(
    name: &str,
    (rows, columns): (usize, usize),
    options: &QuantizeOptions,
    fill: impl Fn(Range<usize>, &mut [u8], &mut [f32]) + Sync,
) -> Result<Quantized, QuantizeError> {
    let groups_a_row = columns.div_ceil(options.group);
    let row_bytes = int4::row_bytes(columns);
    let mut nibbles = vec![0u8; rows * row_bytes];
    let mut scales = vec![0f32; rows * groups_a_row];
    nibbles
        .par_chunks_mut(BLOCK_ROWS * row_bytes)
        .zip(scales.par_chunks_mut(BLOCK_ROWS * groups_a_row))
        .enumerate()
        .for_each(|(block, (nibbles, scales))| {
            let first = block * BLOCK_ROWS;
            fill(first..first + nibbles.len() / row_bytes, nibbles, scales);
        });

    let kernel = Kernel::detect();
    let range_of = |g: usize| g * options.group..columns.min((g + 1) * options.group);
    let mut groups = vec![Group::default(); scales.len()];
    let row_groups = |w: &mut Vec<f32>, row: usize, scales: &[f32], groups: &mut [Group]| {
        let nibbles = &nibbles[row * row_bytes..(row + 1) * row_bytes];
        int4::dequantize_row(nibbles, scales, options.group, w);
        for (g, (group, &scale)) in groups.iter_mut().zip(scales).enumerate() {
            let largest = kernel
                .max_abs(&w[range_of(g)])
                .filter(|_| scale.is_finite());
            let largest = largest.ok_or(QuantizeError::NotFinite {
                row,
                column: g * options.group,
                value: w[range_of(g)]
                    .iter()
                    .copied()
                    .find(|v| !v.is_finite())
                    .unwrap_or(scale),
            })?;
            if largest == 0.0 {
                if options.scales == ScaleChoice::F32 {
                    group.stored = scale;
                }
                continue;
            }
            group.exact = scale;
            group.stored = round_scale(options, scale);
            let smallest_f16 = half::f16::MIN_POSITIVE.to_f32();
            group.under_window = group.stored == 0.0
                || (options.scales == ScaleChoice::F16 && group.stored.abs() < smallest_f16);
        }
        Ok(())
    };
    groups
        .par_chunks_mut(groups_a_row)
        .zip(scales.par_chunks(groups_a_row))
        .enumerate()
        .with_min_len(8)
        .try_for_each_init(
            || vec![0f32; columns],
            |w, (row, (groups, scales))| row_groups(w, row, scales, groups),
        )?;

    let format = scale_format(options.scales, largest_scale(&groups))?;
    let mut codes = vec![0u32; groups.len()];
    codes
        .par_chunks_mut(groups_a_row)
        .zip(groups.par_chunks_mut(groups_a_row))
        .zip(scales.par_chunks_mut(groups_a_row))
        .enumerate()
        .with_min_len(8)
        .for_each_init(
            || (vec![0f32; columns], vec![0f32; columns]),
            |(w, v), (row, ((codes, groups), scales))| {
                let nibbles = &nibbles[row * row_bytes..(row + 1) * row_bytes];
                int4::dequantize_row(nibbles, scales, options.group, w);
                for ((code, group), scale) in
                    codes.iter_mut().zip(groups.iter_mut()).zip(&mut *scales)
                {
                    let encoded = format.encode(group.stored);
                    *code = encoded.code;
                    group.under_window |= encoded.under_window;
                    group.stored = format.decode(encoded.code).unwrap_or(0.0);
                    *scale = group.stored;
                }
                int4::dequantize_row(nibbles, scales, options.group, v);
                for (g, group) in groups.iter_mut().enumerate() {
                    let w = &w[range_of(g)];
                    group.errors = kernel.compare(w, &v[range_of(g)]);
                    group.exact_errors = kernel.compare(w, w);
                }
            },
        );
    Ok(finish(
        name,
        &groups,
        nibbles,
        codes,
        Grid::Int4.scheme(options, format),
        format,
        columns,
    ))
}
