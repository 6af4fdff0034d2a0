//! Values as they are stored: rounded to what the kernels multiply, and checked.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;
use smq_format::{Dtype, Scales};

use crate::error::{Error, Result};

/// f16 and f32 weights are rounded to bf16, what the kernels multiply.
pub(super) fn to_bf16(dtype: Dtype, bytes: &[u8]) -> Cow<'_, [u8]> {
    if dtype == Dtype::Bf16 {
        return Cow::Borrowed(bytes);
    }
    const CHUNK: usize = 1 << 16;
    let mut out = vec![0u8; bytes.len() / dtype.bytes() * 2];
    out.par_chunks_mut(2 * CHUNK)
        .zip(bytes.par_chunks(dtype.bytes() * CHUNK))
        .for_each(|(out, bytes)| {
            let mut wide = vec![0.0; out.len() / 2];
            smq_format::widen(dtype, bytes, &mut wide);
            for (out, v) in out.chunks_exact_mut(2).zip(wide) {
                out.copy_from_slice(&bf16::from_f32(v).to_le_bytes());
            }
        });
    Cow::Owned(out)
}

/// The kernels decode any code; only valid ones mean something.
pub(super) fn check_codes(name: &str, scales: Scales<'_>) -> Result<()> {
    const CHUNK: usize = 1 << 14;
    (0..scales.count.div_ceil(CHUNK))
        .into_par_iter()
        .try_for_each(|i| {
            let range = i * CHUNK..((i + 1) * CHUNK).min(scales.count);
            let mut out = vec![0.0; range.len()];
            scales
                .decode(range, &mut out)
                .map_err(|e| Error::tensor(name, e.to_string()))
        })
}
