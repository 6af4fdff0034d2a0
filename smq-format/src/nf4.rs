//! NF4 with double quantization, as bitsandbytes 0.50.2 has it (Dettmers et al. 2023, QLoRA;
//! `spec/format.md`).
//!
//! Blocks run over the flattened row-major tensor. A block of [`BLOCK_ELEMS`] elements has an
//! absmax, of which one byte is stored; [`NESTED_BLOCK_CODES`] of these share a nested absmax, and
//! all of a tensor's one offset.

/// Elements of a block, which share an absmax.
pub const BLOCK_ELEMS: usize = 64;
/// Absmax codes that share a nested absmax.
pub const NESTED_BLOCK_CODES: usize = 256;
/// Code of the value 0.
pub const ZERO_CODE: u8 = 7;

/// The value of each 4-bit code, ascending.
pub const VALUES: [f32; 16] = of_bits([
    0xbf80_0000,
    0xbf32_39b1,
    0xbf06_6b30,
    0xbeca_32a0,
    0xbe91_a24d,
    0xbe3d_353f,
    0xbdba_7871,
    0x0000_0000,
    0x3da2_faff,
    0x3e24_cae3,
    0x3e7c_04dd,
    0x3ead_033a,
    0x3ee1_a4b8,
    0x3f10_07ab,
    0x3f39_13b3,
    0x3f80_0000,
]);

/// Midpoints of neighbouring [`VALUES`]: code `q` is the number of those below the normalized
/// element, so that an element on a midpoint gets the lower code.
pub const MIDPOINTS: [f32; 15] = midpoints(&VALUES);

/// The value of each absmax code, ascending: the signed dynamic map of Dettmers (2015), seven
/// decades, each twice as finely divided as the one below, then 0 and 1.
pub const ABSMAX_VALUES: [f32; 256] = {
    let positive: [f32; 127] = of_bits(POSITIVE);
    let mut values = [0.0; 256];
    let mut i = 0;
    while i < positive.len() {
        values[128 + i] = positive[i];
        values[126 - i] = -positive[i];
        i += 1;
    }
    values[255] = 1.0;
    values
};

/// Midpoints of neighbouring [`ABSMAX_VALUES`].
pub const ABSMAX_MIDPOINTS: [f32; 255] = midpoints(&ABSMAX_VALUES);

/// Bits of the map's values between 0 and 1, ascending. They are bitsandbytes', whose binary32
/// arithmetic the decimal formula does not give.
#[rustfmt::skip]
const POSITIVE: [u32; 127] = [
    0x3513a3b7, 0x365a1a94, 0x370205ff, 0x37b24206, 0x38378034, 0x388aefb3, 0x38ba1f4b, 0x3923d70b,
    0x398ce705, 0x39c7e283, 0x3a016f01, 0x3a1eecc1, 0x3a3c6a80, 0x3a59e83e, 0x3a7765ff, 0x3aa7ef9d,
    0x3af1a9fc, 0x3b1db22d, 0x3b428f5c, 0x3b676c8a, 0x3b8624dd, 0x3b989374, 0x3bab020d, 0x3bbd70a4,
    0x3bcfdf3b, 0x3be24dd3, 0x3bf4bc6a, 0x3c039581, 0x3c0ccccd, 0x3c160418, 0x3c1f3b64, 0x3c3ae148,
    0x3c68f5c3, 0x3c8b851f, 0x3ca28f5d, 0x3cb9999a, 0x3cd0a3d7, 0x3ce7ae15, 0x3cfeb852, 0x3d0ae148,
    0x3d166667, 0x3d21eb85, 0x3d2d70a3, 0x3d38f5c3, 0x3d447ae1, 0x3d500000, 0x3d5b851f, 0x3d670a3d,
    0x3d728f5d, 0x3d7e147b, 0x3d84cccd, 0x3d8a8f5d, 0x3d9051eb, 0x3d96147b, 0x3d9bd70a, 0x3da1999a,
    0x3da75c2a, 0x3dad1eb8, 0x3db2e148, 0x3db8a3d7, 0x3dbe6667, 0x3dc428f7, 0x3dc9eb85, 0x3ddb3334,
    0x3df80000, 0x3e0a6666, 0x3e18cccd, 0x3e273333, 0x3e35999a, 0x3e440000, 0x3e526666, 0x3e60cccd,
    0x3e6f3333, 0x3e7d9999, 0x3e860000, 0x3e8d3334, 0x3e946666, 0x3e9b999a, 0x3ea2cccc, 0x3eaa0000,
    0x3eb13333, 0x3eb86666, 0x3ebf999a, 0x3ec6cccc, 0x3ece0000, 0x3ed53333, 0x3edc6666, 0x3ee3999a,
    0x3eeacccc, 0x3ef20000, 0x3ef93332, 0x3f003333, 0x3f03cccc, 0x3f076666, 0x3f0b0000, 0x3f0e999a,
    0x3f123334, 0x3f15cccd, 0x3f196666, 0x3f1d0000, 0x3f20999a, 0x3f243334, 0x3f27cccd, 0x3f2b6666,
    0x3f2f0000, 0x3f32999a, 0x3f363334, 0x3f39cccd, 0x3f3d6666, 0x3f410000, 0x3f44999a, 0x3f483333,
    0x3f4bcccd, 0x3f4f6666, 0x3f530000, 0x3f56999a, 0x3f5a3333, 0x3f5dcccd, 0x3f616666, 0x3f650000,
    0x3f68999a, 0x3f6c3333, 0x3f6fcccd, 0x3f736666, 0x3f770000, 0x3f7a999a, 0x3f7e3333,
];

const fn of_bits<const N: usize>(bits: [u32; N]) -> [f32; N] {
    let mut values = [0.0; N];
    let mut i = 0;
    while i < N {
        values[i] = f32::from_bits(bits[i]);
        i += 1;
    }
    values
}

