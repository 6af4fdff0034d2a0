//! The scale formats: `sign | exponent(E) | mantissa(x)` codes with a bias for each tensor, f16 and
//! f32.
//!
//! A code `c` with exponent field `f = (c >> x) & (2^E - 1)` and mantissa `m = c & (2^x - 1)` means
//!
//! ```text
//!     (-1)^sign * 2^(f - bias) * (1 + m / 2^x)      f in 1..2^E - 1
//!     0                                             c = 0, the only valid code with f = 0
//! ```
//!
//! E5Mx is `E = 5`. The arithmetic is `spec/method.md`, the bits `spec/format.md`.

use half::f16;

use crate::choice::ScaleChoice;

/// Widths of a [`MiniFloat`]'s exponent field.
pub const EXPONENT_BITS: std::ops::RangeInclusive<u32> = 2..=8;
/// Widest mantissa of a [`MiniFloat`]: E5M10 has f16's mantissa.
pub const MAX_MANTISSA_BITS: u32 = 10;

/// What `x = 0` does with the mantissa; every wider one rounds half to even.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// Drops it, as the published reference does: `2^e`.
    Truncate,
    /// Rounds it: up above `1.5 * 2^e`, down at the tie (mantissa 0 is even).
    Nearest,
}

/// Rounds a finite `s` to `mantissa_bits` bits of mantissa, half to even with carry into the
/// exponent.
///
/// The exponent is the f32's own. The sign is kept, and a subnormal becomes zero.
#[inline]
pub fn round_mantissa(s: f32, mantissa_bits: u32, zero: Zero) -> f32 {
    let bits = s.to_bits();
    if bits & 0x7f80_0000 == 0 {
        return 0.0;
    }
    let shift = 23 - mantissa_bits.min(23);
    if shift == 0 {
        return s;
    }
    let keep = !((1u32 << shift) - 1);
    if mantissa_bits == 0 && zero == Zero::Truncate {
        return f32::from_bits(bits & keep);
    }
    // With no mantissa bits the last kept bit belongs to the exponent; the mantissa, 0, is even.
    let odd = if mantissa_bits == 0 {
        0
    } else {
        bits >> shift & 1
    };
    f32::from_bits((bits + (1 << (shift - 1)) - 1 + odd) & keep)
}

/// A `sign | exponent | mantissa` code with a bias: E5Mx, and E4M3 or E8M0 for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MiniFloat {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i16,
}

/// A scale's code and whether it had to leave its value for the window's edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// The code, below `2^width_bits`.
    pub code: u32,
    /// The value was non-zero and under the smallest code.
    pub under_window: bool,
}

impl MiniFloat {
    /// `exponent_bits` in 2..=8, `mantissa_bits` in 0..=10, and a bias that keeps the largest code
    /// a normal f32; `None` otherwise.
    pub fn new(exponent_bits: u32, mantissa_bits: u32, bias: i16) -> Option<Self> {
        let widths_ok =
            EXPONENT_BITS.contains(&exponent_bits) && mantissa_bits <= MAX_MANTISSA_BITS;
        (widths_ok && Self::bias_range(exponent_bits).contains(&bias)).then_some(Self {
            exponent_bits,
            mantissa_bits,
            bias,
        })
    }

    /// Biases that put the largest code within f32's normal exponents, -126 to 127.
    pub fn bias_range(exponent_bits: u32) -> std::ops::RangeInclusive<i16> {
        let max_field = (1i16 << exponent_bits.min(8)) - 1;
        max_field - 127..=max_field + 126
    }

    /// The format whose largest exponent field is the exponent of `largest`, the tensor's largest
    /// scale after rounding; where that is zero, bias 0, or the smallest allowed where that is more
    /// (E = 8: 128).
    pub fn for_largest(exponent_bits: u32, mantissa_bits: u32, largest: f32) -> Option<Self> {
        let max_field = (1i16 << exponent_bits.min(8)) - 1;
        let bias = match largest.abs() {
            l if l < f32::MIN_POSITIVE => 0.max(*Self::bias_range(exponent_bits).start()),
            l => max_field - exponent(l) as i16,
        };
        Self::new(exponent_bits, mantissa_bits, bias)
    }

    /// Bits of the exponent field.
    pub fn exponent_bits(self) -> u32 {
        self.exponent_bits
    }

    /// Bits of the mantissa.
    pub fn mantissa_bits(self) -> u32 {
        self.mantissa_bits
    }

    /// The tensor's exponent bias.
    pub fn bias(self) -> i16 {
        self.bias
    }

