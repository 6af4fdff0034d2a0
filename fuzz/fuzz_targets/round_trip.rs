//! Writes an arbitrary file, opens it, verifies it, and dequantizes what was written.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use smq_convert::{LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::{Dtype, Error, Levels, Provenance, Scheme, SmqFile, SmqWriter, bits, int4};
use smq_fuzz::scratch;

#[derive(Debug, Arbitrary)]
struct Input {
    files: Vec<(String, Vec<u8>)>,
    parameters: Vec<(String, String)>,
    producer: String,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Arbitrary)]
struct Tensor {
    name: String,
    kind: Kind,
}

#[derive(Debug, Arbitrary)]
enum Kind {
    /// Elements as they are.
    Raw {
        dtype: u8,
        shape: Vec<u8>,
        fill: Vec<u8>,
    },
    /// Codes and scales, any that the format has.
    Codes {
        matrix: Matrix,
        scales: Scales,
        codes: Vec<i8>,
    },
    /// Weights through the quantizer.
    Weights {
        matrix: Matrix,
        choice: Choice,
        rule: u8,
        dtype: u8,
        fill: Vec<u8>,
    },
}

#[derive(Debug)]
struct Matrix {
    rows: usize,
    columns: usize,
    group: usize,
}

impl<'a> Arbitrary<'a> for Matrix {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let columns = u.int_in_range(1..=300)?;
        Ok(Matrix {
            rows: u.int_in_range(1..=12)?,
            columns,
            group: match u.int_in_range(0..=3)? {
                0 => u.int_in_range(1..=columns)?,
                1 => 1 << u.int_in_range(0..=20)?,
                _ => u.int_in_range(1..=140)?,
            },
        })
    }
}

#[derive(Debug, Arbitrary)]
enum Scales {
    Mini {
        exponent_bits: u8,
        mantissa_bits: u8,
        bias: u8,
        codes: Vec<u32>,
    },
    F16(Vec<u16>),
    F32(Vec<f32>),
}

#[derive(Debug, Arbitrary)]
enum Choice {
    Mini {
        exponent_bits: u8,
        mantissa_bits: u8,
    },
    F16,
    F32,
}

/// What a tensor must read back as.
struct Written {
    name: String,
    scheme: Scheme,
    values: Vec<f32>,
}

fuzz_target!(|input: Input| {
    let dir = scratch();
    let path = dir.path().join("round_trip.smq");
    let mut writer = SmqWriter::create(&path, true).expect("the scratch file can be written");
    let mut files = Vec::new();
    for (name, contents) in input.files {
        match writer.add_file(&name, &contents) {
            Ok(()) => files.push((name, contents)),
            // A refused name leaves the writer unfinished by contract, so the run ends here.
            Err(Error::Write { .. }) => return,
            Err(other) => panic!("{other}"),
        }
    }
    let mut written: Vec<Written> = Vec::new();
    for Tensor { name, kind } in input.tensors.into_iter().take(6) {
        let added = match kind {
            Kind::Raw { dtype, shape, fill } => raw(&mut writer, &name, dtype, &shape, &fill),
            Kind::Codes {
                matrix,
                scales,
                codes,
            } => coded(&mut writer, &name, &matrix, scales, &codes),
            Kind::Weights {
                matrix,
                choice,
                rule,
                dtype,
                fill,
            } => weights(&mut writer, &name, &matrix, choice, rule, dtype, &fill),
        };
        if let Some((scheme, values)) = added {
            written.push(Written {
                name,
                scheme,
                values,
            });
        }
    }
    let provenance = Provenance {
        parameters: input.parameters.into_iter().collect(),
        producer: input.producer,
        sources: Vec::new(),
    };
    match writer.finish(provenance.clone(), None) {
        Ok(_) => {}
        // Names that the format refuses; the target is as it was.
        Err(Error::Write { .. }) => return,
        Err(other) => panic!("{other}"),
    }

    let file = SmqFile::open(&path).expect("what was written opens");
    assert_eq!(file.verify(|_| ()), [], "what was written verifies");
    assert_eq!(file.index().provenance, provenance);
    assert_eq!(file.index().files.len(), files.len());
    for (name, contents) in &files {
        assert_eq!(file.embedded(name), Some(contents.as_slice()));
    }
    assert_eq!(file.tensors().len(), written.len());
    for (tensor, expected) in file.tensors().zip(&written) {
        assert_eq!(tensor.name(), expected.name);
        assert_eq!(tensor.scheme(), expected.scheme);
        let values = tensor.dequantize().expect("verified codes decode");
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert_eq!(values.len(), expected.values.len());
        assert!(
            values.iter().zip(&expected.values).all(same),
            "tensor {:?}",
            expected.name
        );
    }
});

