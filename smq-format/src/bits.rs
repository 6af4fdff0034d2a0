//! LSB-first bit stream of fixed-width codes (`spec/format.md`, "Scale stream").
//!
//! Code `i` of width `w` occupies bits `[i*w, (i+1)*w)`, where bit `b` is bit `b % 8` of byte `b /
//! 8`.

/// Zero bytes that end every scale blob, so that a kernel may read two aligned u32 at any code.
pub const STREAM_TAIL_BYTES: usize = 8;

/// Bytes of a stream of `codes` codes of `width_bits` each, tail included; `None` on overflow.
pub fn stream_bytes(codes: u64, width_bits: u32) -> Option<u64> {
    let bits = codes.checked_mul(u64::from(width_bits))?;
    bits.div_ceil(8).checked_add(STREAM_TAIL_BYTES as u64)
}

/// Packs `codes`, each below `2^width_bits` (1 to 32), and appends the zero tail.
pub fn pack(codes: impl IntoIterator<Item = u32>, width_bits: u32) -> Vec<u8> {
    debug_assert!((1..=32).contains(&width_bits));
    let mut out = Vec::new();
    let (mut pending, mut pending_bits) = (0u64, 0u32);
    for code in codes {
        debug_assert!(u64::from(code) < 1 << width_bits);
        pending |= u64::from(code) << pending_bits;
        pending_bits += width_bits;
        while pending_bits >= 8 {
            out.push(pending as u8);
            pending >>= 8;
            pending_bits -= 8;
        }
    }
    if pending_bits > 0 {
        out.push(pending as u8);
    }
    out.resize(out.len() + STREAM_TAIL_BYTES, 0);
    out
}

/// Code `i` of a stream that carries its zero tail; `width_bits` is 1 to 32.
///
/// # Panics
/// Where `i` is past the end of the stream (a slice bound).
#[inline]
pub fn code_at(stream: &[u8], width_bits: u32, i: usize) -> u32 {
    let bit = i as u64 * u64::from(width_bits);
    let byte = (bit / 8) as usize;
    let mut window = [0u8; 8];
    window.copy_from_slice(&stream[byte..byte + 8]);
    let mask = (1u64 << width_bits) - 1;
    ((u64::from_le_bytes(window) >> (bit % 8)) & mask) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One bit at a time.
    fn code_at_naive(stream: &[u8], width_bits: u32, i: usize) -> u32 {
        (0..width_bits).fold(0, |code, b| {
            let bit = i * width_bits as usize + b as usize;
            code | u32::from(stream[bit / 8] >> (bit % 8) & 1) << b
        })
    }

    proptest! {
        #[test]
        fn packs_and_reads_back(width in 1u32..=32, raw in prop::collection::vec(any::<u32>(), 0..200)) {
            let codes: Vec<u32> = raw.iter().map(|c| (u64::from(*c) & ((1u64 << width) - 1)) as u32).collect();
            let stream = pack(codes.iter().copied(), width);
            prop_assert_eq!(stream.len() as u64, stream_bytes(codes.len() as u64, width).unwrap());
            for (i, code) in codes.iter().enumerate() {
                prop_assert_eq!(code_at(&stream, width, i), *code);
                prop_assert_eq!(code_at_naive(&stream, width, i), *code);
            }
        }
    }

    #[test]
    fn bit_order_is_lsb_first() {
        assert_eq!(
            pack([0b000_0000_0001, 0b100_0000_0000], 11)[..3],
            [0x01, 0x00, 0x20]
        );
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(stream_bytes(0, 11), Some(8));
        assert_eq!(stream_bytes(u64::MAX / 2, 11), None);
    }
}