    /// Bits of one code: sign, exponent and mantissa.
    pub fn width_bits(self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    /// Smallest usable exponent field: 1, or more where that would leave f32's normal range.
    fn min_field(self) -> i32 {
        (i32::from(self.bias) - 126).max(1)
    }

    /// The smallest positive code.
    pub fn smallest(self) -> u32 {
        (self.min_field() as u32) << self.mantissa_bits
    }

    /// The largest positive code.
    pub fn largest(self) -> u32 {
        (1 << (self.exponent_bits + self.mantissa_bits)) - 1
    }

    /// Encodes a value already rounded by [`round_mantissa`] to this mantissa.
    ///
    /// A value under the window becomes zero or the smallest code, whichever is nearer (the
    /// smallest at the midpoint). One over it becomes the largest code, which a bias from
    /// [`Self::for_largest`] rules out.
    #[inline]
    pub fn encode(self, rounded: f32) -> Encoded {
        let magnitude = rounded.abs();
        if magnitude < f32::MIN_POSITIVE {
            return Encoded {
                code: 0,
                under_window: magnitude != 0.0,
            };
        }
        let sign =
            u32::from(rounded.is_sign_negative()) << (self.exponent_bits + self.mantissa_bits);
        let field = exponent(magnitude) + i32::from(self.bias);
        if field < self.min_field() {
            let up = field + 1 == self.min_field(); // at least half of the smallest code
            return Encoded {
                code: if up { sign | self.smallest() } else { 0 },
                under_window: true,
            };
        }
        let mantissa = (rounded.to_bits() & 0x7f_ffff) >> (23 - self.mantissa_bits);
        let code = ((field as u32) << self.mantissa_bits | mantissa).min(self.largest());
        Encoded {
            code: sign | code,
            under_window: false,
        }
    }

    /// The value of a code, or `None` where the code is invalid.
    #[inline]
    pub fn decode(self, code: u32) -> Option<f32> {
        if code == 0 {
            return Some(0.0);
        }
        let magnitude = code & self.largest();
        let field = (magnitude >> self.mantissa_bits) as i32;
        if field < self.min_field() || code >> self.width_bits() != 0 {
            return None;
        }
        let exponent = (field - i32::from(self.bias) + 127) as u32;
        let mantissa = magnitude & ((1 << self.mantissa_bits) - 1);
        let sign = code >> (self.width_bits() - 1) << 31;
        Some(f32::from_bits(
            sign | exponent << 23 | mantissa << (23 - self.mantissa_bits),
        ))
    }
}

/// `floor(log2(v))` of a positive normal f32, from its bits.
#[inline]
fn exponent(v: f32) -> i32 {
    (v.to_bits() >> 23 & 0xff) as i32 - 127
}

/// How the scales of an int4 or lut4 tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleFormat {
    /// Codes of a small float, packed without gaps: `int4-e5mx` and `lut4-e5mx`.
    Mini(MiniFloat),
    /// `int4-f16`, `lut4-f16`: IEEE half precision.
    F16,
    /// Single precision, which rounds nothing: `int4-f32` and `lut4-f32`.
    F32,
}

impl ScaleFormat {
    /// Bits of one stored scale.
    pub fn width_bits(self) -> u32 {
        ScaleChoice::from(self).width_bits()
    }

    /// Encodes a finite scale (already rounded, for [`ScaleFormat::Mini`]).
    #[inline]
    pub fn encode(self, scale: f32) -> Encoded {
        match self {
            ScaleFormat::Mini(m) => m.encode(scale),
            ScaleFormat::F16 => {
                let code = u32::from(f16::from_f32(scale).to_bits());
                Encoded {
                    code: if code == 0x8000 { 0 } else { code },
                    under_window: scale != 0.0 && code & 0x7c00 == 0,
                }
            }
            ScaleFormat::F32 => Encoded {
                code: scale.to_bits(),
                under_window: false,
            },
        }
    }

