//! Elements that are stored as they are, and must be numbers.

use rayon::prelude::*;
use smq_format::{Dtype, widen};

use crate::quantize::QuantizeError;

/// Refuses a NaN or infinity, by its all-ones exponent.
pub(super) fn check_finite(
    bytes: &[u8],
    dtype: Dtype,
    columns: usize,
) -> Result<(), QuantizeError> {
    const BLOCK_BYTES: usize = 1 << 20;
    let elem = dtype.bytes();
    let bad_block = |block: &[u8]| match dtype {
        Dtype::Bf16 => any_all_ones(block, 0x7f80),
        Dtype::F16 => any_all_ones(block, 0x7c00),
        Dtype::F32 => block.as_chunks::<4>().0.iter().fold(false, |bad, b| {
            bad | (u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000)
        }),
    };
    let Some(block) = bytes.par_chunks(BLOCK_BYTES).position_first(bad_block) else {
        return Ok(());
    };
    let first = block * BLOCK_BYTES / elem;
    let block = &bytes[block * BLOCK_BYTES..bytes.len().min((block + 1) * BLOCK_BYTES)];
    let mut values = vec![0.0; block.len() / elem];
    widen(dtype, block, &mut values);
    let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(QuantizeError::NotFinite {
        row: (first + at) / columns.max(1),
        column: (first + at) % columns.max(1),
        value: values[at],
    })
}

/// Whether any u16 has all bits of `mask`; without an early exit, so that it vectorises.
fn any_all_ones(block: &[u8], mask: u16) -> bool {
    let words = block.as_chunks::<2>().0.iter();
    words.fold(false, |bad, b| {
        bad | (u16::from_le_bytes(*b) & mask == mask)
    })
}
