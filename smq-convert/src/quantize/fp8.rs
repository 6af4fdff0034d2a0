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
pub(super) fn quantize_fp8(
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
    let exponents = exponents(&groups, |g| Some(g.stored));
    Ok(Quantized {
        scheme: Scheme::Fp8,
        statistics: summarise(name, &groups, exponents, columns, columns),
        blobs: vec![codes, scales.flat_map(f32::to_le_bytes).collect()],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smq_format::fp8::{VALUES, encode_naive};

    use super::*;

    fn f32_bytes(w: &[f32]) -> Vec<u8> {
        w.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn equals_its_definition(
            columns in 1usize..300,
            w in prop::collection::vec(-4f32..4.0, 300..1200),
        ) {
            let w = &w[..w.len() / columns * columns];
            let rows = w.len() / columns;
            let q = quantize_fp8("w", &f32_bytes(w), Dtype::F32, (rows, columns)).unwrap();
            prop_assert_eq!(q.scheme, Scheme::Fp8);
            for (row, w) in w.chunks(columns).enumerate() {
                let largest = w.iter().fold(0f32, |m, v| m.max(v.abs()));
                let scale = largest.max(1e-12) / 448.0;
                prop_assert_eq!(&q.blobs[1][4 * row..4 * row + 4], &scale.to_le_bytes());
                let codes: Vec<u8> = w.iter().map(|v| encode_naive(v / scale)).collect();
                prop_assert_eq!(&q.blobs[0][row * columns..(row + 1) * columns], &codes);
            }
            prop_assert_eq!(q.statistics.groups, rows as u64);
            prop_assert_eq!(q.statistics.stored, q.statistics.exact);
        }
    }

    #[test]
    fn the_largest_element_is_448_and_zero_rows_stay_zero() {
        let w = [0.0, 0.0, -3.0, 1.5, f32::MAX, 1.0];
        let q = quantize_fp8("w", &f32_bytes(&w), Dtype::F32, (3, 2)).unwrap();
        assert_eq!(q.blobs[0], [0, 0, 0xfe, 0x76, 0x7e, 0]);
        assert_eq!((VALUES[0xfe], VALUES[0x76]), (-448.0, 224.0));
        assert_eq!(q.statistics.zero_groups, 1);
        let w = [1.0, f32::INFINITY];
        let error = quantize_fp8("w", &f32_bytes(&w), Dtype::F32, (2, 1)).unwrap_err();
        let at = QuantizeError::NotFinite {
            row: 1,
            column: 0,
            value: f32::INFINITY,
        };
        assert_eq!(error, at);
    }
}
