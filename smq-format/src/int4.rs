//! Signed 4-bit integers, two a byte: low nibble = even column, high nibble = odd column.
//!
//! Rows are padded to whole bytes; the unused nibble of an odd row is zero.

/// Bytes of one row of `columns` nibbles.
pub fn row_bytes(columns: usize) -> usize {
    columns.div_ceil(2)
}

/// Packs a row of integers in -8..=7 into `out`, of [`row_bytes`] bytes.
///
/// Always inlined, so that a caller compiled for a wider instruction set gets a wide loop.
#[inline(always)]
pub fn pack_row(row: &[i8], out: &mut [u8]) {
    let (pairs, last) = row.as_chunks::<2>();
    for (byte, [even, odd]) in out.iter_mut().zip(pairs) {
        *byte = (*even as u8 & 15) | (*odd as u8) << 4;
    }
    if let (Some(byte), [even]) = (out.get_mut(pairs.len()), last) {
        *byte = *even as u8 & 15;
    }
}

/// The two integers of a byte, even column first.
#[inline]
pub fn unpack(byte: u8) -> (i8, i8) {
    ((byte << 4) as i8 >> 4, byte as i8 >> 4)
}

/// Dequantizes one row: `out[c] = q[c] * scales[c / group]` in f32. `scales` holds the row's
/// groups.
pub fn dequantize_row(nibbles: &[u8], scales: &[f32], group: usize, out: &mut [f32]) {
    // Whole groups of an even length start at a byte, so each is a plain loop over bytes.
    if group.is_multiple_of(2) {
        for ((out, nibbles), &scale) in out
            .chunks_mut(group)
            .zip(nibbles.chunks(group / 2))
            .zip(scales)
        {
            let mut pairs = out.chunks_exact_mut(2);
            for (pair, &byte) in (&mut pairs).zip(nibbles) {
                let (low, high) = unpack(byte);
                pair[0] = f32::from(low) * scale;
                pair[1] = f32::from(high) * scale;
            }
            if let ([last], Some(&byte)) = (pairs.into_remainder(), nibbles.last()) {
                *last = f32::from(unpack(byte).0) * scale;
            }
        }
    } else {
        dequantize_row_naive(nibbles, scales, group, out);
    }
}

/// The definition of [`dequantize_row`], column by column.
pub fn dequantize_row_naive(nibbles: &[u8], scales: &[f32], group: usize, out: &mut [f32]) {
    for (column, out) in out.iter_mut().enumerate() {
        let (low, high) = unpack(nibbles[column / 2]);
        let q = if column % 2 == 0 { low } else { high };
        *out = f32::from(q) * scales[column / group];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nibble_order_and_sign() {
        let mut bytes = [0; 2];
        pack_row(&[-8, 7, -1], &mut bytes);
        assert_eq!(bytes, [0x78, 0x0f]);
        assert_eq!((unpack(0x78), unpack(0x0f)), ((-8, 7), (-1, 0)));
    }

    proptest! {
        #[test]
        fn packs_and_dequantizes(row in prop::collection::vec(-8i8..=7, 1..300), group in 1usize..140) {
            let mut bytes = vec![0xff; row_bytes(row.len())];
            pack_row(&row, &mut bytes);
            let scales: Vec<f32> = (0..row.len().div_ceil(group)).map(|g| 0.25 + g as f32).collect();
            let expected: Vec<f32> = row.iter().enumerate().map(|(c, &q)| f32::from(q) * scales[c / group]).collect();
            for dequantize in [dequantize_row, dequantize_row_naive] {
                let mut out = vec![f32::NAN; row.len()];
                dequantize(&bytes, &scales, group, &mut out);
                prop_assert_eq!(&out, &expected);
            }
        }
    }
}