const fn midpoints<const N: usize, const M: usize>(values: &[f32; N]) -> [f32; M] {
    assert!(M + 1 == N);
    let mut out = [0.0; M];
    let mut i = 0;
    while i < M {
        out[i] = (values[i] + values[i + 1]) / 2.0;
        i += 1;
    }
    out
}

/// Blocks of a tensor of `elems` elements, the last of which may be short; as many absmax codes.
pub const fn blocks(elems: usize) -> usize {
    elems.div_ceil(BLOCK_ELEMS)
}

/// The absmax of a block, `value(code) * nested + offset` in f32.
#[inline(always)]
pub fn absmax(code: u8, nested: f32, offset: f32) -> f32 {
    ABSMAX_VALUES[usize::from(code)] * nested + offset
}

/// Packs codes below 16 two a byte, the even element in the high half, into `out`, of `ceil(codes /
/// 2)` bytes; a last low half without an element gets [`ZERO_CODE`], as bitsandbytes pads.
///
/// Always inlined, so that a caller compiled for a wider instruction set gets a wide loop.
#[inline(always)]
pub fn pack(codes: &[u8], out: &mut [u8]) {
    let (pairs, last) = codes.as_chunks::<2>();
    for (byte, [even, odd]) in out.iter_mut().zip(pairs) {
        *byte = even << 4 | odd;
    }
    if let (Some(byte), [even]) = (out.get_mut(pairs.len()), last) {
        *byte = even << 4 | ZERO_CODE;
    }
}

/// Dequantizes the elements from `first` of the flattened tensor: `out[i] = value(q) *
/// absmax[block]` in f32.
///
/// `nibbles` are the whole tensor's; `absmax` starts with the block of element `first`.
///
/// # Panics
/// Where `nibbles` or `absmax` are too short.
pub fn dequantize(nibbles: &[u8], absmax: &[f32], first: usize, out: &mut [f32]) {
    let mut at = first;
    let mut rest = out;
    for &absmax in absmax {
        let block_end = (at / BLOCK_ELEMS + 1) * BLOCK_ELEMS;
        let (run, after) = rest.split_at_mut(rest.len().min(block_end - at));
        let scaled = VALUES.map(|v| v * absmax);
        let mut run = run;
        if at % 2 == 1 && !run.is_empty() {
            run[0] = scaled[usize::from(nibbles[at / 2] & 15)];
            run = &mut run[1..];
            at += 1;
        }
        let (pairs, last) = run.as_chunks_mut::<2>();
        let bytes = &nibbles[at / 2..];
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            *pair = [
                scaled[usize::from(byte >> 4)],
                scaled[usize::from(byte & 15)],
            ];
        }
        if let [last] = last {
            *last = scaled[usize::from(bytes[pairs.len()] >> 4)];
        }
        at = block_end;
        rest = after;
        if rest.is_empty() {
            return;
        }
    }
    assert!(rest.is_empty(), "too few absmax values");
}

/// The definition of [`dequantize`], element by element.
pub fn dequantize_naive(nibbles: &[u8], absmax: &[f32], first: usize, out: &mut [f32]) {
    for (i, out) in (first..).zip(out) {
        let byte = nibbles[i / 2];
        let q = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
        *out = VALUES[usize::from(q)] * absmax[i / BLOCK_ELEMS - first / BLOCK_ELEMS];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tables_ascend_and_are_signed_maps() {
        assert!(VALUES.is_sorted() && ABSMAX_VALUES.is_sorted() && MIDPOINTS.is_sorted());
        assert_eq!(VALUES[usize::from(ZERO_CODE)], 0.0);
        assert_eq!((VALUES[0], VALUES[15]), (-1.0, 1.0));
        assert_eq!((ABSMAX_VALUES[127], ABSMAX_VALUES[255]), (0.0, 1.0));
        // Decade i of the map is divided into 2^i parts, whose centres it holds.
        let mut code = 128;
        for decade in 0..7 {
            let parts = 1 << decade;
            for part in 0..parts {
                let centre = (0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts))
                    * 10f64.powi(decade - 6);
                let value = f64::from(ABSMAX_VALUES[code]);
                // Four roundings in binary32 each cost at most 2^-24 of a value of up to 1, ten
                // times the centre.
                assert!(
                    (value / centre - 1.0).abs() < 4.0 * 10.0 * 2f64.powi(-24),
                    "{code}"
                );
                assert_eq!(ABSMAX_VALUES[254 - code], -ABSMAX_VALUES[code]);
                code += 1;
            }
        }
        assert_eq!(code, 255);
    }

    #[test]
    fn the_even_element_is_in_the_high_half() {
        let mut bytes = [0; 2];
        pack(&[1, 2, 15], &mut bytes);
        assert_eq!(bytes, [0x12, 0xf7]);
    }

    proptest! {
        #[test]
        fn packs_and_dequantizes(codes in prop::collection::vec(0u8..16, 1..300), cut in 0usize..300) {
            let mut bytes = vec![0; codes.len().div_ceil(2)];
            pack(&codes, &mut bytes);
            let first = cut % codes.len();
            let absmax: Vec<f32> = (0..blocks(codes.len())).map(|b| 0.3 + b as f32).collect();
            let expected: Vec<f32> = (first..codes.len())
                .map(|i| VALUES[usize::from(codes[i])] * absmax[i / BLOCK_ELEMS])
                .collect();
            for dequantize in [dequantize, dequantize_naive] {
                let mut out = vec![f32::NAN; codes.len() - first];
                dequantize(&bytes, &absmax[first / BLOCK_ELEMS..], first, &mut out);
                prop_assert_eq!(&out, &expected);
            }
        }
    }
}
