//! A second dequantizer, bit by bit from `spec/format.md`, to compare the library's with.

use half_free::{bf16, f16};
use smq_format::scale::ScaleFormat;
use smq_format::{Dtype, Scheme, TensorData, TensorView, nf4};

/// Every element of a tensor, or `None` where a scale or an element is invalid.
pub fn dequantize(tensor: &TensorView) -> Option<Vec<f32>> {
    match tensor.data() {
        TensorData::Raw { dtype, bytes } => Some(match dtype {
            Dtype::Bf16 => bytes.chunks(2).map(|b| bf16([b[0], b[1]])).collect(),
            Dtype::F16 => bytes.chunks(2).map(|b| f16([b[0], b[1]])).collect(),
            Dtype::F32 => {
                let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                bytes.chunks(4).map(four).collect()
            }
        }),
        TensorData::Int4 {
            nibbles,
            scales,
            group,
        }
        | TensorData::Lut4 {
            nibbles,
            scales,
            group,
            ..
        } => {
            let &[rows, columns] = tensor.shape() else {
                return None;
            };
            let groups = columns.div_ceil(group);
            let width = scales.format.width_bits() as usize;
            let mut values = Vec::new();
            for i in 0..rows * groups {
                let code = (0..width).fold(0u64, |code, b| {
                    let at = i * width + b;
                    code | u64::from(scales.stream[at / 8] >> (at % 8) & 1) << b
                });
                values.push(scale(scales.format, code as u32)?);
            }
            let mut out = Vec::with_capacity(rows * columns);
            for row in 0..rows {
                for column in 0..columns {
                    let byte = nibbles[row * columns.div_ceil(2) + column / 2];
                    let nibble = i32::from(byte >> (4 * (column % 2)) & 15);
                    let q = match tensor.scheme() {
                        Scheme::Lut4 { levels, .. } => i32::from(levels.bytes()[nibble as usize]),
                        Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => {
                            (nibble ^ 8) - 8
                        }
                    };
                    out.push(q as f32 * values[row * groups + column / group]);
                }
            }
            Some(out)
        }
        TensorData::Nf4 { nibbles, scales } => {
            let elems: usize = tensor.shape().iter().product();
            let nested: Vec<f32> = scales.nested_absmax.chunks(4).map(single).collect();
            if !nested.iter().all(|v| v.is_finite()) {
                return None;
            }
            let element = |i: usize| {
                let map = nf4::ABSMAX_VALUES[usize::from(scales.absmax[i / 64])];
                let product = map * nested[i / (64 * 256)];
                let absmax = product + scales.offset;
                let shift = if i % 2 == 0 { 4 } else { 0 };
                nf4::VALUES[usize::from(nibbles[i / 2] >> shift & 15)] * absmax
            };
            Some((0..elems).map(element).collect())
        }
        TensorData::Fp8 { codes, scales } => {
            let &[rows, columns] = tensor.shape() else {
                return None;
            };
            let mut out = Vec::with_capacity(rows * columns);
            for row in 0..rows {
                let scale = single(&scales.bytes[4 * row..4 * row + 4]);
                for code in &codes[row * columns..(row + 1) * columns] {
                    if !scale.is_finite() {
                        return None;
                    }
                    out.push(e4m3(*code)? * scale);
                }
            }
            Some(out)
        }
    }
}

fn single(b: &[u8]) -> f32 {
    f32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn e4m3(code: u8) -> Option<f32> {
    let (field, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match field {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        15 if mantissa == 7.0 => return None,
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(field - 7),
    };
    Some(
        (if code >> 7 == 1 {
            -magnitude
        } else {
            magnitude
        }) as f32,
    )
}

/// The formula of the specification in f64, where every step is exact.
fn scale(format: ScaleFormat, code: u32) -> Option<f32> {
    let value = match format {
        ScaleFormat::F32 => f32::from_bits(code),
        ScaleFormat::F16 => f16((code as u16).to_le_bytes()),
        ScaleFormat::Mini(mini) => {
            let (e, x) = (mini.exponent_bits(), mini.mantissa_bits());
            let mantissa = f64::from(code & ((1 << x) - 1));
            let field = (code >> x & ((1 << e) - 1)) as i32;
            let negative = code >> (e + x) & 1 == 1;
            let exponent = field - i32::from(mini.bias());
            if code == 0 {
                return Some(0.0);
            }
            if field == 0 || exponent < -126 {
                return None;
            }
            let magnitude = 2f64.powi(exponent) * (1.0 + mantissa / 2f64.powi(x as i32));
            (if negative { -magnitude } else { magnitude }) as f32
        }
    };
    value.is_finite().then_some(value)
}

/// The two 16-bit formats without a library.
mod half_free {
    pub fn bf16(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }

    pub fn f16(bytes: [u8; 2]) -> f32 {
        let bits = u16::from_le_bytes(bytes);
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(-24),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            e => (1.0 + mantissa / 1024.0) * 2f64.powi(e - 15),
        };
        (if bits >> 15 == 1 {
            -magnitude
        } else {
            magnitude
        }) as f32
    }
}
