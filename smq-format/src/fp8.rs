//! FP8 E4M3FN: 1 sign, 4 exponent and 3 mantissa bits, largest value 448, no infinities, NaN where
//! all the other bits are set (OCP 8-bit Floating Point Specification, 2023; `spec/format.md`).

/// The largest finite value.
pub const MAX: f32 = 448.0;

/// The value of each code.
pub const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = value(code as u8);
        code += 1;
    }
    values
};

const fn value(code: u8) -> f32 {
    let (field, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as u32);
    let magnitude = match field {
        0 => mantissa as f32 / 512.0, // a multiple of 2^-9
        15 if mantissa == 7 => f32::NAN,
        _ => f32::from_bits((field + 127 - 7) << 23 | mantissa << 20),
    };
    if code >= 128 { -magnitude } else { magnitude }
}

/// Whether `code` is one of the two NaNs.
#[inline(always)]
pub const fn is_nan(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// The nearest code, half to even; magnitudes over [`MAX`] become it, and NaN becomes NaN.
///
/// Always inlined and without branches, so that a caller compiled for a wider instruction set gets
/// a wide loop.
#[inline(always)]
pub fn encode(v: f32) -> u8 {
    const SMALLEST_NORMAL: u32 = (127 - 6) << 23;
    // 2^14's unit in the last place is 2^-9, the step of the subnormal codes: adding it rounds to
    // that.
    const ROUND: f32 = 16384.0;
    let bits = v.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    let saturated = magnitude.min(MAX.to_bits());
    let subnormal = (f32::from_bits(saturated) + ROUND).to_bits() - ROUND.to_bits();
    let half_even = saturated + 0x7_ffff + (saturated >> 20 & 1);
    let normal = (half_even >> 20).wrapping_sub((127 - 7) << 3);
    let code = if saturated < SMALLEST_NORMAL {
        subnormal
    } else {
        normal
    };
    let nan = magnitude > f32::INFINITY.to_bits();
    sign | if nan { 0x7f } else { code as u8 }
}

/// The definition of [`encode`]: of all codes, the nearest, and of two such the even one.
pub fn encode_naive(v: f32) -> u8 {
    if v.is_nan() {
        return if v.is_sign_negative() { 0xff } else { 0x7f };
    }
    let magnitude = f64::from(v.abs().min(MAX));
    let distance = |code: &u8| (f64::from(VALUES[usize::from(*code)]) - magnitude).abs();
    let nearest = (0..0x7f).min_by(|a, b| {
        let nearer = distance(a).total_cmp(&distance(b));
        nearer.then((a % 2).cmp(&(b % 2)))
    });
    nearest.unwrap_or(0) | (u8::from(v.is_sign_negative()) << 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values() {
        let cases = [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 7.0 * 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x39, 1.125),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb8, -1.0),
        ];
        for (code, value) in cases {
            assert_eq!(VALUES[code], value, "{code:#x}");
        }
        assert!(VALUES[0x7f].is_nan() && VALUES[0xff].is_nan());
        assert_eq!(VALUES.iter().filter(|v| v.is_finite()).count(), 254);
    }

    /// Every code, every midpoint and their neighbours in f32, the ends, and both signs.
    #[test]
    fn encodes_to_the_nearest() {
        let mut cases = vec![
            0.0,
            f32::MIN_POSITIVE,
            1e-45,
            463.9,
            464.0,
            465.0,
            1e30,
            f32::INFINITY,
            f32::NAN,
        ];
        for code in 0..0x7eusize {
            let (low, high) = (VALUES[code], VALUES[code + 1]);
            let middle = (low + high) / 2.0;
            cases.extend([low, high, middle, middle.next_up(), middle.next_down()]);
        }
        for v in cases.into_iter().flat_map(|v| [v, -v]) {
            assert_eq!(encode(v), encode_naive(v), "{v}");
        }
        for code in (0..=255u8).filter(|c| !is_nan(*c)) {
            assert_eq!(encode(VALUES[usize::from(code)]), code);
        }
        assert_eq!((encode(1e30), encode(f32::NEG_INFINITY)), (0x7e, 0xfe));
    }

    proptest! {
        #[test]
        fn encodes_as_the_definition(bits in any::<u32>()) {
            let v = f32::from_bits(bits);
            prop_assert_eq!(encode(v), encode_naive(v));
        }
    }
}