fn dtype(n: u8) -> Dtype {
    [Dtype::Bf16, Dtype::F16, Dtype::F32][usize::from(n) % 3]
}

/// `length` bytes, `fill` over and over.
fn filled(fill: &[u8], length: usize) -> Vec<u8> {
    let zero = [0];
    let fill = if fill.is_empty() { &zero } else { fill };
    fill.iter().copied().cycle().take(length).collect()
}

fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / dtype.bytes()];
    smq_format::widen(dtype, bytes, &mut out);
    out
}

fn raw(
    writer: &mut SmqWriter,
    name: &str,
    n: u8,
    shape: &[u8],
    fill: &[u8],
) -> Option<(Scheme, Vec<f32>)> {
    let dtype = dtype(n);
    let shape: Vec<usize> = shape.iter().take(9).map(|&d| usize::from(d % 6)).collect();
    let elems: usize = shape.iter().product();
    if elems > 1 << 12 {
        return None;
    }
    let bytes = filled(fill, elems * dtype.bytes());
    let scheme = Scheme::Raw(dtype);
    let added = writer.add_tensor(name, &shape, dtype, scheme, &[&bytes]);
    added.expect("a raw tensor of its shape is accepted; finish checks the rest");
    Some((scheme, widened(dtype, &bytes)))
}

fn coded(
    writer: &mut SmqWriter,
    name: &str,
    &Matrix {
        rows,
        columns,
        group,
    }: &Matrix,
    scales: Scales,
    codes: &[i8],
) -> Option<(Scheme, Vec<f32>)> {
    let (format, raw): (_, Vec<u32>) = match scales {
        Scales::F16(codes) => (ScaleFormat::F16, codes.into_iter().map(u32::from).collect()),
        Scales::F32(codes) => (
            ScaleFormat::F32,
            codes.into_iter().map(f32::to_bits).collect(),
        ),
        Scales::Mini {
            exponent_bits,
            mantissa_bits,
            bias,
            codes,
        } => {
            let e = 2 + u32::from(exponent_bits % 7);
            let range = MiniFloat::bias_range(e);
            let bias = (range.start() + i16::from(bias)).min(*range.end());
            let mini = MiniFloat::new(e, u32::from(mantissa_bits % 11), bias);
            (
                ScaleFormat::Mini(mini.expect("widths and bias are in range")),
                codes,
            )
        }
    };
    let mask = u32::MAX >> (32 - format.width_bits());
    let groups = columns.div_ceil(group);
    // Codes that the format does not have become zero, which it always has.
    let valid = |c: u32| {
        if format.decode(c & mask).is_some() {
            c & mask
        } else {
            0
        }
    };
    let scale_codes: Vec<u32> = if raw.is_empty() {
        vec![0; rows * groups]
    } else {
        raw.into_iter()
            .cycle()
            .take(rows * groups)
            .map(valid)
            .collect()
    };
    let nibble = |i: usize| {
        if codes.is_empty() {
            0
        } else {
            (codes[i % codes.len()] << 4) >> 4
        }
    };
    let q: Vec<i8> = (0..rows * columns).map(nibble).collect();
    let mut nibbles = vec![0; rows * int4::row_bytes(columns)];
    for (row, out) in q
        .chunks(columns)
        .zip(nibbles.chunks_mut(int4::row_bytes(columns)))
    {
        int4::pack_row(row, out);
    }
    let stream = bits::pack(scale_codes.iter().copied(), format.width_bits());
    let book = codes.first().is_some_and(|code| *code < 0);
    let (scheme, value): (_, fn(i8) -> i8) = match book {
        false => {
            let scales = format;
            (Scheme::Int4 { group, scales }, |q| q)
        }
        true => {
            let (scales, levels) = (format, Levels::nf4());
            let scheme = Scheme::Lut4 {
                group,
                scales,
                levels,
            };
            (scheme, |q| Levels::nf4().bytes()[(q & 15) as usize])
        }
    };
    let added = writer.add_tensor(
        name,
        &[rows, columns],
        Dtype::Bf16,
        scheme,
        &[&nibbles, &stream],
    );
    added.expect("a tensor of its shape is accepted; finish checks the rest");
    let values = q.iter().enumerate().map(|(i, &q)| {
        let (row, column) = (i / columns, i % columns);
        let code = scale_codes[row * groups + column / group];
        f32::from(value(q)) * format.decode(code).expect("only valid codes are written")
    });
    Some((scheme, values.collect()))
}

