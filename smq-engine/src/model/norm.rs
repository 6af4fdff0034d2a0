//! RMSNorm (arXiv 1910.07467), as Hugging Face orders it: normalise, then multiply by the weight.

/// `out = x / sqrt(mean(x^2) + eps) * weight` for each row of `x`, `[m, hidden]`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let square_sum: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let mean = (square_sum / row.len() as f64) as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        out.extend(row.iter().zip(weight).map(|(v, w)| v * scale * w));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_unit_rms_times_weight() {
        let out = rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0);
        let rms = 12.5f32.sqrt();
        assert!((out[0] - 3.0 / rms).abs() < 1e-6 && (out[1] - 8.0 / rms).abs() < 1e-6);
        assert!(out[2].is_nan(), "a zero row without eps is 0/0");
        assert_eq!(rms_norm(&[0.0, 0.0], &[1.0, 2.0], 1e-5), [0.0, 0.0]);
    }
}
