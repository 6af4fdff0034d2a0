//! FP8 x FP8 product: weights E4M3 with a scale a row, activations quantized to E4M3 for each token
//! as it comes, sums in f32, both scales applied to the sum.

use rayon::prelude::*;
use smq_format::fp8;

use super::dense;
use super::lanes::Isa;

/// Floor under a token's `max|x|`, so that its scale is a normal number (`spec/method.md`, "FP8").
const MAX_ABS_FLOOR: f32 = 1e-12;

/// `m` activation rows as FP8.
#[derive(Debug, Clone)]
pub struct QuantizedX {
    /// The codes' values, `[m, cols]`.
    pub values: Vec<f32>,
    /// One a row, `[m]`.
    pub scales: Vec<f32>,
}

impl QuantizedX {
    /// Quantizes `x`, `[m, cols]`: each row's scale is `max|x| / 448`.
    pub fn new(x: &[f32], cols: usize) -> Self {
        let mut values = vec![0.0; x.len()];
        let scales = values
            .par_chunks_mut(cols)
            .zip(x.par_chunks(cols))
            .with_min_len(16)
            .map(|(values, x)| {
                let max_abs = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                let scale = max_abs.max(MAX_ABS_FLOOR) / fp8::MAX;
                for (value, x) in values.iter_mut().zip(x) {
                    *value = fp8::VALUES[usize::from(fp8::encode(x / scale))];
                }
                scale
            })
            .collect();
        Self { values, scales }
    }
}

/// `out[row, i] = (sum over columns of w[row, column] * x[i, column]) * scales`, `out` is
/// `[rows, m]`; `codes` are `[rows, cols]`, `scales` `[rows]`.
pub(crate) fn product(isa: Isa, codes: &[u8], scales: &[f32], x: &QuantizedX, out: &mut [f32]) {
    let m = x.scales.len();
    dense::product_e4m3(isa, codes, &x.values, m, out);
    for (out, scale) in out.chunks_exact_mut(m).zip(scales) {
        for (out, x_scale) in out.iter_mut().zip(&x.scales) {
            *out *= x_scale * scale;
        }
    }
}