fn weights(
    writer: &mut SmqWriter,
    name: &str,
    &Matrix {
        rows,
        columns,
        group,
    }: &Matrix,
    choice: Choice,
    rule: u8,
    n: u8,
    fill: &[u8],
) -> Option<(Scheme, Vec<f32>)> {
    let dtype = dtype(n);
    let options = QuantizeOptions {
        group,
        scales: match choice {
            Choice::F16 => ScaleChoice::F16,
            Choice::F32 => ScaleChoice::F32,
            Choice::Mini {
                exponent_bits,
                mantissa_bits,
            } => ScaleChoice::Mini {
                exponent_bits: 2 + u32::from(exponent_bits % 7),
                mantissa_bits: u32::from(mantissa_bits % 11),
            },
        },
        rule: {
            use ScaleRule::*;
            [Reference, Nearest, Search, Signed][usize::from(rule) % 4]
        },
    };
    let bytes = filled(fill, rows * columns * dtype.bytes());
    let source = widened(dtype, &bytes);
    let method = match rule / 4 % 4 {
        0 | 1 => Method::Int4(options),
        2 => Method::Lut4 {
            options,
            levels: LevelChoice::Nf4,
        },
        _ => Method::Lut4 {
            options,
            levels: LevelChoice::Learned,
        },
    };
    let quantized = match method.quantize(name, &bytes, dtype, (rows, columns)) {
        Ok(quantized) => quantized,
        // Weights that are not finite, or over what f16 holds.
        Err(_) => return None,
    };
    assert!(
        source.iter().all(|w| w.is_finite()),
        "a weight that is not finite is refused"
    );
    let (format, levels) = match quantized.scheme {
        Scheme::Int4 { scales, .. } => (scales, None),
        Scheme::Lut4 { scales, levels, .. } => (scales, Some(levels.bytes())),
        Scheme::Raw(_) | Scheme::Nf4 { .. } | Scheme::Fp8 => panic!("neither int4 nor lut4"),
    };
    let blobs: Vec<&[u8]> = quantized.blobs.iter().map(Vec::as_slice).collect();
    let added = writer.add_tensor(name, &[rows, columns], dtype, quantized.scheme, &blobs);
    added.expect("what the quantizer made is accepted");
    let groups = columns.div_ceil(group);
    let values = (0..rows * columns).map(|i| {
        let (row, column) = (i / columns, i % columns);
        let byte = quantized.blobs[0][row * int4::row_bytes(columns) + column / 2];
        let (low, high) = int4::unpack(byte);
        let q = if column % 2 == 0 { low } else { high };
        let q = levels.map_or(q, |levels| levels[(q & 15) as usize]);
        let code = bits::code_at(
            &quantized.blobs[1],
            format.width_bits(),
            row * groups + column / group,
        );
        f32::from(q)
            * format
                .decode(code)
                .expect("the quantizer makes valid codes")
    });
    Some((quantized.scheme, values.collect()))
}
