//! A row of the cache, a head's keys or values of one token: into its bits and back.

use half::bf16;
use smq_format::fp8;
use smq_format::scale::{MiniFloat, Zero, round_mantissa};

use super::{INT4_GROUP, KvCode};
use crate::linear::Isa;
use crate::linear::lanes::{Lanes, dispatch};

/// Bytes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bytes {
    pub(crate) codes: usize,
    pub(crate) scales: usize,
}

/// The scale of a row, or of a group, of which an element is not finite.
const NOT_FINITE: u8 = 255;
/// The same in int4, where this code means nothing otherwise.
const NOT_FINITE_INT4: u8 = 1;
/// A bf16's bits without its sign, of infinity.
const INFINITE: u16 = 0x7f80;
/// The least exponent of a row's scale: no value of a code is subnormal under it.
const LEAST_EXPONENT: i32 = 10;
/// Mantissa bits of an int4 group's scale, and its bias.
const MANTISSA: u32 = 2;
const BIAS: i16 = 21;

/// Writes a row's codes and scales, of lengths that [`KvCode::row`] says.
pub(crate) fn encode(format: KvCode, row: &[f32], codes: &mut [u8], scales: &mut [u8]) {
    match format {
        KvCode::Bf16 => {
            for (to, v) in codes.chunks_exact_mut(2).zip(row) {
                to.copy_from_slice(&bf16::from_f32(*v).to_le_bytes());
            }
        }
        KvCode::Fp8 => {
            let scale = row_scale(row, |field, mantissa| field - 8 + i32::from(mantissa > 96));
            scales[0] = scale;
            encode_scaled(row, scale, codes, fp8::encode);
        }
        KvCode::Int8 => {
            let scale = row_scale(row, |field, _| field - 6);
            scales[0] = scale;
            let code = |v: f32| v.round_ties_even().clamp(-127.0, 127.0) as i8;
            encode_scaled(row, scale, codes, |v| code(v).cast_unsigned());
        }
        KvCode::Int4 => {
            let codes = codes.chunks_mut(INT4_GROUP / 2);
            for ((group, codes), scale) in row.chunks(INT4_GROUP).zip(codes).zip(scales) {
                *scale = encode_group(group, codes);
            }
        }
    }
}

/// What every format but f32 begins with.
fn rounded(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// The largest magnitude of a row, rounded: a bf16's bits without its sign.
fn largest(row: &[f32]) -> u16 {
    let magnitude = |v: &f32| bf16::from_f32(*v).to_bits() & 0x7fff;
    row.iter().map(magnitude).max().unwrap_or(0)
}

/// The biased exponent of a row's scale, `of` the exponent field and the mantissa of its largest
/// magnitude.
fn row_scale(row: &[f32], of: impl Fn(i32, i32) -> i32) -> u8 {
    let largest = largest(row);
    if largest >= INFINITE {
        return NOT_FINITE;
    }
    // A finite magnitude's field is at most 254, and `of` takes 6 off it.
    of(i32::from(largest >> 7), i32::from(largest & 127)).max(LEAST_EXPONENT) as u8
}

/// Writes the code of each element over the row's scale, or zeros where it is not finite.
fn encode_scaled(row: &[f32], scale: u8, codes: &mut [u8], code: impl Fn(f32) -> u8) {
    if scale == NOT_FINITE {
        return codes.fill(0);
    }
    // One over the scale, exactly.
    let inverse = f32::from_bits((254 - u32::from(scale)) << 23);
    for (to, v) in codes.iter_mut().zip(row) {
        *to = code(rounded(*v) * inverse);
    }
}

fn group_scales() -> Option<MiniFloat> {
    MiniFloat::new(5, MANTISSA, BIAS)
}

/// Writes the nibbles of a group of int4 and returns its scale.
fn encode_group(group: &[f32], codes: &mut [u8]) -> u8 {
    codes.fill(0);
    if largest(group) >= INFINITE {
        return NOT_FINITE_INT4;
    }
    let larger = |best: f32, v: f32| if v.abs() > best.abs() { v } else { best };
    let largest = group.iter().copied().map(rounded).fold(0.0, larger);
    let scale = round_mantissa(largest / -8.0, MANTISSA, Zero::Nearest);
    // The format's parameters are constants within its bounds.
    let code = group_scales().map_or(0, |scales| scales.encode(scale).code) as u8;
    let scale = INT4_SCALES[usize::from(code)];
    if scale == 0.0 {
        return code;
    }
    for (i, v) in group.iter().enumerate() {
        let q = (rounded(*v) / scale).round_ties_even().clamp(-8.0, 7.0) as i8;
        codes[i / 2] |= (q.cast_unsigned() & 15) << (4 * (i % 2));
    }
    code
}

/// The value of each code of an int4 group's scale.
static INT4_SCALES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 1;
    while code < 256 {
        let magnitude = code as u32 & 127;
        let bits = (magnitude << (23 - MANTISSA)) + ((127 - BIAS as u32) << 23);
        values[code] = match (magnitude >> MANTISSA, code as u8) {
            (0, NOT_FINITE_INT4) => f32::NAN,
            (0, _) => 0.0,
            _ => f32::from_bits(bits | (code as u32 & 128) << 24),
        };
        code += 1;
    }
    values
};