    /// The value of a stored code; `None` where the code is invalid or not finite.
    #[inline]
    pub fn decode(self, code: u32) -> Option<f32> {
        let value = match self {
            ScaleFormat::Mini(m) => m.decode(code)?,
            ScaleFormat::F16 => f16::from_bits(code as u16).to_f32(),
            ScaleFormat::F32 => f32::from_bits(code),
        };
        value.is_finite().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The formula of `spec/method.md` in f64, where every step is exact.
    fn round_naive(s: f32, mantissa_bits: u32, zero: Zero) -> f32 {
        if s == 0.0 || s.is_subnormal() {
            return 0.0;
        }
        let mut e = f64::from(s.abs()).log2().floor() as i32;
        if f64::from(s.abs()) < 2f64.powi(e) {
            e -= 1; // log2 rounded up
        }
        let steps = 2f64.powi(mantissa_bits as i32);
        let fraction = (f64::from(s.abs()) / 2f64.powi(e) - 1.0) * steps;
        let kept = match (mantissa_bits, zero) {
            (0, Zero::Truncate) => 0.0,
            _ => fraction.round_ties_even(),
        };
        ((1.0 + kept / steps) * 2f64.powi(e)).copysign(f64::from(s)) as f32
    }

    #[test]
    fn rounding_by_hand() {
        let cases = [
            (1.5, 0, Zero::Truncate, 1.0),
            (1.999, 0, Zero::Truncate, 1.0),
            (1.5, 0, Zero::Nearest, 1.0),
            (1.51, 0, Zero::Nearest, 2.0),
            (3.0, 0, Zero::Nearest, 2.0), // odd exponent: the tie is still even in the mantissa
            (1.25, 1, Zero::Truncate, 1.0),
            (1.75, 1, Zero::Truncate, 2.0),
            (1.0 + 1.0 / 64.0, 5, Zero::Truncate, 1.0),
            (1.0 + 3.0 / 64.0, 5, Zero::Truncate, 1.0625),
            (-1.76, 1, Zero::Truncate, -2.0),
            (0.0, 5, Zero::Truncate, 0.0),
        ];
        for (s, bits, zero, expected) in cases {
            assert_eq!(
                round_mantissa(s, bits, zero),
                expected,
                "{s} at {bits} bits"
            );
        }
    }

    #[test]
    fn code_widths_are_the_published_ones() {
        let widths = [0, 3, 5].map(|x| MiniFloat::new(5, x, 0).unwrap().width_bits());
        assert_eq!(widths, [6, 9, 11]);
    }

    #[test]
    fn every_code_decodes_to_itself_or_is_refused() {
        for (e, x) in [
            (5, 0),
            (5, 1),
            (5, 3),
            (5, 5),
            (5, 7),
            (5, 10),
            (4, 3),
            (8, 0),
        ] {
            for bias in [0, 31, 20, -40, 150] {
                let Some(format) = MiniFloat::new(e, x, bias) else {
                    continue;
                };
                for code in 0..1u32 << format.width_bits() {
                    match format.decode(code) {
                        Some(value) => {
                            assert!(value == 0.0 || value.is_normal());
                            let again = format.encode(value);
                            assert_eq!(
                                again,
                                Encoded {
                                    code,
                                    under_window: false
                                }
                            );
                        }
                        None => assert!((code & format.largest()) < format.smallest()),
                    }
                }
            }
        }
    }

    #[test]
    fn window_is_31_binades_and_its_edge_rounds_to_the_nearer() {
        let format = MiniFloat::for_largest(5, 5, 1.0).unwrap();
        assert_eq!(format.bias(), 31);
        let smallest = 2f32.powi(-30);
        assert_eq!(format.decode(format.smallest()), Some(smallest));
        let under = |s: f32| (format.encode(s).code, format.encode(s).under_window);
        assert_eq!(under(smallest), (format.smallest(), false));
        assert_eq!(under(smallest * 0.75), (format.smallest(), true));
        assert_eq!(under(smallest * 0.5), (format.smallest(), true));
        assert_eq!(under(smallest * 0.484375), (0, true));
        assert_eq!(under(0.0), (0, false));
    }

    #[test]
    fn negative_zero_never_becomes_a_code() {
        assert_eq!(ScaleFormat::F16.encode(-1e-12).code, 0);
        assert_eq!(MiniFloat::new(5, 5, 0).unwrap().encode(-0.0).code, 0);
        assert_eq!(MiniFloat::new(5, 5, 0).unwrap().decode(1 << 10), None);
    }

    #[test]
    fn codes_that_are_not_finite_are_refused() {
        assert_eq!(ScaleFormat::F16.decode(0x7c00), None);
        assert_eq!(ScaleFormat::F32.decode(f32::NAN.to_bits()), None);
    }

    proptest! {
        #[test]
        fn rounds_like_the_formula(bits in 0x0080_0000u32..0x7f00_0000, x in 0u32..=10, nearest: bool, negative: bool) {
            let s = f32::from_bits(bits | u32::from(negative) << 31);
            let zero = if nearest { Zero::Nearest } else { Zero::Truncate };
            prop_assert_eq!(round_mantissa(s, x, zero), round_naive(s, x, zero));
        }

        #[test]
        fn error_is_half_a_step(s in 1e-9f32..1e9, x in 1u32..=10) {
            let rounded = round_mantissa(s, x, Zero::Truncate);
            prop_assert!((rounded - s).abs() <= s * 2f32.powi(-(x as i32) - 1));
        }

        #[test]
        fn in_the_window_a_code_holds_the_rounded_value(s in 1e-6f32..1.0, x in 0u32..=10) {
            let rounded = round_mantissa(s, x, Zero::Truncate);
            let format = MiniFloat::for_largest(5, x, 1.0).unwrap();
            prop_assert_eq!(format.decode(format.encode(rounded).code), Some(rounded));
        }
    }
}
