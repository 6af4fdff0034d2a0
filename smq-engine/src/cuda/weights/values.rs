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

/// The kernels decode any code; only valid ones mean something. The scales of all matrices at once:
/// those of one are too few for many threads, which take longer to wake than to check them.
pub(super) fn check_codes(scales: &[(String, Scales<'_>)]) -> Result<()> {
    const CHUNK: usize = 1 << 14;
    let chunks = scales.iter().flat_map(|(name, scales)| {
        let first = (0..scales.count).step_by(CHUNK);
        first.map(move |first| (name, scales, first..(first + CHUNK).min(scales.count)))
    });
    let chunks: Vec<_> = chunks.collect();
    chunks.into_par_iter().try_for_each_init(
        || vec![0.0; CHUNK],
        |out, (name, scales, range)| {
            let out = &mut out[..range.len()];
            let decoded = scales.decode(range, out);
            decoded.map_err(|e| Error::tensor(name, e.to_string()))
        },
    )
}