/// Widens rows of `d` elements, one after another in `codes` and `scales`, into `out`.
pub(crate) fn decode(format: KvCode, d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    let Bytes {
        codes: width,
        scales: count,
    } = format.row(d);
    // These are what the kernels' pointer arithmetic relies on.
    assert!(d > 0 && out.len().is_multiple_of(d));
    let rows = out.len() / d;
    assert!(codes.len() == rows * width && scales.len() == rows * count);
    match format {
        KvCode::Bf16 => decode_bf16(Isa::best(), codes, out),
        KvCode::Fp8 => decode_fp8(Isa::best(), d, codes, scales, out),
        KvCode::Int8 => decode_int8(Isa::best(), d, codes, scales, out),
        KvCode::Int4 => decode_int4(Isa::best(), d, codes, scales, out),
    }
}

/// A row's scale.
#[inline(always)]
fn scale_of(exponent: u8) -> f32 {
    match exponent {
        NOT_FINITE => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

dispatch! { fn decode_bf16 => bf16_kernel(codes: &[u8], out: &mut [f32]) }
dispatch! { fn decode_fp8 => fp8_kernel(d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) }
dispatch! { fn decode_int8 => int8_kernel(d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) }
dispatch! { fn decode_int4 => int4_kernel(d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) }

// The loops of the first, third and fourth are wide in the functions that `dispatch` makes, by the
// compiler: nothing in them needs more than that.

#[inline(always)]
unsafe fn bf16_kernel<L: Lanes>(codes: &[u8], out: &mut [f32]) {
    for (to, code) in out.iter_mut().zip(codes.chunks_exact(2)) {
        *to = f32::from_bits(u32::from(u16::from_le_bytes([code[0], code[1]])) << 16);
    }
}

#[inline(always)]
unsafe fn fp8_kernel<L: Lanes>(d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    let whole = d / L::COUNT * L::COUNT;
    let rows = out.chunks_exact_mut(d).zip(codes.chunks_exact(d));
    for ((to, codes), exponent) in rows.zip(scales) {
        let scale = scale_of(*exponent);
        // SAFETY: the instruction set is L's, and `at + COUNT` is within both rows.
        unsafe {
            let (zero, all) = (L::splat(0.0), L::splat(scale));
            for at in (0..whole).step_by(L::COUNT) {
                let v = L::fma(L::load_e4m3(codes.as_ptr().add(at)), all, zero);
                L::store(to.as_mut_ptr().add(at), v);
            }
        }
        for (to, code) in to[whole..].iter_mut().zip(&codes[whole..]) {
            *to = fp8::VALUES[usize::from(*code)] * scale;
        }
    }
}

#[inline(always)]
unsafe fn int8_kernel<L: Lanes>(d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    let rows = out.chunks_exact_mut(d).zip(codes.chunks_exact(d));
    for ((to, codes), exponent) in rows.zip(scales) {
        let scale = scale_of(*exponent);
        for (to, code) in to.iter_mut().zip(codes) {
            *to = f32::from(code.cast_signed()) * scale;
        }
    }
}

#[inline(always)]
unsafe fn int4_kernel<L: Lanes>(d: usize, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    let rows = out
        .chunks_exact_mut(d)
        .zip(codes.chunks_exact(d.div_ceil(2)));
    for ((to, codes), scales) in rows.zip(scales.chunks_exact(d.div_ceil(INT4_GROUP))) {
        let groups = to.chunks_mut(INT4_GROUP).zip(codes.chunks(INT4_GROUP / 2));
        for ((to, codes), code) in groups.zip(scales) {
            let scale = INT4_SCALES[usize::from(*code)];
            for (to, pair) in to.chunks_mut(2).zip(codes) {
                to[0] = f32::from((pair << 4).cast_signed() >> 4) * scale;
                if let Some(odd) = to.get_mut(1) {
                    *odd = f32::from(pair.cast_signed() >> 4) * scale;
                }
            }
        }
    }
}
