//! FP8 E4M3FN with one scale a row (`spec/method.md`, "FP8").

use rayon::prelude::*;
use smq_format::{Dtype, Scheme, fp8};

use super::statistics::{exponents, summarise};
use super::{Group, Kernel, QuantizeError, Quantized, first_not_finite};

/// Floor under a row's `max|w|`, so that its scale is a normal number.
const MAX_ABS_FLOOR: f32 = 1e-12;

/// Quantizes `[rows, columns]` elements of `dtype`, little-endian, at any alignment, to `fp8-e4m3`.
///
/// # Errors
/// The first weight that is not finite.
pub fn quantize_fp8(
    name: &str,
    bytes: &[u8],
    dtype: Dtype,
    (rows, columns): (usize, usize),
) -> Result<Quantized, QuantizeError> {
    let kernel = Kernel::detect();
    let mut codes = vec![0; rows * columns];
    let mut groups = vec![Group::default(); rows];
    let quantize_row = |w: &mut [f32], v: &mut [f32], row: usize, q: &mut [u8]| {
        let row_bytes = columns * dtype.bytes();
        kernel.widen(dtype, &bytes[row * row_bytes..(row + 1) * row_bytes], w);
        let max_abs = kernel
            .max_abs(w)
            .ok_or_else(|| first_not_finite(w, row, 0))?;
        let scale = max_abs.max(MAX_ABS_FLOOR) / fp8::MAX;
        kernel.fp8_codes(w, scale, q);
        for (v, &q) in v.iter_mut().zip(&*q) {
            *v = fp8::VALUES[usize::from(q)] * scale;
        }
        let errors = kernel.compare(w, v);
        Ok(Group {
            exact: max_abs,
            stored: scale,
            errors,
            exact_errors: errors,
            ..Group::default()
        })
    };
    codes
        .par_chunks_mut(columns)
        .zip(&mut groups)
        .enumerate()
        .with_min_len(8)
        .try_for_each_init(
            || (vec![0.0; columns], vec![0.0; columns]),
            |(w, v), (row, (codes, group))| {
                *group = quantize_row(w, v, row, codes)?;
                Ok(())
            },
        )?;
    let scales = groups.iter().map(|g| g.stored);
    Ok(Quantized {
        scheme: Scheme::Fp8,
        statistics: summarise(name, &groups, exponents(scales.clone()), columns, columns),
        blobs: vec![codes, scales.flat_map(f32::to_le_bytes).collect()],
    })
}
